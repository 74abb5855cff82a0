"""Every arm with every seed: learn, test, compare.

Reads a checkpoint and a set with depths. Writes OUT/SEED/ARM (state.pt, metrics.jsonl,
results.json with each picture's part in results.npz) and, over all of them, OUT/results.json,
OUT/summary.json (means and 95% intervals over the seeds) and OUT/results.md. An arm whose results
are there is skipped; a killed one goes on at its last state. `depthclip` draws nothing at random
and is measured once.

Shapes: N pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from capwright import datasets
from capwright.adapt.held_out import require_held_out
from capwright.adapt.mirror_depth import table
from capwright.adapt.mirror_depth.config import ARMS, DEPTHCLIP, Config
from capwright.adapt.mirror_depth.depthclip import DepthClip
from capwright.adapt.mirror_depth.model import build, trained_parameters
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.core.run_folder import claim, only_one
from capwright.datasets import scenes_sets
from capwright.datasets.sets import DepthSet
from capwright.dense.pixel_model import PixelModel
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.outcomes import read_outcomes, write_outcomes
from capwright.evaluate.results import (
    Result,
    code_revision,
    read_results,
    summarise,
    write_results,
)
from capwright.evaluate.transfer.depth import PROTOCOL, Scoring, measure, quantity, scoring
from capwright.evaluate.transfer.loop import STATE, fit
from capwright.evaluate.transfer.pixel_values import LOOKED_AT, PixelLearner, require_known
from capwright.models.devices import pick_device

RESULTS, OUTCOMES = "results.json", "results.npz"
TASK = "mirror_depth"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """RMSE, AbsRel and delta1 by arm: means over the seeds; the files have the rest."""

    arms: Mapping[str, Mapping[str, float | None]]
    trained_parameters: Mapping[str, int]
    seeds: tuple[int, ...]
    out: Path


def run(config: Config) -> Summary:
    """Measure every arm that is missing and write the tables.

    Raises CapwrightError for a set without depths, or where no picture has a known one, and an
    `out` that holds a run of another plan.
    """
    with only_one(config.out):
        claim(config.out, config.plan())
        scenes = config.dataset == "scenes"  # which have no splits
        learned = config.data, None if scenes else config.split
        tested = config.test_data or config.data, None if scenes else config.test_split
        require_held_out(learned, tested)
        train, test = (depth_set(config.dataset, *place) for place in (learned, tested))
        for seed, arm in jobs(config):
            if not (folder_of(config, seed, arm) / RESULTS).is_file():
                measure_arm(config, train, test, seed, arm)
        return _joined(config)


def jobs(config: Config) -> list[tuple[int, str]]:
    """(seed, arm) in the order of the table."""
    arms = [arm for arm in ARMS if arm in config.arms]
    return [
        (seed, arm)
        for seed in config.seeds
        for arm in arms
        if arm != DEPTHCLIP or seed == config.seeds[0]
    ]


def folder_of(config: Config, seed: int, arm: str) -> Path:
    """Where the files of an arm lie."""
    return config.out / str(seed) / arm


def measure_arm(config: Config, train: DepthSet, test: DepthSet, seed: int, arm: str) -> None:
    """Learn and test an arm, and write its results."""
    encoder = load_encoder(config.checkpoint, model=config.model, seed=seed)
    encoder.model.eval().requires_grad_(False)
    folder, caps = folder_of(config, seed, arm), scoring(config.depth, test)
    numbers = range(min(len(train), config.train_pictures or len(train)))
    if arm == DEPTHCLIP:
        model: PixelModel = DepthClip(encoder, config.zero_shot)
    else:
        usual_m = usual_depth(train, numbers, caps)
        model = build(encoder, config, arm, most_m=caps.most_m, seed=seed, usual_m=usual_m)
    device = pick_device(config.device)
    encoder.model.to(device)
    model.to(device)
    learned = trained_parameters(model)
    if learned:
        wanted = quantity(config.depth, caps)
        require_known(train, numbers, wanted)
        learner = PixelLearner(model, wanted, config.views)
        fit(
            learner, train, numbers, config.schedule, folder=folder, seed=seed, view=learner.view,
            save_every=config.save_every, workers=config.loader_workers,
            precision=config.precision, device=device, label=f"{arm}, seed {seed}",
        )  # fmt: skip
    tested = range(min(len(test), config.test_pictures or len(test)))
    metrics, outcomes = measure(model, test, tested, config.depth)
    options = {
        "arm": arm,
        "trained_parameters": learned,
        "learned": len(numbers) if learned else 0,
        "pictures": len(tested),
        "crop": caps.crop,
        "most_m": caps.most_m,
    }
    write_outcomes(folder / OUTCOMES, [outcomes])
    result = _result(encoder, test.name, metrics, seed, options)
    write_results(folder / RESULTS, [result])


def learned_model(config: Config, seed: int, arm: str) -> PixelModel:
    """What an arm learned, in evaluation mode: normalised pictures of any size to metres.

    Raises CapwrightError where the arm has no results.
    """
    folder = folder_of(config, seed, arm)
    most_m = float(read_results(folder / RESULTS)[0].options["most_m"])
    encoder = load_encoder(config.checkpoint, model=config.model, seed=seed)
    encoder.model.eval().requires_grad_(False)
    if arm == DEPTHCLIP:
        return DepthClip(encoder, config.zero_shot).eval()
    model = build(encoder, config, arm, most_m=most_m, seed=seed)
    state = torch.load(folder / STATE, weights_only=True, map_location="cpu")["module"]
    model.head.load_state_dict({name.removeprefix("head."): state[name] for name in state})
    return model.eval()


def usual_depth(pictures: DepthSet, numbers: Sequence[int], caps: Scoring) -> float | None:
    """Geometric mean, in metres, of what is known in some pictures; None where nothing is."""
    looked = (pictures[n].depth_HW for n in numbers[:: max(1, len(numbers) // LOOKED_AT)])
    logs = [np.log(d[(d > caps.least_m) & (d < caps.most_m)], dtype=np.float64) for d in looked]
    known = np.concatenate(logs) if logs else np.empty(0)
    return float(np.exp(known.mean())) if known.size else None


def depth_set(name: str, folder: Path, split: str | None) -> DepthSet:
    """The set's depths; scenes have one split. CapwrightError for a set without depths."""
    if name == "scenes":
        return scenes_sets.depth(folder)
    pictures = datasets.load(name, folder, split)
    if not isinstance(pictures, DepthSet):
        raise CapwrightError(f"{name} has no depths: choose nyuv2, kitti or scenes")
    return pictures


