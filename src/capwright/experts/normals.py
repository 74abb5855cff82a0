"""Surface normals from depth, for a pinhole camera that is assumed.

A pixel at (u, v) from the picture's centre with depth Z along the optical axis is the point
P = Z (u / f, v / f, 1), with the focal length f = L / (2 tan(angle / 2)) in pixels; the angle is
the field of view across the square that is trained on, which nobody knows for web pictures.
The normal is the unit vector along dP/dv x dP/du, by central differences, turned to the camera.
x runs to the right, y down, z away from the camera: a wall that faces us has (0, 0, -1).

Where depth jumps between neighbours (the edge of a thing) there is no surface across the jump, and
the normal is unknown: (0, 0, 0).

Shapes: N pictures, L side.
"""

import math

import numpy as np
from numpy.typing import NDArray


def normals_from_depth(
    depth_NLL: NDArray[np.floating], *, field_of_view: float, max_jump: float
) -> NDArray[np.float32]:
    """Unit vectors [N, 3, L, L] for metres; NaN is unknown depth.

    `field_of_view` is in degrees, `max_jump` the share by which the farther of two neighbouring
    pixels on one surface may be farther.
    """
    metres_NLL: NDArray[np.float64] = depth_NLL.astype(np.float64)
    side = metres_NLL.shape[-1]
    focal = side / 2 / math.tan(math.radians(field_of_view) / 2)
    ray_L = (np.arange(side) + 0.5 - side / 2) / focal
    x_NLL, y_NLL = metres_NLL * ray_L, metres_NLL * ray_L[:, None]
    points_N3LL = np.stack([x_NLL, y_NLL, metres_NLL], axis=1)
    across, down = np.gradient(points_N3LL, axis=-1), np.gradient(points_N3LL, axis=-2)
    normal_N3LL = np.cross(down, across, axis=1)
    facing_NLL = np.sign((normal_N3LL * points_N3LL).sum(axis=1, keepdims=True))
    length_NLL = np.linalg.norm(normal_N3LL, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit_N3LL = -facing_NLL * normal_N3LL / length_NLL
    unknown_NLL = _jumps(metres_NLL, max_jump) | ~np.isfinite(unit_N3LL).all(axis=1)
    return np.where(unknown_NLL[:, None], 0, unit_N3LL).astype(np.float32)


def assumed_metres(inverse_NLL: NDArray[np.floating], far_over_near: float) -> NDArray[np.floating]:
    """A depth for inverse depth of unknown scale and shift: the nearest pixel of a picture is at 1
    and the farthest at `far_over_near`.
    """
    low, high = (f(inverse_NLL, axis=(1, 2), keepdims=True) for f in (np.nanmin, np.nanmax))
    share_NLL = (inverse_NLL - low) / np.maximum(high - low, 1e-12)
    return np.asarray(1 / (1 / far_over_near + (1 - 1 / far_over_near) * share_NLL))


def _jumps(depth_NLL: NDArray[np.float64], max_jump: float) -> NDArray[np.bool_]:
    """Pixels that differ too much from a neighbour; both sides of a jump."""
    found = np.zeros(depth_NLL.shape, np.bool_)
    for axis in (1, 2):
        with np.errstate(invalid="ignore", divide="ignore"):
            jump = np.abs(np.diff(np.log(depth_NLL), axis=axis)) > math.log1p(max_jump)
        before: list[tuple[int, int]] = [(0, 0)] * 3
        after = list(before)
        before[axis], after[axis] = (1, 0), (0, 1)
        found |= np.pad(jump, before) | np.pad(jump, after)
    return found
