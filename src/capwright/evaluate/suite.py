"""Several models on all data sets of a folder: zero-shot, retrieval, dense probes; one JSON a task.

Reads checkpoints and ROOT: ROOT/imagenet, ROOT/flickr30k, ROOT/coco-captions, as
`capwright.datasets` names them; evaluation sets of CLIP_benchmark (folders with SPLIT/nshards.txt)
as ROOT/SET or ROOT/webdataset/SET; and ROOT/scenes with a folder a split (`labelled` or `train` to
learn from, the others to test on). Writes OUT/MODEL/TASK-DATASET.json, a results file, and beside
it .npz with what each picture contributed (outcomes.py). A file that is there is not measured
again; one of another plan is refused. Pictures and texts are embedded once a model (embeddings.py),
whatever the number of tasks, and never lie in memory together.

Run: `capwright evaluate MODEL... --suite all --data ROOT --out OUT`.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from capwright import datasets
from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.datasets.labelled import LabelledScenes
from capwright.datasets.sets import CaptionSet, ClassificationSet
from capwright.datasets.webdataset import is_retrieval
from capwright.evaluate import caption_retrieval, classification, dense_probe, retrieval, zero_shot
from capwright.evaluate.dense_metrics import PROBE_DEPTH, depth_errors
from capwright.evaluate.dense_training import MODES, Mode, Predictions, ProbeRecipe
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.encoder import load_encoder
from capwright.evaluate.outcomes import (
    Outcomes,
    mean_outcomes,
    segmentation_outcomes,
    write_outcomes,
)
from capwright.evaluate.results import Protocol, Result, code_revision, read_results, write_results
from capwright.models import towers

Suite = Literal["zero-shot", "retrieval", "dense", "all"]
SUITES: tuple[Suite, ...] = ("zero-shot", "retrieval", "dense", "all")
SCRATCH = "scratch"  # stands for a checkpoint: fresh weights
SETS = {"zero-shot": ("imagenet",), "retrieval": ("coco-captions", "flickr30k")}
TRAIN = ("labelled", "train")  # splits of the scenes that probes learn from

Measured = tuple[list[Result], list[Outcomes]]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which models on which data."""

    models: tuple[str, ...]  # what `load_encoder` takes, or "scratch"
    data: Path  # folder of data sets
    out: Path  # folder of results
    suite: Suite = "all"
    samples: int | None = None  # first so many pictures of each set; None: all
    modes: tuple[Mode, ...] = MODES  # of the dense probe
    seeds: int = 1  # of the dense probe
    recipe: ProbeRecipe = field(default_factory=ProbeRecipe)  # of the dense probe
    model: str | Mapping[str, Any] = "nano"  # towers of "scratch"
    seed: int = 0  # of its fresh weights
    batch: int = 64  # pictures of one pass
    device: str = "auto"  # auto: a GPU where there is one; the scenes' protocols run on the CPU

    def __post_init__(self) -> None:
        if not self.models or len(set(map(label_of, self.models))) < len(self.models):
            raise CapwrightError(
                f"models {', '.join(self.models) or 'none'}: give at least one, each once"
            )
        if self.suite not in SUITES:
            raise CapwrightError(f"suite {self.suite!r}: allowed are {', '.join(SUITES)}")


