"""Near duplicates by the embeddings of an open_clip model, for `dedup --with embeddings`.

Reads: the pictures of one or two work folders. Writes: WORK/features/embeddings-DIGEST/SHARD.npy,
float16 unit vectors [n, E] of a shard, zero where a picture cannot be read, and manifest.json;
a killed run goes on at the next shard.

Algorithm: faiss finds each picture's `NEIGHBOURS` nearest by inner product, exactly up to `FLAT`
pictures, and with an inverted file of float16 vectors beyond it (2 E bytes a picture: 10 GB for
ten million of 512). Copies in one corpus found so: SSCD (arXiv 2202.10261), SemDeDup
(arXiv 2303.09540).

Shapes: N pictures, n of a shard, B of a batch, E embedding.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from capwright.captions.near import Floats, Ints, Pairs, components
from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.core.run_folder import claim
from capwright.corpus.index import load_shard, shard_sizes
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader, Place, places

NEIGHBOURS = 16
FLAT = 50_000
SEARCH = 4096  # pictures in one call of faiss
LEAST_OF_LIST = 39  # pictures that faiss wants for each list
PROBES = 16  # lists of the inverted file that are searched
THREADS = 4  # that decode
COLUMNS = ("file", "image_offset", "image_size", "image_column")


class EmbeddingLikeness:
    """Which pictures are near by their embeddings, for `dedup`; rows are numbers of pictures."""

    def __init__(
        self, *, work: Path, other: Path | None, model: str, min_similarity: float, batch_size: int
    ) -> None:
        self.limit = 1.0 - min_similarity
        embed = partial(embed_corpus, model=model, batch_size=batch_size)
        self._mine = Vectors(work, embed(work))
        self._others = Vectors(other, embed(other)) if other else None

    def components(self, rows: Ints) -> Ints:
        """Numbers that rows share with those that they may be near to."""
        return components(len(rows), self._pairs(rows))

    def distance(self, left: Ints, right: Ints) -> Floats:
        """1 - cosine of pairs of rows."""
        cosines = [
            (self._mine.take(left[at : at + SEARCH]) * self._mine.take(right[at : at + SEARCH]))
            .sum(1)
            .astype(np.float32)
            for at in range(0, len(left), SEARCH)
        ]
        apart: Floats = np.maximum(1 - np.concatenate(cosines), 0)
        return apart

    def nearest_other(self) -> tuple[Ints, Floats]:
        """For every picture: the nearest of the other set, or -1, and how near it is."""
        assert self._others is not None
        index = _faiss_index(self._others, np.arange(self._others.count))
        nearest = np.full(self._mine.count, -1)
        apart = np.zeros(self._mine.count, np.float32)
        for at, vectors in self._mine.parts(np.arange(self._mine.count)):
            cosine, found = (result[:, 0] for result in index.search(vectors, 1))
            near = np.flatnonzero(1 - cosine <= self.limit)
            nearest[at + near], apart[at + near] = found[near], np.maximum(1 - cosine[near], 0)
        return nearest, apart

    def _pairs(self, rows: Ints) -> Iterator[Pairs]:
        index = _faiss_index(self._mine, rows)
        for at, vectors in self._mine.parts(rows):
            cosine_BK, found_BK = index.search(vectors, min(NEIGHBOURS + 1, len(rows)))
            left_BK = np.broadcast_to(at + np.arange(len(vectors))[:, None], found_BK.shape)
            near_BK = (1 - cosine_BK <= self.limit) & (found_BK > left_BK)
            yield left_BK[near_BK], found_BK[near_BK]


class Vectors:
    """The embeddings of a work folder, memory-mapped, by the number of the picture."""

    def __init__(self, work: Path, folder: Path) -> None:
        sizes = shard_sizes(work)
        self._maps = [np.load(folder / f"{shard}.npy", mmap_mode="r") for shard in sizes]
        self._starts = np.cumsum([0, *sizes.values()])
        self.count = int(self._starts[-1])
        self.width = int(self._maps[0].shape[1])

    def take(self, rows: Ints) -> Floats:
        """The vectors of some pictures, [rows, E]."""
        taken = np.empty((len(rows), self.width), np.float32)
        shard = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(shard).tolist():
            here = shard == number
            taken[here] = self._maps[number][rows[here] - self._starts[number]]
        length = np.linalg.norm(taken, axis=1, keepdims=True)  # float16 is off by 0.0003
        unit: Floats = taken / np.maximum(length, 0.5)  # what could not be read stays zero
        return unit

    def parts(self, rows: Ints) -> Iterator[tuple[int, Floats]]:
        """Batches of the vectors, each with the place of its first row."""
        for at in range(0, len(rows), SEARCH):
            yield at, self.take(rows[at : at + SEARCH])


def embed_corpus(work: Path, *, model: str, batch_size: int) -> Path:
    """Compute the embeddings that are missing; returns their folder."""
    folder = work / "features" / f"embeddings-{digest(model)}"
    claim(folder, {"model": model, "revision": _revision(model)})
    sizes = shard_sizes(work)
    todo = {s: n for s, n in sizes.items() if not (folder / f"{s}.npy").exists()}
    if todo:
        embed = _embedder(model)
        with (
            ByteReader() as reader,
            ThreadPoolExecutor(THREADS) as threads,
            Progress("embeddings", sum(todo.values()), "pictures") as progress,
        ):
            for shard in todo:
                table = load_shard(work, shard, COLUMNS)
                parts = []
                for start in range(0, table.num_rows, batch_size):
                    batch = table.slice(start, batch_size)
                    pictures = list(threads.map(partial(_open, reader), places(batch)))
                    parts.append(embed(pictures))
                    failed = sum(picture is None for picture in pictures)
                    progress.advance(len(pictures), failed=failed)
                with atomic_path(folder / f"{shard}.npy") as temporary, temporary.open("wb") as out:
                    np.save(out, np.concatenate(parts))
    return folder


def _embedder(model: str) -> Any:
    """A function from pictures (None: unreadable) to float16 unit vectors [B, E]."""
    import torch

    from capwright.models import towers
    from capwright.models.devices import pick_device

    device = pick_device("auto")
    tower, preprocess, _ = towers.load(model)
    tower = tower.to(device)
    blank = Image.new("RGB", (32, 32))

    @torch.inference_mode()
    def embed(pictures: Sequence[Image.Image | None]) -> npt.NDArray[np.float16]:
        images_B3HW = torch.stack([preprocess(picture or blank) for picture in pictures])
        vectors_BE = tower.encode_image(images_B3HW.to(device), normalize=True)
        there_B1 = torch.tensor([[picture is not None] for picture in pictures])
        vectors: npt.NDArray[np.float16] = (vectors_BE.float().cpu() * there_B1).half().numpy()
        return vectors

    return embed


def _open(reader: ByteReader, place: Place) -> Image.Image | None:
    from capwright.captions.describe.local_models import not_too_narrow

    try:
        return not_too_narrow(open_picture(reader.read(*place)))
    except PictureError:
        return None


def _revision(model: str) -> str:
    """What tells two checkpoints in one folder apart, "" for a model with a name."""
    from capwright.captions.describe.local_models import folder_revision

    folder = Path(model)
    return folder_revision(folder) if folder.is_dir() else ""


def _faiss_index(vectors: Vectors, rows: Ints) -> Any:
    """An index of some pictures' vectors, numbered from 0."""
    try:
        import faiss
    except ImportError:
        raise CapwrightError(
            "near duplicates by embeddings need faiss, which is not installed: "
            'pip install "capwright[faiss]", or use --with hash'
        ) from None
    if len(rows) <= FLAT:
        index: Any = faiss.IndexFlatIP(vectors.width)
    else:
        lists = max(1, min(int(4 * math.sqrt(len(rows))), len(rows) // LEAST_OF_LIST))
        name = f"IVF{lists},SQfp16"
        index = faiss.index_factory(vectors.width, name, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = PROBES
        sample = np.random.default_rng(0).choice(rows, min(len(rows), 64 * lists), replace=False)
        index.train(vectors.take(np.sort(sample)))
    for _, part in vectors.parts(rows):
        index.add(part)
    return index
