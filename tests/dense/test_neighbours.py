"""The nearest labelled patches, against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from capwright.dense.neighbours import NeighbourHead, cell_shares


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_scores_equal_a_plain_rewriting() -> None:
    kept, shares = torch.randn(20, 6), torch.rand(20, 3)
    head = NeighbourHead(kept, shares, neighbours=4, temperature=0.1)
    queries = torch.randn(2, 6, 3, 5)
    found = head([queries], (3, 5))
    for b in range(2):
        for y in range(3):
            for x in range(5):
                cosines = F.cosine_similarity(queries[b, :, y, x][None], kept, dim=1).double()
                near = cosines.argsort(descending=True)[:4]
                weights = (cosines[near] / 0.1).softmax(dim=0)
                expected = (weights[:, None] * shares[near].double()).sum(dim=0).float()
                torch.testing.assert_close(found[b, :, y, x], expected)


def test_a_patch_that_is_kept_finds_itself() -> None:
    kept = torch.randn(12, 6)
    shares = torch.eye(12)
    head = NeighbourHead(kept, shares, neighbours=100, temperature=1e-3)
    found = head([3 * kept.T.view(1, 6, 3, 4)], (3, 4))
    assert torch.equal(found[0].argmax(dim=0).flatten(), torch.arange(12))


def test_shares_of_cells_by_counting() -> None:
    seg = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 12, 8)))
    seg[seg == 3] = 255
    seg[0, :4, :4] = 255
    found = cell_shares(seg, 3, (3, 2))
    for b in range(2):
        for y in range(3):
            for x in range(2):
                cell = seg[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                counts = torch.stack([(cell == c).sum() for c in range(3)]).float()
                torch.testing.assert_close(
                    found[b, :, y, x], counts / counts.sum().clamp(min=1), rtol=1e-5, atol=1e-6
                )
    assert found[0, :, 0, 0].tolist() == [0, 0, 0]
