"""The linear probe: its loss, its optimum, how L2 is chosen, what cannot be learned."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from capwright.core.errors import CapwrightError
from capwright.evaluate.transfer import linear_probe
from capwright.evaluate.transfer.linear_probe import learn, loss_and_gradient, minimised


def blobs(
    count: int, classes: int, spread: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the corners of a simplex, in five more dimensions of noise."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(count) % classes
    vectors_ND = rng.normal(size=(count, classes + 5)) * spread
    vectors_ND[np.arange(count), labels_N] += 3
    return torch.from_numpy(vectors_ND), torch.from_numpy(labels_N)


def test_loss_and_gradient_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "CHUNK", 7)  # several chunks, the last one short
    vectors_ND, labels_N = blobs(30, 4, 2.0)
    both = torch.randn(4, vectors_ND.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    logits = vectors_ND @ both[:, :-1].T + both[:, -1]
    expected = F.cross_entropy(logits, labels_N) + 0.3 / (2 * 30) * both[:, :-1].pow(2).sum()
    expected.backward()
    value, gradient = loss_and_gradient(both.detach(), vectors_ND, labels_N, 0.3)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, both.grad)


@pytest.mark.parametrize("l2", [1e-2, 1.0, 100.0])
def test_the_gradient_at_the_optimum_is_nothing(l2: float) -> None:
    vectors_ND, labels_N = blobs(90, 3, 2.0)
    both = minimised(vectors_ND, labels_N, l2)
    _, gradient = loss_and_gradient(both, vectors_ND, labels_N, l2)
    assert gradient.abs().max() < 1e-5
    _, at_start = loss_and_gradient(torch.zeros_like(both), vectors_ND, labels_N, l2)
    assert at_start.abs().max() > 0.1


def test_float32_pictures_lead_to_the_same_optimum() -> None:
    vectors_ND, labels_N = blobs(90, 3, 2.0)
    exact, found = (
        minimised(vectors_ND, labels_N, 1.0),
        minimised(vectors_ND.float(), labels_N, 1.0),
    )
    torch.testing.assert_close(found.double(), exact, atol=2e-3, rtol=1e-2)


def test_two_classes_along_one_axis_have_the_optimum_of_the_equation() -> None:
    """x = +-1: by symmetry W = (w, -w) and l2 w / N = sigmoid(-2 w) / 2 * 2."""
    vectors_ND = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    both = minimised(vectors_ND, torch.tensor([0, 1]), 0.5)
    w = float(both[0, 0])
    assert float(both[1, 0]) == pytest.approx(-w, abs=1e-6)
    assert 0.5 * w / 2 == pytest.approx(0.5 * 2 / (1 + math.exp(2 * w)) * 1.0, abs=1e-5)


def test_separable_pictures_are_all_told_apart() -> None:
    vectors_ND, labels_N = blobs(80, 4, 0.1)
    probe = learn(vectors_ND, labels_N, 4, seed=0)
    unseen_ND, truth_N = blobs(40, 4, 0.1, seed=1)
    assert (probe.logits(unseen_ND).argmax(dim=1) == truth_N).all()


def test_noise_chooses_a_stronger_penalty_than_signal() -> None:
    rng = np.random.default_rng(0)
    labels_N = torch.from_numpy(np.arange(200) % 2)
    noise_ND = torch.from_numpy(rng.normal(size=(200, 60)))
    signal_ND, _ = blobs(200, 2, 0.3)
    weak = learn(signal_ND, labels_N, 2, seed=0, held_out=0.3).l2
    strong = learn(noise_ND, labels_N, 2, seed=0, held_out=0.3).l2
    assert weak < strong


def test_l2_is_chosen_without_the_pictures_that_are_scored() -> None:
    """The choice is a function of the training pictures and the seed alone."""
    vectors_ND, labels_N = blobs(60, 3, 2.5)
    chosen = {learn(vectors_ND, labels_N, 3, seed=seed).l2 for seed in (0, 0)}
    assert len(chosen) == 1


def test_scale_and_shift_of_features_change_nothing() -> None:
    vectors_ND, labels_N = blobs(90, 3, 2.0)
    moved_ND = vectors_ND * torch.linspace(0.01, 100, vectors_ND.shape[1]) + 7
    plain, moved = (learn(v, labels_N, 3, seed=0, l2=1.0) for v in (vectors_ND, moved_ND))
    torch.testing.assert_close(
        plain.logits(vectors_ND), moved.logits(moved_ND), atol=1e-4, rtol=1e-4
    )
    raw = learn(moved_ND, labels_N, 3, seed=0, l2=1.0, standardise=False)
    assert not torch.allclose(raw.logits(moved_ND), moved.logits(moved_ND), atol=1e-2)


def test_a_class_without_pictures_is_never_the_answer() -> None:
    vectors_ND, labels_N = blobs(40, 2, 0.1)
    probe = learn(vectors_ND, labels_N * 2, 3, seed=0)  # classes 0 and 2
    logits_NK = probe.logits(vectors_ND)
    assert torch.isneginf(logits_NK[:, 1]).all()
    assert (logits_NK.argmax(dim=1) == labels_N * 2).all()


def test_one_picture_a_class_is_learned_without_a_choice() -> None:
    vectors_ND, labels_N = blobs(2, 2, 0.1)
    probe = learn(vectors_ND, labels_N, 2, seed=0)
    assert probe.l2 == 1.0
    assert (probe.logits(vectors_ND).argmax(dim=1) == labels_N).all()


def test_a_single_class_cannot_be_learned() -> None:
    vectors_ND, labels_N = blobs(10, 2, 0.1)
    with pytest.raises(CapwrightError, match="at least two classes need pictures"):
        learn(vectors_ND, labels_N * 0, 2, seed=0)
