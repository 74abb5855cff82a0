import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.corpus.index import IndexConfig
from capwright.corpus.index import run as build_index
from capwright.corpus.sidecars import write_sidecar
from capwright.datasets.labelled import load_dense, nearest, oracle_captions, scene_index

CLASSES = {"classes": [{"name": "birds"}, {"name": "fish"}], "background": "sky"}
BOX = {"class": "birds", "name": "tucan", "caption": "A toucan.", "box": [8, 8, 24, 24]} | {
    "depth_m": 1.5
}


def scene(seed: int = 0, *, size: int = 32) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    seg = np.zeros((size, size), np.uint8)
    seg[8:24, 8:24] = 1 + seed % 2
    depth = np.full((size, size), 5.0, np.float16)
    depth[seg > 0] = 1.5
    depth[0, 0] = np.inf
    stream = io.BytesIO()
    np.save(stream, depth)
    return {
        "jpg": picture(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), "JPEG"),
        "txt": b"noise",
        "seg.png": picture(seg, "PNG"),
        "depth.npy": stream.getvalue(),
        "boxes.json": json.dumps([BOX]).encode(),
    }


def picture(pixels: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write(folder: Path, scenes: list[Mapping[str, bytes]], classes: Any = CLASSES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(classes))
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i, contents in enumerate(scenes):
            for suffix, content in contents.items():
                info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def test_scenes_come_as_arrays_in_the_order_of_the_tar(tmp_path: Path) -> None:
    scenes = load_dense(write(tmp_path, [scene(0), scene(1), scene(2)]), 16)
    assert len(scenes) == 3
    assert scenes.images_NSS3.shape == (3, 16, 16, 3)
    assert scenes.images_NSS3.dtype == scenes.seg_NSS.dtype == np.uint8
    assert scenes.depth_NSS.dtype == np.float32
    assert scenes.classes == ("sky", "birds", "fish")
    assert scenes.keys == ("000000000", "000000001", "000000002")
    assert [int(seg.max()) for seg in scenes.seg_NSS] == [1, 2, 1]
    wanted = np.zeros((16, 16), np.uint8)
    wanted[4:12, 4:12] = 1
    assert np.array_equal(scenes.seg_NSS[0], wanted)
    assert set(np.unique(scenes.depth_NSS[0])) == {1.5, 5.0}
    (placed,) = scenes.objects[0]
    assert (placed.class_name, placed.name, placed.caption) == ("birds", "tucan", "A toucan.")
    assert (placed.box, placed.depth_m) == ((8, 8, 24, 24), 1.5)


def test_a_depth_that_is_not_finite_becomes_unknown(tmp_path: Path) -> None:
    scenes = load_dense(write(tmp_path, [scene()]), 32)
    assert scenes.depth_NSS[0, 0, 0] == 0
    assert np.isfinite(scenes.depth_NSS).all()


def test_labels_may_have_another_size_than_pictures(tmp_path: Path) -> None:
    scenes = load_dense(write(tmp_path, [scene()]), 16, label_size=32)
    assert scenes.images_NSS3.shape == (1, 16, 16, 3)
    assert scenes.seg_NSS.shape == scenes.depth_NSS.shape == (1, 32, 32)


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    folder = write(tmp_path, [scene()])
    before = sorted(tmp_path.rglob("*"))
    load_dense(folder, 16)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_work_folder_and_an_index_give_the_same_scenes(tmp_path: Path) -> None:
    folder = write(tmp_path / "scenes", [scene(0), scene(1)])
    build_index(IndexConfig(corpus=str(folder), work=tmp_path / "work"))
    direct = load_dense(folder, 16)
    for source in (tmp_path / "work", scene_index(folder)):
        other = load_dense(source, 16)
        assert np.array_equal(other.images_NSS3, direct.images_NSS3)
        assert np.array_equal(other.seg_NSS, direct.seg_NSS)
        assert other.objects == direct.objects


def test_a_limit_takes_the_first_scenes(tmp_path: Path) -> None:
    folder = write(tmp_path, [scene(0), scene(1), scene(2)])
    assert load_dense(folder, 16, limit=2).keys == ("000000000", "000000001")


def test_oracle_captions_join_by_key(tmp_path: Path) -> None:
    folder = write(tmp_path, [scene(0), scene(1)])
    rows = [{"key": f"{i:09d}", "source": "oracle", "text": f"caption {i}"} for i in (1, 0)]
    write_sidecar(folder / "oracle", "00000", rows)
    assert oracle_captions(folder) == [["caption 0"], ["caption 1"]]


def test_nearest_cuts_out_the_centre_of_the_shorter_side() -> None:
    values = np.arange(4 * 8).reshape(4, 8)
    assert np.array_equal(nearest(values, 4), values[:, 2:6])
    assert np.array_equal(nearest(values.T, 4), values.T[2:6])
    assert np.array_equal(nearest(values, 2), values[1::2, 3:7:2])
    assert np.array_equal(nearest(values[:, :4], 8), values[:, :4].repeat(2, 0).repeat(2, 1))


def changed(**members: bytes | None) -> dict[str, bytes]:
    contents = scene() | {name.replace("__", "."): value for name, value in members.items()}
    return {name: value for name, value in contents.items() if value is not None}


def flat_depth(size: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((size, size), np.float16))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (changed(seg__png=None), "has no .seg.png: dense evaluation needs scenes with .seg.png, "),
        (changed(depth__npy=None), "has no .depth.npy: "),
        (changed(boxes__json=None), "has no .boxes.json: "),
        (changed(seg__png=b"GIF"), "has broken labels ("),
        (changed(depth__npy=b"\x93NUMPY"), "has broken labels ("),
        (changed(boxes__json=b"[{"), "has broken labels ("),
        (
            changed(seg__png=picture(np.full((32, 32), 7, np.uint8), "PNG")),
            "sample '000000000' has the label 7, but classes.json allows 0 to 2 "
            "(and 255 for ignored pixels)",
        ),
        (
            changed(depth__npy=flat_depth(16)),
            "has a segmentation uint8 (32, 32) and a depth (16, 16): both must be [H, W]",
        ),
        (changed(boxes__json=b'[{"class": "birds"}]'), "has a box without 'name' in .boxes.json"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, contents: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(CapwrightError) as raised:
        load_dense(write(tmp_path, [contents]), 16)
    assert sentence in str(raised.value)
    assert "'000000000'" in str(raised.value)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ({"classes": []}, "lacks 'background' or a class 'name': expected"),
        ([], "lacks 'background' or a class 'name': expected"),
        (
            {"background": "b", "classes": [{"name": str(i)} for i in range(255)]},
            "has 256 classes: at most 255 fit in a label picture",
        ),
    ],
)
def test_bad_classes_are_named(tmp_path: Path, classes: Any, sentence: str) -> None:
    with pytest.raises(CapwrightError) as raised:
        load_dense(write(tmp_path, [scene()], classes), 16)
    assert sentence in str(raised.value)


def test_classes_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [scene()])
    (folder / "classes.json").unlink()
    with pytest.raises(CapwrightError, match=r"classes.json does not exist"):
        load_dense(folder, 16)


def test_too_few_scenes_and_none_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [scene()])
    with pytest.raises(CapwrightError, match="has 1 scenes, but 5 were asked for"):
        load_dense(folder, 16, limit=5)
    with pytest.raises(CapwrightError, match="the index has no scenes"):
        load_dense(scene_index(folder).slice(0, 0), 16)


def test_scenes_of_two_folders_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    parts = [scene_index(write(tmp_path / name, [scene()])) for name in ("one", "two")]
    with pytest.raises(CapwrightError, match="the scenes lie in 2 folders"):
        load_dense(pa.concat_tables(parts), 16)
