import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.scenes import stamps
from capwright.datasets.scenes.cutouts import load_cutouts
from scene_cutouts import make_cutouts, write_cutout


def test_sub_folders_are_classes_and_a_quarter_is_held_out(tmp_path: Path) -> None:
    found = load_cutouts(make_cutouts(tmp_path, classes=3, per_class=6))
    assert [one.name for one in found.classes] == ["beetles", "kites", "stones"]
    assert {one.path for one in found.seen}.isdisjoint(one.path for one in found.unseen)
    for class_id in range(3):
        assert sum(one.class_id == class_id for one in found.seen) == 4
        assert sum(one.class_id == class_id for one in found.unseen) == 2  # 1.5, rounded up
    assert found.guessed_heights == ("beetles", "kites", "stones")
    assert found.seen[0].caption == "a blue beetle" and found.seen[0].name == "blue beetle"


def test_pictures_are_cropped_to_their_alpha(tmp_path: Path) -> None:
    found = load_cutouts(make_cutouts(tmp_path, classes=1))
    assert sorted({one.rgba.shape for one in found.seen}) == [(34, 58, 4), (58, 34, 4)]


def test_small_folders_merge_upwards(tmp_path: Path) -> None:
    make_cutouts(tmp_path, classes=1, per_class=6)
    for name in ("cats", "dogs"):
        folder = tmp_path / "animals" / name
        folder.mkdir(parents=True)
        for i in range(3):
            write_cutout(folder / f"{i}.png", (9, 9, 9))
            (folder / f"{i}.txt").write_text(f"A {name[:-1]}.")
    (tmp_path / "few").mkdir()
    write_cutout(tmp_path / "few" / "one.png", (9, 9, 9))
    (tmp_path / "few" / "one.txt").write_text("One thing.")
    found = load_cutouts(tmp_path)
    assert [one.name for one in found.classes] == ["animals", "beetles"]
    assert found.left_out == {"too few for a class": 1}


def test_heights_come_from_the_folder(tmp_path: Path) -> None:
    make_cutouts(tmp_path, classes=2)
    (tmp_path / "heights.json").write_text(json.dumps({"kites": 0.7}))
    found = load_cutouts(tmp_path)
    assert [one.height_m for one in found.classes] == [1.0, 0.7]
    assert found.guessed_heights == ("beetles",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "is no table of heights"),
        ('{"bats": 1}', "'bats', which is no class here: allowed are beetles"),
        ('{"beetles": -1}', "a height of -1.0 m: allowed are 0.001 to 100 metres"),
    ],
)
def test_bad_heights(tmp_path: Path, text: str, words: str) -> None:
    make_cutouts(tmp_path, classes=1)
    (tmp_path / "heights.json").write_text(text)
    with pytest.raises(CapwrightError, match=words):
        load_cutouts(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"no folder of cut-outs at .*nowhere: pass --cutouts"):
        load_cutouts(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"no \.png picture in .*: put RGBA pictures"):
        load_cutouts(tmp_path)


def test_pictures_without_alpha_or_caption(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "opaque.png")
    (tmp_path / "opaque.txt").write_text("A box.")
    write_cutout(tmp_path / "silent.png", (9, 9, 9))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("A wreck.")
    with pytest.raises(CapwrightError) as error:
        load_cutouts(tmp_path)
    assert "2 no alpha channel, or an unreadable picture" in str(error.value)
    assert "1 no caption in the first line of NAME.txt" in str(error.value)


def test_no_class_of_five(tmp_path: Path) -> None:
    make_cutouts(tmp_path, classes=2, per_class=4)
    with pytest.raises(CapwrightError, match=r"no class in .* has 5 usable cut-outs \(8 in all\)"):
        load_cutouts(tmp_path)


def test_digest_follows_pixels_and_captions(tmp_path: Path) -> None:
    make_cutouts(tmp_path, classes=1)
    before = load_cutouts(tmp_path).digest
    assert load_cutouts(tmp_path).digest == before
    (tmp_path / "beetles" / "red_beetle.txt").write_text("A crimson beetle.")
    assert load_cutouts(tmp_path).digest != before


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("animals/birds/owl.png", True),
        ("animals/birds/cartoon/owl.png", False),
        ("animals/birds/owl_mirror.png", False),
        ("symbols/star.png", False),
        ("military/vehicles/bradley.png", True),
        ("military/paratrooper.png", False),
        ("household/tools/saw.png", True),
        ("household/key.png", False),
    ],
)
def test_which_stamps_are_used(path: str, kept: bool) -> None:
    assert (stamps.left_out(path) == "") is kept


def test_stamps_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stamps, "INSTALLED", Path("/nowhere/stamps"))
    calls = []

    def pretend(command: list[str], folder: Path) -> None:
        calls.append(command[0])
        if command[0] == "apt-get":
            (folder / "stamps.deb").write_bytes(b"")
        else:
            Path(command[-1], "nowhere/stamps").mkdir(parents=True)

    monkeypatch.setattr(stamps, "_command", pretend)
    first = stamps.find_stamps()
    assert first.is_dir() and stamps.find_stamps() == first
    assert calls == ["apt-get", "dpkg-deb"]
    assert [path.name for path in (tmp_path / "capwright").iterdir()] == [stamps.PACKAGE]


@pytest.mark.parametrize(
    "script", ["echo 'E: Unable to locate package' >&2; exit 100", None], ids=["fails", "no apt"]
)
def test_where_nothing_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stamps, "INSTALLED", Path("/nowhere/stamps"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(CapwrightError) as error:
        stamps.find_stamps()
    for advice in ("apt-get update", f"apt-get install {stamps.PACKAGE}", "--cutouts FOLDER"):
        assert advice in str(error.value)
    if script is not None:
        assert "Unable to locate package" in str(error.value)
    assert list((tmp_path / "cache" / "capwright").iterdir()) == []


def test_heights_are_known_for_every_default_class() -> None:
    assert all(0.001 <= metres <= 100 for metres in stamps.HEIGHTS_M.values())
    assert np.ptp(np.log(list(stamps.HEIGHTS_M.values()))) > 3  # recognition has much to tell


def test_per_class_keeps_as_many_and_holds_a_quarter_of_those_out(tmp_path: Path) -> None:
    everything = load_cutouts(make_cutouts(tmp_path, classes=2, per_class=10))
    limited = load_cutouts(tmp_path, per_class=8)
    assert len(limited.seen) == 12 and len(limited.unseen) == 4
    paths = {cutout.path for cutout in (*everything.seen, *everything.unseen)}
    assert {cutout.path for cutout in (*limited.seen, *limited.unseen)} < paths
    assert limited.left_out["over the limit of the class"] == 4
    assert limited.digest != everything.digest
