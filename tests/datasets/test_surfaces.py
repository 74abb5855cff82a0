"""Normals of depths with a known camera: exact on planes, steady in noise, at any size."""

import numpy as np
import pytest
from PIL import Image

from capwright.datasets import nyuv2
from capwright.datasets.sets import Camera, DepthItem, DepthSet
from capwright.datasets.surfaces import normals_of, plane_normals

CAMERA = Camera(fx=40.0, fy=50.0, cx=20.0, cy=11.0, height=24, width=32)
NORMAL = np.array([0.36, 0.48, -0.8])


def plane(height: int, width: int, normal: np.ndarray = NORMAL) -> np.ndarray:
    """Depth of a plane three metres away, one ray after the other."""
    fx, fy, cx, cy = CAMERA.at(height, width)
    depth = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            ray = np.array([(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0])
            depth[row, column] = -3.0 / (normal @ ray)
    return depth


@pytest.mark.parametrize("size", [(24, 32), (48, 64), (12, 16)])
@pytest.mark.parametrize("radius", [1, 3])
def test_a_plane_has_its_normal_at_any_size_of_the_picture(
    size: tuple[int, int], radius: int
) -> None:
    found = plane_normals(plane(*size)[None], CAMERA, radius=radius, max_jump=0.5)
    assert found.shape == (1, 3, *size)
    assert np.abs(found[0] - NORMAL[:, None, None]).max() < 1e-5


def test_a_window_averages_the_noise_of_disparity() -> None:
    inverse = 1 / plane(48, 64)
    noisy = 1 / (inverse + np.random.default_rng(0).normal(0, 5e-4, inverse.shape))
    angles = {}
    for radius in (1, 3):
        found = plane_normals(noisy[None], CAMERA, radius=radius, max_jump=0.05)[0]
        cosine = np.clip((found * NORMAL[:, None, None]).sum(axis=0), -1, 1)
        angles[radius] = np.degrees(np.arccos(cosine)).mean()
    # slopes over 2r + 1 pixels: the error falls with r^2
    assert angles[3] < 0.25 * angles[1]


def test_unknown_depths_have_no_normal_and_change_no_neighbour() -> None:
    depth = plane(24, 32).astype(np.float32)
    depth[5:8, 3:20] = 0
    depth[20, 20] = np.nan
    found = plane_normals(depth[None], CAMERA, radius=2, max_jump=0.5)[0]
    unknown = ~(depth > 0)
    assert not found[:, unknown].any()
    assert np.abs(found[:, ~unknown] - NORMAL[:, None]).max() < 1e-4


def test_a_set_of_depths_gives_a_set_of_normals() -> None:
    depth = plane(24, 32, np.array([0, 0, -1.0])).astype(np.float32)
    image = Image.new("RGB", (32, 24))
    depths = DepthSet(
        name="toy", keys=("a",), least_m=0.1, most_m=10.0, camera=CAMERA,
        read=lambda index: DepthItem(key="a", image=image, depth_HW=depth),
    )  # fmt: skip
    found = normals_of(depths)
    assert (found.name, found.keys) == ("toy", ("a",))
    assert np.allclose(found[0].normals_3HW, np.array([0, 0, -1])[:, None, None], atol=1e-6)


def test_the_camera_of_nyuv2_sees_about_63_degrees() -> None:
    across = 2 * np.degrees(np.arctan(nyuv2.CAMERA.width / 2 / nyuv2.CAMERA.fx))
    assert 62 < across < 65
