"""nCLIP: "Non-Contrastive Learning Meets Language-Image Pre-Training" (Zhou et al., arXiv
2210.09304). With `contrastive` beside it, on the same towers with heads of its own, it is xCLIP.

A head on each tower's embedding gives a distribution over K prototypes, p_v of a picture and p_t
of a text. A pair shall agree, each prediction shall be sure, and all prototypes shall be used;
there are no negatives and no teacher. With H(q, p) = -sum_k q_k log p_k and H(p) = H(p, p):
    alignment   mean 1/2 [H(p_t, p_v) + H(p_v, p_t)]
    sharpness   mean 1/2 [H(p_v) + H(p_t)]
    smoothness       1/2 [H(mean p_v) + H(mean p_t)]
    L = alignment + lambda_1 sharpness - lambda_2 smoothness
Means are over the positive pairs of all processes, with gradient through all of them. A batch of
fewer pairs than K cannot use every prototype; then the mean may remember earlier batches, as that
of MUST does (Li et al., arXiv 2206.02967): mean <- r old + (1 - r) new, with gradient through the
new part, and smoothness divided by 1 - r so that this gradient keeps its weight.

While all predictions are alike, L = (1 + lambda_1 - lambda_2) H(p): unless lambda_2 > 1 + lambda_1
they fall on one prototype together before they can differ. Embeddings of fresh towers are nearly
alike, so the heads get them with the mean and deviation over the global batch taken out (ours).

Shapes: B pictures, V views, U different captions, P pairs of this rank, N = V P, E embedding,
K prototypes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group, mean_over, sum_over
from capwright.pretrain.objective import BaseObjective, Features, Terms
from capwright.pretrain.settings.non_contrastive import MOST_PROTOTYPES

TINY = 1e-12  # a share of a prototype that nobody chooses, whose logarithm is still finite


@dataclass(frozen=True)
class Parts:
    """What the loss is made of, over all processes; index 0 is pictures, 1 is texts."""

    alignment: Tensor
    entropies_2: Tensor  # mean entropy of a prediction
    mean_p_2K: Tensor  # mean prediction of this batch


def parts_of(image_NK: Tensor, text_NK: Tensor, group: Group = ALONE) -> Parts:
    """The means over all pairs of all processes, from the logits of this one's pairs."""
    log_v_NK, log_t_NK = image_NK.log_softmax(dim=-1), text_NK.log_softmax(dim=-1)
    v_NK, t_NK = log_v_NK.exp(), log_t_NK.exp()
    cross_N = -(t_NK * log_v_NK + v_NK * log_t_NK).sum(dim=-1) / 2
    entropy_N2 = -torch.stack([v_NK * log_v_NK, t_NK * log_t_NK], dim=1).sum(dim=-1)
    means = mean_over(torch.cat([cross_N[:, None], entropy_N2], dim=1), group)
    return Parts(means[0], means[1:], mean_over(torch.stack([v_NK, t_NK], dim=1), group))


def entropy_of_mean(mean_p: Tensor) -> Tensor:
    """H of mean predictions [..., K]; a prototype with no share brings no infinite gradient."""
    return -(mean_p * mean_p.clamp_min(TINY).log()).sum(dim=-1)


def non_contrastive_loss(
    parts: Parts,
    sharpness: float,
    smoothness: float,
    earlier_2K: Tensor | None = None,
    kept: float = 0.0,
) -> Tensor:
    """L, with a share `kept` of the mean prediction from earlier batches if there are any."""
    mean_p_2K = parts.mean_p_2K
    if earlier_2K is None:
        kept = 0.0
    else:
        mean_p_2K = kept * earlier_2K.detach() + (1 - kept) * mean_p_2K
    smooth = entropy_of_mean(mean_p_2K).mean() / (1 - kept)
    return parts.alignment + sharpness * parts.entropies_2.mean() - smoothness * smooth


def used_prototypes(logits_NK: Tensor, group: Group = ALONE) -> Tensor:
    """How many prototypes are the first choice of some row of some process."""
    chosen_N = logits_NK.detach().argmax(dim=-1)
    counts_K = torch.bincount(chosen_N, minlength=logits_NK.shape[-1])
    return (sum_over(counts_K, group) > 0).sum()


def standardised(embedding: Tensor, rows_NE: Tensor, group: Group = ALONE) -> Tensor:
    """Embeddings [..., E], less the mean and over the deviation of `rows_NE` of all processes."""
    mean_E = mean_over(rows_NE, group)
    variance_E = mean_over((rows_NE - mean_E).square(), group)
    return (embedding - mean_E) * (variance_E + 1e-5).rsqrt()


