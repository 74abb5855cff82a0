"""Models of transformers for depth and segmentation, a layer or two with random weights."""

from pathlib import Path
from typing import Any

import transformers as hf


def segformer(folder: Path) -> Any:
    hf.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(
            num_encoder_blocks=4, depths=[1] * 4, hidden_sizes=[8] * 4, decoder_hidden_size=8,
            num_attention_heads=[1] * 4, id2label={i: f"thing {i}" for i in range(6)},
        )
    )  # fmt: skip


def maskformer(folder: Path) -> Any:
    hf.MaskFormerImageProcessor(
        size={"height": 64, "width": 64}, num_labels=6, ignore_index=255
    ).save_pretrained(folder)
    swin = hf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    detr = hf.DetrConfig(
        num_queries=5, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    return hf.MaskFormerForInstanceSegmentation(
        hf.MaskFormerConfig(
            backbone_config=swin, decoder_config=detr, fpn_feature_size=32, mask_feature_size=16,
            id2label={i: f"thing {i}" for i in range(6)},
        )
    )  # fmt: skip


def glpn(folder: Path) -> Any:
    hf.GLPNImageProcessor(size_divisor=32).save_pretrained(folder)
    return hf.GLPNForDepthEstimation(
        hf.GLPNConfig(
            depths=[1] * 4, hidden_sizes=[8] * 4, decoder_hidden_size=8,
            num_attention_heads=[1] * 4,
        )
    )  # fmt: skip


def dpt(folder: Path) -> Any:
    hf.DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return hf.DPTForDepthEstimation(
        hf.DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[4, 8, 8, 8], fusion_hidden_size=8, head_in_index=-1,
            reassemble_factors=[4, 2, 1, 0.5], is_hybrid=False,
        )
    )  # fmt: skip


def depth_anything(folder: Path) -> Any:
    hf.DPTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    dino = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    return hf.DepthAnythingForDepthEstimation(
        hf.DepthAnythingConfig(
            backbone_config=dino, reassemble_hidden_size=16, patch_size=7,
            neck_hidden_sizes=[4, 8, 8, 8], fusion_hidden_size=8, head_in_index=-1,
            head_hidden_size=8, depth_estimation_type="metric", max_depth=20,
        )
    )  # fmt: skip


MODELS = {
    "segformer": segformer, "maskformer": maskformer, "glpn": glpn, "dpt": dpt,
    "depth_anything": depth_anything,
}  # fmt: skip
