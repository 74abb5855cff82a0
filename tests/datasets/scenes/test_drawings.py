"""Drawn things on paper: files, splits, styles, determinism."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets import load
from capwright.datasets.scenes import stamps
from capwright.datasets.scenes.cutouts import load_cutouts
from capwright.datasets.scenes.drawings import DrawingConfig, ink, run
from scene_cutouts import make_cutouts


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cutouts(tmp_path_factory.mktemp("cutouts"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".txt"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_set_is_read_as_imagenet_with_names_of_things(cutouts: Path, tmp_path: Path) -> None:
    config = DrawingConfig(out=tmp_path / "set", cutouts=cutouts, train=5, test=3, size=32)
    summary = run(config)
    assert summary.classes == ("beetles", "kites", "stones")
    assert summary.pictures == {"train": 15, "test": 9}
    for split, count in summary.pictures.items():
        pictures = load("imagenet", config.out, split)
        assert len(pictures) == count
        assert pictures[0].image.size == (32, 32)
        assert np.bincount(pictures.labels).tolist() == [count // 3] * 3
    seen = load_cutouts(cutouts).seen
    expected = {one.name for one in seen if one.class_id == 1}
    assert set(pictures.classes[1].split("|")) == {"kites"} | expected


def test_train_and_test_have_different_things(cutouts: Path, tmp_path: Path) -> None:
    """Each toy cut-out has one colour of its own, which shows in its pictures."""
    found = load_cutouts(cutouts)
    config = DrawingConfig(out=tmp_path / "set", cutouts=cutouts, train=12, test=12, size=32)
    run(config)
    for split, others in (("train", found.unseen), ("test", found.seen)):
        colours = {tuple(one.rgba[20, 20, :3].tolist()) for one in others}
        for path in (config.out / split).rglob("*.png"):
            pixels = {tuple(pixel) for pixel in np.array(Image.open(path)).reshape(-1, 3).tolist()}
            assert not pixels & colours


@pytest.mark.parametrize("style", ["drawn", "inked"])
def test_the_same_settings_give_the_same_bytes(style: str, cutouts: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(
            DrawingConfig(
                out=tmp_path / name,
                style=style,
                cutouts=cutouts,
                train=3,
                test=2,
                size=32,  # type: ignore[arg-type]
            )
        )
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_set_that_is_there_is_kept_and_another_plan_refused(
    cutouts: Path, tmp_path: Path
) -> None:
    config = DrawingConfig(out=tmp_path, cutouts=cutouts, train=2, test=1, size=32)
    first = run(config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert run(config) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    with pytest.raises(CapwrightError, match=r"another plan \(train 2 -> 3\)"):
        run(DrawingConfig(out=tmp_path, cutouts=cutouts, train=3, test=1, size=32))


def test_ink_gives_few_flat_colours_dark_lines_and_the_same_outline() -> None:
    y, x = np.mgrid[:60, :60]
    rgba = np.zeros((60, 60, 4), np.uint8)
    rgba[..., 0], rgba[..., 1], rgba[..., 2] = 60 + 3 * x, 200 - 2 * y, 120
    rgba[..., 3] = 255 * ((x - 30) ** 2 + (y - 30) ** 2 < 27**2)
    drawn = np.array(ink(Image.fromarray(rgba)))
    assert np.array_equal(drawn[..., 3], rgba[..., 3])
    inside = drawn[drawn[..., 3] > 0][:, :3]
    assert len(np.unique(inside, axis=0)) <= 6  # five and the line
    assert (drawn[30, 4, :3] < 30).all()  # on the rim
    assert (inside < 30).all(axis=1).mean() < 0.5  # most is colour


def test_drawn_stamps_are_none_of_those_in_scenes() -> None:
    paths = {
        "food/fruit/cartoon/apple.png": "fruit",
        "vehicles/ship/cartoon/tugboat.png": "vehicles",
        "vehicles/locomotive/cartoon/trainSign.png": "",
        "animals/birds/owl.png": "",
        "animals/birds/cartoon/tux_mirror.png": "",
        "clothes/armor/cartoon/helmet.png": "",
    }
    assert {path: stamps.drawn_class(path) for path in paths} == paths
    for path, name in paths.items():
        assert not name or stamps.left_out(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"style": "oil"}, "style 'oil': allowed are drawn, inked"), ({"size": 8}, "size is 8")],
)
def test_settings_that_mean_nothing_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CapwrightError, match=message):
        DrawingConfig(out=tmp_path, **change)  # type: ignore[arg-type]
