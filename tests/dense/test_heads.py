import math

import torch

from capwright.dense.heads import DenseHeads, LightHead, mean_log


def test_heads_answer_at_the_size_asked_for() -> None:
    heads = DenseHeads(12, 5, hidden=8)
    logits, log_depth = heads(torch.randn(2, 12, 4, 6), (31, 47))
    assert logits.shape == (2, 5, 31, 47)
    assert log_depth.shape == (2, 31, 47)


def test_an_untrained_depth_head_answers_with_the_mean_distance() -> None:
    torch.manual_seed(0)
    depth = torch.tensor([[0.0, 2.0], [8.0, 4.0]])
    assert mean_log(depth) == torch.tensor([2.0, 8.0, 4.0]).log().mean()
    heads = DenseHeads(12, 5, mean_log_depth=mean_log(depth))
    _, log_depth = heads(torch.randn(2, 12, 4, 4), (8, 8))
    assert (log_depth.exp() - math.exp(mean_log(depth))).abs().max() < 1.0


def test_the_mean_over_no_known_pixel_is_zero() -> None:
    assert mean_log(torch.zeros(2, 3, 3)) == 0.0


def test_the_scale_of_the_features_does_not_matter() -> None:
    torch.manual_seed(0)
    feats = torch.randn(4, 6, 5, 5)
    for head in (LightHead(6, 3), LightHead(6, 1, offset=2.0)):
        one, other = head(feats, (5, 5)), head(feats * 50 + 7, (5, 5))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_the_two_heads_share_nothing() -> None:
    heads = DenseHeads(6, 3)
    logits, _ = heads(torch.randn(2, 6, 4, 4), (4, 4))
    logits.sum().backward()
    assert all(parameter.grad is None for parameter in heads.depth.parameters())
    assert any(parameter.grad is not None for parameter in heads.segmentation.parameters())
