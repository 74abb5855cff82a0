import numpy as np
import torch

from capwright.evaluate.views import IGNORE, MAX_SHIFT, random_views


def test_picture_and_labels_move_together_and_nothing_is_scaled() -> None:
    # every pixel of the picture carries its own class and depth, so any mismatch shows
    numbers = torch.arange(16 * 16).reshape(16, 16)
    seg = (numbers % 200).to(torch.uint8).repeat(40, 1, 1)
    depth = (numbers + 1).float().repeat(40, 1, 1)
    images = torch.stack([numbers.float()] * 3).repeat(40, 1, 1, 1)

    moved, seg_moved, depth_moved = random_views(images, seg, depth, rng=np.random.default_rng(0))

    labelled = seg_moved != IGNORE
    assert torch.equal(labelled, depth_moved > 0)
    assert torch.equal((moved[:, 0] % 200)[labelled], seg_moved[labelled].float())
    assert torch.equal((moved[:, 0] + 1)[labelled], depth_moved[labelled])
    steps = (moved[:, 0, :, 1:] - moved[:, 0, :, :-1]).abs()
    assert steps.max() == 1  # neighbours stay neighbours: no scaling
    least = (1 - MAX_SHIFT) ** 2
    assert labelled.float().mean(dim=(1, 2)).min() >= least
    assert not labelled.all()
    mirrored = moved[:, 0, 8, 8] > moved[:, 0, 8, 9]
    assert 8 < mirrored.sum() < 32


def test_labels_of_another_size_move_by_the_same_share() -> None:
    seg = torch.zeros(30, 8, 8, dtype=torch.uint8)
    seg[:, 2:6, 4:] = 1
    images = torch.nn.functional.interpolate(seg[:, None].float(), scale_factor=4).repeat(
        1, 3, 1, 1
    )
    moved, seg_moved, _ = random_views(
        images, seg, torch.ones(30, 8, 8), rng=np.random.default_rng(3)
    )
    small = torch.nn.functional.avg_pool2d(moved[:, :1], 4)[:, 0]
    known = seg_moved != IGNORE
    assert (small - seg_moved.float()).abs()[known].max() <= 0.75  # half a pixel either way
    assert ((small > 0.5) == seg_moved.bool())[known].float().mean() > 0.93


def test_views_are_a_function_of_the_generator() -> None:
    images, seg = torch.rand(5, 3, 8, 8), torch.zeros(5, 8, 8, dtype=torch.uint8)
    depth = torch.ones(5, 8, 8)
    one, same, other = (
        random_views(images, seg, depth, rng=np.random.default_rng(s))[0] for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
