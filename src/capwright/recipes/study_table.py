"""The study's numbers: each arm's mean and interval, and its gain over the control.

The interval is Student's 95% over seeds. A gain is a mean over seeds of paired differences (the
same seed draws the same first weights and the same order of pictures). At the same compute the
control is interpolated, linearly in the logarithm of FLOPs, between the lengths that it was trained
for. Reads and writes nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from capwright.recipes.over_seeds import difference, summary, value
from capwright.recipes.study_arms import Arm

METRICS = (
    "miou_frozen", "rmse_frozen", "miou_finetuned", "rmse_finetuned", "retrieval", "zero_shot",
)  # fmt: skip
IN_PERCENT = ("miou_frozen", "miou_finetuned", "retrieval", "zero_shot")
LENGTHS = ("selected", "selected ×2", "selected ×4")  # of one control, for the same compute
Cell = Mapping[str, Any]


def rows(cells: Sequence[Cell], arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """One row an arm, in the order of `arms`."""
    by_arm = {name: {c["seed"]: c for c in cells if c["arm"] == name} for name in arms}
    found = []
    for name, arm in arms.items():
        own = by_arm[name]
        if not own:
            continue
        row: dict[str, Any] = {"arm": name, "what": arm.what, "seeds": sorted(own)}
        row["flops"] = float(np.mean([cell["flops"] for cell in own.values()]))
        row["control"] = arm.control
        for metric in METRICS:
            row[metric] = summary(cell[metric] for cell in own.values())
        control = by_arm.get(arm.control, {})
        row["gain"] = _gain(own, control, "miou_frozen")
        row["gain_rmse"] = _gain(own, control, "rmse_frozen")
        row["gain_same_compute"] = _gain(own, _at_same_compute(own, by_arm), "miou_frozen")
        found.append(row)
    return found


def _gain(own: Mapping[int, Cell], control: Mapping[int, Cell], metric: str) -> Any:
    one, other = ({k: cell[metric] for k, cell in side.items()} for side in (own, control))
    return difference(one, other)


def _at_same_compute(
    own: Mapping[int, Cell], by_arm: Mapping[str, Mapping[int, Cell]]
) -> dict[int, Cell]:
    """The control `selected` with every seed, as it would be at the arm's FLOPs."""
    found: dict[int, Cell] = {}
    for seed, cell in own.items():
        lengths = [by_arm[n][seed] for n in LENGTHS if seed in by_arm.get(n, {})]
        compute = [math.log(length["flops"]) for length in lengths]
        wanted = math.log(cell["flops"])
        if len(lengths) > 1 and compute[0] - 0.05 <= wanted <= compute[-1] + 0.05:
            miou = np.interp(wanted, compute, [length["miou_frozen"] for length in lengths])
            found[seed] = {"miou_frozen": float(miou)}
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| arm | what | compute | mIoU frozen, % ↑ | gain, same pictures | gain, same compute "
        "| RMSE frozen, m ↓ | mIoU fine-tuned ↑ | RMSE fine-tuned ↓ | R@1, % ↑ | zero-shot, % ↑ |",
        "|" + "---|" * 11,
    ]
    base = next((row["flops"] for row in rows if row["arm"] == "selected"), math.nan)
    for row in rows:
        cells = [
            f"`{row['arm']}`",
            row["what"],
            f"{row['flops'] / base:.2f}",
            value(row["miou_frozen"], 100, 1),
            value(row["gain"], 100, 1, "+"),
            value(row["gain_same_compute"], 100, 1, "+"),
            value(row["rmse_frozen"], 1, 2),
            value(row["miou_finetuned"], 100, 1),
            value(row["rmse_finetuned"], 1, 2),
            value(row["retrieval"], 100, 1),
            value(row["zero_shot"], 100, 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
