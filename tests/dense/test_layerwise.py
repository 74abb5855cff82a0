"""Depths of parameters and rates of layer decay, by hand."""

import pytest
import timm
from torch import nn

from capwright.dense.backbone import load_backbone
from capwright.dense.layerwise import depths, layered_parameters


def rates(visual: nn.Module, **options: object) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) by name."""
    groups = layered_parameters(
        visual,
        learning_rate=1.0,
        decay=0.5,
        weight_decay=0.1,
        **options,  # type: ignore[arg-type]
    )
    by_parameter = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    found = {name: by_parameter[p] for name, p in visual.named_parameters()}
    assert len(by_parameter) == len(found)
    return found


def test_depths_of_a_vision_transformer() -> None:
    names = [
        "trunk.pos_embed", "trunk.patch_embed.proj.weight", "trunk.blocks.0.norm1.weight",
        "trunk.blocks.0.mlp.fc1.weight", "trunk.blocks.1.mlp.fc1.weight", "trunk.norm.weight",
        "head.proj.weight",
    ]  # fmt: skip
    assert list(depths(names).values()) == [0, 0, 1, 1, 2, 3, 3]


def test_depths_count_through_stages_and_what_lies_between_goes_with_the_next_block() -> None:
    names = [
        "stem.0.weight", "stages.0.blocks.0.conv.weight", "stages.0.blocks.1.conv.weight",
        "stages.1.downsample.proj.weight", "stages.1.blocks.0.conv.weight", "final_conv.weight",
    ]  # fmt: skip
    assert list(depths(names).values()) == [0, 1, 2, 3, 3, 4]


def test_depths_of_a_resnet() -> None:
    names = [
        "conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight",
    ]  # fmt: skip
    assert list(depths(names).values()) == [0, 1, 2, 3]


def test_rates_of_a_vision_transformer_by_hand() -> None:
    visual = load_backbone(None, model="nano").visual
    blocks = len(visual.trunk.blocks)  # type: ignore[union-attr, arg-type]
    found = rates(visual, stages=True)
    top = blocks + 1
    for name, (rate, decay) in found.items():
        parts = name.split(".")
        if "blocks" in parts:
            depth = int(parts[parts.index("blocks") + 1]) + 1
        else:
            depth = 0 if "norm" not in name and "head" not in name else top
        assert rate == pytest.approx(0.5 ** (top - depth)), name
        assert decay == (0.1 if dict(visual.named_parameters())[name].ndim > 1 else 0.0), name
    assert found == rates(visual)  # one stage: the same by both ways of counting


def test_rates_rise_through_the_stages_of_a_hierarchical_encoder() -> None:
    visual = timm.create_model("resnet18", num_classes=0)
    found = rates(visual, stages=True)
    # eight blocks, two a stage, and nothing with parameters after them
    for stage in range(4):
        for block in range(2):
            rate, _ = found[f"layer{stage + 1}.{block}.conv1.weight"]
            assert rate == pytest.approx(0.5 ** (7 - 2 * stage - block))
    assert found["conv1.weight"] == (pytest.approx(0.5**8), 0.1)


def test_decay_of_one_gives_every_parameter_the_same_rate() -> None:
    visual = load_backbone(None, model="nano-mci").visual
    groups = layered_parameters(visual, learning_rate=0.3, decay=1.0, weight_decay=0.1, stages=True)
    assert {group["lr"] for group in groups} == {0.3}
