"""Which tasks a folder of data sets holds, and how each is measured.

ROOT/NAME is the set that `capwright data list` calls NAME; the two sets that share files may also
lie in ROOT/pascal-voc and ROOT/pascal-context. Reads the sets. Writes nothing; suite.py is the
stage around it.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from capwright import datasets
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.datasets.labelled import LabelledScenes
from capwright.datasets.sets import CaptionSet, ClassificationSet
from capwright.datasets.webdataset import is_retrieval
from capwright.dense.vit import open_up
from capwright.evaluate import (
    caption_retrieval,
    classification,
    dense_probe,
    retrieval,
    training_free,
    zero_shot,
)
from capwright.evaluate.dense_metrics import PROBE_DEPTH, depth_errors
from capwright.evaluate.dense_training import Predictions
from capwright.evaluate.outcomes import Outcomes, mean_outcomes, segmentation_outcomes
from capwright.evaluate.results import Protocol, read_results
from capwright.evaluate.suite_model import (
    Measured,
    Model,
    Suite,
    SuiteConfig,
    Task,
    Unfit,
    label_of,
)

SETS = {"zero-shot": ("imagenet",), "retrieval": ("coco-captions", "flickr30k")}
SEGMENTATION: Mapping[str, tuple[str, ...]] = {  # folders that may hold a set
    "ade20k": ("ade20k",),
    "cityscapes": ("cityscapes",),
    "coco-object": ("coco-object",),
    "coco-stuff": ("coco-stuff",),
    "pascal-context59": ("pascal-context59", "pascal-context"),
    "pascal-context60": ("pascal-context60", "pascal-context"),
    "pascal-voc20": ("pascal-voc20", "pascal-voc"),
    "pascal-voc21": ("pascal-voc21", "pascal-voc"),
}
TRAIN = ("labelled", "train")  # splits of the scenes that probes learn from


def find_tasks(config: SuiteConfig) -> list[Task]:
    """What ROOT and the suite ask for, in alphabetical order."""
    if not config.data.is_dir():
        raise CapwrightError(f"--data {config.data} is no folder: give the one with the data sets")
    tasks = [*_set_tasks(config), *_segmentation_tasks(config), *_scene_tasks(config)]
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


def _segmentation_tasks(config: SuiteConfig) -> Iterator[Task]:
    if config.suite not in ("dense", "all") or not config.methods:
        return
    for name, places in SEGMENTATION.items():
        folder = next((path for place in places if (path := config.data / place).is_dir()), None)
        if folder:
            yield _training_free(config, name, name, folder)


def _training_free(config: SuiteConfig, label: str, name: str, folder: Path) -> Task:
    return Task(
        name=f"training-free-{label}",
        plan={
            "dataset": name,
            "folder": folder.resolve(),
            "samples": config.samples,
            "methods": config.methods,
            "protocols": training_free.PROTOCOLS,
        },
        measure=partial(_measure_training_free, label, name, folder),
    )


def _measure_training_free(label: str, name: str, folder: Path, model: Model) -> Measured:
    try:
        open_up(model.embeddings.encoder.model)
    except CapwrightError as error:
        raise Unfit(str(error)) from error
    config = model.config
    return training_free.measure(
        training_free.TrainingFreeConfig(
            checkpoint=model.checkpoint,
            data=folder,
            out=config.out,
            dataset=name,
            label=label,
            methods=config.methods,
            samples=config.samples,
            model=config.model,
            seed=config.seed,
        ),
        model.embeddings,
    )


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
    if config.suite not in ("dense", "all"):
        return
    if config.methods:
        for split, path in splits.items():
            yield _training_free(config, f"scenes-{split}", "scenes", path)
    if train and splits:
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
