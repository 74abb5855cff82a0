"""CLIPTeX: "CLIP meets Model Zoo Experts: Pseudo-Supervision for Visual Enhancement" (Salehi et
al., arXiv 2310.14108).

Experts labelled every picture once (`capwright experts`), and light heads h_t on the patch map of
the image tower f learn their labels y_t beside the contrastive loss; the heads are thrown away:
    L = L_CLIP + sum_t lambda_t L_t(h_t(f(x)), y_t),   t = segmentation, depth, normals.
This file is the sum. What the paper does not say, or says where we have not read it, is ours:
- segmentation: cross-entropy over classes.
- depth in metres: with d = prediction - log y, the mean of |d - a mean(d)|; a = `scale_free`. A
  crop that is enlarged looks nearer while its metres stay, so an error that scales a whole view is
  forgiven in part (a = 1: wholly).
- relative depth, known up to scale and shift: the labels of a view less their median, divided by
  their mean absolute distance from it (Ranftl et al., arXiv 1907.01341, equation 5), and L1.
- normals: 1 - cos of the angle between unit vectors, or the angle.
Each L_t is a mean over the pixels of a view that have a label, then over the views, of all
processes, that have any; a view without a label has no say.

Labels go through the crop of their picture, each pixel the nearest one. A mirrored view turns the
normals' x round. A crop is taken as part of the same camera's picture: depth and normals stay.

Shapes: B pictures, V views, N views with heads run on them (B x V), D features, h and w of the
patch map, C classes or channels, S stored side of the labels, L side at which they are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.models.towers import grid
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group, sum_over
from capwright.pretrain.labels import IGNORE, METRIC, UNKNOWN, LabelStore, check_tasks, load_labels
from capwright.pretrain.objective import BaseObjective, Features, Request, Terms

NAME = "pseudo_labels"
FLAT = 1e-3  # least spread of a view's relative depth, as a share of the picture's
TURN = 1e-6  # keeps the gradient of an angle finite at 0 and at 180 degrees

TaskLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(prediction [N, C, L, L], label) -> (mean over labelled pixels [N], whether there are any [N])"""


