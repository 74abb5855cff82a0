"""Dense probe: what an encoder's features know about the class and the distance of every pixel.

Protocol dense-probe/v1 (docs/protocols/dense-probe-v1.md): N labelled scenes train light heads for
segmentation and depth, once on the frozen encoder and once with everything fine-tuned
(dense_training.py); test splits are scored by dense_metrics.py.

Reads a checkpoint and labelled scenes. Writes OUT (results, one a split, mode, task and seed) and
predictions_SPLIT.npz beside it. Run: `capwright evaluate dense CHECKPOINT --train SCENES
--test seen=SCENES --out OUT`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.datasets.labelled import IGNORE, LabelledScenes, load_dense
from capwright.evaluate.dense_metrics import (
    class_ious,
    confusion_matrix,
    depth_metrics,
    segmentation_metrics,
)
from capwright.evaluate.dense_training import MODES, Mode, Predictions, ProbeRecipe, probe
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.results import Result, code_revision, summarise, write_results


@dataclass(frozen=True, kw_only=True)
class DenseProbeConfig:
    """Which encoder, on which scenes."""

    checkpoint: str | Path | None  # None is `scratch`: the tower `model` with fresh weights
    train: Path  # work folder or folder of scenes with labels
    tests: Mapping[str, Path]  # split name to work folder or folder of scenes
    out: Path  # results file; predictions go beside it
    model: str | Mapping[str, Any] = "nano"  # towers without a checkpoint, fresh for every seed
    modes: tuple[Mode, ...] = MODES
    headline: Mode = "frozen"  # mode of the summary's headline and of the stored predictions
    seeds: tuple[int, ...] = (0,)
    finetuned_seeds: tuple[int, ...] | None = None  # None: the same as `seeds`
    kept_predictions: int = 12  # test pictures a split whose predictions are stored
    recipe: ProbeRecipe = field(default_factory=ProbeRecipe)

    def __post_init__(self) -> None:
        unknown = sorted({*self.modes, self.headline} - set(MODES))
        if unknown or self.headline not in self.modes:
            raise CapwrightError(
                f"modes {self.modes} with the headline {self.headline!r}: allowed are "
                f"{', '.join(MODES)}, and the headline must be one of the modes"
            )
        if not self.tests:
            raise CapwrightError("no test scenes: pass at least one split, such as seen=SCENES")
        if not self.seeds or self.finetuned_seeds == ():
            raise CapwrightError("no seeds: pass at least one, such as 0")

    def seeds_of(self, mode: Mode) -> tuple[int, ...]:
        """The seeds that `mode` is measured with."""
        if mode == "finetuned" and self.finetuned_seeds is not None:
            return self.finetuned_seeds
        return self.seeds


@dataclass(frozen=True, kw_only=True)
class DenseProbeSummary:
    """Means over seeds; the results file has every row."""

    headline: Mapping[str, float | None]  # miou, rmse, absrel_objects, miou_unseen, rmse_unseen
    summary: Sequence[Mapping[str, Any]]  # `results.summarise` of the rows
    out: Path
    seconds: float


Observer = Callable[[LabelledScenes, Predictions], None]


def run(config: DenseProbeConfig, observe: Observer | None = None) -> DenseProbeSummary:
    """Probe the checkpoint with every mode and seed and write the results.

    `observe` gets each split's scenes and predictions, in the order of the results.
    """
    began = time.monotonic()
    recipe = config.recipe
    encoder = load_encoder(config.checkpoint, model=config.model, layers=recipe.layers)
    train = _scenes(config.train, encoder, recipe, recipe.train_samples)
    tests = {
        split: _scenes(path, encoder, recipe, recipe.test_samples)
        for split, path in config.tests.items()
    }
    results: list[Result] = []
    for mode in config.modes:
        for seed in config.seeds_of(mode):
            if config.checkpoint is None:
                encoder = load_encoder(None, model=config.model, layers=recipe.layers, seed=seed)
            predictions = probe(encoder, train, tests, recipe, mode=mode, seed=seed)
            for split, predicted in predictions.items():
                results += _results(encoder, split, tests[split], predicted, recipe, mode, seed)
                if observe is not None:
                    observe(tests[split], predicted)
                if mode == config.headline and seed == config.seeds_of(mode)[0]:
                    path = config.out.parent / f"predictions_{split}.npz"
                    save_predictions(path, tests[split], predicted, config.kept_predictions)
    write_results(config.out, results)
    return DenseProbeSummary(
        headline=headline(results, config.headline),
        summary=summarise(results),
        out=config.out,
        seconds=time.monotonic() - began,
    )


def measure(scenes: LabelledScenes, predicted: Predictions) -> dict[str, dict[str, float | None]]:
    """Metrics by task: `segmentation` and `depth` (whole picture and objects alone)."""
    seg_NLL = scenes.seg_NSS
    confusion_CC = confusion_matrix(predicted.seg_NLL, seg_NLL, len(scenes.classes))
    ious = zip(scenes.classes, class_ious(confusion_CC), strict=True)
    objects_NLL = (seg_NLL > 0) & (seg_NLL != IGNORE)
    return {
        "segmentation": segmentation_metrics(confusion_CC)
        | {f"iou/{name}": iou for name, iou in ious},
        "depth": depth_metrics(predicted.depth_NLL, scenes.depth_NSS, objects_NLL),
    }


def headline(results: Sequence[Result], mode: Mode) -> dict[str, float | None]:
    """`miou, rmse, absrel_objects` of the split `seen` (or the first) and, where there is a split
    `unseen`, `miou_unseen, rmse_unseen`; means over seeds.
    """
    rows = [row for row in summarise(results) if row["options"]["mode"] == mode]
    splits = list(dict.fromkeys(row["options"]["split"] for row in rows))
    main = "seen" if "seen" in splits else splits[0]
    wanted = {main: ("miou", "rmse", "absrel_objects"), "unseen": ("miou", "rmse")}
    values: dict[str, float | None] = {}
    for split, names in wanted.items():
        metrics: dict[str, float | None] = {}
        for row in rows:
            if row["options"]["split"] == split:
                metrics |= row["metrics"]
        suffix = "" if split == main else f"_{split}"
        values |= {f"{name}{suffix}": metrics[name] for name in names if name in metrics}
    return values


def save_predictions(
    path: Path, scenes: LabelledScenes, predicted: Predictions, count: int
) -> None:
    """Store pictures, truth and prediction of the first `count` scenes for the report."""
    # a stream, since numpy adds .npz to a name that ends otherwise
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=scenes.images_NSS3[:count],
            seg_true=scenes.seg_NSS[:count],
            depth_true=scenes.depth_NSS[:count],
            seg_pred=predicted.seg_NLL[:count],
            depth_pred=predicted.depth_NLL[:count],
            classes=np.array(scenes.classes),
            keys=np.array(scenes.keys[:count]),
        )


def _results(
    encoder: Encoder,
    split: str,
    scenes: LabelledScenes,
    predicted: Predictions,
    recipe: ProbeRecipe,
    mode: Mode,
    seed: int,
) -> list[Result]:
    options = {"mode": mode, "split": split, "recipe": as_dict(recipe)}
    return [
        Result(
            dataset=f"scenes-{split}",
            model=encoder.name,
            pretrained=encoder.pretrained,
            task=task,
            metrics=metrics,
            protocol=recipe.protocol,
            seed=seed,
            samples_seen=encoder.samples_seen,
            code_revision=code_revision(),
            options=options,
        )
        for task, metrics in measure(scenes, predicted).items()
    ]


def _scenes(path: Path, encoder: Encoder, recipe: ProbeRecipe, limit: int) -> LabelledScenes:
    return load_dense(path, encoder.image_size, label_size=recipe.label_size, limit=limit)
