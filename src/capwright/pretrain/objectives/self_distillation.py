"""Self-distillation: "SILC: Improving Vision Language Pretraining with Self-Distillation" (Naeem et
al., arXiv 2310.13355). The recipe of "SigLIP 2" (Tschannen et al., arXiv 2502.14786) is a matter of
settings: one global view, and a weight of ((0.8, 0), (0.8, 1)) for the last 20% of the run.

The student sees small crops of a picture and has to say what its teacher, a moving average of
itself, says about the large views. Head: MLP, unit vector, cosines g with K prototypes.
    p_t = softmax((g_t - c) / tau_t)   p_s = softmax(g_s / tau_s)
    L   = - mean over pictures and (global, local) pairs of views  sum_k p_t log p_s
    c      <- m_c c + (1 - m_c) mean g_t, over the batch of all processes: no prototype wins all
    theta_t <- m theta_t + (1 - m) theta_s  after every step, with a fixed m
With `contrastive`, that loss is on every global view, without which the two pull apart (SILC).
Local views never meet a caption, which they may contradict.

Shapes: B pictures, V global views, L local views, H and h their pixels a side, E embedding,
Z bottleneck, K prototypes.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import open_clip
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.pretrain import augmentation
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group, mean_over
from capwright.pretrain.ema import follow
from capwright.pretrain.objective import BaseObjective, Extra, Features, Request, Terms
from capwright.pretrain.settings.augmentation import Augmentation
from capwright.pretrain.settings.self_distillation import SelfDistillationSettings

NAME = "self_distillation"
CLIP_MEAN_STD = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))


def teacher_answer(logits: Tensor, centre_K: Tensor, temperature: float) -> Tensor:
    """p_t: centred, sharpened logits [..., K] as distributions."""
    return ((logits - centre_K) / temperature).softmax(dim=-1)


def distillation_loss(teacher_BVK: Tensor, student_BLK: Tensor, temperature: float) -> Tensor:
    """Each picture's loss, [B], from the teacher's distributions and the student's logits.

    All V L pairs of views count, so their mean is the product of the two means over views.
    """
    log_student_BLK = (student_BLK / temperature).log_softmax(dim=-1)
    return -(teacher_BVK.mean(dim=1) * log_student_BLK.mean(dim=1)).sum(dim=-1)


def entropy(p: Tensor) -> Tensor:
    """Entropy in nats of distributions [..., K]."""
    total: Tensor = torch.special.entr(p).sum(dim=-1)
    return total


class Head(nn.Module):
    """Embedding -> three layers -> unit vector -> cosines with K prototypes (weight norm 1)."""

    def __init__(self, embedding: int, settings: SelfDistillationSettings) -> None:
        super().__init__()
        width, bottleneck = settings.hidden_width, settings.bottleneck
        layers = [nn.Linear(embedding, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, bottleneck))
        self.prototypes_KZ = nn.Parameter(torch.randn(settings.prototypes, bottleneck))

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits [..., K], from -1 to 1, for embeddings [..., E]."""
        unit = F.normalize(self.layers(embedding).float(), dim=-1)
        return F.linear(unit, F.normalize(self.prototypes_KZ, dim=-1)).float()


@dataclass(frozen=True, kw_only=True)
class Locals:
    """Makes the local views, normalised as the main ones: {"self_distillation/local": BL3hh}."""

    crop: Augmentation
    views: int
    size: int
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] = CLIP_MEAN_STD

    def __call__(self, request: Request) -> dict[str, Tensor]:
        """The local views of a batch."""
        if request.pixels_BSS3 is None:
            raise CapwrightError(
                "self_distillation crops local views from the stored pictures, but the views of "
                "this run are stored themselves: leave out the objective that replays them"
            )
        images_B3SS = augmentation.as_floats(request.pixels_BSS3)
        purposes = [f"{NAME}/local {i}" for i in range(self.views)]
        thetas = [augmentation.crops(request.draws, self.crop, purpose) for purpose in purposes]
        views = [augmentation.view(images_B3SS, theta_B23, self.size) for theta_B23 in thetas]
        local_BL3hh = augmentation.normalise(torch.stack(views, dim=1), self.mean_std)
        return {f"{NAME}/local": local_BL3hh}


