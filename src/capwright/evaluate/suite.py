"""Several models on all data sets of a folder: zero-shot, retrieval, dense; one JSON a task.

Reads checkpoints and ROOT: ROOT/imagenet, ROOT/flickr30k, ROOT/ade20k and so on, as
`capwright.datasets` names them; evaluation sets of CLIP_benchmark (folders with SPLIT/nshards.txt)
as ROOT/SET or ROOT/webdataset/SET; and ROOT/scenes with a folder a split (`labelled` or `train` to
learn from, the others to test on). Writes OUT/MODEL/TASK-DATASET.json, a results file, and beside
it .npz with what each picture contributed (outcomes.py). A file that is there is not measured
again; one of another plan is refused; a task that a model is unfit for is left out. Pictures and
texts are embedded once a model (embeddings.py), whatever the number of tasks, and never lie in
memory together.

Run: `capwright evaluate MODEL... --suite all --data ROOT --out OUT`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.evaluate.outcomes import write_outcomes
from capwright.evaluate.results import read_results, write_results
from capwright.evaluate.suite_model import Model, SuiteConfig, Task, Unfit, label_of
from capwright.evaluate.suite_tasks import find_tasks

__all__ = ["SuiteConfig", "SuiteSummary", "run"]


@dataclass(frozen=True, kw_only=True)
class SuiteSummary:
    """Metrics by model and task, which tasks were done before, and which could not be."""

    metrics: Mapping[str, Mapping[str, Any]]  # model, then TASK-DATASET
    unfit: Mapping[str, Mapping[str, str]]  # why, by the same
    measured: int
    skipped: int
    out: Path


def run(config: SuiteConfig) -> SuiteSummary:
    """Measure what is not yet measured, model after model."""
    tasks = find_tasks(config)
    if not tasks:
        raise CapwrightError(
            f"{config.data} holds no data for the suite {config.suite!r}: expected folders such as "
            "imagenet, ade20k, webdataset/SET or scenes (`capwright data list` has all names)"
        )
    metrics: dict[str, dict[str, Any]] = {}
    unfit: dict[str, dict[str, str]] = {}
    measured = skipped = 0
    for checkpoint in config.models:
        model = Model(checkpoint, config)
        for task in tasks:
            path = config.out / label_of(checkpoint) / f"{task.name}.json"
            plan = digest({"model": model.identity, **task.plan})
            if _done(path, plan):
                skipped += 1
            else:
                try:
                    _measure(model, task, path, plan)
                except Unfit as error:
                    unfit.setdefault(checkpoint, {})[task.name] = str(error)
                    continue
                measured += 1
            rows = read_results(path)
            metrics.setdefault(checkpoint, {})[task.name] = [row.metrics for row in rows]
    return SuiteSummary(
        metrics=metrics, unfit=unfit, measured=measured, skipped=skipped, out=config.out
    )


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
