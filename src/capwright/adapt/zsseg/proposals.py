"""MaskFormer (Cheng et al., arXiv 2107.06278) whose classes are texts: the proposals of ZSSeg.

transformers' MaskFormer gives queries and features at a quarter of the picture's size. A query
becomes a mask by a product with the features, and is classified by its cosine with texts:

    logit(q, c) = 100 cos(MLP(q), t_c), the last column a learned vector for "no object"

so that classes can be added or exchanged by their texts. The MLP is 256 -> 1024 -> E. Every layer
of the decoder is read, since all are taught (deep supervision); the last one answers.

A picture is padded at the right and at the bottom to sides that the backbone can halve, with the
mean pixel; masks are cut back.

Shapes: B pictures, Q queries, D features of a query, M of a pixel, E joint space, C classes,
h and w a quarter of the sides H and W.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MaskFormerConfig, MaskFormerModel
from transformers.models.maskformer.modeling_maskformer import MaskformerMLPPredictionHead

from capwright.core.errors import CapwrightError
from capwright.evaluate.transfer.loop import Schedule

SCALE = 100.0  # of the cosines
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GROUPS = 32  # of the norms in the pixel decoder, fixed in transformers

PRETRAINED = "use_pretrained_backbone"  # transformers reads it no more: `load_backbone` does
RESNET50: Mapping[str, Any] = {
    "model_type": "timm_backbone",
    "backbone": "resnet50.a1_in1k",
    PRETRAINED: True,
    "features_only": True,
    "out_indices": [1, 2, 3, 4],
}
TINY_RESNET: Mapping[str, Any] = {  # fresh weights; for small pictures and processors
    "model_type": "resnet",
    "embedding_size": 32,
    "hidden_sizes": [32, 48, 64, 96],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


@dataclass(frozen=True, kw_only=True)
class ProposalSettings:
    """How large the proposal network is; the defaults are the paper's configuration."""

    backbone: Mapping[str, Any] = field(default_factory=lambda: dict(RESNET50))
    """Of transformers: any backbone's configuration, or `timm_backbone` with any timm name."""
    stride: int = 32
    """Of the backbone's coarsest map; sides are padded to multiples of it."""
    queries: int = 100
    layers: int = 6
    width: int = 256
    heads: int = 8
    feedforward: int = 2048
    mask_features: int = 256
    classifier_hidden: int = 1024
    dropout: float = 0.1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.queries < 1 or self.layers < 1 or self.stride < 1:
            raise CapwrightError(
                f"{self.queries} queries, {self.layers} layers and a stride of {self.stride}: each "
                "must be at least 1"
            )
        if self.width % self.heads or self.mask_features % GROUPS:
            raise CapwrightError(
                f"a width of {self.width} with {self.heads} heads and {self.mask_features} mask "
                f"features: the heads must divide the width, and {GROUPS} the mask features"
            )


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What one layer of the decoder proposes."""

    embeddings_BQE: Tensor
    masks_BQhw: Tensor  # logits


class ProposalNetwork(nn.Module):
    """Pixels 0 to 1 of any size to proposals; its state is all that learns in stage 2.

    Weights are fresh, those of the backbone too until `load_backbone`.
    """

    def __init__(self, settings: ProposalSettings, embedding: int) -> None:
        super().__init__()
        self.settings = settings
        self.maskformer = MaskFormerModel(_configuration(settings))
        width, hidden = settings.width, settings.classifier_hidden
        self.mask_head = MaskformerMLPPredictionHead(width, width, settings.mask_features)
        self.classifier = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, embedding)
        )
        self.no_object_E = nn.Parameter(torch.randn(embedding) * embedding**-0.5)

    def load_backbone(self) -> None:
        """Give timm's backbone its trained weights, where the settings ask for them."""
        settings = self.settings.backbone
        if not settings.get(PRETRAINED):
            return
        trained = timm.create_model(
            settings["backbone"], pretrained=True,
            features_only=settings.get("features_only", True),
            out_indices=settings["out_indices"],
        )  # fmt: skip
        own = self.maskformer.pixel_level_module.encoder._backbone
        own.load_state_dict(trained.state_dict())

    def forward(self, pixels_B3HW: Tensor) -> list[Proposals]:
        """Proposals of every layer, the last one last; masks are of the padded picture."""
        images = self.padded(pixels_B3HW)
        out = self.maskformer(images, output_hidden_states=True)
        norm = self.maskformer.transformer_module.decoder.layernorm
        between = [norm(x_BQD) for x_BQD in out.transformer_decoder_hidden_states[1:-1]]
        pixels_BMhw = out.pixel_decoder_last_hidden_state
        return [
            Proposals(
                embeddings_BQE=self.classifier(x_BQD),
                masks_BQhw=torch.einsum("bqm,bmhw->bqhw", self.mask_head(x_BQD), pixels_BMhw),
            )
            for x_BQD in (*between, out.transformer_decoder_last_hidden_state)
        ]

    def padded(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised for the backbone, sides at least two cells of its coarsest map."""
        settings, (height, width) = self.settings, pixels_B3HW.shape[-2:]
        mean, std = (
            pixels_B3HW.new_tensor(v)[:, None, None] for v in (settings.mean, settings.std)
        )
        down, right = (padded_side(side, settings.stride) for side in (height, width))
        return F.pad((pixels_B3HW - mean) / std, (0, right - width, 0, down - height))

    def logits(self, embeddings_BQE: Tensor, texts_CE: Tensor) -> Tensor:
        """Scaled cosines with the texts and with "no object", [B, Q, C + 1]."""
        targets = torch.cat([texts_CE, self.no_object_E[None]])
        embedded = F.normalize(embeddings_BQE, dim=-1)
        return SCALE * embedded @ F.normalize(targets, dim=-1).T

    def parameter_groups(self, schedule: Schedule) -> list[dict[str, Any]]:
        """Backbone and the rest; norms, biases and single vectors do not decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            in_backbone = name.startswith("maskformer.pixel_level_module.encoder.")
            still = parameter.ndim < 2 or "queries_embedder" in name
            groups.setdefault((in_backbone, still), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": schedule.encoder_learning_rate if in_backbone else schedule.learning_rate,
                "weight_decay": 0.0 if still else schedule.weight_decay,
            }
            for (in_backbone, still), parameters in groups.items()
        ]