def local_size(config: PretrainConfig) -> int:
    """Pixels a side of a local view."""
    size = config.self_distillation.local_size
    return max(1, config.image_size * 3 // 8) if size is None else size


class Objective(BaseObjective):
    """Student head, teacher and centre; all are kept in the training state alone."""

    centre_K: Tensor
    steps: Tensor
    uses: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.settings = config.self_distillation
        embedding = _check_size(model, local_size(config))
        self.head = Head(embedding, self.settings)
        self.teacher = copy.deepcopy(model.visual).requires_grad_(False).eval()
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre_K", torch.zeros(self.settings.prototypes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._batch_mean_K: Tensor | None = None  # of the step that is under way

    @classmethod
    def views(cls, config: PretrainConfig) -> int:
        """The teacher's views, on each of which the other objectives work as well."""
        return config.self_distillation.global_views

    @classmethod
    def extras(cls, config: PretrainConfig, index: pa.Table) -> Extra | None:
        """Local views; they are mirrored if the main views are."""
        main, settings = config.augmentation, config.self_distillation
        crop = Augmentation(
            crop_area=settings.local_area, crop_aspect=main.crop_aspect, flip=main.flip
        )
        return Locals(crop=crop, views=settings.local_views, size=local_size(config))

    def train(self, mode: bool = True) -> Self:
        """The teacher is never in training mode: its answers have no dropout."""
        super().train(mode)
        self.teacher.eval()
        return self

    def encode(self, model: Any, batch: Batch, shared: Features) -> dict[str, Tensor]:
        """Each picture's loss, and the teacher's means over its views for the centre."""
        global_BV, local_BL = batch.images_BV3HH, batch.extras[f"{NAME}/local"]
        with torch.no_grad():
            logits_BVK = self.teacher_head(_embed(self.teacher, global_BV))
            answer_BVK = teacher_answer(
                logits_BVK, self.centre_K, self.settings.teacher_temperature
            )
        student_BLK = self.head(_embed(model, local_BL))
        loss_B = distillation_loss(answer_BVK, student_BLK, self.settings.student_temperature)
        return {
            f"{NAME}/loss": loss_B,
            f"{NAME}/entropy": entropy(answer_BVK).mean(dim=1),
            f"{NAME}/logits": logits_BVK.mean(dim=1),
            f"{NAME}/answer": answer_BVK.mean(dim=1),
        }

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """The mean over pictures; the batch's mean logits wait for the end of the step."""
        loss = features[f"{NAME}/loss"].mean()
        own_entropy = features[f"{NAME}/entropy"].detach().mean()
        self._batch_mean_K = mean_over(features[f"{NAME}/logits"].detach(), group)
        answer_K = mean_over(features[f"{NAME}/answer"].detach(), group)
        logged = {
            "teacher_entropy": own_entropy,  # near log K: every answer is uniform
            "kl": loss.detach() - own_entropy,  # of the student from the teacher
            "batch_entropy": entropy(answer_K),  # near 0: one prototype for every picture
        }
        return Terms(loss, logged)

    @torch.no_grad()
    def after_step(self, model: Any, share: float) -> None:
        """Move the teacher towards the student, and the centre towards the batch's mean logits."""
        pairs = ((self.teacher, model.visual), (self.teacher_head, self.head))
        for teacher, student in pairs:
            follow(teacher, student, self.settings.momentum)
        if self._batch_mean_K is not None:
            self.centre_K.lerp_(self._batch_mean_K, 1 - self.settings.centre_momentum)
            self.steps += 1
            self._batch_mean_K = None

    def alarm(self, logged: Mapping[str, float]) -> str:
        """One sentence if the teacher says the same of every picture, or nothing of any."""
        settings, most = self.settings, math.log(self.settings.prototypes)
        if int(self.steps) < settings.alarm_after_steps:
            return ""
        if logged["batch_entropy"] < settings.alarm_one_prototype:
            return (
                "self_distillation has collapsed to one prototype: the batch-mean entropy is "
                f"{logged['batch_entropy']:.3f} nats, below {settings.alarm_one_prototype:g}; "
                "lower centre_momentum or raise teacher_temperature"
            )
        if logged["teacher_entropy"] > settings.alarm_uniform * most:
            return (
                "self_distillation has collapsed to uniform answers: the teacher's entropy is "
                f"{logged['teacher_entropy']:.3f} of at most {most:.3f} nats, above a share of "
                f"{settings.alarm_uniform:g}; lower teacher_temperature or raise momentum"
            )
        return ""


def _embed(model_or_visual: Any, images: Tensor) -> Tensor:
    """Embeddings [B, V, E] of views [B, V, 3, H, H]."""
    embedded: Tensor = towers.encode_image(model_or_visual, images.flatten(0, 1))
    return embedded.view(*images.shape[:2], -1)


@torch.no_grad()
def _check_size(model: Any, size: int) -> int:
    """The width of an embedding; CapwrightError if the tower cannot see so small a picture."""
    was_training, parameter = model.training, next(model.parameters())
    blank = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    try:
        return int(towers.encode_image(model.eval(), blank).shape[-1])
    except CapwrightError as error:
        raise CapwrightError(f"self_distillation.local_size is {size}: {error}") from error
    finally:
        model.train(was_training)
