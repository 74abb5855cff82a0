"""Refinement by colour against its equation, written pixel by pixel."""

import numpy as np
import torch

from capwright.dense.pamr import refine


def test_one_step_is_the_equation() -> None:
    generator = torch.manual_seed(0)
    images = torch.rand(2, 3, 7, 9, dtype=torch.float64, generator=generator)
    scores = torch.rand(2, 4, 7, 9, dtype=torch.float64, generator=generator)
    found = refine(scores, images, dilations=(1, 3), steps=1).numpy()
    x, m = images.numpy(), scores.numpy()
    for b in range(2):
        for row in range(7):
            for column in range(9):
                places = [
                    (min(6, max(0, row + down)), min(8, max(0, column + right)))
                    for dilation in (1, 3)
                    for down in (-dilation, 0, dilation)
                    for right in (-dilation, 0, dilation)
                    if down or right
                ]
                around = np.array([x[b, :, r, c] for r, c in places])
                own = x[b, :, row, column]
                deviation = np.concatenate([around, own[None]]).std(axis=0)
                closeness = (-np.abs(around - own) / (0.1 * deviation + 1e-8)).mean(axis=1)
                weight = np.exp(closeness) / np.exp(closeness).sum()
                expected = sum(w * m[b, :, r, c] for w, (r, c) in zip(weight, places, strict=True))
                np.testing.assert_allclose(found[b, :, row, column], expected, atol=1e-12)


def test_labels_move_to_the_edge_of_the_picture() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[..., 16:] = 1.0
    scores = torch.zeros(1, 2, 32, 32)
    scores[:, 1, :, 20:] = 1.0  # the edge of the scores is 4 pixels off
    scores[:, 0] = 1 - scores[:, 1]
    labels = refine(scores, images, dilations=(1, 2, 4), steps=30).argmax(dim=1)
    right = torch.zeros(32, 32, dtype=torch.long)
    right[:, 16:] = 1
    assert (labels[0] == right).float().mean() > 0.97
    assert (scores.argmax(dim=1)[0] == right).float().mean() < 0.9
