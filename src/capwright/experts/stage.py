"""The expert stage: every picture is labelled once, and its labels are kept as sidecars.

Reads: the index and the pictures where it says that they lie. Writes:
WORK/captions/experts/SHARD.parquet, rows with an empty text and the columns that
`pretrain/labels.py` describes, and manifest.json with the names of the classes.
Run: `capwright experts CORPUS --work WORK --with segmentation=MODEL --with depth=MODEL`.

A picture is labelled as it is trained on: its shorter side resized, the centre square cut out.
Where experts work (processes, Ray) and how a killed run goes on is `captions/runner.py`.

Shapes: B pictures, S side of the pictures, L side of the labels.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from capwright.captions.describe.local_models import Precision, folder_revision
from capwright.captions.runner import (
    FAILED,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    missing_shards,
    preview,
    run_stage,
    stage_folder,
)
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.corpus.pictures import PictureError, decode_rgb
from capwright.corpus.places import ByteReader, Place, places
from capwright.datasets.labelled import class_names
from capwright.experts.hub import HubExpert, HubModel
from capwright.experts.hub import facts as hub_facts
from capwright.experts.normals import assumed_metres, normals_from_depth
from capwright.experts.protocol import Expert, Facts
from capwright.experts.small import (
    MODEL,
    SmallExpert,
    SmallExpertConfig,
    describe,
    prepare,
    weights_folder,
)
from capwright.models.trunk import revision as trunk_revision
from capwright.pretrain.labels import (
    FIELDS,
    METRIC,
    encode_depth,
    encode_normals,
    encode_segmentation,
)

STAGE = "experts"
TASKS = ("segmentation", "depth")  # that experts have; normals are derived
SCENES, LOCAL = "scenes", "local:"
ENCODE: Mapping[str, Callable[[NDArray[Any]], dict[str, Any]]] = {
    "segmentation": encode_segmentation,
    "depth": encode_depth,
    "normals": encode_normals,
}


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Which experts label the pictures, and how.

    An expert is a model of transformers (hub id or folder), `scenes` (a small one, trained on the
    corpus's own labels) or `local:FOLDER` (a small one that was trained elsewhere).
    """

    work: Path
    """The work folder, which holds the index."""
    segmentation: str = ""
    """Expert for classes; "" is none."""
    depth: str = ""
    """Expert for depth; "" is none."""
    normals: Literal["", "from-depth"] = ""
    """Surface normals: none, or derived from the depth."""
    name: str = STAGE
    """Folder below WORK/captions; `experts`, or `experts-` and a word of yours."""
    size: int = 64
    """Side in pixels of the labels that are kept."""
    picture_size: int = 384
    """Side of the square that models of transformers get."""
    depth_kind: Literal["auto", "metric", "relative"] = "auto"
    """Whether depth is in metres, or inverse without a scale; auto asks the model."""
    field_of_view: float = 60.0
    """Degrees across the square, assumed for normals."""
    far_over_near: float = 10.0
    """Farthest over nearest depth of a picture, assumed for normals from relative depth."""
    max_jump: float = 0.2
    """Neighbouring pixels whose depths differ by a larger share are of different surfaces."""
    segmentation_revision: str = "main"
    """Branch, tag or commit of the segmentation's hub id."""
    depth_revision: str = "main"
    """Branch, tag or commit of the depth's hub id."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model; only for models whose code you have read."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1", for models of transformers."""
    precision: Precision = "auto"
    """Of their weights: "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, fp32 elsewhere."""
    batch_size: int = 16
    """Pictures that are labelled at once."""
    decode_threads: int = 4
    """Threads that read and decode pictures ahead."""
    seed: int = 0
    """Chooses the labelled pictures of `scenes` and seeds its training."""
    small: SmallExpertConfig = field(default_factory=SmallExpertConfig)
    """How `scenes` is trained."""

    def __post_init__(self) -> None:
        if not self.segmentation and not self.depth:
            raise CapwrightError(
                "no expert is named: give --with segmentation=MODEL, --with depth=MODEL or both; "
                "MODEL is a model of transformers, `scenes` or `local:CHECKPOINT`"
            )
        if self.normals and not self.depth:
            raise CapwrightError("normals come from depth: give --with depth=MODEL too")
        if (self.name != STAGE and not self.name.startswith(f"{STAGE}-")) or "/" in self.name:
            raise CapwrightError(
                f"name is {self.name!r}, but must be {STAGE}, or {STAGE}- and a word, such as "
                f"{STAGE}-large"
            )
        for name in ("size", "picture_size", "batch_size", "decode_threads"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 < self.field_of_view < 180:
            raise CapwrightError(
                f"field_of_view is {self.field_of_view}, but must be between 0 and 180 degrees: "
                "try 60"
            )
        if not (self.far_over_near > 1 and self.max_jump > 0):
            raise CapwrightError(
                f"far_over_near is {self.far_over_near} and max_jump {self.max_jump}, but must be "
                "above 1 and above 0: try 10 and 0.2"
            )

    @property
    def tasks(self) -> dict[str, str]:
        """Task to expert."""
        return {task: getattr(self, task) for task in TASKS if getattr(self, task)}

    @property
    def labels(self) -> list[str]:
        """What is kept of a picture."""
        return [*self.tasks, *(["normals"] if self.normals else [])]


def run(config: ExpertsConfig, running: Running | None = None) -> StageSummary:
    """Label every shard that has no labels yet; trains the small expert where it is asked for."""
    found = {task: facts(config, task) for task in config.tasks}
    folder = stage_folder(config.work, config.name)
    if missing_shards(config.work, folder) or (running and running.retry_failed):
        _prepare(config)
    fields = [one for task in config.labels for one in FIELDS[task]]
    make = partial(Worker, config, found)
    return run_stage(config.work, folder, plan(config, found), make, running, fields)


def dry_run(config: ExpertsConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be labelled, in words; trains, but writes no labels."""
    found = {task: facts(config, task) for task in config.tasks}
    _prepare(config)
    worker = partial(Worker, config, found, in_words=True)
    return preview(config.work, worker, pictures)


def plan(config: ExpertsConfig, found: Mapping[str, Facts]) -> dict[str, Any]:
    """What decides the labels; `pretrain/labels.py` reads labels, size, classes and depth_kind."""
    values = as_dict(config)
    for name in ("work", "name", "device", "batch_size", "decode_threads", "depth_kind"):
        del values[name]
    if SCENES not in config.tasks.values():
        del values["small"], values["seed"]
    return {
        **values,
        "labels": config.labels,
        "classes": list(found["segmentation"].classes) if "segmentation" in found else [],
        "depth_kind": found["depth"].depth_kind if "depth" in found else "",
        "revisions": {task: fact.revision for task, fact in found.items()},
    }


def facts(config: ExpertsConfig, task: str) -> Facts:
    """What is known of a task's expert before its weights are read."""
    source = config.tasks[task]
    if source == SCENES:
        classes = class_names(load_index(config.work, ["file"]))
        revision = f"seed {config.seed}, {trunk_revision()}"
        return Facts(name=MODEL, revision=revision, classes=classes, depth_kind=METRIC)
    if source.startswith(LOCAL):
        folder = Path(source.removeprefix(LOCAL))
        classes = tuple(describe(folder)["classes"])
        revision = folder_revision(folder)
        return Facts(name=MODEL, revision=revision, classes=classes, depth_kind=METRIC)
    return hub_facts(_hub_model(config, task), config.depth_kind)


class Worker:
    """Labels the pictures of a shard; each process has its own experts."""

    def __init__(
        self, config: ExpertsConfig, found: Mapping[str, Facts], in_words: bool = False
    ) -> None:
        self.config, self.facts, self.in_words = config, found, in_words
        self.experts = _experts(config, found)
        self.side = max(expert.picture_size for expert, _ in self.experts)
        self.reader = ByteReader()

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        rows: Rows = []
        for keys, opened in self._opened(table):
            good = [pixels for pixels in opened if not isinstance(pixels, str)]
            labelled = iter(self._columns(np.stack(good)) if good else [])
            for key, pixels in zip(keys, opened, strict=True):
                if isinstance(pixels, str):
                    progress.failed(pixels)
                    rows.append({**self._row(key), "keep": False, "reason": FAILED + pixels})
                else:
                    rows.append({**self._row(key), **next(labelled)})
            progress.advance(pictures=len(keys))
        return rows

    def _opened(self, table: pa.Table) -> Iterator[tuple[list[str], list[NDArray[np.uint8] | str]]]:
        """Batches of keys and pixels (or the reason why there are none), one batch read ahead."""
        pictures = list(zip(table["key"].to_pylist(), places(table), strict=True))
        size = self.config.batch_size
        ahead: deque[tuple[list[str], list[Future[NDArray[np.uint8] | str]]]] = deque()
        with ThreadPoolExecutor(self.config.decode_threads, "decode") as decoders:
            try:
                for at in range(0, len(pictures), size):
                    batch = pictures[at : at + size]
                    futures = [decoders.submit(self._open, place) for _, place in batch]
                    ahead.append(([key for key, _ in batch], futures))
                    if len(ahead) > 1:
                        yield _read(ahead)
                while ahead:
                    yield _read(ahead)
            except BaseException:
                decoders.shutdown(wait=False, cancel_futures=True)
                raise

    def _open(self, place: Place) -> NDArray[np.uint8] | str:
        try:
            return decode_rgb(self.reader.read(*place), size=self.side)
        except PictureError as error:
            return str(error)
        except (OSError, pa.ArrowException) as error:
            return f"cannot read: {type(error).__name__}"

    def _columns(self, pixels_BSS3: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """The stage's own columns of each picture."""
        labels: dict[str, NDArray[Any]] = {}
        for expert, tasks in self.experts:
            resized = _resized(pixels_BSS3, expert.picture_size)
            labels |= expert.label(resized, self.config.size, tasks)
        metric = "depth" in labels and self.facts["depth"].depth_kind == METRIC
        if self.config.normals:
            depth = labels["depth"]
            labels["normals"] = normals_from_depth(
                depth if metric else assumed_metres(depth, self.config.far_over_near),
                field_of_view=self.config.field_of_view,
                max_jump=self.config.max_jump,
            )
        if metric:
            labels["depth"] = np.log(labels["depth"])
        if self.in_words:
            return [self._words(labels, i, metric) for i in range(len(pixels_BSS3))]
        return [
            {name: v for task in labels for name, v in ENCODE[task](labels[task][i]).items()}
            for i in range(len(pixels_BSS3))
        ]

    def _words(self, labels: Mapping[str, NDArray[Any]], i: int, metric: bool) -> dict[str, Any]:
        """A picture's labels for a human who wants to know whether the expert sees anything."""
        words: dict[str, Any] = {}
        if "segmentation" in labels:
            counts = np.bincount(labels["segmentation"][i].ravel(), minlength=256)
            names = [*self.facts["segmentation"].classes]
            shares = {names[c]: round(int(counts[c]) / counts.sum(), 3)
                      for c in np.argsort(-counts)[:5] if counts[c] and c < len(names)}  # fmt: skip
            words["segmentation"] = shares
        if "depth" in labels:
            low, middle, high = np.nanquantile(labels["depth"][i], [0.05, 0.5, 0.95])
            values = np.exp([low, middle, high]) if metric else np.array([low, middle, high])
            words["depth"] = {"unit": "m" if metric else "inverse, no unit"} | {
                name: round(float(v), 3)
                for name, v in zip(("5%", "50%", "95%"), values, strict=True)
            }
        if "normals" in labels:
            normals_3LL = labels["normals"][i]
            known_LL = normals_3LL.any(axis=0)
            mean_3 = normals_3LL[:, known_LL].mean(axis=1) if known_LL.any() else np.zeros(3)
            words["normals"] = {
                "known": round(float(known_LL.mean()), 3),
                "mean": [round(float(v), 3) for v in mean_3],
            }
        return words

    def _row(self, key: str) -> dict[str, Any]:
        return {
            "key": key,
            "source": STAGE,
            "text": "",
            "model": ", ".join(f"{task}={fact.name}" for task, fact in self.facts.items()),
            "revision": ", ".join(f"{t}={fact.revision}" for t, fact in self.facts.items()),
            "seed": self.config.seed,
        }


def _prepare(config: ExpertsConfig) -> None:
    if SCENES in config.tasks.values():
        prepare(config.work, config.small, config.seed)


def _experts(
    config: ExpertsConfig, found: Mapping[str, Facts]
) -> list[tuple[Expert, tuple[str, ...]]]:
    """Each expert with its tasks; a small one that has both is run once."""
    made: list[tuple[Expert, tuple[str, ...]]] = []
    for source in dict.fromkeys(config.tasks.values()):
        tasks = tuple(task for task, name in config.tasks.items() if name == source)
        if source == SCENES:
            made.append((SmallExpert(weights_folder(config.work)), tasks))
        elif source.startswith(LOCAL):
            made.append((SmallExpert(Path(source.removeprefix(LOCAL))), tasks))
        else:
            made += [
                (HubExpert(_hub_model(config, task), found[task].depth_kind), (task,))
                for task in tasks
            ]
    return made


def _hub_model(config: ExpertsConfig, task: str) -> HubModel:
    return HubModel(
        task=task,
        name=config.tasks[task],
        revision=getattr(config, f"{task}_revision"),
        trust_remote_code=config.trust_remote_code,
        device=config.device,
        precision=config.precision,
        picture_size=config.picture_size,
    )


def _resized(pixels_BSS3: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """For an expert that wants smaller pictures than another one of the stage."""
    if pixels_BSS3.shape[1] == side:
        return pixels_BSS3
    images = [Image.fromarray(pixels_SS3) for pixels_SS3 in pixels_BSS3]
    return np.stack([np.asarray(i.resize((side, side), Image.Resampling.BICUBIC)) for i in images])


def _read(
    ahead: "deque[tuple[list[str], list[Future[NDArray[np.uint8] | str]]]]",
) -> tuple[list[str], list[NDArray[np.uint8] | str]]:
    keys, futures = ahead.popleft()
    return keys, [future.result() for future in futures]
