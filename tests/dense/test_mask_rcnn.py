"""Mask R-CNN on encoders of both kinds: sizes, strides, precision, where masks lie."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from capwright.core.errors import CapwrightError
from capwright.dense.backbone import load_backbone
from capwright.dense.mask_rcnn import (
    MASK_SHIFT,
    MaskRCNNSettings,
    build_mask_rcnn,
    mask_in_picture,
)

SMALL = {"width": 16, "anchors": (2,), "canonical": 56, "head_width": 24, "mask_width": 8}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def vit(patch: int) -> dict[str, Any]:
    return {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 4 * patch, "patch_size": patch, "width": 16, "layers": 2, "head_width": 8,
        },
        "text_cfg": {"context_length": 8, "width": 8, "heads": 1, "layers": 1},
    }  # fmt: skip


def model(encoder: Any, **changes: Any) -> Any:
    settings = MaskRCNNSettings(**{**SMALL, **changes})
    return build_mask_rcnn(load_backbone(None, model=encoder), 3, settings)


def target(height: int, width: int, *boxes: tuple[int, int, int, int]) -> dict[str, torch.Tensor]:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "masks": masks,
    }


@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        (vit(16), {}),
        (vit(14), {"box_head": "4conv1fc", "norm": "layer", "rpn_convolutions": 2}),
        ("nano-mci", {}),
        ("timm:resnet10t", {"box_head": "4conv1fc"}),
    ],
)
def test_losses_and_detections_at_odd_sizes(encoder: Any, changes: dict[str, Any]) -> None:
    made = model(encoder, **changes, least_score=0.0, detections=7)
    images = [torch.rand(3, 37, 51), torch.rand(3, 64, 33)]  # of other sizes in one batch
    targets = [target(37, 51, (5, 3, 25, 20), (20, 10, 50, 30)), target(64, 33)]  # one is empty
    losses = made.train()(images, targets)
    assert len(losses) == 5 and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [
        name
        for name, parameter in made.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert all(".visual." in name for name in without), "only what makes no map may learn nothing"
    assert len(without) < 0.2 * len(list(made.parameters()))
    with torch.no_grad():
        found = made.eval()(images)
    for image, one in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert one["masks"].shape == (7, 1, 28, 28) and len(one["scores"]) == 7
        x0, y0, x1, y1 = one["boxes"].T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
        assert set(one["labels"].tolist()) <= {1, 2, 3}


def test_a_batch_without_any_object_teaches_what_is_none() -> None:
    made = model(vit(16)).train()
    losses = made([torch.rand(3, 32, 32)], [target(32, 32)])
    assert {name for name, loss in losses.items() if loss == 0} == {
        "loss_box_reg", "loss_mask", "loss_rpn_box_reg",
    }  # fmt: skip
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_a_picture_is_normalised_as_the_encoder_wants_it_and_padded_with_its_mean() -> None:
    made = model(vit(16))
    backbone = made.backbone.backbone
    pixels = torch.rand(3, 40, 50)
    images, _ = made.transform([pixels])
    assert images.tensors.shape == (1, 3, 64, 64)  # the coarsest stride is 32
    expected = backbone.normalised(pixels[None])[0]
    torch.testing.assert_close(images.tensors[0, :, :40, :50], expected)
    assert not images.tensors[0, :, 40:].any() and not images.tensors[0, :, :, 50:].any()


def test_with_patches_of_14_anchors_and_features_lie_where_the_cells_are() -> None:
    made = model(vit(14), anchors=(2, 4), ratios=(1.0,))
    levels = made.backbone
    assert levels.strides == (3.5, 7, 14, 28, 56) and levels.multiple == 28
    images, _ = made.transform([torch.rand(3, 50, 80)])
    maps = levels(images.tensors)
    sides = [56 / stride for stride in levels.strides[:4]]
    assert [each.shape[-2] for each in maps.values()] == [*sides, 1]
    anchors = made.rpn.anchor_generator(images, list(maps.values()))[0]
    finest = anchors[: 2 * 16 * 24].reshape(16, 24, 2, 4)
    torch.testing.assert_close(finest[5, 7].mean(dim=1), torch.full((2,), (7 + 5) * 3.5 / 2))
    assert (finest[0, 0, :, 2] - finest[0, 0, :, 0]).tolist() == [8, 14]  # rounded to even sides
    assert made.roi_heads.box_roi_pool.scales == [1 / stride for stride in levels.strides[:4]]


def test_larger_objects_are_read_off_coarser_levels() -> None:
    pool = model(vit(16), canonical=56).roi_heads.box_roi_pool
    boxes = torch.tensor([[0.0, 0, side, side] for side in (10, 29, 57, 113)])
    assert pool.map_levels([boxes]).tolist() == [0, 1, 2, 3]


def test_boxes_keep_float32_where_products_are_bf16() -> None:
    made = model(vit(16), least_score=0.0).eval()
    image = torch.rand(3, 96, 96)
    with torch.no_grad():
        exact = made([image])[0]["boxes"]
        with torch.autocast("cpu", torch.bfloat16):
            found = made([image])[0]["boxes"]
    assert exact.dtype == found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any()
    made.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = made([image], [target(96, 96, (5, 3, 25, 20))])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_a_frozen_encoder_gets_no_gradient_and_its_pyramid_does() -> None:
    made = model(vit(16))
    made.backbone.backbone.freeze()
    made.train()
    losses = made([torch.rand(3, 32, 32)], [target(32, 32, (3, 3, 20, 20))])
    sum(losses.values()).backward()
    assert all(p.grad is None for p in made.backbone.backbone.parameters())
    assert all(p.grad is not None for p in made.backbone.pyramid.parameters())


def test_a_mask_in_its_picture_equals_a_plain_reference() -> None:
    rng = np.random.default_rng(0)
    shares = rng.random((6, 6))
    box, size = (2.3, 3.6, 20.7, 14.2), (18, 24)
    found = mask_in_picture(torch.from_numpy(shares), box, size, (0.0, 0.0))
    expected = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            if not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
                continue
            u = np.clip((x - box[0]) / (box[2] - box[0]) * 6 - 0.5, 0, 5)
            v = np.clip((y - box[1]) / (box[3] - box[1]) * 6 - 0.5, 0, 5)
            left, top = min(int(u), 4), min(int(v), 4)
            a, b = u - left, v - top
            upper = (1 - a) * shares[top, left] + a * shares[top, left + 1]
            lower = (1 - a) * shares[top + 1, left] + a * shares[top + 1, left + 1]
            expected[row, column] = (1 - b) * upper + b * lower >= 0.5
    np.testing.assert_array_equal(found, expected)
    assert 10 < found.sum() < found.size


def test_a_mask_that_leaves_the_picture_is_cut_and_one_outside_is_empty() -> None:
    full = torch.ones(4, 4)
    found = mask_in_picture(full, (-5.0, 2.0, 6.0, 50.0), (10, 8), (0.5, 0.5))
    expected = np.zeros((10, 8), bool)
    expected[2:, :6] = True
    np.testing.assert_array_equal(found, expected)
    for box in ((20.0, 2.0, 30.0, 5.0), (3.0, 3.0, 3.0, 6.0)):
        assert not mask_in_picture(full, box, (10, 8), (0.0, 0.0)).any()


def test_what_the_mask_head_learns_lies_half_a_pixel_away() -> None:
    """The targets of torchvision's loss, put back into the picture, are the masks."""
    rng = np.random.default_rng(0)
    ious: dict[float, list[float]] = {0.0: [], MASK_SHIFT: []}
    for _ in range(20):
        x, y = np.mgrid[:40, :40][::-1] + 0.5
        centre, radius = rng.uniform(14, 26, 2), rng.uniform(7, 12, 2)
        truth = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1
        rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
        box = [columns[0] - 1.0, rows[0] - 1.0, columns[-1] + 2.0, rows[-1] + 2.0]
        learned = project_masks_on_boxes(
            torch.from_numpy(truth)[None], torch.tensor([box]), torch.zeros(1), 28
        )[0].float()
        for shift, found in ious.items():
            mask = mask_in_picture(learned, box, (40, 40), (shift, shift))
            found.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious[MASK_SHIFT]) > 0.985
    assert np.mean(ious[0.0]) < 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_head": "3fc"}, "box_head='3fc'.*box heads are 2fc, 4conv1fc"),
        ({"norm": "batch"}, "norms none, layer"),
        ({"anchors": ()}, "at least one side"),
        ({"ratios": (0.0,)}, "all are above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        MaskRCNNSettings(**changes)