def segmentation_loss(logits_NCLL: Tensor, seg_NLL: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy; IGNORE is without a label."""
    seg_NLL = seg_NLL.long()
    loss_NLL = F.cross_entropy(logits_NCLL, seg_NLL, ignore_index=IGNORE, reduction="none")
    return _mean(loss_NLL, seg_NLL != IGNORE)


def metric_depth_loss(
    log_pred_N1LL: Tensor, log_depth_NLL: Tensor, scale_free: float
) -> tuple[Tensor, Tensor]:
    """L1 on log metres with a share of the view's mean error forgiven; NaN is without a label."""
    known_NLL = log_depth_NLL.isfinite()
    d_NLL = log_pred_N1LL[:, 0] - log_depth_NLL.to(log_pred_N1LL.dtype).nan_to_num()
    mean_N, _ = _mean(d_NLL, known_NLL)
    return _mean((d_NLL - scale_free * mean_N[:, None, None]).abs(), known_NLL)


def relative_depth_loss(pred_N1LL: Tensor, depth_NLL: Tensor) -> tuple[Tensor, Tensor]:
    """L1 against labels that are centred and scaled in each view; NaN is without a label."""
    depth_NLL = depth_NLL.to(pred_N1LL.dtype)
    known_NLL = depth_NLL.isfinite()
    median_N = depth_NLL.flatten(1).nanmedian(dim=1).values.nan_to_num()
    centred_NLL = (depth_NLL - median_N[:, None, None]).nan_to_num()
    spread_N, _ = _mean(centred_NLL.abs(), known_NLL)
    target_NLL = centred_NLL / spread_N.clamp(min=FLAT)[:, None, None]
    return _mean((pred_N1LL[:, 0] - target_NLL).abs(), known_NLL)


def normals_loss(pred_N3LL: Tensor, normals_N3LL: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """1 - cos of the angle ("cosine") or the angle in radians ("angular"); 0 is without a label."""
    true_N3LL = normals_N3LL.to(pred_N3LL.dtype)
    cos_NLL = F.cosine_similarity(pred_N3LL, true_N3LL, dim=1, eps=1e-6)
    if form == "cosine":
        loss_NLL = 1 - cos_NLL
    else:
        loss_NLL = torch.acos(cos_NLL.clamp(TURN - 1, 1 - TURN))
    return _mean(loss_NLL, (normals_N3LL != 0).any(dim=1))


def _mean(value_NLL: Tensor, known_NLL: Tensor) -> tuple[Tensor, Tensor]:
    count_N = known_NLL.flatten(1).sum(dim=1)
    total_N = torch.where(known_NLL, value_NLL, 0).flatten(1).sum(dim=1)
    return total_N / count_N.clamp(min=1), count_N > 0


def view_labels(label: Tensor, theta_BV23: Tensor, size: int, unknown: float) -> Tensor:
    """Labels [B, ..., S, S] through the views' crops: [B, V, ..., L, L], the nearest pixel each.

    Where a view looks beyond the picture the label is `unknown`.
    """
    batch, views = theta_BV23.shape[:2]
    where = F.affine_grid(
        theta_BV23.flatten(0, 1).double(), [batch * views, 1, size, size], align_corners=False
    )
    side = label.shape[-1]
    at_NLL2 = ((where + 1) / 2 * side).floor().long()
    inside_NLL = ((at_NLL2 >= 0) & (at_NLL2 < side)).all(dim=-1)
    x_NLL, y_NLL = at_NLL2.clamp(0, side - 1).unbind(dim=-1)
    picture_N11 = torch.arange(batch).repeat_interleave(views)[:, None, None]
    label_BCSS = label if label.ndim == 4 else label[:, None]
    taken_NLLC = label_BCSS.movedim(1, -1)[picture_N11, y_NLL, x_NLL]
    taken_NLLC = taken_NLLC.masked_fill(~inside_NLL[..., None], unknown)
    viewed: Tensor = taken_NLLC.movedim(-1, 1).unflatten(0, (batch, views))
    return viewed if label.ndim == 4 else viewed[:, :, 0]


def turn_normals(normals_BV3LL: Tensor, theta_BV23: Tensor) -> Tensor:
    """Normals of views that are mirrored: x turned round, or y where a view is upside down."""
    sign_BV3 = torch.ones(*theta_BV23.shape[:2], 3, dtype=normals_BV3LL.dtype)
    sign_BV3[..., 0] = torch.where(theta_BV23[..., 0, 0] < 0, -1, 1)
    sign_BV3[..., 1] = torch.where(theta_BV23[..., 1, 1] < 0, -1, 1)
    return normals_BV3LL * sign_BV3[..., None, None]


@dataclass(frozen=True)
class LabelViews:
    """The labels of a batch, each view's through its crop; runs in the loader."""

    store: LabelStore
    size: int

    def __call__(self, request: Request) -> dict[str, Tensor]:
        """`pseudo_labels.TASK`: [B, V, L, L], normals [B, V, 3, L, L]."""
        found = {}
        for task, values in self.store(request.row_B).items():
            label = torch.from_numpy(values)
            viewed = view_labels(label, request.theta_BV23, self.size, UNKNOWN[task])
            if task == "normals":
                viewed = turn_normals(viewed, request.theta_BV23)
            found[f"{NAME}.{task}"] = viewed
        return found


class Head(nn.Module):
    """Patch map [N, D, h, w] -> [N, C, L, L]; no statistic of the batch, so pictures do not mix."""

    def __init__(self, features: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(features, hidden, 1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.predict = nn.Conv2d(hidden, outputs, 1)

    def forward(self, feats_NDhw: Tensor, size: int) -> Tensor:
        """Predict at `size` pixels a side."""
        x = F.gelu(self.reduce(feats_NDhw))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.predict(F.gelu(self.mix(x)))
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


class Objective(BaseObjective):
    """The heads, which are no part of the exported model, and the sum of their losses."""

    uses = ("image",)
    needs = ("patches",)
    private = ("patches",)

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.settings = settings = config.pseudo_labels
        plan = check_tasks(_folder(config), settings.tasks)
        self.metric = plan["depth_kind"] == METRIC
        outputs = {"segmentation": len(plan["classes"]), "depth": 1, "normals": 3}
        *_, features = grid(model, config.image_size)
        self.heads = nn.ModuleDict(
            {task: Head(features, outputs[task], settings.hidden) for task in settings.tasks}
        )

    @classmethod
    def extras(cls, config: PretrainConfig, index: pa.Table) -> LabelViews:
        """The labels of the pictures; unpacks them into WORK/labels where they are not yet."""
        settings = config.pseudo_labels
        store = load_labels(_folder(config), index, config.work / "labels", settings.tasks)
        return LabelViews(store, settings.label_size)

    def encode(self, model: Any, batch: Batch, shared: Features) -> dict[str, Tensor]:
        """Every view's loss and whether it has labels, [B, V] for each task."""
        patches_BVDhw = shared["patches"]
        found = {}
        for task, head in self.heads.items():
            label = batch.extras[f"{NAME}.{task}"].flatten(0, 1)
            predicted = head(patches_BVDhw.flatten(0, 1), self.settings.label_size).float()
            loss_N, known_N = self._loss_of(task)(predicted, label)
            found[f"{NAME}/{task}"] = loss_N.view(patches_BVDhw.shape[:2])
            found[f"{NAME}/{task}_known"] = known_N.view(patches_BVDhw.shape[:2])
        return found

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """The weighted sum of the tasks' means."""
        means, shares = {}, {}
        for task in self.heads:
            loss_BV, known_BV = features[f"{NAME}/{task}"], features[f"{NAME}/{task}_known"]
            means[task] = mean_over_known(loss_BV, known_BV, group)
            shares[f"{task}_labelled"] = known_BV.float().mean()
        total = torch.stack([self.settings.weight(task) * mean for task, mean in means.items()])
        return Terms(total.sum(), {task: mean.detach() for task, mean in means.items()} | shares)

    def _loss_of(self, task: str) -> TaskLoss:
        if task == "segmentation":
            return segmentation_loss
        if task == "normals":
            return lambda pred, true: normals_loss(pred, true, self.settings.normals_loss)
        if self.metric:
            return lambda pred, true: metric_depth_loss(pred, true, self.settings.scale_free)
        return relative_depth_loss


def mean_over_known(loss_BV: Tensor, known_BV: Tensor, group: Group) -> Tensor:
    """A loss of this rank whose mean over ranks is the mean over all ranks' known views.

    0, with a gradient of 0, where nobody knows any.
    """
    known = sum_over(known_BV.sum().to(loss_BV.dtype), group)  # of all ranks; it has no gradient
    return loss_BV.sum() * group.world / known.clamp(min=1)


def _folder(config: PretrainConfig) -> Path:
    return config.work / "captions" / config.pseudo_labels.stage
