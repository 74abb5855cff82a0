"""Stores what CLIP teachers know of augmented pictures and of their captions, once for all runs.

Reads: the index, the pictures, and the sidecars of the stages that write captions. Writes:
WORK/captions/reinforce/SHARD.parquet, for each picture a row without text that holds its
augmentations as parameters and the teachers' embedding of each, then a row for each candidate
caption (`captions/candidates.py`: real ones first) with its embedding; embeddings are bfloat16
(`pretrain/reinforcement.py`). Run: `capwright reinforce CORPUS --work WORK --teacher
ViT-L-14/openai --teacher ViT-L-14/datacomp_xl_s13b_b90k`, the teachers of MobileCLIP.

Algorithm: DataCompDR, of "MobileCLIP: Fast Image-Text Models through Multi-Modal Reinforced
Training" (Vasu et al., arXiv 2311.17049): random resized crops and RandAugment, drawn from (seed,
shard, key); each teacher sees the parameters replayed at its own size (`pretrain/replay.py`), as
the student will at its. `experts/datacompdr.py` writes the same files from the published ones.

Shapes: B views or texts of a forward pass, A augmentations, T texts, H a teacher's side, E a
teacher's embedding, D the embeddings of all teachers side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capwright.captions.candidates import Candidate, candidates, caption_stages
from capwright.captions.describe.local_models import folder_revision
from capwright.captions.runner import (
    FAILED,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    preview,
    run_stage,
    shard_seed,
    stage_folder,
)
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader, Place, places
from capwright.models import towers
from capwright.models.devices import pick_device
from capwright.pretrain.reinforcement import FIELDS, pack
from capwright.pretrain.replay import Augmentation, draw, dump, replay

STAGE = "reinforce"
RUNNING = ("work", "device", "decode_threads")  # say how, not what


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """Which teachers look at what."""

    work: Path
    """The work folder, which holds the index and the captions."""
    teachers: tuple[str, ...]
    """open_clip models: MODEL/TAG, hf-hub:ORG/REPOSITORY, or a checkpoint folder."""
    stages: tuple[str, ...] = ()
    """Stages whose captions are embedded beside the alt text; empty takes those that are there."""
    augmentations: int = 10
    """Views of a picture: 30 in DataCompDR-12M, 10 in DataCompDR-1B."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a crop keeps, torchvision's default."""
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    """Width / height of a crop."""
    operations: int = 2
    """RandAugment's operations on a view."""
    level: float = 0.3
    """Their strength, a share of the greatest; torchvision's magnitude 9 of 30."""
    seed: int = 0
    """Draws the augmentations."""
    batch_size: int = 64
    """Views or texts in one forward pass."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    device: str = "auto"
    """Where the teachers run: auto, cpu, cuda or cuda:N."""
    decode_threads: int = 4
    """Threads that decode and augment pictures."""

    def __post_init__(self) -> None:
        if not self.teachers or not all(self.teachers):
            raise CapwrightError(
                "no teacher is named: give at least one --teacher, such as ViT-L-14/openai"
            )
        for name in ("augmentations", "batch_size", "decode_threads"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if self.operations < 0:
            raise CapwrightError(
                f"operations is {self.operations}: give 0 for crops alone, or 2 as in DataCompDR"
            )
        if not 0 <= self.level <= 1:
            raise CapwrightError(f"level is {self.level}: a strength from 0 to 1, such as 0.3")
        for name, (low, high), top in (
            ("crop_area", self.crop_area, 1.0), ("crop_aspect", self.crop_aspect, np.inf)
        ):  # fmt: skip
            if not 0 < low <= high <= top:
                raise CapwrightError(
                    f"{name} is {(low, high)}: two numbers with 0 < smallest <= largest"
                    + (" <= 1" if top == 1 else "")
                )


def run(config: ReinforceConfig, running: Running | None = None) -> StageSummary:
    """Embed every shard that has no sidecar yet."""
    running = running or Running()
    stages = caption_stages(config.work, config.stages, complete=running.limit is None)
    plan = {name: value for name, value in as_dict(config).items() if name not in RUNNING}
    plan |= {"stages": stages, "revisions": [_revision(name) for name in config.teachers]}
    make = partial(Reinforcer, config, tuple(stages))
    return run_stage(
        config.work, stage_folder(config.work, STAGE), plan, make, running, extra=FIELDS
    )


def dry_run(config: ReinforceConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be given, with the embeddings' sizes for their bytes."""
    stages = caption_stages(config.work, config.stages, complete=False)
    return readable(preview(config.work, partial(Reinforcer, config, tuple(stages)), pictures))


def readable(rows: Rows) -> Rows:
    """Rows for a human: bytes are told by their number."""
    return [
        {k: f"{len(v)} bytes" if isinstance(v, bytes) else v for k, v in row.items()}
        for row in rows
    ]


class _Drawn(NamedTuple):
    """A picture's augmentations and its views by side, uint8 [A, H, H, 3]; or why it has none."""

    augmentations: Sequence[Augmentation] = ()
    views: Mapping[int, NDArray[np.uint8]] = {}
    reason: str = ""


