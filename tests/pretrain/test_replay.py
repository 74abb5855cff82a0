"""Stored augmentations against torchvision's, and back from their stored form."""

import json

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from capwright.pretrain import replay
from capwright.pretrain.replay import Augmentation, ReplayError

CROPS = {"crop_area": (0.08, 1.0), "crop_aspect": (0.75, 4 / 3)}


def noise(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 200, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_are_torchvisions_in_datacompdrs_order(number: int, sign: int) -> None:
    space = RandAugment()._augmentation_space(31, (224, 224))
    name, (magnitudes, signed) = list(space.items())[number]
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    magnitude *= sign if signed else 1
    picture = noise()
    crop = F.resized_crop(picture, 5, 7, 40, 50, [224, 224], InterpolationMode.BICUBIC)
    expected = _apply_op(crop, name, magnitude, InterpolationMode.NEAREST, None)
    found = replay.replay(picture, Augmentation(5, 7, 40, 50, ((number, magnitude),)), 224)
    assert np.array_equal(found, np.asarray(expected))
    if name != "Identity":  # the others do something
        assert not np.array_equal(found, np.asarray(crop))


def test_drawn_magnitudes_are_those_of_torchvision() -> None:
    space = RandAugment()._augmentation_space(31, (224, 224))
    expected = [float(m[9]) if m.ndim else 0.0 for m, _ in space.values()]
    rng = np.random.default_rng(0)
    seen: dict[int, set[float]] = {}
    for _ in range(300):
        drawn = replay.draw(rng, 100, 80, operations=2, level=0.3, **CROPS)
        for number, magnitude in drawn.operations:
            seen.setdefault(number, set()).add(magnitude)
    for number, (_, signed) in enumerate(space.values()):
        assert all(abs(m) == pytest.approx(expected[number], rel=1e-5) for m in seen[number])
        assert len(seen[number]) == (2 if signed else 1)


def test_crops_lie_inside_with_the_area_and_aspect_asked_for() -> None:
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(300):
        one = replay.draw(rng, 100, 80, operations=0, level=0.3, **CROPS)
        replay.check_inside([one], 100, 80)
        areas.append(one.height * one.width / 8000)
        assert 0.7 < one.width / one.height < 1.4
    assert min(areas) < 0.15
    assert max(areas) > 0.7


@pytest.mark.parametrize(("width", "height"), [(400, 3), (3, 400), (1, 1)])
def test_a_long_picture_has_the_largest_crop_in_its_middle(width: int, height: int) -> None:
    crops = {"crop_area": (1.0, 1.0), "crop_aspect": (0.75, 4 / 3)}
    one = replay.draw(np.random.default_rng(0), width, height, operations=0, level=0.3, **crops)
    replay.check_inside([one], width, height)
    assert max(one.width, one.height) <= 4
    assert abs(width - one.width - 2 * one.left) <= 1
    assert abs(height - one.height - 2 * one.top) <= 1


def test_parameters_come_back_from_datacompdrs_form() -> None:
    published = "[[[14,347,370,427],[[0,0.0],[6,0.27]]],[[0,0,10,20],null]]"
    one, other = replay.parse(published)
    assert one == Augmentation(14, 347, 370, 427, ((0, 0.0), (6, 0.27)))
    assert other == Augmentation(0, 0, 10, 20)
    assert json.loads(replay.dump([one])) == json.loads(published)[:1]
    rng = np.random.default_rng(3)
    drawn = [replay.draw(rng, 77, 55, operations=2, level=0.3, **CROPS) for _ in range(20)]
    assert replay.parse(replay.dump(drawn)) == drawn


def test_a_translation_shows_the_same_part_at_every_size() -> None:
    """Against the published way, which moves by as many pixels at any side."""
    picture = noise(224, 224)
    moved = Augmentation(0, 0, 224, 224, ((3, 56.0),))  # a quarter of 224
    for side in (64, 224, 256):
        view = replay.replay(picture, moved, side)
        assert not view[:, : side // 4].any()
        assert view[:, side // 4 :].any(axis=(0, 2)).all()


@pytest.mark.parametrize("stored", ["[[1,2]]", "[[[1,2,3],[]]]", "no", "[[[0,0,5,5],[[14,0.1]]]]"])
def test_other_forms_are_refused(stored: str) -> None:
    with pytest.raises(ReplayError, match="another form than DataCompDR's"):
        replay.parse(stored)


def test_a_crop_outside_the_picture_is_refused() -> None:
    with pytest.raises(ReplayError, match="lies outside the picture"):
        replay.replay(noise(80, 60), Augmentation(0, 41, 40, 40), 32)
