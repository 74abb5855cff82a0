"""Multi-modal reinforced training: "MobileCLIP: Fast Image-Text Models through Multi-Modal
Reinforced Training" (Vasu et al., arXiv 2311.17049).

Teachers' embeddings of stored augmentations and of every caption lie beside the data
(`capwright reinforce`, or DataCompDR's own), so that distilling costs a look-up and no teacher's
forward pass. For the sets B of (image, real caption) and (image, synthetic caption), each
picture drawn once for both:
    L         = mean_B [ (1 - lambda) L_CLIP(B) + lambda L_distill(B) ]
    L_distill = 1/2K sum_k [ KL(p_k(image to text) || q(image to text)) + the same text to image ]
    p_k       = softmax_j(s_k u_i v_j) of teacher k's unit vectors, q that of the student's
A row of a softmax runs over the pairs of all ranks, and KL is averaged over rows. The paper sums
over B, which is the mean times the number of sets. KL and the cross-entropy that the authors'
code computes differ by the teachers' entropy, which no weight changes; KL is 0 where the student
agrees with one teacher. L_CLIP is that of `contrastive.py`, where captions that are equal are no
negatives of each other. L_distill needs no such mask: the teachers share a row's probability
among equal captions, and so can the student.

Shapes: B pictures of this rank, P pairs of this rank, G pairs of all ranks, S captions of a picture
at most, U different captions, E embedding, D a teacher's embedding, H image side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, decode_rgb, open_picture
from capwright.corpus.places import ByteReader, Place, places
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group, gather_uneven
from capwright.pretrain.draws import Draws
from capwright.pretrain.objective import BaseObjective, Features, Request, Terms
from capwright.pretrain.objectives.contrastive import contrastive_loss
from capwright.pretrain.reinforcement import Reinforcements, choice
from capwright.pretrain.replay import ReplayError, replay

PURPOSE = "reinforced"  # of the draw that chooses an augmentation
KNOWN, IMAGE, TEXT = "reinforced/known", "reinforced/image/", "reinforced/text/"
Teacher = tuple[Tensor, Tensor, float]  # image [P, D], text [P, D], logit scale


def distillation_loss(
    image_PE: Tensor,
    text_PE: Tensor,
    scale: Tensor,
    teachers: Sequence[Teacher],
    group: Group = ALONE,
) -> Tensor:
    """Divergence of this rank's rows from the teachers', whose mean over ranks is that of all.

    All vectors are of unit length.
    """
    with torch.autocast(image_PE.device.type, enabled=False):  # logits of 100 need 24 bits
        images_GE, texts_GE = gather_uneven(image_PE, group), gather_uneven(text_PE, group)
        by_image_PG = F.log_softmax(scale * image_PE @ texts_GE.T, dim=1)
        by_text_PG = F.log_softmax(scale * text_PE @ images_GE.T, dim=1)
        total = image_PE.new_zeros(())
        for image_PD, text_PD, teacher_scale in teachers:
            texts_GD, images_GD = gather_uneven(text_PD, group), gather_uneven(image_PD, group)
            total = total + _divergence(teacher_scale * image_PD @ texts_GD.T, by_image_PG)
            total = total + _divergence(teacher_scale * text_PD @ images_GD.T, by_text_PG)
    return total * group.world / (2 * len(teachers) * max(1, len(texts_GE)))


def _divergence(teacher_PG: Tensor, student_PG: Tensor) -> Tensor:
    """Sum over rows of the KL divergence of log-probabilities from a teacher's logits."""
    return F.kl_div(student_PG, F.log_softmax(teacher_PG, dim=1), reduction="sum", log_target=True)


def slots(picture_P: Tensor) -> Tensor:
    """The how manieth pair of its picture each pair is, int64 [P]."""
    order_P = picture_P.argsort(stable=True)
    sorted_P = picture_P[order_P].contiguous()
    count_P = torch.arange(len(picture_P), device=picture_P.device)
    count_P = count_P - torch.searchsorted(sorted_P, sorted_P)
    return torch.empty_like(count_P).scatter(0, order_P, count_P)


