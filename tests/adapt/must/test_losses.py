"""Every loss of MUST against plain Python in float64, and over two processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from capwright.adapt.must import losses
from capwright.pretrain.distributed import ALONE, Group

B, C, S, E = 6, 5, 8, 7
HIDDEN = (2, 2)  # patches of 4 pixels


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def drawn(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def hidden() -> torch.Tensor:
    mask = torch.zeros(B, *HIDDEN, dtype=torch.bool)
    mask[:, 0, 1] = mask[1:, 1, 0] = True
    return mask


def test_pseudo_labels_are_those_above_the_threshold() -> None:
    logits_BC = drawn(B, C)
    labels_B, sure_B = losses.pseudo_labels(logits_BC, 0.8)
    for row, label, sure in zip(logits_BC.tolist(), labels_B, sure_B, strict=True):
        p = softmax(row)
        assert label == p.index(max(p))
        assert bool(sure) == (max(p) > 0.8)
    assert 0 < sure_B.sum() < B  # both cases occur


def test_self_training_is_the_mean_cross_entropy_of_the_sure() -> None:
    logits_BC, labels_B = drawn(B, C), torch.tensor([0, 1, 2, 3, 4, 0])
    sure_B = torch.tensor([True, False, True, True, False, False])
    rows = [-math.log(softmax(logits_BC[i].tolist())[labels_B[i]]) for i in range(B) if sure_B[i]]
    found = losses.self_training_loss(logits_BC, labels_B, sure_B)
    assert found.item() == pytest.approx(sum(rows) / len(rows), rel=1e-12)


def test_self_training_without_a_sure_picture_is_zero_with_zero_gradient() -> None:
    logits_BC = drawn(B, C).requires_grad_()
    labels_B, sure_B = losses.pseudo_labels(logits_BC, 0.999999)
    loss = losses.self_training_loss(logits_BC, labels_B, sure_B)
    loss.backward()
    assert not sure_B.any()
    assert loss.item() == 0
    assert logits_BC.grad is not None and logits_BC.grad.abs().max() == 0


def test_fairness_is_minus_the_mean_log_of_the_mean_prediction() -> None:
    logits_BC = drawn(B, C)
    p = [softmax(row) for row in logits_BC.tolist()]
    mean = [sum(row[c] for row in p) / B for c in range(C)]
    loss, log_mean_C = losses.fairness_loss(logits_BC)
    assert loss.item() == pytest.approx(-sum(map(math.log, mean)) / C, rel=1e-12)
    assert log_mean_C.exp().tolist() == pytest.approx(mean, rel=1e-12)


def test_fairness_remembers_earlier_batches_and_keeps_the_weight_of_its_gradient() -> None:
    kept, old = 0.3, softmax(drawn(C, seed=1).tolist())
    logits_BC = drawn(B, C).requires_grad_()
    p_BC = logits_BC.softmax(dim=-1)
    mean_C = kept * torch.tensor(old, dtype=torch.float64) + (1 - kept) * p_BC.mean(dim=0)
    expected = -mean_C.log().mean() / (1 - kept)
    (gradient_BC,) = torch.autograd.grad(expected, logits_BC)
    earlier_C = torch.tensor(old, dtype=torch.float64).log()
    loss, next_C = losses.fairness_loss(logits_BC, earlier_C, kept)
    (found_BC,) = torch.autograd.grad(loss, logits_BC)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(found_BC, gradient_BC, rtol=1e-10)
    assert torch.allclose(next_C, mean_C.log(), rtol=1e-12)
    assert not next_C.requires_grad


def test_fairness_of_a_class_without_any_chance_is_finite_and_pulls_it_up() -> None:
    logits_BC = torch.zeros(B, C)
    logits_BC[:, 0] = -400.0  # e^-400 is 0 in float32
    logits_BC.requires_grad_()
    loss, _ = losses.fairness_loss(logits_BC)
    loss.backward()
    assert loss.item() == pytest.approx((400 + C * math.log(C - 1)) / C, rel=1e-6)
    assert logits_BC.grad is not None and (logits_BC.grad[:, 0] < 0).all()


def test_masked_image_is_the_mean_error_over_hidden_pixels() -> None:
    predicted, true, mask = drawn(B, 3, S, S), drawn(B, 3, S, S, seed=1), hidden()
    side = S // HIDDEN[0]
    errors = [
        abs(float(predicted[b, c, y, x] - true[b, c, y, x]))
        for b in range(B)
        for c in range(3)
        for y in range(S)
        for x in range(S)
        if mask[b, y // side, x // side]
    ]
    found = losses.masked_image_loss(predicted, true, mask)
    assert found.item() == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_alignment_is_the_mean_squared_distance_of_hidden_patches() -> None:
    patches, whole, mask = drawn(B, 4, E), drawn(B, E, seed=1), hidden().flatten(1)
    distances = [
        sum((float(patches[b, p, e]) - float(whole[b, e])) ** 2 for e in range(E))
        for b in range(B)
        for p in range(4)
        if mask[b, p]
    ]
    found = losses.alignment_loss(patches, whole, mask)
    assert found.item() == pytest.approx(sum(distances) / len(distances), rel=1e-12)


def test_losses_of_hidden_patches_are_zero_where_nothing_is_hidden() -> None:
    nothing = torch.zeros(B, *HIDDEN, dtype=torch.bool)
    pixels = losses.masked_image_loss(drawn(B, 3, S, S), drawn(B, 3, S, S, seed=1), nothing)
    distance = losses.alignment_loss(drawn(B, 4, E), drawn(B, E), nothing.flatten(1))
    assert pixels.item() == distance.item() == 0


def _all_losses(rows: slice, group: Group) -> dict[str, torch.Tensor]:
    """Every loss of these rows and the gradient of its inputs."""
    sure_B = torch.tensor([True, False, True, True, False, False])[rows]
    inputs = {
        "logits": drawn(B, C)[rows].clone().requires_grad_(),
        "pixels": drawn(B, 3, S, S)[rows].clone().requires_grad_(),
        "patches": drawn(B, 4, E)[rows].clone().requires_grad_(),
    }
    mask = hidden()[rows]
    labels_B = torch.tensor([0, 1, 2, 3, 4, 0])[rows]
    earlier_C = drawn(C, seed=1).log_softmax(dim=0)
    found = {
        "self_training": losses.self_training_loss(inputs["logits"], labels_B, sure_B, group),
        "fairness": losses.fairness_loss(inputs["logits"], earlier_C, 0.5, group)[0],
        "masked_image": losses.masked_image_loss(
            inputs["pixels"], drawn(B, 3, S, S, seed=1)[rows], mask, group
        ),
        "alignment": losses.alignment_loss(
            inputs["patches"], drawn(B, E, seed=1)[rows], mask.flatten(1), group
        ),
    }
    sum(found.values()).backward()
    gradients = {f"gradient of {name}": value.grad for name, value in inputs.items()}
    return {name: value.detach() for name, value in (found | gradients).items()}


def _one_of_two(rank: int, folder: Path) -> None:
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 6)
    torch.save(_all_losses(rows, Group(rank=rank, world=2)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    mp.start_processes(_one_of_two, (tmp_path,), nprocs=2, start_method="fork")
    one = _all_losses(slice(0, B), ALONE)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in one.items():
        if name.startswith("gradient"):
            # each process's loss is that of all, and so is what it feels: their mean is the whole
            both = torch.cat([first[name], second[name]]) / 2
            assert torch.allclose(both, value, rtol=1e-10), name
        else:
            assert torch.allclose(first[name], value, rtol=1e-12), name
            assert torch.equal(first[name], second[name]), name