class Reinforcer:
    """Makes the rows of a shard."""

    def __init__(self, config: ReinforceConfig, stages: Sequence[str]) -> None:
        self.config, self.stages = config, stages
        device = pick_device(config.device)
        self.teachers = [Teacher(name, device, config.batch_size) for name in config.teachers]
        self.sides = sorted({teacher.side for teacher in self.teachers})
        self.widths = [teacher.width for teacher in self.teachers]
        self.model = " + ".join(config.teachers)

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """For each picture the row of its augmentations and one for each caption."""
        config = self.config
        found = candidates(config.work, self.stages, table, config.human_field)
        rows: Rows = []
        # so many pictures at a time that their views fill about one forward pass
        step = max(config.decode_threads, config.batch_size // config.augmentations, 1)
        with ByteReader() as reader, ThreadPoolExecutor(config.decode_threads) as threads:
            for start in range(0, table.num_rows, step):
                part = table.slice(start, step)
                keys = part["key"].to_pylist()
                shards = part["shard"].to_pylist()
                make = partial(self._draw, reader)
                drawn = list(threads.map(make, shards, keys, places(part)))
                some = self._rows(keys, drawn, [found[key] for key in keys])
                rows += some
                for one in drawn:
                    if one.reason:
                        progress.failed(one.reason)
                progress.advance(pictures=len(keys), captions=sum(bool(r["text"]) for r in some))
        return rows

    def _draw(self, reader: ByteReader, shard: str, key: str, place: Place) -> _Drawn:
        config = self.config
        try:
            picture = open_picture(reader.read(*place))
        except PictureError as error:
            return _Drawn(reason=str(error))
        rng = np.random.default_rng([config.seed, shard_seed(config.seed, f"{shard}/{key}")])
        augmentations = [
            draw(
                rng,
                *picture.size,
                crop_area=config.crop_area,
                crop_aspect=config.crop_aspect,
                operations=config.operations,
                level=config.level,
            )
            for _ in range(config.augmentations)
        ]
        return _Drawn(
            augmentations, {side: views(picture, augmentations, side) for side in self.sides}
        )

    def _rows(
        self, keys: Sequence[str], drawn: Sequence[_Drawn], captions: Sequence[Sequence[Candidate]]
    ) -> Rows:
        fine = [one for one in drawn if not one.reason]
        images = iter(self._images(fine))
        texts = self._texts([c.text for row in captions for c in row]) if fine else {}
        rows: Rows = []
        for key, one, said in zip(keys, drawn, captions, strict=True):
            base = {"key": key, "model": self.model, "seed": self.config.seed}
            if one.reason:
                reason = FAILED + one.reason
                rows.append(base | {"source": STAGE, "text": "", "keep": False, "reason": reason})
                continue
            rows.append(picture_row(base, one.augmentations, next(images), self.widths))
            rows += [
                base | {"source": c.source, "text": c.text, "text_embedding": texts[c.text]}
                for c in said
            ]
        return rows

    def _images(self, drawn: Sequence[_Drawn]) -> Iterator[bytes]:
        if not drawn:
            return
        embedded = [
            teacher.images(np.concatenate([one.views[teacher.side] for one in drawn]))
            for teacher in self.teachers
        ]
        for image_AD in torch.cat(embedded, dim=1).split([len(d.augmentations) for d in drawn]):
            yield pack(image_AD)

    def _texts(self, texts: Sequence[str]) -> dict[str, bytes]:
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        text_TD = torch.cat([teacher.texts(unique) for teacher in self.teachers], dim=1)
        return {text: pack(row_D) for text, row_D in zip(unique, text_TD, strict=True)}


class Teacher:
    """An open_clip model that embeds views and texts, as unit vectors on the CPU."""

    def __init__(self, name: str, device: torch.device, batch_size: int) -> None:
        self.name, self.device, self.batch_size = name, device, batch_size
        model, _, self.tokenizer = towers.load(name)
        self.model = model.to(device)
        side = open_clip.get_model_preprocess_cfg(self.model)["size"]
        sides = (side, side) if isinstance(side, int) else tuple(side)
        if sides[0] != sides[1]:
            raise CapwrightError(
                f"the teacher {name!r} takes pictures of {sides[0]} x {sides[1]} pixels: "
                "choose one that takes squares"
            )
        self.side = int(sides[0])
        self.mean_std = torch.tensor(
            [towers.image_mean(self.model), towers.image_std(self.model)], device=device
        ).view(2, 3, 1, 1)
        self.width = int(self.texts(["a"]).shape[1])

    @torch.inference_mode()
    def images(self, views_BHH3: NDArray[np.uint8]) -> Tensor:
        """float [B, E]."""
        parts = []
        for part in torch.from_numpy(views_BHH3).split(self.batch_size):
            images_B3HH = part.to(self.device).permute(0, 3, 1, 2).float() / 255
            images_B3HH = (images_B3HH - self.mean_std[0]) / self.mean_std[1]
            parts.append(F.normalize(self.model.encode_image(images_B3HH).float(), dim=-1).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """float [T, E]."""
        parts = []
        for start in range(0, len(texts), self.batch_size):
            tokens_BL = self.tokenizer(list(texts[start : start + self.batch_size]))
            text_BE = towers.encode_text(self.model, tokens_BL.to(self.device))
            parts.append(F.normalize(text_BE.float(), dim=-1).cpu())
        return torch.cat(parts)


def views(
    picture: Image.Image, augmentations: Sequence[Augmentation], side: int
) -> NDArray[np.uint8]:
    """The augmentations of a picture, uint8 [A, H, H, 3]."""
    return np.stack([replay(picture, augmentation, side) for augmentation in augmentations])


def picture_row(
    base: Mapping[str, Any],
    augmentations: Sequence[Augmentation],
    embeddings: bytes,
    widths: Sequence[int],
) -> dict[str, Any]:
    """The sidecar's row of a picture; those of its captions follow it."""
    return {
        **base,
        "source": STAGE,
        "text": "",
        "augmentations": dump(augmentations),
        "image_embeddings": embeddings,
        "widths": list(widths),
    }


def _revision(teacher: str) -> str:
    """What tells two checkpoints in one folder apart, "" for a model with a name."""
    folder = Path(teacher)
    return folder_revision(folder) if folder.is_dir() else ""