class Objective(BaseObjective):
    """The loss above; also brings the replayed views and the teachers' embeddings of a batch."""

    uses = ("image", "text", "scale")
    needs = ("image", "text")

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.settings = config.reinforced

    @classmethod
    def view_maker(cls, config: PretrainConfig, index: pa.Table) -> "ReplayedViews":
        """The stored augmentations in place of random crops."""
        return ReplayedViews(index, _store(config), config.image_size)

    @classmethod
    def extras(cls, config: PretrainConfig, index: pa.Table) -> "TeacherEmbeddings | None":
        """The teachers' embeddings, where they have a say."""
        if not config.reinforced.distillation:
            return None
        _check_captions(config)
        store, scales = _store(config), config.reinforced.teacher_scales
        if len(scales) not in (1, len(store.widths)):
            raise CapwrightError(
                f"reinforced.teacher_scales has {len(scales)} values, but {len(store.widths)} "
                "teachers are stored: give one for each, or one for all"
            )
        return TeacherEmbeddings(store, index["key"])

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """Loss of one batch; of several views the first is the one the teachers saw."""
        image_BE = F.normalize(features["image"][:, 0].float(), dim=-1)
        text_UE = F.normalize(features["text"].float(), dim=-1)
        slot_P = slots(batch.pair_picture_P)
        share = self.settings.distillation
        clip, distilled = [], []
        for caption_set in range(batch.caption_sets):
            picture_P, text_P = batch.pairs_of(caption_set)
            image_PE, text_PE = image_BE[picture_P], text_UE[text_P]
            if share < 1:
                same_ids = (batch.text_ids_U[text_P], batch.sample_ids_B[picture_P])
                clip.append(contrastive_loss(image_PE, text_PE, scale, same_ids, group))
            if share > 0:
                known_P = batch.extras[KNOWN][picture_P]
                own_P = slot_P[batch.pair_set_P == caption_set][known_P]
                teachers = self._teachers(batch, picture_P[known_P], own_P)
                distilled.append(
                    distillation_loss(image_PE[known_P], text_PE[known_P], scale, teachers, group)
                )
        total, logged = scale.new_zeros(()), {}
        for name, weight, losses in (("clip", 1 - share, clip), ("distill", share, distilled)):
            if losses:
                value = torch.stack(losses).mean()
                total, logged[name] = total + weight * value, value.detach()
        return Terms(total, logged)

    def _teachers(self, batch: Batch, picture_P: Tensor, slot_P: Tensor) -> list[Teacher]:
        names = sorted(name for name in batch.extras if name.startswith(IMAGE))
        scales = self.settings.teacher_scales
        found: list[Teacher] = []
        for name, scale in zip(names, scales * (len(names) // len(scales)), strict=True):
            image_BD = batch.extras[name]
            text_BSD = batch.extras[TEXT + name.removeprefix(IMAGE)]
            # as bfloat16 a unit vector is up to 0.4% longer or shorter than 1
            image_PD = F.normalize(image_BD[picture_P].float(), dim=-1)
            text_PD = F.normalize(text_BSD[picture_P, slot_P].float(), dim=-1)
            found.append((image_PD, text_PD, scale))
        return found


class TeacherEmbeddings:
    """An `Extra`: the teachers' embeddings of the drawn augmentation and captions, bfloat16.

    `reinforced/image/K` [B, D], `reinforced/text/K` [B, S, D] with a picture's captions in the
    order of their pairs, and `reinforced/known`, False where the stage failed on the picture.
    """

    def __init__(self, store: Reinforcements, keys: pa.ChunkedArray) -> None:
        self.store, self._keys = store, keys

    def __call__(self, request: Request) -> dict[str, Tensor]:
        """Raises CapwrightError for a caption that no teacher read."""
        uniform_B = request.draws.uniform(PURPOSE, 1)[:, 0]
        row_B = request.row_B.tolist()
        pictures, width = len(row_B), sum(self.store.widths)
        image_BD = torch.zeros(pictures, width, dtype=torch.bfloat16)
        known_B = torch.zeros(pictures, dtype=torch.bool)
        for i, (row, uniform) in enumerate(zip(row_B, uniform_B.tolist(), strict=True)):
            found = self.store.image(row, uniform)
            if found is not None:
                image_BD[i], known_B[i] = found, True
        slot_P = slots(torch.from_numpy(request.pair_picture_P))
        captions = int(slot_P.max()) + 1 if len(slot_P) else 1
        text_BSD = torch.zeros(pictures, captions, width, dtype=torch.bfloat16)
        pairs = zip(request.pair_picture_P.tolist(), slot_P.tolist(), request.texts_P, strict=True)
        for picture, slot, text in pairs:
            if known_B[picture]:
                text_BSD[picture, slot] = self._text(row_B[picture], text)
        extras = {KNOWN: known_B}
        split = zip(self.store.split(image_BD), self.store.split(text_BSD), strict=True)
        for k, (image_BE, text_BSE) in enumerate(split):
            extras[f"{IMAGE}{k:02d}"] = image_BE.contiguous()
            extras[f"{TEXT}{k:02d}"] = text_BSE.contiguous()
        return extras

    def _text(self, row: int, text: str) -> Tensor:
        found = self.store.text(row, text)
        if found is None:
            raise CapwrightError(
                f"the teachers did not read the caption {text!r} of picture "
                f"{self._keys[row].as_py()}: reinforce with every stage that captions names, "
                "or leave the source out"
            )
        return found


class ReplayedViews:
    """A `ViewMaker`: one stored augmentation of every picture, replayed on its bytes.

    A picture on which the stage failed gives its middle square.
    """

    def __init__(self, index: pa.Table, store: Reinforcements, size: int) -> None:
        self._index = index.select(["key", "file", "image_offset", "image_size", "image_column"])
        self.store, self.size, self._reader = store, size, ByteReader()

    def __call__(self, row_B: NDArray[np.int64], draws: Draws) -> Tensor:
        """Float images [B, 1, 3, H, H] in 0 to 1."""
        rows = self._index.take(pa.array(row_B))
        uniform_B = draws.uniform(PURPOSE, 1)[:, 0].tolist()
        found = zip(row_B.tolist(), rows["key"].to_pylist(), places(rows), uniform_B, strict=True)
        views_BHH3 = torch.from_numpy(np.stack([self._view(*one) for one in found]))
        return views_BHH3.permute(0, 3, 1, 2).unsqueeze(1).float() / 255

    def _view(self, row: int, key: str, place: Place, uniform: float) -> NDArray[np.uint8]:
        augmentations = self.store.augmentations(row)
        try:
            data = self._reader.read(*place)
            if not augmentations:
                return decode_rgb(data, size=self.size)
            return replay(open_picture(data), choice(augmentations, uniform), self.size)
        except (PictureError, ReplayError) as error:
            raise CapwrightError(
                f"picture {key} in {place.file} cannot be replayed ({error}): "
                "the shard changed after it was reinforced, so index and reinforce it again"
            ) from error


def _store(config: PretrainConfig) -> Reinforcements:
    return Reinforcements(config.work, config.reinforced.stage)


def _check_captions(config: PretrainConfig) -> None:
    sampling = config.sampling
    changed = f"mode={sampling.mode}" if sampling.mode == "concat" else ""
    if sampling.sub_caption:
        changed = f"sub_caption={sampling.sub_caption}"
    if changed:
        raise CapwrightError(
            f"sampling.{changed} makes texts that no teacher read: "
            "with reinforced use whole captions, in the mode both, mix or multi_positive"
        )