def _result(
    encoder: Encoder,
    name: str,
    metrics: Mapping[str, float | None],
    seed: int,
    options: Mapping[str, object],
) -> Result:
    return Result(
        dataset=name,
        model=encoder.name,
        pretrained=encoder.pretrained,
        task=TASK,
        metrics=metrics,
        protocol=PROTOCOL,
        seed=seed,
        samples_seen=encoder.samples_seen,
        code_revision=code_revision(),
        options=options,
    )


def _joined(config: Config) -> Summary:
    """All results of the seeds, also of arms of earlier runs, their means and the table."""
    folders = [folder_of(config, *one) for one in product(config.seeds, ARMS)]
    found = [
        (read_results(folder / RESULTS)[0], read_outcomes(folder / OUTCOMES)[0])
        for folder in folders
        if (folder / RESULTS).is_file()
    ]
    results = [result for result, _ in found]
    rows = summarise(results)
    write_results(config.out / RESULTS, results)
    write_outcomes(config.out / OUTCOMES, [outcomes for _, outcomes in found])
    write_json(config.out / "summary.json", rows)
    with atomic_path(config.out / "results.md") as path:
        path.write_text(table.markdown(rows, found), encoding="utf-8")
    return Summary(
        arms={row["options"]["arm"]: table.shown(row) for row in rows},
        trained_parameters={
            row["options"]["arm"]: row["options"]["trained_parameters"] for row in rows
        },
        seeds=config.seeds,
        out=config.out,
    )