def padded_side(side: int, stride: int) -> int:
    """The next multiple of the stride, at least two of them.

    With one cell the pixel decoder's group norms would have a single value to take a mean of.
    """
    return max(2 * stride, -(-side // stride) * stride)


def enlarged(masks_BQhw: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Mask logits at the picture's pixels, [B, Q, H, W]: enlarged, then cut back to `size`."""
    padded = [padded_side(side, stride) for side in size]
    whole = F.interpolate(masks_BQhw, size=padded, mode="bilinear", align_corners=False)
    return whole[..., : size[0], : size[1]]


def _configuration(settings: ProposalSettings) -> MaskFormerConfig:
    try:
        return MaskFormerConfig(
            backbone_config=dict(settings.backbone),
            decoder_config={
                "model_type": "detr",
                "d_model": settings.width,
                "num_queries": settings.queries,
                "decoder_layers": settings.layers,
                "decoder_attention_heads": settings.heads,
                "encoder_attention_heads": settings.heads,
                "decoder_ffn_dim": settings.feedforward,
                "dropout": settings.dropout,
            },
            fpn_feature_size=settings.mask_features,
            mask_feature_size=settings.mask_features,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CapwrightError(
            f"the backbone {dict(settings.backbone)!r} is none that transformers' MaskFormer takes "
            f"({error}): give its configuration with model_type, such as resnet or timm_backbone"
        ) from error
