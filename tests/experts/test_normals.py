"""Normals of surfaces that are known: walls, ground, slopes, and none across an edge."""

import math

import numpy as np
import pytest

from capwright.experts.normals import assumed_metres, normals_from_depth

SIDE, ANGLE = 33, 60.0
FOCAL = SIDE / 2 / math.tan(math.radians(ANGLE) / 2)


def plane(normal: tuple[float, float, float], distance: float) -> np.ndarray:
    """Depth of the plane n . P = -distance through every pixel's ray, one equation a pixel."""
    depth = np.empty((SIDE, SIDE))
    for row in range(SIDE):
        for column in range(SIDE):
            ray = ((column + 0.5 - SIDE / 2) / FOCAL, (row + 0.5 - SIDE / 2) / FOCAL, 1.0)
            away = sum(n * r for n, r in zip(normal, ray, strict=True))
            depth[row, column] = -distance / away if away else np.nan
    return depth


@pytest.mark.parametrize(
    "direction", [(0, 0, -1), (0.6, 0, -0.8), (0, -0.6, -0.8), (0.36, 0.48, -0.8)]
)
def test_a_plane_has_its_own_normal_at_every_pixel(
    direction: tuple[float, float, float],
) -> None:
    found = normals_from_depth(plane(direction, 3.0)[None], field_of_view=ANGLE, max_jump=0.5)
    assert found.dtype == np.float32
    assert np.abs(found[0] - np.array(direction)[:, None, None]).max() < 1e-5
    assert np.allclose(np.linalg.norm(found[0], axis=0), 1, atol=1e-5)


def test_ground_below_the_camera_points_up() -> None:
    depth = plane((0, -1, 0), 1.5)
    depth[: SIDE // 2 + 2] = np.nan  # the sky
    found = normals_from_depth(depth[None], field_of_view=ANGLE, max_jump=0.5)[0]
    assert found[1, -3, 5] < -0.97
    assert not found[:, : SIDE // 2 + 2].any()


def test_a_mirrored_picture_has_normals_with_x_turned() -> None:
    depth = plane((0.6, 0, -0.8), 3.0)[None]
    straight = normals_from_depth(depth, field_of_view=ANGLE, max_jump=0.5)
    mirrored = normals_from_depth(depth[:, :, ::-1], field_of_view=ANGLE, max_jump=0.5)
    turned = straight[:, :, :, ::-1] * np.array([-1, 1, 1])[:, None, None]
    assert np.allclose(mirrored, turned, atol=1e-6)


def test_a_surface_ends_at_an_edge() -> None:
    depth = np.full((1, SIDE, SIDE), 4.0)
    depth[0, 10:20, 10:20] = 2.0
    found = normals_from_depth(depth, field_of_view=ANGLE, max_jump=0.2)[0]
    assert np.allclose(found, np.array([0.0, 0, -1])[:, None, None], atol=1e-6)
    across = normals_from_depth(depth, field_of_view=ANGLE, max_jump=2.0)[0]
    assert across[0, 15, 9] < -0.5, "with no bound the edge is a slope"
    lone = np.full((1, 3, 3), np.nan)
    lone[0, 1] = 2.0  # a line of pixels is no surface
    assert not normals_from_depth(lone, field_of_view=ANGLE, max_jump=0.2).any()


def test_relative_depth_gets_an_assumed_range() -> None:
    inverse = np.array([[[30.0, 20.0], [np.nan, 10.0]]])
    metres = assumed_metres(inverse, 10.0)
    assert metres[0, 0, 0] == pytest.approx(1) and metres[0, 1, 1] == pytest.approx(10)
    assert metres[0, 0, 1] == pytest.approx(1 / 0.55)
    assert np.isnan(metres[0, 1, 0])
    assert np.allclose(metres, assumed_metres(7 * inverse - 3, 10.0), equal_nan=True)
