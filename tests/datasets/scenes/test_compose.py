from pathlib import Path

import numpy as np
import pytest

from capwright.datasets.scenes import geometry
from capwright.datasets.scenes.backgrounds import noise
from capwright.datasets.scenes.compose import MIN_VISIBLE, Composer, Scene
from capwright.datasets.scenes.write import composer_for
from scene_cutouts import make_cutouts


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    folder: Path = make_cutouts(tmp_path_factory.mktemp("cutouts"))
    (folder / "heights.json").write_text('{"beetles": 0.5, "kites": 1.0, "stones": 1.4}')
    return composer_for.__wrapped__(64, 0, folder, None, False, None, 3)


@pytest.fixture(scope="module")
def scenes(composer: Composer) -> list[Scene]:
    return [composer.compose(np.random.default_rng([1, i])) for i in range(150)]


def test_shapes_and_finite_depth(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (64, 64, 3) and scene.image.dtype == np.uint8
        assert scene.seg.shape == (64, 64) and scene.seg.dtype == np.uint8
        assert scene.depth_m.shape == (64, 64) and scene.depth_m.dtype == np.float16
        assert np.isfinite(scene.depth_m).all() and (scene.depth_m > 0).all()


def test_a_things_pixels_carry_its_depth_and_class(scenes: list[Scene]) -> None:
    for scene in scenes:
        nearest = scene.things[-1]
        x0, y0, x1, y1 = nearest.box
        own = (scene.seg[y0:y1, x0:x1] == nearest.cutout.class_id + 1) & (
            scene.depth_m[y0:y1, x0:x1] == np.float16(nearest.stand.depth_m)
        )
        assert own.any(0).all() and own.any(1).all()  # the box is tight
        assert nearest.visible == 1.0
        named = {thing.cutout.class_id + 1 for thing in scene.things}
        assert set(np.unique(scene.seg)) <= named | {0}
        depths = [thing.stand.depth_m for thing in scene.things]
        assert depths == sorted(depths, reverse=True)


def test_background_depth_is_ground_then_backdrop(scenes: list[Scene]) -> None:
    for scene in scenes:
        free = scene.seg == 0
        deepest = scene.depth_m.max()
        farthest = max(thing.stand.depth_m for thing in scene.things)
        assert farthest * 1.29 < deepest < farthest * 2.51
        for row in range(64):
            below = row + 0.5 - scene.camera.horizon_px
            ground = scene.camera.focal_px * scene.camera.height_m / below if below > 0 else np.inf
            expected = np.float32(min(ground, deepest))
            found = scene.depth_m[row][free[row]].astype(np.float32)
            assert np.allclose(found, expected, rtol=2e-3)


def test_occluded_things_stay_visible(scenes: list[Scene]) -> None:
    occluded = [t.visible for scene in scenes for t in scene.things if t.visible < 1]
    assert occluded and min(occluded) >= MIN_VISIBLE
    counts = [len(scene.things) for scene in scenes]
    assert min(counts) == 1 and max(counts) == 3 and np.mean(counts) > 1.5


def test_size_in_the_picture_follows_from_depth(scenes: list[Scene], composer: Composer) -> None:
    for scene in scenes:
        stand = scene.anchor.stand
        height_m = composer.classes[scene.anchor.cutout.class_id].height_m
        assert stand.extent_px == pytest.approx(height_m * scene.camera.focal_px / stand.depth_m)
        x0, y0, x1, y1 = scene.anchor.box
        assert max(x1 - x0, y1 - y0) <= stand.extent_px + 1
        assert abs(y1 - stand.contact_px) <= 2 or scene.anchor.visible < 1


def test_the_contact_row_of_the_anchor_tells_nothing_of_its_depth(scenes: list[Scene]) -> None:
    low, high = geometry.ANCHOR_CONTACT
    rows = np.array([scene.anchor.stand.contact_px / 64 for scene in scenes])
    assert low <= rows.min() and rows.max() <= high
    depths = np.log([scene.anchor.stand.depth_m for scene in scenes])
    assert abs(np.corrcoef(rows, depths)[0, 1]) < 0.25  # 150 scenes: three standard errors


def test_a_scene_depends_on_its_generator_alone(composer: Composer) -> None:
    first = composer.compose(np.random.default_rng([1, 7]))
    composer.compose(np.random.default_rng([1, 8]))
    again = composer.compose(np.random.default_rng([1, 7]))
    assert (first.image == again.image).all() and (first.depth_m == again.depth_m).all()


def test_noise_is_periodic_smooth_and_within_range() -> None:
    field = noise(np.random.default_rng(0), 64, 64, 1.5)
    assert field.min() >= 0 and field.max() <= 1 and field.std() > 0.1
    seam = np.abs(field[0] - field[-1]).mean()
    inside = np.abs(np.diff(field, axis=0)).mean()
    assert seam < 2 * inside < field.std()
