"""The model: scores of the words, hidden patches, learning rates by depth."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from capwright.adapt.must.student import PixelHead, Student, parameter_groups
from capwright.core.errors import CapwrightError
from capwright.models import towers
from tiny_must import PATCH, SIDE, tiny_model

NANO = {
    "timm_model_name": "capwright_vit_nano_s8",
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 64,
}


@pytest.mark.parametrize(("vision", "size", "patch"), [(None, SIDE, PATCH), (NANO, 64, 8)])
def test_scores_are_scaled_cosines_of_the_tower_and_the_words(
    vision: dict[str, Any] | None, size: int, patch: int
) -> None:
    visual = tiny_model(vision).visual.eval()
    torch.manual_seed(1)
    images, words_CE = torch.randn(3, 3, size, size), torch.randn(4, 12)
    student = Student(visual, words_CE, 20.0, patch=patch)
    with torch.no_grad():
        seen = student(images)
        cosines = F.normalize(towers.encode_image(visual, images), dim=-1) @ (
            F.normalize(words_CE, dim=-1).T
        )
    assert torch.allclose(seen.logits_BC, 20 * cosines, atol=1e-4)
    assert seen.patches_BPE is None
    assert seen.pixels_B3SS is None


def test_scores_are_not_rounded_in_half_precision() -> None:
    torch.manual_seed(1)
    student = Student(tiny_model(None).visual.eval(), torch.randn(4, 12), 100.0, patch=PATCH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = student(torch.randn(3, 3, SIDE, SIDE))
    expected = 100 * seen.pictures_BE @ F.normalize(student.classifier.detach(), dim=-1).T
    assert seen.logits_BC.dtype == torch.float32
    assert torch.allclose(seen.logits_BC, expected, atol=1e-4)


def test_hidden_pixels_cannot_be_seen() -> None:
    """Also behind the convolutional stem, which looks beyond its patch."""
    student = Student(tiny_model(NANO).visual.eval(), torch.randn(4, 12), 20.0, patch=8)
    images, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2, 3] = True
    other = images.clone()
    other[..., 16:24, 24:32] = torch.randn(3, 8, 8)
    with torch.no_grad():
        first, second = student(images, mask), student(other, mask)
    assert torch.equal(first.logits_BC, second.logits_BC)
    assert torch.equal(first.pixels_B3SS, second.pixels_B3SS)
    assert first.pixels_B3SS.shape == images.shape


def test_patches_go_through_the_picture_s_own_projection() -> None:
    model = tiny_model()
    student = Student(model.visual.eval(), torch.randn(4, 12), 20.0, patch=PATCH)
    with torch.no_grad():
        images = torch.randn(2, 3, SIDE, SIDE)
        seen = student(images, torch.zeros(2, 4, 4, dtype=torch.bool))
        tokens = towers.patch_features(model, images)  # after the final norm
        expected = F.normalize(tokens @ model.visual.proj, dim=-1)
    assert torch.allclose(seen.patches_BPE, expected, atol=1e-5)


def test_pixels_of_a_patch_come_from_its_token_alone() -> None:
    torch.manual_seed(0)
    head = PixelHead(5, 4)
    tokens = torch.randn(1, 6, 5)
    other = tokens.clone()
    other[0, 4, 0] += 1  # row 1, column 1 of 2 x 3
    with torch.no_grad():
        changed = (head(tokens, (2, 3)) != head(other, (2, 3)))[0].any(dim=0)
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[4:, 4:8] = True
    assert torch.equal(changed, expected)


def test_rates_fall_by_layer_and_the_projection_belongs_to_the_top() -> None:
    student = Student(tiny_model().visual, torch.randn(4, 12), 20.0, patch=PATCH)
    groups = parameter_groups(student, layer_decay=0.5, weight_decay=0.1)
    found = {
        id(parameter): (group["factor"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    named = dict(student.named_parameters())
    assert len(found) == len(named)  # each once
    expected = {  # two blocks: the stem is 0, the top 3
        "mask_token": (0.5**3, 0.0),
        "visual.conv1.weight": (0.5**3, 0.1),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (0.5**2, 0.1),
        "visual.transformer.resblocks.1.mlp.c_fc.bias": (0.5, 0.0),
        "visual.ln_post.weight": (1.0, 0.0),
        "visual.proj": (1.0, 0.1),
        "classifier": (1.0, 0.1),
        "pixel_head.predict.weight": (1.0, 0.1),
    }
    assert {name: found[id(named[name])] for name in expected} == expected


def test_a_tower_without_patches_is_refused() -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}
    with pytest.raises(CapwrightError, match="image tower ModifiedResNet cannot be opened up"):
        Student(tiny_model(resnet).visual, torch.randn(4, 12), 20.0)
