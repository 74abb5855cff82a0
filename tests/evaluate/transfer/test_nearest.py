"""k nearest neighbours, against a plain loop."""

import math

import numpy as np
import pytest
import torch

from capwright.evaluate.transfer import nearest
from capwright.evaluate.transfer.nearest import votes


def plain(
    train: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int
) -> list[float]:
    """The votes for one query, each neighbour's weight exp(cosine / 0.07)."""
    cosines = []
    for vector in train:
        product = sum(a * b for a, b in zip(vector, query, strict=True))
        cosines.append(product / math.dist(vector, vector * 0) / math.dist(query, query * 0))
    best = sorted(range(len(train)), key=lambda i: -cosines[i])[:k]
    found = [0.0] * classes
    for i in best:
        found[labels[i]] += math.exp(cosines[i] / 0.07)
    return found


@pytest.mark.parametrize("neighbours", [1, 5, 20, 1000])
def test_votes_equal_a_plain_loop(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "CHUNK", 4)
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(50, 6)) * 3, rng.normal(size=(10, 6)) * 0.1
    labels = rng.integers(0, 4, 50)
    found = votes(
        torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(queries), 5,
        neighbours=neighbours,
    ).numpy()  # fmt: skip
    for query, row in zip(queries, found, strict=True):
        expected = np.array(plain(train, labels, query, 5, neighbours))
        np.testing.assert_allclose(row / row.sum(), expected / expected.sum(), rtol=1e-9)
        assert row[4] == 0  # no picture has it


def test_near_neighbours_outvote_many_far_ones() -> None:
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]])
    found = votes(train, torch.tensor([0, 1, 1, 1]), torch.tensor([[1.0, 0.0]]), 2, neighbours=4)
    assert found.argmax() == 0
    cool = votes(
        train,
        torch.tensor([0, 1, 1, 1]),
        torch.tensor([[1.0, 0.0]]),
        2,
        neighbours=4,
        temperature=10,
    )
    assert cool.argmax() == 1
