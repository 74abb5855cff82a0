"""The learning in dense-probe/v1: a light head on frozen features, or everything fine-tuned.

Segmentation learns by cross-entropy with rare classes weighted up, depth by SiLog on log metres
over the whole picture and over objects, in one run on the same features.
Reads and writes nothing; `dense_probe.py` is the stage around it.

Shapes: N scenes, B batch, V = N x views, S side of the picture, L side of the labels, C classes,
D features, h and w of the token grid.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.datasets.labelled import IGNORE, LabelledScenes, nearest
from capwright.dense.heads import DenseHeads, mean_log
from capwright.dense.layerwise import layered_parameters
from capwright.dense.losses import silog_loss
from capwright.evaluate.encoder import RANDOM, Encoder, batched
from capwright.evaluate.results import Protocol
from capwright.evaluate.views import random_views
from capwright.pretrain.precision import Precision, arithmetic

Mode = Literal["frozen", "finetuned"]
MODES: tuple[Mode, ...] = ("frozen", "finetuned")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One training run: AdamW, linear warm-up over a tenth, then a cosine to zero."""

    samples: int  # pictures seen
    batch: int
    learning_rate: float  # of the heads
    encoder_learning_rate: float = 0.0  # of the encoder's top; 0 for a frozen one
    layer_decay: float = 1.0  # factor on the learning rate from one block to the one below
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.batch < 2 or self.samples < self.batch:
            raise CapwrightError(
                f"a schedule of {self.samples} samples in batches of {self.batch} cannot train: "
                "batches need at least 2 pictures and the schedule at least one batch"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe:
    """Everything that dense-probe/v1 fixes; another value is another version of the protocol."""

    train_samples: int = 500
    test_samples: int = 300
    label_size: int = 64  # side at which labels are scored
    loss_size: int = 32  # side at which they are learned; the heads see no finer than 16
    hidden: int = 64  # channels of the light heads
    layers: tuple[int, ...] = ()  # blocks from 0 whose features are concatenated; () is the last
    views: int = 4  # random views of each picture that the frozen features are computed for
    class_balance: float = 0.5  # a class's weight in the loss is its share of pixels to the -this
    object_depth: float = 0.5  # weight of the depth loss over objects beside the whole picture's
    frozen: Schedule = Schedule(samples=10_000, batch=50, learning_rate=3e-3)
    precision: Precision = "auto"  # of the encoder when it is fine-tuned; the rest is float32
    finetuned: Schedule = Schedule(
        samples=5_000, batch=25, learning_rate=3e-3, encoder_learning_rate=3e-4, layer_decay=0.75
    )

    from_scratch: Schedule = Schedule(  # fine-tuning of fresh weights, which have nothing to keep
        samples=5_000, batch=25, learning_rate=3e-3, encoder_learning_rate=1e-3
    )

    @property
    def protocol(self) -> Protocol:
        """dense-probe/v1 for the default recipe, else v1 with the recipe's digest."""
        changed = "" if self == ProbeRecipe() else f"-{digest(self)}"
        return Protocol(name="dense-probe", version=f"v1{changed}")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a probe says about N scenes."""

    seg_NLL: NDArray[np.uint8]
    depth_NLL: NDArray[np.float32]  # metres


def probe(
    encoder: Encoder,
    train: LabelledScenes,
    tests: Mapping[str, LabelledScenes],
    recipe: ProbeRecipe,
    *,
    mode: Mode,
    seed: int,
) -> dict[str, Predictions]:
    """Train heads (and, fine-tuned, a copy of the encoder) and predict every test split.

    Deterministic in the seed; the encoder that was passed is left as it was.
    """
    for split, scenes in tests.items():
        if scenes.classes != train.classes:
            raise CapwrightError(
                f"the split {split!r} has the classes {', '.join(scenes.classes)}, but the "
                f"training scenes have {', '.join(train.classes)}: make both from the same cut-outs"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        fit = _fit_frozen if mode == "frozen" else _fit_finetuned
        predict = fit(encoder, train, recipe, rng)
        return {split: predict(scenes) for split, scenes in tests.items()}


Predict = Callable[[LabelledScenes], Predictions]


def _fit_frozen(
    encoder: Encoder, train: LabelledScenes, recipe: ProbeRecipe, rng: np.random.Generator
) -> Predict:
    """Features are computed once, for a few views of each picture; the heads learn from those."""
    encoder.model.eval()
    images_NSS3, seg, depth = _tensors(train, recipe.loss_size)
    feats, segs, depths = [], [], []
    for _ in range(recipe.views):
        for part in batched(np.arange(len(train)), 100):
            with torch.no_grad():
                views = random_views(
                    encoder.normalised(images_NSS3[part]), seg[part], depth[part], rng=rng
                )
                feats.append(encoder.dense(views[0]))
            segs.append(views[1])
            depths.append(views[2])
    feats_VDhw, segs_VLL, depths_VLL = torch.cat(feats), torch.cat(segs), torch.cat(depths)
    heads = _heads(feats_VDhw.shape[1], train, recipe, depth)
    loss_of, size = DenseLoss(train, recipe), (recipe.loss_size, recipe.loss_size)

    def loss(chosen: Tensor) -> Tensor:
        return loss_of(heads(feats_VDhw[chosen], size), segs_VLL[chosen], depths_VLL[chosen])

    groups = [_head_group(heads, recipe.frozen)]
    _train(loss, groups, heads, len(feats_VDhw), recipe.frozen, rng, "probe, frozen")
    return lambda scenes: predict(encoder, heads, scenes)


def _fit_finetuned(
    encoder: Encoder, train: LabelledScenes, recipe: ProbeRecipe, rng: np.random.Generator
) -> Predict:
    """Everything learns, the encoder's lower blocks more slowly; a copy is trained."""
    encoder = replace(encoder, model=copy.deepcopy(encoder.model))
    visual: nn.Module = encoder.model.visual
    visual.requires_grad_(True)
    images_NSS3, seg, depth = _tensors(train, recipe.loss_size)
    with torch.no_grad():
        features = encoder.dense(encoder.normalised(images_NSS3[:2])).shape[1]
    heads = _heads(features, train, recipe, depth)
    loss_of, size = DenseLoss(train, recipe), (recipe.loss_size, recipe.loss_size)
    schedule = recipe.from_scratch if encoder.pretrained == RANDOM else recipe.finetuned

    def loss(chosen: Tensor) -> Tensor:
        images_B3SS = encoder.normalised(images_NSS3[chosen])
        views = random_views(images_B3SS, seg[chosen], depth[chosen], rng=rng)
        with arithmetic(recipe.precision, torch.device("cpu")):
            feats_BDhw = encoder.dense(views[0])
        return loss_of(heads(feats_BDhw.float(), size), views[1], views[2])

    groups = [
        _head_group(heads, schedule),
        *layered_parameters(
            visual,
            learning_rate=schedule.encoder_learning_rate,
            decay=schedule.layer_decay,
            weight_decay=schedule.weight_decay,
        ),
    ]
    both = nn.ModuleList([visual, heads])
    _train(loss, groups, both, len(train), schedule, rng, "probe, fine-tuned")
    return lambda scenes: predict(encoder, heads, scenes)


class DenseLoss:
    """The sum of both tasks' losses; which class weighs how much comes from the training labels."""

    def __init__(self, train: LabelledScenes, recipe: ProbeRecipe) -> None:
        counts_C = np.bincount(train.seg_NSS[train.seg_NSS != IGNORE], minlength=len(train.classes))
        share_C = counts_C / max(1, counts_C.sum())
        weight_C = np.maximum(share_C, 1e-6) ** -recipe.class_balance
        weight_C /= (weight_C * share_C).sum()  # a mean of 1 over pixels
        self.object_depth = recipe.object_depth
        self.class_weight_C = torch.from_numpy(weight_C).float()

    def __call__(
        self, predicted: tuple[Tensor, Tensor], seg_BLL: Tensor, depth_BLL: Tensor
    ) -> Tensor:
        """Loss of (logits [B, C, L, L], log metres [B, L, L]); a scalar."""
        logits_BCLL, log_depth_BLL = predicted
        segmentation = F.cross_entropy(
            logits_BCLL, seg_BLL.long(), self.class_weight_C, ignore_index=IGNORE
        )
        objects_BLL = (seg_BLL > 0) & (seg_BLL != IGNORE)
        whole = silog_loss(log_depth_BLL, depth_BLL)
        objects = silog_loss(log_depth_BLL, depth_BLL, valid_BHW=objects_BLL)
        return segmentation + whole + self.object_depth * objects


def _train(
    loss_of: Callable[[Tensor], Tensor],
    groups: Sequence[dict[str, Any]],
    module: nn.Module,
    items: int,
    schedule: Schedule,
    rng: np.random.Generator,
    label: str,
) -> None:
    """Minimise `loss_of(item numbers)` over passes through the items in random order."""
    optimizer = torch.optim.AdamW(list(groups), lr=schedule.learning_rate)
    steps = schedule.samples // schedule.batch
    warmup = max(1, steps // 10)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    passes = math.ceil(schedule.samples / items)
    order = torch.from_numpy(np.concatenate([rng.permutation(items) for _ in range(passes)]))
    module.train()
    with Progress(label, steps * schedule.batch, "pictures") as progress:
        for step in range(steps):
            chosen = order[step * schedule.batch : (step + 1) * schedule.batch]
            loss = loss_of(chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cosine.step()
            progress.advance(len(chosen), note=f"loss {loss.item():.3f}")
    module.eval()


@torch.no_grad()
def predict(encoder: Encoder, heads: DenseHeads, scenes: LabelledScenes) -> Predictions:
    """Class and metres at every pixel of every scene, at the size of its labels."""
    encoder.model.eval()
    heads.eval()
    side = scenes.seg_NSS.shape[1]
    seg, depth = [], []
    for images_BSS3 in batched(scenes.images_NSS3, 100):
        feats = encoder.dense(encoder.normalised(images_BSS3))
        logits_BCLL, log_depth_BLL = heads(feats, (side, side))
        seg.append(logits_BCLL.argmax(dim=1).to(torch.uint8))
        depth.append(log_depth_BLL.exp())
    return Predictions(seg_NLL=torch.cat(seg).numpy(), depth_NLL=torch.cat(depth).numpy())


def _tensors(scenes: LabelledScenes, loss_size: int) -> tuple[Tensor, Tensor, Tensor]:
    seg_NLL, depth_NLL = (
        np.stack([nearest(labels, loss_size) for labels in stack])
        for stack in (scenes.seg_NSS, scenes.depth_NSS)
    )
    images_NSS3 = np.ascontiguousarray(scenes.images_NSS3)
    return tuple(map(torch.from_numpy, (images_NSS3, seg_NLL, depth_NLL)))  # type: ignore[return-value]


def _heads(
    features: int, train: LabelledScenes, recipe: ProbeRecipe, depth_NLL: Tensor
) -> DenseHeads:
    return DenseHeads(
        features, len(train.classes), hidden=recipe.hidden, mean_log_depth=mean_log(depth_NLL)
    )


def _head_group(heads: DenseHeads, schedule: Schedule) -> dict[str, Any]:
    return {
        "params": list(heads.parameters()),
        "lr": schedule.learning_rate,
        "weight_decay": schedule.weight_decay,
    }
