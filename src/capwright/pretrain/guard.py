"""When a loss or a gradient is not finite: which samples did it, and a file to look at.

Writes OUT/failed_step/rank_R.pt (the batch of this process, readable with `weights_only=True`) and
says the keys of the samples whose features are not finite."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.pretrain.batch import Batch
from capwright.pretrain.distributed import Group, gather_uneven
from capwright.pretrain.objectives.pseudo_labels import NAME as LABELS
from capwright.pretrain.precision import Precision, arithmetic
from capwright.pretrain.task import Task

NAMED = 5  # samples that a message names


def broken_samples(task: Task, batch: Batch, precision: Precision) -> list[int]:
    """Rows of the index whose pictures or features are not finite; empty if no single one is."""
    rows_B = torch.zeros(batch.pictures, dtype=torch.bool, device=batch.sample_ids_B.device)
    with torch.no_grad(), arithmetic(precision, batch.images_BV3HH.device):
        features = task("encode", batch)  # shards are gathered by hooks on `forward`
    # labels are NaN where there is none; an error that they lead to is among the features
    brought = {k: v for k, v in batch.extras.items() if not k.startswith(f"{LABELS}.")}
    candidates = {"images": batch.images_BV3HH, **brought, **features}
    text_U = features.get("text")
    for name, value in candidates.items():
        if name != "text" and value.is_floating_point() and len(value) == batch.pictures:
            rows_B |= (
                ~value.flatten(1).isfinite().all(dim=1) if value.ndim > 1 else ~value.isfinite()
            )
    if text_U is not None:
        bad_P = ~text_U.isfinite().all(dim=1)[batch.pair_text_P]
        rows_B[batch.pair_picture_P[bad_P]] = True
    found: list[int] = batch.sample_ids_B[rows_B].tolist()
    return found


def stop(
    out: Path,
    task: Task,
    batch: Batch,
    values: dict[str, float],
    *,
    precision: Precision,
    group: Group,
    keys: Callable[[Sequence[int]], list[str]],
) -> CapwrightError:
    """Save the batch and say what was not finite, where, and what to do."""
    own = torch.tensor(broken_samples(task, batch, precision), dtype=torch.int64)
    broken = gather_uneven(own.to(batch.sample_ids_B.device), group).tolist()
    path = out / "failed_step" / f"rank_{group.rank}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v for k, v in asdict(batch).items() if k != "encoded_U"}
    with atomic_path(path) as temporary:
        names = keys(batch.sample_ids_B.tolist())
        torch.save({"batch": tensors, "keys": names, "values": values}, temporary)
    wrong = ", ".join(f"{k} {v}" for k, v in values.items() if not abs(v) < float("inf"))
    if broken:
        shown = ", ".join(keys(broken[:NAMED]))
        who = f"it begins with {len(broken)} of its samples: {shown}"
    else:
        who = "every sample has finite features, so none can be named"
    return CapwrightError(
        f"not finite at step {batch.step}: {wrong}; {who}. The batch is in {path}: look at these "
        "samples, lower learning_rate or set precision=fp32; the checkpoints before it are good"
    )
