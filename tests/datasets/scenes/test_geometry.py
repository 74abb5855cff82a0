import numpy as np
import pytest

from capwright.datasets.scenes import geometry
from capwright.datasets.scenes.geometry import Camera

HEIGHTS_M = [0.03, 0.3, 1.0, 4.0]


def _scene(seed: int, height_m: float = 1.0) -> tuple[Camera, geometry.Stand]:
    rng = np.random.default_rng(seed)
    return geometry.draw_anchor(rng, size_px=100, height_m=height_m)


@pytest.mark.parametrize("seed", range(20))
def test_apparent_size_times_depth_is_real_size_times_focal_length(seed: int) -> None:
    camera, stand = _scene(seed, 2.5)
    assert stand.extent_px * stand.depth_m == pytest.approx(2.5 * camera.focal_px)
    assert camera.ground_depth_m(stand.contact_px) == pytest.approx(stand.depth_m)
    assert camera.ground_row_px(stand.depth_m) == pytest.approx(stand.contact_px)


@pytest.mark.parametrize("seed", range(20))
def test_further_things_stand_on_the_same_ground(seed: int) -> None:
    camera, _ = _scene(seed)
    drawn = geometry.draw_further(np.random.default_rng(seed), camera, HEIGHTS_M)
    assert drawn is not None
    class_id, stand = drawn
    assert camera.ground_depth_m(stand.contact_px) == pytest.approx(stand.depth_m)
    assert stand.extent_px * stand.depth_m == pytest.approx(HEIGHTS_M[class_id] * camera.focal_px)
    low, high = geometry.FURTHER_EXTENT
    assert low * 100 - 1e-6 <= stand.extent_px <= high * 100 + 1e-6
    assert stand.contact_px <= geometry.ANCHOR_CONTACT[1] * 100


def test_no_class_fits_a_camera_of_another_scale() -> None:
    camera, _ = _scene(0, 1.0)
    assert geometry.draw_further(np.random.default_rng(0), camera, [0.001, 1000.0]) is None


def test_the_contact_row_does_not_give_the_distance_away() -> None:
    rng = np.random.default_rng(0)
    rows, log_depths = [], []
    for _ in range(4000):
        height_m = HEIGHTS_M[rng.integers(len(HEIGHTS_M))]
        _, stand = geometry.draw_anchor(rng, size_px=128, height_m=height_m)
        rows.append(stand.contact_px)
        log_depths.append(np.log(stand.depth_m / height_m))  # what is left when the class is known
    assert abs(np.corrcoef(rows, log_depths)[0, 1]) < 0.06
    assert np.std(log_depths) > 0.15


def test_two_classes_of_equal_apparent_size_stand_at_the_distances_of_their_sizes() -> None:
    _, bee = _scene(7, 0.03)
    _, bus = _scene(7, 9.0)
    assert bee.extent_px == bus.extent_px and bee.contact_px == bus.contact_px
    assert bus.depth_m / bee.depth_m == pytest.approx(300)


def test_ground_ends_at_the_backdrop() -> None:
    camera = Camera(size_px=100, focal_px=110, horizon_px=30, height_m=1.5)
    depths = geometry.row_depths_m(camera, 8.0)
    assert (depths[:50] == 8.0).all()  # 30 + 110 * 1.5 / 8 = 50.6
    assert depths[60] == pytest.approx(110 * 1.5 / 30.5)
    assert (np.diff(depths[51:]) < 0).all()
