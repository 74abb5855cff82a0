"""Where things stand: a pinhole camera above flat ground.

Reads random numbers, writes nothing. Rows count downwards in pixels, depth is in metres along the
optical axis. With focal length f (pixels), horizon row y_h (the camera's pitch, small-angle) and
camera height h (metres):

    a point of the ground seen in row y lies at      Z = f h / (y - y_h)                      (1)
    a thing of real size H at depth Z looks          s = H f / Z   pixels large              (2)

The first thing of a scene, the anchor, is drawn so that where it touches the ground tells nothing
about its distance: its apparent size s and its contact row y_c are drawn independently of each
other, its depth follows from (2), Z = H f / s, and the camera height from (1),
h = (y_c - y_h) Z / f. Only knowing the class (H) gives the distance. Further things share the
camera: for each class the contact rows for which s stays within `FURTHER_EXTENT` follow from
s = H (y - y_h) / h; the class is drawn among those with such rows and the row among them.

A backdrop closes the scene at depth Z_b behind the farthest thing: the ground ends in the row
y_h + f h / Z_b, and everything above it has depth Z_b.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Fractions of the picture's side, uniform between the two.
FOCAL = (1.0, 1.2)
HORIZON = (0.15, 0.55)
ANCHOR_EXTENT = (0.45, 0.85)  # of the larger side of the anchor's box
FURTHER_EXTENT = (0.28, 0.85)
ANCHOR_CONTACT = (0.6, 0.97)
HORIZON_GAP = 0.12  # the anchor touches the ground at least this far below the horizon
FURTHER_GAP = 0.05
MIN_ROWS = 0.03  # a class needs at least this span of contact rows to be drawn
BACKDROP = (1.3, 1.8)  # times the depth of the farthest thing


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera that looks along flat ground."""

    size_px: int  # the picture is square
    focal_px: float
    horizon_px: float  # row
    height_m: float  # above the ground

    def ground_depth_m(self, row_px: float) -> float:
        """Depth of the ground seen in a row below the horizon, equation (1)."""
        return self.focal_px * self.height_m / (row_px - self.horizon_px)

    def ground_row_px(self, depth_m: float) -> float:
        """The row in which ground of this depth is seen, equation (1) turned round."""
        return self.horizon_px + self.focal_px * self.height_m / depth_m


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Where a thing touches the ground, how far away it is and how large it looks."""

    contact_px: float  # row
    depth_m: float
    extent_px: float  # larger side of its box


def draw_anchor(rng: np.random.Generator, *, size_px: int, height_m: float) -> tuple[Camera, Stand]:
    """A camera and the anchor's place for a class of real size `height_m`."""
    focal_px = rng.uniform(*FOCAL) * size_px
    horizon = rng.uniform(*HORIZON)
    extent_px = rng.uniform(*ANCHOR_EXTENT) * size_px
    low, high = ANCHOR_CONTACT
    contact_px = rng.uniform(max(horizon + HORIZON_GAP, low), high) * size_px
    depth_m = height_m * focal_px / extent_px
    camera = Camera(
        size_px=size_px,
        focal_px=focal_px,
        horizon_px=horizon * size_px,
        height_m=(contact_px - horizon * size_px) * depth_m / focal_px,
    )
    return camera, Stand(contact_px=contact_px, depth_m=depth_m, extent_px=extent_px)


def draw_further(
    rng: np.random.Generator, camera: Camera, heights_m: Sequence[float]
) -> tuple[int, Stand] | None:
    """(class, place) of one more thing before the same camera; None where no class fits."""
    rows = [_contact_rows(camera, height_m) for height_m in heights_m]
    narrow = MIN_ROWS * camera.size_px
    fitting = [i for i, (first, last) in enumerate(rows) if last - first >= narrow]
    if not fitting:
        return None
    chosen = fitting[rng.integers(len(fitting))]
    contact_px = rng.uniform(*rows[chosen])
    depth_m = camera.ground_depth_m(contact_px)
    extent_px = heights_m[chosen] * camera.focal_px / depth_m
    return chosen, Stand(contact_px=contact_px, depth_m=depth_m, extent_px=extent_px)


def draw_backdrop_m(rng: np.random.Generator, farthest_m: float) -> float:
    """Depth of the backdrop behind the farthest thing."""
    return float(rng.uniform(*BACKDROP) * farthest_m)


def row_depths_m(camera: Camera, backdrop_m: float) -> NDArray[np.float64]:
    """[size] depth of ground and backdrop in every row, at the middle of its pixels."""
    below = np.arange(camera.size_px) + 0.5 - camera.horizon_px
    ground = camera.focal_px * camera.height_m / np.maximum(below, 1e-6)
    return np.asarray(np.minimum(ground, backdrop_m))


def _contact_rows(camera: Camera, height_m: float) -> tuple[float, float]:
    """First and last contact row for which a thing of this size neither dwarfs nor vanishes."""
    row_per_extent = camera.height_m / height_m
    low, high = (fraction * camera.size_px * row_per_extent for fraction in FURTHER_EXTENT)
    first = camera.horizon_px + max(low, FURTHER_GAP * camera.size_px)
    last = min(camera.horizon_px + high, ANCHOR_CONTACT[1] * camera.size_px)
    return first, last
