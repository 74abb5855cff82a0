"""The model that MUST adapts: an image tower, a classifier made from words, a head for pixels.

The classifier holds one vector a class, at first that of the class's words in all templates (CLIP,
arXiv 2103.00020, section 3.1.4), and learns; the text tower is not needed any more. Scores are
scaled cosines. Hidden patches go through the same final norm and projection as the picture, so that
they can be compared; their pixels are predicted by a norm, a 1x1 convolution and a PixelShuffle.

Shapes: B pictures, S pixels a side, h and w patches, P = hw, p pixels a side of a patch, D width,
E embedding, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.adapt.must.masks import blanked, masked_tokens
from capwright.dense.layerwise import depths
from capwright.dense.vit import open_up

TOP = "visual.proj"  # open_clip's towers list it first, but it follows the last block


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the student says of a batch."""

    logits_BC: Tensor
    pictures_BE: Tensor  # unit vectors
    patches_BPE: Tensor | None = None  # unit vectors; None where nothing is hidden
    pixels_B3SS: Tensor | None = None  # None where nothing is hidden or there is no head


class PixelHead(nn.Module):
    """Tokens to the normalised pixels of their patches."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Conv2d(width, 3 * side**2, 1)
        self.shuffle = nn.PixelShuffle(side)

    def forward(self, tokens_BPD: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, 3, S, S]."""
        normed_BDP = self.norm(tokens_BPD).transpose(1, 2)
        pixels: Tensor = self.shuffle(self.predict(normed_BDP.unflatten(2, grid)))
        return pixels


class Student(nn.Module):
    """Pictures to scores of the classes; with hidden patches, to all that the losses need."""

    def __init__(
        self,
        visual: Any,
        classifier_CE: Tensor,
        scale: float,
        *,
        masks: bool = True,
        patch: int | None = None,
    ) -> None:
        """`masks`: a token for hidden patches; `patch`: p, for a head that predicts pixels."""
        super().__init__()
        self.vit = open_up(visual)
        self.scale = scale
        width = next(iter(self.vit.blocks[0].parameters())).shape[0]  # of the first norm
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02) if masks else None
        self.visual: nn.Module = visual
        self.classifier = nn.Parameter(classifier_CE.detach().clone())
        self.pixel_head = None if patch is None else PixelHead(width, patch)

    def forward(self, images_B3SS: Tensor, hidden_Bhw: Tensor | None = None) -> Seen:
        """Scores, unit vectors and, where there is a head, pixels."""
        if hidden_Bhw is None:
            x_BND, grid = self.vit.embed(images_B3SS)
        else:
            assert self.mask_token is not None
            with masked_tokens(self.visual, hidden_Bhw, self.mask_token):
                x_BND, grid = self.vit.embed(blanked(images_B3SS, hidden_Bhw))
        for block in range(self.vit.depth):
            x_BND = self.vit.block(block, x_BND)
        pictures_BE = F.normalize(self.vit.embedding(x_BND).float(), dim=-1)
        with torch.autocast(images_B3SS.device.type, enabled=False):  # logits of 100: 24 bits
            classes_CE = F.normalize(self.classifier.float(), dim=-1)
            logits_BC = self.scale * pictures_BE @ classes_CE.T
        if hidden_Bhw is None:
            return Seen(logits_BC=logits_BC, pictures_BE=pictures_BE)
        tokens_BPD = x_BND[:, self.vit.prefix :]
        head = self.pixel_head
        return Seen(
            logits_BC=logits_BC,
            pictures_BE=pictures_BE,
            patches_BPE=F.normalize(self.vit.project(tokens_BPD).float(), dim=-1),
            pixels_B3SS=None if head is None else head(tokens_BPD, grid).float(),
        )


def parameter_groups(
    student: Student, *, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of an optimiser with `factor`, what the learning rate of the top is multiplied with.

    The mask token belongs to the stem; classifier, pixel head and projection to the top. Vectors
    (norms, biases, the mask token) get no weight decay.
    """
    named = dict(student.named_parameters())
    inside = [name for name in named if name.startswith("visual.") and name != TOP]
    depth = depths(inside)
    top = max(depth.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        own = 0 if name == "mask_token" else depth.get(name, top)
        groups.setdefault((own, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": layer_decay ** (top - own),
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (own, matrix), parameters in groups.items()
    ]
