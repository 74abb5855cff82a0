"""Evaluators that a pretraining run calls on every checkpoint: retrieval, classification, dense.

    capwright pretrain RECIPE --eval retrieval=WORK --eval dense=LABELLED,TEST

Each reads the checkpoint that was just written, as `capwright evaluate` would, and writes its
results file to OUT/evaluations/CHECKPOINT/NAME.json. A recipe of your own may pass any function
from a checkpoint's path to metrics."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from capwright.core.errors import CapwrightError

Evaluator = Callable[[Path], Mapping[str, float]]
SHOWN = ("image_retrieval_recall@1", "text_retrieval_recall@1", "acc1", "miou", "rmse")


def evaluators(specifications: Sequence[str]) -> dict[str, Evaluator]:
    """Evaluators by name, from texts such as "retrieval=WORK" and "dense=LABELLED,TEST".

    Raises CapwrightError for a text of another form or a folder that is not there.
    """
    found: dict[str, Evaluator] = {}
    for text in specifications:
        name, _, places = text.partition("=")
        folders = [Path(place) for place in places.split(",") if place]
        if name not in MAKERS or len(folders) != MAKERS[name][0]:
            raise CapwrightError(
                f"evaluator {text!r} is not understood: write retrieval=WORK, classification=WORK "
                "or dense=LABELLED,TEST"
            )
        for folder in folders:
            if not folder.is_dir():
                raise CapwrightError(f"evaluator {text!r}: there is no folder {folder}")
        found[name] = partial(_numbers, MAKERS[name][1], folders)
    return found


Measure = Callable[[Path, Sequence[Path], Path], Mapping[str, float | None]]


def _numbers(measure: Measure, folders: Sequence[Path], checkpoint: Path) -> Mapping[str, float]:
    run_folder = checkpoint.resolve().parent.parent
    out = run_folder / "evaluations" / checkpoint.name / f"{measure.__name__.strip('_')}.json"
    metrics = measure(checkpoint, folders, out)
    return {k: v for k, v in metrics.items() if k in SHOWN and v is not None}


def _retrieval(checkpoint: Path, folders: Sequence[Path], out: Path) -> Mapping[str, float | None]:
    from capwright.evaluate import retrieval

    return retrieval.run(
        retrieval.RetrievalConfig(checkpoint=checkpoint, data=folders[0], out=out)
    ).metrics


def _classification(
    checkpoint: Path, folders: Sequence[Path], out: Path
) -> Mapping[str, float | None]:
    from capwright.evaluate import classification

    return classification.run(
        classification.ClassificationConfig(checkpoint=checkpoint, data=folders[0], out=out)
    ).metrics


def _dense(checkpoint: Path, folders: Sequence[Path], out: Path) -> Mapping[str, float | None]:
    from capwright.evaluate import dense_probe

    return dense_probe.run(
        dense_probe.DenseProbeConfig(
            checkpoint=checkpoint,
            train=folders[0],
            tests={"seen": folders[1]},
            out=out,
            modes=("frozen",),
        )
    ).headline


MAKERS: Mapping[str, tuple[int, Measure]] = {
    "retrieval": (1, _retrieval),
    "classification": (1, _classification),
    "dense": (2, _dense),
}
