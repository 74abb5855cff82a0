"""Pictures and words → a label at every pixel, by one or several training-free methods.

The steps of SCLIP's inference (arXiv 2312.01597): the picture at a short side, windows that
overlap, logits of each window enlarged and averaged, enlarged to the picture, times a scale,
softmax over all names, the best name of each class, thresholds, the best class. Windows run in
batches, and methods share the blocks that are the same for all.

Shapes: B pictures of one size, Q names, C classes, E joint space, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.dense.pamr import refine
from capwright.dense.sliding import starts
from capwright.dense.training_free import find_method
from capwright.dense.training_free.layers import Layers
from capwright.dense.vit import Vit
from capwright.dense.words import Vocabulary, best_name

WINDOW_BATCH = 32  # windows of one forward pass


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How labels are made of a picture; the defaults are SCLIP's for a tower of 224 pixels."""

    short_side: int = 336  # pixels that the shorter side of a picture is brought to
    window: int = 224  # side of a window; 0 is the whole picture at once
    stride: int = 112  # from one window to the next
    logit_scale: float = 40.0
    area_threshold: float = 0.0  # a class with no more of the objects' pixels is left out
    probability_threshold: float = 0.0  # below it a pixel is background (class 0)
    pamr: bool = False  # refinement by colour
    residual: bool | None = None  # of the last block; None: as the method has it
    ffn: bool | None = None  # its feed-forward part, likewise

    @property
    def switches(self) -> dict[str, bool]:
        """Parts of the last block that are not as the method has them."""
        parts = {"residual": self.residual, "ffn": self.ffn}
        return {name: value for name, value in parts.items() if value is not None}

    def __post_init__(self) -> None:
        if self.window < 0 or self.short_side < 1 or (self.window and self.stride < 1):
            raise CapwrightError(
                f"a short side of {self.short_side}, windows of {self.window} and a stride of "
                f"{self.stride} pixels: sides must be positive (a window of 0 is the whole picture)"
            )
        if self.window > self.short_side:
            raise CapwrightError(
                f"windows of {self.window} pixels do not fit into pictures with a short side of "
                f"{self.short_side}: choose smaller windows or a larger short side"
            )
        if self.window and self.stride > self.window:
            raise CapwrightError(
                f"windows of {self.window} pixels that move by {self.stride} leave gaps: "
                f"let them move by 1 to {self.window}"
            )
        shares = (self.area_threshold, self.probability_threshold)
        if not self.logit_scale > 0 or not all(0 <= share <= 1 for share in shares):
            raise CapwrightError(
                f"a logit scale of {self.logit_scale}, an area threshold of {shares[0]} and a "
                f"probability threshold of {shares[1]}: the scale must be above 0, both thresholds "
                "0 to 1"
            )