@dataclass(frozen=True, kw_only=True)
class SuiteSummary:
    """Metrics by model and task, and which tasks were done before."""

    metrics: Mapping[str, Mapping[str, Any]]  # model, then TASK-DATASET
    measured: int
    skipped: int
    out: Path


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement of a model, in one results file."""

    name: str  # of the file
    plan: Mapping[str, Any]  # what the numbers depend on, beside the model
    measure: Callable[["Model"], Measured]


class Model:
    """A model at work: loaded when the first task needs it."""

    def __init__(self, checkpoint: str, config: SuiteConfig) -> None:
        self.checkpoint = None if checkpoint == SCRATCH else checkpoint
        self.config = config

    @property
    def identity(self) -> Any:
        """What stands for the weights in a plan."""
        if self.checkpoint is None:
            return {"model": self.config.model, "seed": self.config.seed}
        file = towers.config_file(self.checkpoint)
        return str(file.parent.resolve()) if file else self.checkpoint

    @cached_property
    def embeddings(self) -> Embeddings:
        """Loads the model."""
        config = self.config
        encoder = load_encoder(self.checkpoint, model=config.model, seed=config.seed)
        found = "cuda" if torch.cuda.is_available() else "cpu"
        encoder.model.to(found if config.device == "auto" else config.device)
        return Embeddings(encoder, batch=config.batch)

    def result(
        self,
        dataset: str,
        task: str,
        protocol: Protocol,
        metrics: Mapping[str, float | None],
        options: Mapping[str, Any],
    ) -> Result:
        """The metrics with where they come from."""
        encoder = self.embeddings.encoder
        return Result(
            dataset=dataset,
            model=encoder.name,
            pretrained=encoder.pretrained,
            task=task,
            metrics=metrics,
            protocol=protocol,
            seed=self.config.seed,
            samples_seen=encoder.samples_seen,
            code_revision=code_revision(),
            options=options,
        )


def run(config: SuiteConfig) -> SuiteSummary:
    """Measure what is not yet measured, model after model."""
    tasks = find_tasks(config)
    if not tasks:
        raise CapwrightError(
            f"{config.data} holds no data for the suite {config.suite!r}: expected folders such as "
            "imagenet, flickr30k, webdataset/SET or scenes (`capwright data list` has all names)"
        )
    metrics: dict[str, dict[str, Any]] = {}
    measured = skipped = 0
    for checkpoint in config.models:
        model = Model(checkpoint, config)
        for task in tasks:
            path = config.out / label_of(checkpoint) / f"{task.name}.json"
            plan = digest({"model": model.identity, **task.plan})
            if _done(path, plan):
                skipped += 1
            else:
                _measure(model, task, path, plan)
                measured += 1
            rows = read_results(path)
            metrics.setdefault(checkpoint, {})[task.name] = [row.metrics for row in rows]
    return SuiteSummary(metrics=metrics, measured=measured, skipped=skipped, out=config.out)


def label_of(checkpoint: str) -> str:
    """A model's name as the name of a folder."""
    return re.sub(r"[^\w.=-]+", "_", checkpoint).strip("_.") or "model"


def find_tasks(config: SuiteConfig) -> list[Task]:
    """What ROOT and the suite ask for, in alphabetical order."""
    if not config.data.is_dir():
        raise CapwrightError(f"--data {config.data} is no folder: give the one with the data sets")
    tasks = [*_set_tasks(config), *_scene_tasks(config)]
    return sorted(tasks, key=lambda task: task.name)


def _set_tasks(config: SuiteConfig) -> Iterator[Task]:
    wanted = [task for task in SETS if config.suite in (task, "all")]
    places = [(task, name, config.data / name) for task in wanted for name in SETS[task]]
    for folder in _evaluation_sets(config.data):
        task = "retrieval" if is_retrieval(folder) else "zero-shot"
        if task in wanted:
            places.append((task, "webdataset", folder))
    for task, name, folder in places:
        if folder.is_dir():
            yield Task(
                name=f"{task}-{label_of(folder.name)}",
                plan={
                    "task": task,
                    "folder": folder.resolve(),
                    "samples": config.samples,
                    "protocol": as_dict(_measures(task)[0]),
                },
                measure=partial(_measure_set, task, name, folder),
            )


def _evaluation_sets(root: Path) -> list[Path]:
    """Folders in CLIP_benchmark's WebDataset form."""
    folders = [*root.iterdir(), *(root / "webdataset").glob("*")]
    return sorted(folder for folder in folders if any(folder.glob("*/nshards.txt")))


def _measures(task: str) -> tuple[Protocol, type[Any], str]:
    if task == "zero-shot":
        return zero_shot.PROTOCOL, ClassificationSet, "zeroshot_classification"
    return caption_retrieval.PROTOCOL, CaptionSet, "zeroshot_retrieval"


