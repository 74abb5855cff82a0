import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import toy_scenes
from capwright.core.errors import CapwrightError
from capwright.datasets import load, scenes_sets
from capwright.datasets.coco_masks import decode_mask
from capwright.datasets.scenes import SceneConfig, run
from scene_cutouts import make_cutouts

COUNT, SIZE = 12, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    cutouts = make_cutouts(root / "cutouts")
    run(SceneConfig(cutouts=cutouts, out=root / "out", count=COUNT, size=SIZE, workers=1))
    return root / "out"


def stored(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, list[dict[str, object]]]]:
    """Classes, depths and boxes by key, read from the tars directly."""
    members: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                members.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return {
        key: (
            np.array(Image.open(io.BytesIO(found["seg.png"]))),
            np.load(io.BytesIO(found["depth.npy"])),
            json.loads(found["boxes.json"]),
        )
        for key, found in members.items()
    }


def test_classes_and_depths_are_those_in_the_tars(folder: Path) -> None:
    segmentation, depth, truth = load("scenes", folder), scenes_sets.depth(folder), stored(folder)
    assert segmentation.classes == ("background", "beetles", "kites", "stones")
    assert (len(segmentation), len(depth), segmentation.has_background) == (COUNT, COUNT, True)
    for number, key in enumerate(segmentation.keys):
        seg_HW, depth_HW, _ = truth[key]
        np.testing.assert_array_equal(segmentation[number].seg_HW, seg_HW)
        np.testing.assert_array_equal(depth[number].depth_HW, depth_HW.astype(np.float32))
        assert segmentation[number].image.size == (SIZE, SIZE)


def test_masks_fill_their_boxes_and_their_class_exactly(folder: Path) -> None:
    detection, truth = scenes_sets.detection(folder), stored(folder)
    assert detection.classes == ("beetles", "kites", "stones")
    things = 0
    for number, item in enumerate(detection):
        seg_HW, _, boxes = truth[detection.keys[number]]
        assert len(item.labels_N) == len(boxes)
        for box, label, mask_HW in zip(item.boxes_N4, item.labels_N, item.masks_NHW, strict=True):
            ys, xs = np.nonzero(mask_HW)
            assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box.tolist()
            assert (seg_HW[mask_HW] == label + 1).all()
            things += 1
        overlaps = item.masks_NHW.sum(axis=0)
        assert overlaps.max() == 1, "a pixel is of one thing"
        np.testing.assert_array_equal(overlaps > 0, seg_HW > 0)
    assert things > COUNT


def test_annotations_are_cocos(folder: Path) -> None:
    detection = scenes_sets.detection(folder)
    for region in detection.annotations["annotations"]:
        item = detection[region["image_id"]]
        masks = [mask_HW for mask_HW in item.masks_NHW if mask_HW.sum() == region["area"]]
        decoded = decode_mask(region["segmentation"], SIZE, SIZE)
        assert any((mask_HW == decoded).all() for mask_HW in masks)
        runs = coco_mask.frPyObjects(region["segmentation"], SIZE, SIZE)
        assert coco_mask.area(runs) == region["area"]
        assert detection.classes[detection.category_ids.index(region["category_id"])]


def test_run_lengths_round_trip() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.3, 1.0):
        mask_HW = rng.random((5, 7)) < density
        np.testing.assert_array_equal(decode_mask(scenes_sets.run_lengths(mask_HW), 5, 7), mask_HW)


def test_normals_of_ground_backdrop_and_things(folder: Path) -> None:
    normals, truth = scenes_sets.normals(folder), stored(folder)
    grounds = 0
    for number, item in enumerate(normals):
        seg_HW, _, _ = truth[normals.keys[number]]
        assert item.normals_3HW.dtype == np.float32
        np.testing.assert_array_equal(np.linalg.norm(item.normals_3HW, axis=0), 1)
        assert (item.normals_3HW[:, seg_HW > 0].T == (0, 0, -1)).all()
        lowest_W, highest_W = seg_HW[-1] == 0, seg_HW[0] == 0
        assert (item.normals_3HW[:, -1, lowest_W].T == (0, -1, 0)).all(), "ground is below"
        assert (item.normals_3HW[:, 0, highest_W].T == (0, 0, -1)).all(), "backdrop is above"
        grounds += int(lowest_W.sum())
    assert grounds > 0


def test_unknown_pixels_have_no_normal() -> None:
    seg_HW = np.array([[0, 0], [0, 255], [1, 1]], np.uint8)
    depth_HW = np.array([[9, 9], [4, 4], [2, 0]], np.float32)
    normals_3HW = scenes_sets.scene_normals(seg_HW, depth_HW)
    assert normals_3HW[1].tolist() == [[0, 0], [-1, 0], [0, 0]]
    assert normals_3HW[2].tolist() == [[-1, -1], [0, 0], [-1, 0]]


def test_two_of_a_class_that_touch_are_told_apart_by_depth() -> None:
    seg_HW = np.full((4, 6), 1, np.uint8)
    depth_HW = np.full((4, 6), 2.0, np.float32)
    depth_HW[:, 3:] = 3.0
    mask_HW = scenes_sets.thing_mask(seg_HW, depth_HW, 1, [0, 0, 5, 4], 2.0)
    assert mask_HW[:, :3].all() and not mask_HW[:, 3:].any()


def test_sets_pickle(folder: Path) -> None:
    loaded = pickle.loads(pickle.dumps(load("scenes", folder)))
    assert loaded[3].seg_HW.shape == (SIZE, SIZE)


def test_check(folder: Path, tmp_path: Path) -> None:
    assert scenes_sets.check(folder) == []
    bare = toy_scenes.write_scenes(tmp_path / "bare", labels=False)
    assert "has no .seg.png: scenes have" in scenes_sets.check(bare)[0]
    few = toy_scenes.write_scenes(tmp_path / "few")
    assert scenes_sets.check(few) == []
    names = {"background": "background", "classes": [{"name": "apples"}]}
    (few / "classes.json").write_text(json.dumps(names))
    assert "has the label 2, but classes.json allows 0 to 1" in scenes_sets.check(few)[0]
    with pytest.raises(CapwrightError, match="has the label 2"):
        load("scenes", few)[1]
