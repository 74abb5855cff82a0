"""The stage around a captioner: pictures are read and decoded ahead, described in batches, and
their captions written as sidecars.

Reads: the index and the pictures where it says that they lie. Writes:
WORK/captions/describe-BACKEND (or describe-BACKEND-long, -regions)/SHARD.parquet.
Run: `capwright describe CORPUS --work WORK --with trained|coca|transformers|openai [--style long]`.

Short captions, long ones and those of regions are different sources of the same picture: GBC (arXiv
2407.06723) trains on all of them. While the captioner works on one batch, threads decode the next.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from PIL import Image

from capwright.captions.describe.protocol import Caption, Describer
from capwright.captions.runner import (
    FAILED,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    preview,
    run_stage,
    stage_folder,
)
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader, Place, places

BACKENDS = ("trained", "coca", "transformers", "openai")
STYLES = ("short", "long", "regions")
EXTRA = (pa.field("tokens", pa.int32()),)


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Which captioner describes the pictures, and how."""

    work: Path
    """The work folder, which holds the index."""
    backend: str
    """One of BACKENDS: the module beside this file."""
    options: Any
    """The `Config` of that module."""
    style: Literal["short", "long", "regions"] = "short"
    """One sentence, several, or one for each of several regions."""
    max_side: int = 768
    """Pictures are decoded to at most so many pixels on the longer side."""
    decode_threads: int = 4
    """Threads that read and decode pictures ahead."""

    def __post_init__(self) -> None:
        _module(self.backend)
        if self.style not in STYLES:
            raise CapwrightError(f"style is {self.style!r}, but must be one of {', '.join(STYLES)}")
        for name in ("max_side", "decode_threads"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")

    @property
    def stage(self) -> str:
        """The stage's name, which is also the captions' source."""
        suffix = "" if self.style == "short" else f"-{self.style}"
        return f"describe-{self.backend}{suffix}"


def default_options(backend: str) -> Any:
    """The captioner's `Config` with its defaults."""
    return _module(backend).Config()


def run(config: DescribeConfig, running: Running | None = None) -> StageSummary:
    """Describe every shard that has no captions of this stage yet."""
    plan = as_dict(config)
    for name in ("work", "decode_threads"):
        del plan[name]
    if hasattr(config.options, "caption_plan"):  # where a server is changes no caption
        plan["options"] = config.options.caption_plan(config.style)
    folder = stage_folder(config.work, config.stage)
    return run_stage(config.work, folder, plan, partial(Worker, config), running, EXTRA)


def dry_run(config: DescribeConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be given; writes nothing."""
    return preview(config.work, partial(Worker, config), pictures)


class Worker:
    """Describes the pictures of a shard; one captioner a worker."""

    def __init__(self, config: DescribeConfig) -> None:
        self.config = config
        self.describer: Describer = _module(config.backend).build(config.options, config.style)
        self.reader = ByteReader()
        self.spent = 0.0

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        pictures = list(zip(table["key"].to_pylist(), places(table), strict=True))
        size = max(1, self.describer.batch_size)
        batches = (pictures[at : at + size] for at in range(0, len(pictures), size))
        rows: Rows = []
        for key, captions in self._described(batches):
            rows += [self._row(key, caption) for caption in captions]
            self._count(captions, progress)
        return rows

    def _described(
        self, batches: Iterator[Sequence[tuple[str, Place]]]
    ) -> Iterator[tuple[str, list[Caption]]]:
        """Captions in the order of the pictures, at most `overlap` batches and one more ahead."""
        overlap = max(1, self.describer.overlap)
        ahead: deque[tuple[list[str], Future[list[list[Caption]]]]] = deque()
        with (
            ThreadPoolExecutor(self.config.decode_threads, "decode") as decoders,
            ThreadPoolExecutor(overlap, "describe") as callers,
        ):
            try:
                for batch in batches:
                    opened = [decoders.submit(self._open, place) for _, place in batch]
                    ahead.append(([key for key, _ in batch], callers.submit(self._ask, opened)))
                    if len(ahead) > overlap:
                        yield from _done(ahead)
                while ahead:
                    yield from _done(ahead)
            except BaseException:
                for pool in (decoders, callers):
                    pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, opened: Sequence["Future[Image.Image | str]"]) -> list[list[Caption]]:
        """Describe the pictures of a batch that could be opened."""
        found = [future.result() for future in opened]
        images = [image for image in found if not isinstance(image, str)]
        described = iter(self.describer.describe(images) if images else [])
        return [
            [Caption(text="", reason=FAILED + image)] if isinstance(image, str) else next(described)
            for image in found
        ]

    def _open(self, place: Place) -> Image.Image | str:
        """The picture, or the reason why there is none."""
        try:
            return open_picture(self.reader.read(*place), max_side=self.config.max_side)
        except PictureError as error:
            return str(error)
        except (OSError, pa.ArrowException) as error:
            return f"cannot read: {type(error).__name__}"

    def _row(self, key: str, caption: Caption) -> dict[str, Any]:
        return {
            "key": key,
            "source": self.config.stage,
            "text": caption.text,
            "model": self.describer.name,
            "revision": self.describer.revision,
            "prompt": caption.prompt,
            "seed": caption.seed,
            "keep": bool(caption.text),
            "reason": caption.reason,
            "box": list(caption.box) if caption.box else None,
            "tokens": caption.tokens,
        }

    def _count(self, captions: Sequence[Caption], progress: ShardProgress) -> None:
        said = [caption for caption in captions if caption.text]
        reason = next((c.reason for c in captions if c.reason.startswith(FAILED)), "")
        if reason and not said:
            progress.failed(reason.removeprefix(FAILED))
        spent = float(getattr(self.describer, "cost", 0.0))
        tokens = sum(caption.tokens for caption in captions)
        progress.advance(pictures=1, captions=len(said), tokens=tokens, cost=spent - self.spent)
        self.spent = spent


def _done(
    ahead: "deque[tuple[list[str], Future[list[list[Caption]]]]]",
) -> Iterator[tuple[str, list[Caption]]]:
    keys, future = ahead.popleft()
    return iter(list(zip(keys, future.result(), strict=True)))


def _module(backend: str) -> Any:
    """The captioner's module; raises CapwrightError where there is none of that name."""
    if backend not in BACKENDS:
        raise CapwrightError(f"backend is {backend!r}, but must be one of {', '.join(BACKENDS)}")
    return import_module(f"capwright.captions.describe.{backend}")
