import json
from pathlib import Path
from typing import Any

import pytest

from capwright.core.errors import CapwrightError
from capwright.datasets import coco_captions, flickr30k, load
from set_files import data, write_picture

FIVE = [f"A dog runs {number}." for number in range(5)]


def entry(name: str, split: str, captions: list[str], **more: str) -> dict[str, Any]:
    sentences = [{"raw": f" {text} ", "tokens": text.split()} for text in captions]
    return {"filename": name, "split": split, "sentences": sentences, **more}


def write_json(path: Path, *entries: dict[str, Any]) -> None:
    path.write_text(json.dumps({"images": entries, "dataset": "toy"}))


def test_flickr30k(tmp_path: Path) -> None:
    write_json(
        tmp_path / "dataset_flickr30k.json",
        entry("1007129816.jpg", "test", FIVE),
        entry("36979.jpg", "train", FIVE),
    )
    write_picture(tmp_path / "flickr30k-images/1007129816.jpg")
    loaded = load("flickr30k", tmp_path)
    assert loaded.keys == ("1007129816",)
    item = loaded[0]
    assert (item.captions, item.image.mode) == (tuple(FIVE), "RGB")
    checked = data("check", "flickr30k", tmp_path)
    assert (checked.code, json.loads(checked.out)["items"]) == (0, 1)
    assert flickr30k.check(tmp_path, "train")[0].startswith("1 of 1 pictures are missing")


def test_coco_has_a_folder_a_split_and_restval_is_for_training(tmp_path: Path) -> None:
    val = {"filepath": "val2014"}
    write_json(
        tmp_path / "dataset_coco.json",
        entry("COCO_val2014_000000391895.jpg", "test", [*FIVE, "A sixth."], **val),
        entry("COCO_val2014_000000060623.jpg", "restval", FIVE, **val),
        entry("COCO_train2014_000000000009.jpg", "train", FIVE, filepath="train2014"),
    )
    for name in ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000060623.jpg"):
        write_picture(tmp_path / "images/val2014" / name)
    write_picture(tmp_path / "images/train2014/COCO_train2014_000000000009.jpg")
    assert load("coco-captions", tmp_path)[0].captions[5] == "A sixth."
    train = load("coco-captions", tmp_path, "train")
    assert [item.key[:9] for item in train] == ["COCO_val2", "COCO_trai"]
    assert coco_captions.check(tmp_path) == coco_captions.check(tmp_path, "train") == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "caption_datasets.zip" in flickr30k.check(tmp_path)[0]
    write_json(tmp_path / "dataset_flickr30k.json", entry("1.jpg", "test", FIVE[:1]))
    with pytest.raises(CapwrightError, match="has no folder flickr30k-images or"):
        load("flickr30k", tmp_path)
    write_picture(tmp_path / "images/1.jpg")
    assert "1 pictures have fewer than five captions, first 1.jpg" in flickr30k.check(tmp_path)[0]
    assert "no pictures of the split val" in flickr30k.check(tmp_path, "val")[0]
