"""Transfer: every fraction of a training set, with every seed, learned and tested.

The subset of a fraction is the beginning of an order that the seed gives, so that with one seed the
smaller fractions lie within the larger ones; a set for classification is ordered so that classes
take turns.

Reads an encoder and a labelled set. Writes OUT/manifest.json (the plan), OUT/FRACTION/SEED/
result.json (results, one a test split) with result.npz (what each picture contributed), and
OUT/results.json (means over seeds with their 95% intervals). A result that is there is not measured
again, and fractions and seeds can be added; another plan is refused. Killed runs go on.

Run: `capwright transfer TASK RECIPE --checkpoint MODEL --data FOLDER --out OUT`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from capwright import datasets
from capwright.core.errors import CapwrightError
from capwright.core.files import write_json
from capwright.core.run_folder import claim, only_one
from capwright.datasets import scenes_sets, surfaces
from capwright.datasets.sets import (
    ClassificationSet,
    DepthSet,
    DetectionSet,
    LabelledSet,
    NormalsSet,
    SegmentationSet,
)
from capwright.evaluate.encoder import samples_seen
from capwright.evaluate.outcomes import write_outcomes
from capwright.evaluate.results import (
    Protocol,
    Result,
    code_revision,
    read_results,
    summarise,
    write_results,
)
from capwright.evaluate.transfer import tasks
from capwright.evaluate.transfer.config import SCRATCH, TransferConfig
from capwright.evaluate.transfer.loop import STATE
from capwright.evaluate.transfer.run import Run

RESULT = "result.json"
SUMMARY = "results.json"
KINDS: Mapping[str, tuple[type[LabelledSet[Any]], str]] = {
    "segmentation": (SegmentationSet, "a class at every pixel, such as ade20k"),
    "depth": (DepthSet, "a distance at every pixel, such as nyuv2"),
    "normals": (NormalsSet, "a surface normal at every pixel, such as nyuv2"),
    "classification": (ClassificationSet, "a class of every picture, such as imagenet"),
    "detection": (DetectionSet, "boxes and masks, such as coco-instances"),
}
SCENES: Mapping[str, Callable[[Path], LabelledSet[Any]]] = {
    "segmentation": scenes_sets.load,
    "depth": scenes_sets.depth,
    "normals": scenes_sets.normals,
    "detection": scenes_sets.detection,
}


@dataclass(frozen=True, kw_only=True)
class TransferSummary:
    """What was measured; OUT/results.json has the means."""

    rows: Sequence[Mapping[str, Any]]  # `results.summarise`
    measured: int
    skipped: int
    out: Path


def run(config: TransferConfig) -> TransferSummary:
    """Measure what is not yet measured.

    Raises CapwrightError for an encoder or a set that is not there or unfit, a folder of another
    plan, and a loss that is not finite; `signals.Stopped` after SIGTERM.
    """
    if not config.checkpoint:
        raise CapwrightError(
            "no encoder: give --checkpoint, a checkpoint or run folder, MODEL/TAG of open_clip, "
            f"timm:NAME, or {SCRATCH} for fresh weights"
        )
    train = open_set(config, config.train_split)
    tests = {split: open_set(config, split) for split in config.test_splits}
    claim(config.out, config.plan())
    measured = skipped = 0
    for fraction in sorted(config.fractions):
        for seed in config.seeds:
            folder = folder_of(config.out, fraction, seed)
            if (folder / RESULT).exists():
                skipped += 1
                continue
            numbers = subset(train, fraction, seed, config.train_samples)
            with only_one(folder):
                one = Run(
                    config=config, train=train, numbers=numbers, tests=tests, seed=seed,
                    folder=folder,
                )  # fmt: skip
                _measure(one, fraction)
            measured += 1
    results = [row for file in result_files(config.out) for row in read_results(file)]
    # seeds that another revision added belong to the same mean; the summary names all revisions
    revisions = ", ".join(sorted({row.code_revision for row in results}))
    rows = summarise([replace(row, code_revision=revisions) for row in results])
    write_json(config.out / SUMMARY, {"summary": rows})
    return TransferSummary(rows=rows, measured=measured, skipped=skipped, out=config.out)


def subset(
    pictures: LabelledSet[Any], fraction: float, seed: int, limit: int | None = None
) -> tuple[int, ...]:
    """Numbers of a fraction of the first `limit` items, at least one, in their order."""
    count = min(limit or len(pictures), len(pictures))
    order = np.random.default_rng([seed, 1]).permutation(count)
    labels = getattr(pictures, "labels", ())
    if labels:  # the first of every class, then the second of every class, and so on
        seen: Counter[int] = Counter()
        turns = []
        for number in order:
            turns.append(seen[labels[number]])
            seen[labels[number]] += 1
        order = order[np.argsort(turns, kind="stable")]
    return tuple(sorted(order[: max(1, round(fraction * count))].tolist()))


def open_set(config: TransferConfig, split: str) -> LabelledSet[Any]:
    """A split of the set; CapwrightError where it has no labels for the task."""
    kind, needed = KINDS[config.task]
    if config.dataset == "scenes" and config.task in SCENES:
        return SCENES[config.task](config.data / split)
    if config.dataset != "scenes":
        found = datasets.load(config.dataset, config.data, split)
        if kind is NormalsSet and isinstance(found, DepthSet) and found.camera is not None:
            return surfaces.normals_of(found)
        if isinstance(found, kind):
            return found
    raise CapwrightError(f"{config.dataset} is not for {config.task}: take a set with {needed}")


def folder_of(out: Path, fraction: float, seed: int) -> Path:
    """Where one fraction with one seed is measured."""
    return out / f"{fraction:g}" / str(seed)


def result_files(out: Path) -> list[Path]:
    """Results of all fractions and seeds, in their order."""
    files = out.glob(f"*/*/{RESULT}")
    return sorted(files, key=lambda file: (float(file.parts[-3]), int(file.parts[-2])))


def _measure(one: Run, fraction: float) -> None:
    protocol, measure = tasks.TASKS[one.config.task]
    found = measure(one)
    write_outcomes((one.folder / RESULT).with_suffix(".npz"), [row for _, row in found.values()])
    write_results(
        one.folder / RESULT,
        [_result(one, fraction, split, metrics, protocol) for split, (metrics, _) in found.items()],
    )
    (one.folder / STATE).unlink(missing_ok=True)


def _result(
    one: Run, fraction: float, split: str, metrics: Mapping[str, float | None], protocol: Protocol
) -> Result:
    config, origin = one.config, one.origin
    assert origin is not None, "a task loads the encoder"
    fixed = {"split": split, "train_split": config.train_split, "recipe": config.recipe()}
    return Result(
        dataset=f"{config.dataset}-{split}",
        model=origin.name,
        pretrained=origin.pretrained,
        task=config.task,
        metrics=metrics,
        protocol=protocol,
        seed=one.seed,
        samples_seen=0 if config.checkpoint == SCRATCH else samples_seen(Path(config.checkpoint)),
        code_revision=code_revision(),
        options={
            "mode": config.mode,
            "method": config.method,
            "fraction": fraction,
            "items": len(one.numbers),
            **fixed,
        },
    )