def _measure_set(task: str, name: str, folder: Path, model: Model) -> Measured:
    pictures: Any = datasets.load(name, folder)
    protocol, kind, field_name = _measures(task)
    if not isinstance(pictures, kind):
        raise CapwrightError(
            f"{folder} is read as a {type(pictures).__name__}, but {task} needs a {kind.__name__}: "
            "move it out of the folder of data sets, or correct its dataset_type.txt"
        )
    samples = model.config.samples
    metrics: Mapping[str, float | None]
    if task == "zero-shot":
        metrics, outcomes = zero_shot.classify(model.embeddings, pictures, samples=samples)
    else:
        metrics, outcomes = caption_retrieval.retrieve(model.embeddings, pictures, samples=samples)
    options = {"pictures": len(outcomes.keys)}
    row = model.result(label_of(folder.name), field_name, protocol, metrics, options)
    return [row], [outcomes]


def _scene_tasks(config: SuiteConfig) -> Iterator[Task]:
    folder = config.data / "scenes"
    splits = {path.name: path for path in sorted(folder.glob("*")) if path.is_dir()}
    train = next((splits.pop(name) for name in TRAIN if name in splits), None)
    shared = {"folder": folder.resolve(), "samples": config.samples}
    own: Sequence[tuple[Suite, Any, Any]] = (
        ("zero-shot", classification, classification.ClassificationConfig),
        ("retrieval", retrieval, retrieval.RetrievalConfig),
    )
    for suite, stage, kind in own:
        if config.suite in (suite, "all"):
            for split, path in splits.items():
                yield Task(
                    name=f"{suite}-scenes-{split}",
                    plan=shared | {"split": split, "protocol": as_dict(stage.PROTOCOL)},
                    measure=partial(_own_protocol, stage.measure, kind, path, split),
                )
    if train and splits and config.suite in ("dense", "all"):
        dense = {"recipe": as_dict(config.recipe), "modes": config.modes, "seeds": config.seeds}
        yield Task(
            name="dense-scenes",
            plan={"folder": shared["folder"], "splits": list(splits)} | dense,
            measure=partial(_scene_probe, train, splits),
        )


def _own_protocol(measure: Any, kind: Any, path: Path, split: str, model: Model) -> Measured:
    """A protocol of the scenes, which loads the model itself."""
    config = model.config
    result, outcomes = measure(
        kind(
            checkpoint=model.checkpoint,
            data=path,
            out=config.out,
            split=split,
            samples=config.samples,
            model=config.model,
            seed=config.seed,
        )
    )
    return [result], [outcomes]


def _scene_probe(train: Path, tests: Mapping[str, Path], model: Model) -> Measured:
    config = model.config
    outcomes: list[Outcomes] = []

    def observe(scenes: LabelledScenes, predicted: Predictions) -> None:
        seg, depth = predicted.seg_NLL, predicted.depth_NLL
        pairs = zip(depth, scenes.depth_NSS, strict=True)
        errors = [depth_errors(pred, true) for pred, true in pairs]
        outcomes.append(
            segmentation_outcomes(scenes.keys, list(seg), list(scenes.seg_NSS), len(scenes.classes))
        )
        outcomes.append(mean_outcomes(scenes.keys, errors, PROBE_DEPTH))

    with tempfile.TemporaryDirectory(prefix="capwright-suite-") as folder:
        out = Path(folder) / "results.json"
        probe = dense_probe.DenseProbeConfig(
            checkpoint=model.checkpoint,
            train=train,
            tests=tests,
            out=out,
            model=config.model,
            modes=config.modes,
            headline=config.modes[0],
            seeds=tuple(range(config.seeds)),
            recipe=config.recipe,
        )
        dense_probe.run(probe, observe)
        return read_results(out), outcomes


def _measure(model: Model, task: Task, path: Path, plan: str) -> None:
    results, outcomes = task.measure(model)
    if outcomes:  # before the results, whose presence says that all is done
        write_outcomes(path.with_suffix(".npz"), outcomes)
    marked = [replace(row, options={**row.options, "plan": plan}) for row in results]
    write_results(path, marked)


def _done(path: Path, plan: str) -> bool:
    if not path.exists():
        return False
    if any(row.options.get("plan") != plan for row in read_results(path)):
        raise CapwrightError(
            f"{path} was made with another plan (model, data, samples, protocol or recipe): choose "
            "another --out, or delete the file to measure again"
        )
    return True
