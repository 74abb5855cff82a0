"""Surface normals from depth: planes through the neighbours of every pixel.

A pixel (u, v) of a pinhole camera looks along the ray r = ((u - cx) / fx, (v - cy) / fy, 1) and
sees the point P = Z r, Z its depth along the optical axis. On a plane n . P = d, so n . r = d / Z:
inverse depth is linear in the pixel, and its slopes give the normal. They are fitted by least
squares over a square window. (Errors of depth cameras that measure disparity, as the Kinect does,
are about the same everywhere in inverse depth, so no pixel needs another weight.)

x runs to the right, y down, z away from the camera: a wall that faces us has (0, 0, -1). A
neighbour whose depth jumps from the middle's lies on another surface and is left out; a pixel that
too few neighbours are left for is unknown: (0, 0, 0).

Shapes: N pictures, H and W as stored.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capwright.datasets.sets import Camera, DepthSet, NormalsItem, NormalsSet

RADIUS, MAX_JUMP = 3, 0.05  # of what a depth camera measured: it is noisy
LEAST_SPREAD = 1e-3  # of the neighbours; three that are not in line have 0.04


def plane_normals(
    depth_NHW: NDArray[np.floating], camera: Camera, *, radius: int, max_jump: float
) -> NDArray[np.float32]:
    """Unit vectors [N, 3, H, W] for metres; what is not finite or not above 0 is unknown.

    The window has 2 `radius` + 1 pixels a side; `max_jump` is the share by which the farther of two
    pixels on one surface may be farther.
    """
    height, width = depth_NHW.shape[1:]
    fx, fy, cx, cy = camera.at(height, width)
    known_NHW = np.isfinite(depth_NHW) & (depth_NHW > 0)
    inverse_NHW = np.divide(1.0, depth_NHW, out=np.zeros(depth_NHW.shape), where=known_NHW)
    n, x, y, z, xx, xy, yy, xz, yz = _sums(inverse_NHW, radius, math.log1p(max_jump))
    n = np.maximum(n, 1)
    # n times covariances; their determinant is 0 where neighbours lie on one line
    xx, xy, yy, xz, yz = (
        xx - x * x / n,
        xy - x * y / n,
        yy - y * y / n,
        xz - x * z / n,
        yz - y * z / n,
    )
    determinant = xx * yy - xy * xy
    solvable_NHW = known_NHW & (determinant > LEAST_SPREAD * n * n)
    determinant[~solvable_NHW] = 1
    across = (xz * yy - yz * xy) / determinant  # slopes of inverse depth, a pixel
    down = (yz * xx - xz * xy) / determinant
    middle = (z - across * x - down * y) / n
    ray_W, ray_H = (np.arange(width) + 0.5 - cx) / fx, (np.arange(height) + 0.5 - cy) / fy
    ahead = middle - across * fx * ray_W - down * fy * ray_H[:, None]
    normals_N3HW = -np.stack([across * fx, down * fy, ahead], axis=1)
    length_NHW = np.linalg.norm(normals_N3HW, axis=1)
    solvable_NHW &= length_NHW > 0
    length_NHW[~solvable_NHW] = 1
    return np.where(
        solvable_NHW[:, None], normals_N3HW / length_NHW[:, None], 0
    ).astype(np.float32)  # fmt: skip


def normals_of(depths: DepthSet) -> NormalsSet:
    """The normals of a set whose camera is known."""
    assert depths.camera is not None
    return NormalsSet(name=depths.name, keys=depths.keys, read=_Reader(depths=depths))


@dataclass(frozen=True, kw_only=True)
class _Reader:
    depths: DepthSet

    def __call__(self, index: int) -> NormalsItem:
        item, camera = self.depths[index], self.depths.camera
        assert camera is not None
        found = plane_normals(item.depth_HW[None], camera, radius=RADIUS, max_jump=MAX_JUMP)
        return NormalsItem(key=item.key, image=item.image, normals_3HW=found[0])


def _sums(inverse_NHW: NDArray[np.float64], radius: int, log_jump: float) -> NDArray[np.float64]:
    """Sums over each pixel's neighbours, [9, N, H, W], of 1, x, y, z, xx, xy, yy, xz, yz: x and y
    are their way across and down, z is their inverse depth.
    """
    height, width = inverse_NHW.shape[1:]
    padded = np.pad(inverse_NHW, ((0, 0), (radius, radius), (radius, radius)))
    lowest, highest = inverse_NHW * math.exp(-log_jump), inverse_NHW * math.exp(log_jump)
    sums = np.zeros((9, *inverse_NHW.shape))
    for y in range(-radius, radius + 1):
        n, x, z, xx, xz = np.zeros((5, *inverse_NHW.shape))  # of this row of the window
        for across in range(-radius, radius + 1):
            rows = slice(radius + y, radius + y + height)
            columns = slice(radius + across, radius + across + width)
            neighbour = padded[:, rows, columns]
            same = (neighbour > 0) & (neighbour >= lowest) & (neighbour <= highest)
            seen = same * neighbour
            n += same
            x += across * same
            z += seen
            xx += across**2 * same
            xz += across * seen
        for total, part in zip(sums, (n, x, y * n, z, xx, y * x, y**2 * n, xz, y * z), strict=True):
            total += part
    return sums
