"""Surface normals from an expert's depth, for a pinhole camera that is assumed.

The field of view across the square that is trained on is assumed, since nobody knows it for web
pictures; the rest is `datasets.surfaces`.

Shapes: N pictures, L side.
"""

import numpy as np
from numpy.typing import NDArray

from capwright.datasets.sets import Camera
from capwright.datasets.surfaces import plane_normals


def normals_from_depth(
    depth_NLL: NDArray[np.floating], *, field_of_view: float, max_jump: float
) -> NDArray[np.float32]:
    """Unit vectors [N, 3, L, L] for metres; NaN is unknown depth.

    `field_of_view` is in degrees, `max_jump` the share by which the farther of two neighbouring
    pixels on one surface may be farther.
    """
    camera = Camera.of_field(field_of_view, depth_NLL.shape[-1])
    return plane_normals(depth_NLL, camera, radius=1, max_jump=max_jump)


def assumed_metres(inverse_NLL: NDArray[np.floating], far_over_near: float) -> NDArray[np.floating]:
    """A depth for inverse depth of unknown scale and shift: the nearest pixel of a picture is at 1
    and the farthest at `far_over_near`.
    """
    low, high = (f(inverse_NLL, axis=(1, 2), keepdims=True) for f in (np.nanmin, np.nanmax))
    share_NLL = (inverse_NLL - low) / np.maximum(high - low, 1e-12)
    return np.asarray(1 / (1 / far_over_near + (1 - 1 / far_over_near) * share_NLL))
