"""Any model that open_clip loads, on the pictures themselves.

Reads: the index and the pictures where it says that they lie. Writes nothing.

A text that is longer than the model's context is read in windows (`windows.py`). Its vector is the
weighted sum of its windows' unit vectors, so that its product with a picture's unit vector is the
weighted mean of the windows' cosines. Texts that are equal are encoded once, sorted by length, so
that short ones are not padded to the longest; pictures are decoded ahead in threads.

Shapes: B pictures, R reference pictures, T texts, W windows, E embedding, L context.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from capwright.captions.describe.local_models import folder_revision, not_too_narrow
from capwright.captions.runner import FAILED
from capwright.captions.score.calibration import shuffled
from capwright.captions.score.judge import (
    BATCH,
    Judge,
    Judged,
    enough_references,
    reference_rows,
)
from capwright.captions.score.windows import windows
from capwright.corpus.index import load_shard, shard_sizes
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader, Place, places
from capwright.models import towers
from capwright.models.devices import pick_device

BLOCK = 1024  # pictures whose texts are encoded together
MAX_SIDE = 768  # pixels of the longer side to which pictures are decoded, and
SIDES = 2  # times the model's own size at least


class OpenClipJudge(Judge):
    """A contrastive model of open_clip, SigLIP included."""

    naming = "a photo of a {}"

    def __init__(
        self, model: str, work: Path, seed: int, device: str = "auto", decode_threads: int = 4
    ) -> None:
        self.name, self.revision = model, revision_of(model)
        self.device = pick_device(device)
        self.model, self.preprocess, self.tokenizer = towers.load(model)
        self.model.to(self.device)
        self.count, self.limit = token_counter(self.tokenizer)
        size = self.model.visual.image_size
        side = max(size) if isinstance(size, tuple | list) else size
        self.max_side = max(MAX_SIDE, SIDES * side)
        self.reader = ByteReader()
        self.decode_threads = decode_threads
        self.reference_RE = self._encode_reference(work, seed)

    @torch.inference_mode()
    def judge_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[Judged]]:
        """See `Judge`."""
        judged: list[list[Judged]] = []
        pictures = self._pictures(places(table))
        for start in range(0, table.num_rows, BLOCK):
            some = texts[start : start + BLOCK]
            unique = list(dict.fromkeys(text for row in some for text in row))
            texts_TE, parts = self._texts(unique)
            calibrations = shuffled(self.reference_RE @ texts_TE.T) if unique else []
            number = {text: i for i, text in enumerate(unique)}
            for row in some:
                vector_E, reason = next(pictures)
                at = [number[text] for text in row]
                similar = (texts_TE[at] @ vector_E).tolist() if at else []
                judged.append(
                    [
                        Judged(0.0, None, parts[t], reason)
                        if reason
                        else Judged(calibrations[t].score(value), value, parts[t])
                        for t, value in zip(at, similar, strict=True)
                    ]
                )
        return judged

    def _pictures(self, where: Sequence[Place]) -> Iterator[tuple[Tensor, str]]:
        """Unit vector [E] of each picture, and why there is none; a batch is decoded ahead."""
        batches = [where[at : at + BATCH] for at in range(0, len(where), BATCH)]
        with ThreadPoolExecutor(self.decode_threads, "decode") as pool:
            ahead = [pool.submit(self._open, place) for place in batches[0]] if batches else []
            for number in range(len(batches)):
                opened = [future.result() for future in ahead]
                following = batches[number + 1] if number + 1 < len(batches) else []
                ahead = [pool.submit(self._open, place) for place in following]
                images = torch.stack([self._blank() if isinstance(o, str) else o for o in opened])
                vectors_BE = self.model.encode_image(images.to(self.device), normalize=True)
                for vector_E, one in zip(vectors_BE.float().cpu(), opened, strict=True):
                    yield vector_E, one if isinstance(one, str) else ""

    def _open(self, place: Place) -> Tensor | str:
        """The picture as the model takes it, or the reason why there is none."""
        try:
            picture = open_picture(self.reader.read(*place), max_side=self.max_side)
        except PictureError as error:
            return FAILED + str(error)
        except (OSError, pa.ArrowException) as error:
            return f"{FAILED}cannot read: {type(error).__name__}"
        pixels: Tensor = self.preprocess(not_too_narrow(picture))
        return pixels

    def _blank(self) -> Tensor:
        pixels: Tensor = self.preprocess(Image.new("RGB", (32, 32)))
        return pixels

    def _texts(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Vector of each text [T, E], and in how many windows it was read."""
        cut = [windows(text, self.limit, self.count) for text in texts]
        parts = sorted(
            ((w.text, w.weight, i) for i, row in enumerate(cut) for w in row),
            key=lambda part: len(part[0]),
        )
        vectors_TE = torch.zeros(len(texts), self.reference_width)
        for at in range(0, len(parts), BATCH):
            some = parts[at : at + BATCH]
            tokens_WL = self.tokenizer([text for text, _, _ in some]).to(self.device)
            encoded = towers.encode_text(self.model, tokens_WL)
            unit_WE = torch.nn.functional.normalize(encoded, dim=-1).float().cpu()
            weight_W = torch.tensor([weight for _, weight, _ in some])
            text_W = torch.tensor([i for _, _, i in some])
            vectors_TE.index_add_(0, text_W, unit_WE * weight_W[:, None])
        return vectors_TE, [len(row) for row in cut]

    @property
    def reference_width(self) -> int:
        """E."""
        return self.reference_RE.shape[1]

    @torch.inference_mode()
    def _encode_reference(self, work: Path, seed: int) -> Tensor:
        where: list[Place] = []
        for shard, rows in reference_rows(shard_sizes(work), seed).items():
            where += places(load_shard(work, shard).take(rows))
        vectors = [vector for vector, reason in self._pictures(where) if not reason]
        return enough_references(torch.stack(vectors) if vectors else torch.zeros(0, 1))


def token_counter(tokenizer: Any) -> tuple[Callable[[str], int], int]:
    """How many tokens of its own a text has, and how many the model's context takes."""
    if hasattr(tokenizer, "encode"):  # open_clip's byte pairs, with a start and an end
        return lambda text: len(tokenizer.encode(text)), tokenizer.context_length - 2
    inner, clean = tokenizer.tokenizer, tokenizer.clean_fn
    special = len(inner("").input_ids)
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        special = 3
    return (
        lambda text: len(inner(clean(text), add_special_tokens=False).input_ids),
        tokenizer.context_length - special,
    )


def revision_of(model: str) -> str:
    """What tells two checkpoints in the same folder apart; "" for a name of open_clip's."""
    folder = Path(model.removeprefix("local-dir:"))
    for candidate in (folder, folder / "checkpoints" / "last"):
        if (candidate / towers.CONFIG_FILE).is_file():
            return folder_revision(candidate.resolve())
    return ""