class Head(nn.Sequential):
    """Embedding -> two layers -> K logits."""

    def __init__(self, embedding: int, hidden: int, prototypes: int) -> None:
        super().__init__(nn.Linear(embedding, hidden), nn.GELU(), nn.Linear(hidden, prototypes))


class Objective(BaseObjective):
    """The two heads and the running mean; they are kept in the training state alone."""

    running_2K: Tensor
    steps: Tensor
    needs: ClassVar[tuple[str, ...]] = ("image", "text")

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.settings = config.non_contrastive
        self.prototypes = self.settings.prototypes or max(
            2, min(config.batch_size, MOST_PROTOTYPES)
        )
        hidden, embedding = self.settings.hidden_width, _embedding(model)
        self.image_head = Head(embedding, hidden, self.prototypes)
        self.text_head = Head(embedding, hidden, self.prototypes)
        self.register_buffer("running_2K", torch.zeros(2, self.prototypes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._mean_p_2K: Tensor | None = None  # of the step that is under way

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """Every view of a picture with every caption that is its own."""
        picture_P, text_P = batch.pair_picture_P, batch.pair_text_P
        image_BVE, text_UE = features["image"].float(), features["text"].float()
        image_BVE = standardised(image_BVE, image_BVE[picture_P].flatten(0, 1), group)
        text_UE = standardised(text_UE, text_UE[text_P], group)
        image_NK = self.image_head(image_BVE).float()[picture_P].flatten(0, 1)
        text_PK = self.text_head(text_UE).float()[text_P]
        text_NK = text_PK.repeat_interleave(image_BVE.shape[1], dim=0)
        parts = parts_of(image_NK, text_NK, group)
        earlier_2K = self.running_2K if self.steps > 0 else None
        settings = self.settings
        loss = non_contrastive_loss(
            parts, settings.sharpness, settings.smoothness, earlier_2K, settings.running_mean
        )
        self._mean_p_2K = parts.mean_p_2K.detach()
        spread_2 = entropy_of_mean(self._mean_p_2K)
        sure_2 = parts.entropies_2.detach()
        logged = {"alignment": parts.alignment.detach()}
        logged |= {"sharpness": sure_2.mean(), "smoothness": spread_2.mean()}
        for i, (what, logits_NK) in enumerate((("image", image_NK), ("text", text_NK))):
            logged[f"{what}_entropy"] = sure_2[i]  # near log K: unsure of everything
            logged[f"{what}_batch_entropy"] = spread_2[i]  # near 0: few prototypes for all
            logged[f"{what}_prototypes"] = used_prototypes(logits_NK, group).float()
        return Terms(loss, logged)

    @torch.no_grad()
    def after_step(self, model: Any, share: float) -> None:
        """Fold the batch's mean prediction into the running one."""
        if self._mean_p_2K is None:
            return
        kept = self.settings.running_mean if self.steps > 0 else 0.0
        self.running_2K.lerp_(self._mean_p_2K, 1 - kept)
        self.steps += 1
        self._mean_p_2K = None

    def alarm(self, logged: Mapping[str, float]) -> str:
        """One sentence if a head says the same of everything, or nothing of anything."""
        settings, most = self.settings, math.log(self.prototypes)
        if int(self.steps) < settings.alarm_after_steps:
            return ""
        for what in ("image", "text"):
            spread, own = logged[f"{what}_batch_entropy"], logged[f"{what}_entropy"]
            if spread < settings.alarm_few * most:
                return (
                    f"non_contrastive has collapsed to few prototypes: the {what} head's mean "
                    f"prediction has an entropy of {spread:.3f} of at most {most:.3f} nats, below "
                    f"a share of {settings.alarm_few:g}; raise non_contrastive.smoothness"
                )
            if own > settings.alarm_uniform * most:
                return (
                    f"non_contrastive has collapsed to uniform predictions: the {what} head's "
                    f"entropy is {own:.3f} of at most {most:.3f} nats, above a share of "
                    f"{settings.alarm_uniform:g}; raise non_contrastive.sharpness, and see whether "
                    "the captions are those of the pictures (capwright doctor)"
                )
        return ""


def _embedding(model: Any) -> int:
    """Width of the embedding that both towers share."""
    projection = getattr(model.text, "text_projection", None)
    if isinstance(projection, Tensor):
        return int(projection.shape[1])
    return int(model.text.output_dim)