def inference_for(side: int) -> Inference:
    """SCLIP's proportions for a tower of `side` pixels: 336 / 224 / 112 for 224."""
    return Inference(short_side=side * 3 // 2, window=side, stride=max(1, side // 2))


def resized(images_B3HW: Tensor, short_side: int, multiple: int) -> Tensor:
    """The pictures with this shorter side, both sides rounded to multiples of a patch."""
    height, width = images_B3HW.shape[-2:]
    scale = short_side / min(height, width)
    sides = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    if sides == [height, width]:
        return images_B3HW
    resized: Tensor = F.interpolate(
        images_B3HW, size=sides, mode="bilinear", align_corners=False, antialias=True
    )
    return resized


@torch.no_grad()
def name_logits(
    vit: Vit,
    images_B3HW: Tensor,
    texts_QE: Tensor,
    methods: Sequence[str],
    inference: Inference,
    *,
    size: tuple[int, int] | None = None,
    background: int = 0,
) -> dict[str, Tensor]:
    """Cosine of every pixel and name by method, [B, Q, H, W], at `size` (the pictures').

    The pictures are normalised for the tower and at the inference's short side. The first
    `background` names are those of the background, for methods that decide without them.
    """
    height, width = images_B3HW.shape[-2:]
    side = inference.window
    down, right = side or height, side or width
    rows = starts(height, down, inference.stride) if side else [0]
    columns = starts(width, right, inference.stride) if side else [0]
    places = [(b, y, x) for y in rows for x in columns for b in range(len(images_B3HW))]
    shape = (len(images_B3HW), len(texts_QE), height, width)
    total = {method: images_B3HW.new_zeros(shape) for method in methods}
    count_HW = images_B3HW.new_zeros(height, width)
    for y in rows:
        for x in columns:
            count_HW[y : y + down, x : x + right] += 1
    for first in range(0, len(places), WINDOW_BATCH):
        chosen = places[first : first + WINDOW_BATCH]
        crops = torch.stack([images_B3HW[b, :, y : y + down, x : x + right] for b, y, x in chosen])
        layers = Layers(vit, crops)
        for method in methods:
            logits = window_logits(layers, texts_QE, method, **inference.switches)
            logits = F.interpolate(logits, (down, right), mode="bilinear", align_corners=False)
            for (b, y, x), window in zip(chosen, logits, strict=True):
                total[method][b, :, y : y + down, x : x + right] += window
    found = {method: logits / count_HW for method, logits in total.items()}
    for method in methods:
        if settle := getattr(find_method(method), "settle", None):
            whole_BQ = whole_logits(vit, images_B3HW, texts_QE)
            found[method] = settle(found[method], whole_BQ, background)
    if size in (None, (height, width)):
        return found
    return {
        method: F.interpolate(logits, size, mode="bilinear", align_corners=False)
        for method, logits in found.items()
    }


def whole_logits(vit: Vit, images_B3HW: Tensor, texts_QE: Tensor) -> Tensor:
    """Cosine of each picture as a whole, at the tower's own size, and each name, [B, Q]."""
    small = F.interpolate(
        images_B3HW, vit.own_size, mode="bilinear", align_corners=False, antialias=True
    )
    layers = Layers(vit, small)
    embedding_BE = F.normalize(vit.embedding(layers.after(layers.last)), dim=-1)
    return embedding_BE @ texts_QE.T


def window_logits(layers: Layers, texts_QE: Tensor, method: str, **switches: bool) -> Tensor:
    """Cosine of every patch and name, [B, Q, h, w]."""
    found_BPE = find_method(method).features(layers, texts_QE, **switches)
    features_BPE = F.normalize(found_BPE, dim=-1)
    logits_BQhw: Tensor = (features_BPE @ texts_QE.T).transpose(1, 2).unflatten(2, layers.grid)
    return logits_BQhw


def class_scores(logits_BQHW: Tensor, vocabulary: Vocabulary, inference: Inference) -> Tensor:
    """Scores between 0 and 1 of every class, [B, C, H, W]: the probability of its best name."""
    probability_BQHW = torch.softmax(logits_BQHW * inference.logit_scale, dim=1)
    return best_name(probability_BQHW, vocabulary)


def labels(scores_BCHW: Tensor, inference: Inference, images_B3HW: Tensor | None = None) -> Tensor:
    """The class of every pixel, int64 [B, H, W]; for PAMR also the pictures at the same size."""
    if inference.pamr:
        assert images_B3HW is not None
        scores_BCHW = refine(scores_BCHW, images_B3HW)
    if inference.area_threshold > 0:
        scores_BCHW = scores_BCHW * _large_enough(scores_BCHW, inference.area_threshold)
    best_BHW, labels_BHW = scores_BCHW.max(dim=1)
    return labels_BHW.masked_fill(best_BHW < inference.probability_threshold, 0)


def _large_enough(scores_BCHW: Tensor, least: float) -> Tensor:
    """1 for the background and classes with more than `least` of the objects' pixels, else 0."""
    classes = scores_BCHW.shape[1]
    one_hot_BCHW = F.one_hot(scores_BCHW.argmax(dim=1), classes).permute(0, 3, 1, 2)
    area_BC = one_hot_BCHW.flatten(2).sum(dim=2).to(scores_BCHW.dtype)
    objects_B1 = area_BC[:, 1:].sum(dim=1, keepdim=True).clamp(min=1)
    kept_BC = (area_BC / objects_B1 > least).to(scores_BCHW.dtype)
    kept_BC[:, 0] = 1
    return kept_BC[:, :, None, None]
