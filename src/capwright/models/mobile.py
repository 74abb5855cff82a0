"""Mobile towers: a small relative of MobileCLIP's MCi, and the fold of branches for inference.

MCi (Vasu et al., "MobileCLIP", arXiv 2311.17049) is FastViT (Vasu et al., arXiv 2303.14189): stages
of RepMixer blocks, depthwise convolutions that mix tokens, then one stage of attention. In training
each convolution has parallel branches with batch norms of their own; for inference
`reparameterize` adds them up to one convolution that gives the same numbers.

Registered in timm: `capwright_mci_nano_s8`, stages of (2, 4, 2) blocks of width (40, 160, 160), the
last one with attention; stride 8, made for 64 pixels a side. Any other size works too. Its batch
norms mix the pictures of a batch while it trains, as those of MCi do.
"""

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.utils.model import reparameterize_model
from torch import nn

default_cfgs = generate_default_cfgs(  # timm looks for this name beside what is registered
    {"capwright_mci_nano_s8": {"input_size": (3, 64, 64), "num_classes": 0, "pool_size": (8, 8)}}
)


@register_model  # type: ignore[untyped-decorator]
def capwright_mci_nano_s8(pretrained: bool = False, **kwargs: Any) -> Any:
    """FastViT of 1.3 million parameters, 8 x 8 cells at 64 pixels."""
    settings: dict[str, Any] = {
        "layers": (2, 4, 2),
        "embed_dims": (40, 160, 160),
        "mlp_ratios": (3, 3, 3),
        "downsamples": (False, True, False),
        "se_downsamples": (False, False, False),
        "pos_embs": (None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
        "token_mixers": ("repmixer", "repmixer", "attention"),
        "lkc_use_act": True,
        "num_classes": 0,
    }
    return build_model_with_cfg(
        FastVit,
        "capwright_mci_nano_s8",
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2)},
        **(settings | kwargs),
    )


def reparameterize(model: nn.Module) -> nn.Module:
    """A copy in eval mode with the branches of its convolutions folded into one each.

    `model` stays as it is. The copy gives what `model.eval()` gives, within rounding, and can no
    longer be trained: call this for inference, after training. Towers without branches are copied.
    """
    copy: nn.Module = reparameterize_model(model, inplace=False)
    return copy.eval()
