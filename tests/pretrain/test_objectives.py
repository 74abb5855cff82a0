"""Losses against plain float64 references, their gradients, and what may not leak."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.models.kept_tokens import kept_tokens
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import MaskedAutoencoderSettings
from capwright.pretrain.distributed import Group
from capwright.pretrain.objectives import masked_autoencoder as mae
from capwright.pretrain.objectives.contrastive import contrastive_loss, sigmoid_loss

SIDE = 16  # of the tiny model


def unit(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return F.normalize(values, dim=-1)


def reference(image: torch.Tensor, text: torch.Tensor, scale: float, alike: set[tuple[int, int]]):
    """The formula as it is written, one logarithm at a time."""
    total, count = 0.0, len(image)
    for i in range(count):
        others = [j for j in range(count) if j == i or (i, j) not in alike]
        own = scale * float(image[i] @ text[i])
        by_image = sum(torch.exp(scale * image[i] @ text[j]) for j in others)
        by_text = sum(torch.exp(scale * text[i] @ image[j]) for j in others)
        total += float(torch.log(by_image) + torch.log(by_text)) - 2 * own
    return total / (2 * count)


def test_contrastive_loss_equals_its_formula() -> None:
    image, text = unit(5, 4, 1), unit(5, 4, 2)
    scale = torch.tensor(7.0, dtype=torch.float64)
    assert contrastive_loss(image, text, scale).item() == pytest.approx(
        reference(image, text, 7.0, set()), abs=1e-12
    )


def test_equal_captions_and_equal_pictures_are_no_negatives() -> None:
    image, text = unit(5, 4, 1), unit(5, 4, 2)
    scale = torch.tensor(7.0, dtype=torch.float64)
    captions = torch.tensor([3, 8, 3, 9, 10])
    pictures = torch.tensor([0, 1, 2, 3, 3])
    loss = contrastive_loss(image, text, scale, same_ids=(captions, pictures))
    alike = {(0, 2), (2, 0), (3, 4), (4, 3)}
    assert loss.item() == pytest.approx(reference(image, text, 7.0, alike), abs=1e-12)
    assert loss.item() < contrastive_loss(image, text, scale).item()


def test_contrastive_gradient() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    image, text = unit(3, 4, 3).requires_grad_(), unit(3, 4, 4).requires_grad_()
    ids = (torch.tensor([1, 1, 2]),)
    assert torch.autograd.gradcheck(
        lambda i, t, s: contrastive_loss(i, t, s, same_ids=ids), (image, text, scale)
    )


def test_sigmoid_loss_equals_its_formula() -> None:
    image, text = unit(4, 4, 1), unit(4, 4, 2)
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (6.0, -3.0))
    captions = torch.tensor([3, 8, 3, 9])
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i != j and captions[i] == captions[j]:
                continue
            logit = 6.0 * float(image[i] @ text[j]) - 3.0
            total += math.log(1 + math.exp(-logit if i == j else logit))
    found = sigmoid_loss(image, text, scale, bias, same_ids=(captions,))
    assert found.item() == pytest.approx(total / 4, abs=1e-12)


def test_sigmoid_gradient() -> None:
    scale, bias = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (3.0, -2.0)
    )
    image, text = unit(3, 4, 3).requires_grad_(), unit(3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(sigmoid_loss, (image, text, scale, bias))


def _half(rank: int, meeting: Path, expected: dict[str, float], gradient: torch.Tensor) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    rows, group = (slice(0, 2), slice(2, 5))[rank], Group(rank=rank, world=2)
    image = unit(5, 4, 1)[rows].clone().requires_grad_()
    text, ids = unit(5, 4, 2)[rows], torch.tensor([3, 8, 3, 9, 9])[rows]
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (6.0, -3.0))
    losses = {
        "softmax": contrastive_loss(image, text, scale, same_ids=(ids,), group=group),
        "sigmoid": sigmoid_loss(image, text, scale, bias, same_ids=(ids,), group=group),
    }
    torch.stack(list(losses.values())).sum().backward()
    for name, loss in losses.items():
        both = loss.detach().clone()
        torch.distributed.all_reduce(both)
        assert both.item() / 2 == pytest.approx(expected[name], abs=1e-12)
    assert image.grad is not None
    assert torch.allclose(image.grad / 2, gradient[rows], atol=1e-12)
    torch.distributed.destroy_process_group()


def test_two_processes_of_uneven_size_equal_one(tmp_path: Path) -> None:
    image, text = unit(5, 4, 1).requires_grad_(), unit(5, 4, 2)
    ids = torch.tensor([3, 8, 3, 9, 9])
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (6.0, -3.0))
    losses = {
        "softmax": contrastive_loss(image, text, scale, same_ids=(ids,)),
        "sigmoid": sigmoid_loss(image, text, scale, bias, same_ids=(ids,)),
    }
    torch.stack(list(losses.values())).sum().backward()
    values = {name: loss.item() for name, loss in losses.items()}
    mp.start_processes(
        _half, (tmp_path / "meeting", values, image.grad), nprocs=2, start_method="fork"
    )


def test_reconstruction_loss_equals_its_formula_and_ignores_visible_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    predicted = torch.randn(2, 4, 48, generator=generator, dtype=torch.float64)
    hidden = mae.hidden_patches(torch.tensor([[0], [3]]), 4)
    loss = mae.reconstruction_error(predicted, mae.patch_targets(images, 4), hidden)
    errors = []
    for b, p in [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]:
        top, left = 4 * (p // 2), 4 * (p % 2)
        pixels = images[b, :, top : top + 4, left : left + 4].reshape(-1)
        target = (pixels - pixels.mean()) / (pixels.std() + 1e-3)
        errors.append((predicted[b, p] - target).square().mean())
    assert torch.allclose(loss, torch.stack(errors).view(2, 3).mean(dim=1), atol=1e-12)
    predicted[0, 0] += 100
    assert torch.equal(
        loss, mae.reconstruction_error(predicted, mae.patch_targets(images, 4), hidden)
    )


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_hidden_pixels_do_not_reach_the_encoder(name: str, tiny_model: Any) -> None:
    """Neither directly nor through a convolutional stem that looks beyond its patch."""
    model = towers.build("nano" if name == "nano" else tiny_model).eval()
    side = 64 if name == "nano" else SIDE
    rows, _, _ = towers.grid(model, side)
    visible = torch.stack([torch.randperm(rows * rows)[: rows * rows // 4] for _ in range(2)])
    hidden = mae.hidden_patches(visible, rows * rows)
    images = torch.randn(2, 3, side, side)
    mask = F.interpolate(hidden.view(2, 1, rows, rows).float(), scale_factor=side // rows).bool()
    changed = torch.where(mask, torch.randn_like(images), images)
    with torch.no_grad(), kept_tokens(model, visible):
        before, after = (
            towers.patch_features(model, mae.blank(x, hidden, side // rows))
            for x in (images, changed)
        )
        leaking = towers.patch_features(model, changed)
        sees = towers.patch_features(model, images)
    assert torch.equal(before, after)
    assert before.shape[1] == rows * rows // 4
    if name == "nano":  # the stem does look beyond: without blanking this test would be empty
        assert not torch.equal(leaking, sees)


def test_the_objective_shows_the_tower_visible_patches_alone(
    tmp_path: Path, tiny_config: Any, tiny_model: Any
) -> None:
    model = towers.build(tiny_model)
    objective = mae.Objective(model, tiny_config(tmp_path, tmp_path))
    shown: list[torch.Tensor] = []
    model.visual.conv1.register_forward_pre_hook(lambda _, x: shown.append(x[0]))
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        images_BV3HH=torch.rand(2, 1, 3, SIDE, SIDE) + 1,
        tokens_UL=nothing[:, None],
        text_ids_U=nothing,
        pair_picture_P=nothing,
        pair_text_P=nothing,
        pair_set_P=nothing,
        sample_ids_B=torch.arange(2),
        patch_order_BN=torch.stack([torch.randperm(16) for _ in range(2)]),
    )
    features = objective.encode(model, batch, {})
    assert features["masked_autoencoder/error"].shape == (2,)
    blanked = F.avg_pool2d(shown[0].abs(), 4).sum(dim=1).flatten(1) == 0
    assert torch.equal(blanked, mae.hidden_patches(batch.patch_order_BN[:, :4], 16))


@pytest.mark.parametrize(("share", "visible"), [(0.01, 15), (0.75, 4), (0.999, 1)])
def test_at_least_one_patch_is_hidden_and_one_is_seen(
    share: float, visible: int, tmp_path: Path, tiny_config: Any, tiny_model: Any
) -> None:
    settings = MaskedAutoencoderSettings(masked=share)
    config = tiny_config(tmp_path, tmp_path, masked_autoencoder=settings)
    assert mae.Objective(towers.build(tiny_model), config).visible == visible


def test_a_tower_of_a_single_patch_has_none_to_hide(
    tmp_path: Path, tiny_config: Any, tiny_model: Any
) -> None:
    vision = {**tiny_model["vision_cfg"], "image_size": 4}
    model = towers.build({**tiny_model, "vision_cfg": vision})
    with pytest.raises(CapwrightError, match="image_size 4 is a single patch of the tower"):
        mae.Objective(model, tiny_config(tmp_path, tmp_path, image_size=4))


def test_decoder_sees_every_visible_patch_at_its_place(
    tmp_path: Path, tiny_config: Any, tiny_model: Any
) -> None:
    model = towers.build(tiny_model)
    objective = mae.Objective(model, tiny_config(tmp_path, tmp_path)).eval()
    visible = torch.tensor([[5, 2, 9, 0]])
    features = torch.randn(1, 4, 16)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        one = objective.decode(features, visible)
        other = objective.decode(features[:, order], visible[:, order])
    assert torch.allclose(one, other, atol=1e-6)
