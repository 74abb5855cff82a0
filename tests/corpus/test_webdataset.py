"""Tars as they are in the wild: dotted names, uppercase suffixes, texts in JSON, no text at all."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.corpus.index import IndexConfig, IndexSummary, load_index, run
from capwright.corpus.pictures import decode_rgb
from capwright.corpus.places import ByteReader, places
from capwright.corpus.reader import ReadOptions


def jpeg(red: int = 200) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (red, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def index(tmp_path: Path, *members: tuple[str, bytes], **options: Any) -> IndexSummary:
    (tmp_path / "data").mkdir(parents=True, exist_ok=True)
    with tarfile.open(tmp_path / "data/00000.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return run(
        IndexConfig(
            corpus=str(tmp_path / "data"),
            work=tmp_path / "work",
            max_failure_rate=1.0,
            read=ReadOptions(**options),
        )
    )


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_index(tmp_path / "work").to_pylist()
    return found


def test_as_img2dataset_writes_them_with_its_files_beside(tmp_path: Path) -> None:
    for name in ("00000.parquet", "00000_stats.json"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"{}")
    fields = {"url": "http://x/1.jpg", "caption": "a cow", "key": "000000000", "uid": "ab" * 16}
    summary = index(
        tmp_path,
        ("000000000.jpg", jpeg()),
        ("000000000.txt", b"a cow"),
        ("000000000.json", json.dumps(fields).encode()),
    )
    assert (summary.samples, summary.format) == (1, "webdataset")
    assert json.loads(rows(tmp_path)[0]["json"]) == fields


def test_names_with_dots_and_uppercase_suffixes(tmp_path: Path) -> None:
    index(
        tmp_path,
        ("a/tower.v1.JPG", jpeg(10)), ("a/tower.v1.TXT", b"one"),
        ("a/tower.v2.JPG", jpeg(250)), ("a/tower.v2.TXT", b"two"),
        ("b.JPEG", jpeg()), ("b.seg.png", b"labels"), ("b.txt", b"three"),
    )  # fmt: skip
    found = rows(tmp_path)
    assert [(row["key"], row["text"]) for row in found] == [
        ("a/tower.v1", "one"), ("a/tower.v2", "two"), ("b", "three"),
    ]  # fmt: skip
    with ByteReader() as reader:
        pixels = [decode_rgb(reader.read(*p)) for p in places(load_index(tmp_path / "work"))]
    assert pixels[0][5, 5, 0] < 40 and pixels[1][5, 5, 0] > 200


def test_labels_alone_are_no_picture(tmp_path: Path) -> None:
    summary = index(tmp_path, ("1.seg.png", jpeg()), ("1.depth.npy", b""), ("2.jpg", jpeg()))
    assert summary.samples == 1
    assert summary.failures == {"no picture in the sample": 1}


def test_texts_in_a_list_in_json_or_nowhere(tmp_path: Path) -> None:
    several = json.dumps(["a cow", " two cows ", ""])
    index(
        tmp_path,
        ("1.jpg", jpeg()), ("1.txt", several.encode()),
        ("2.jpg", jpeg()), ("2.json", json.dumps({"TEXT": "a pig"}).encode()),
        ("3.jpg", jpeg()), ("3.json", b'{"caption": ["x", "y"], "re_caption": "long"}'),
        ("4.jpg", jpeg()), ("4.txt", b"\xff\xfe caf\xe9"),
        ("5.jpg", jpeg()), ("5.json", b"no json"),
    )  # fmt: skip
    found = {row["key"]: (row["text"], row["more_texts"]) for row in rows(tmp_path)}
    assert found["1"] == ("a cow", ["two cows"])
    assert found["2"] == ("a pig", [])
    assert found["3"] == ("x", ["y"])
    assert found["4"][0].endswith("caf�")
    assert found["5"] == ("", [])


def test_another_suffix_or_field_can_be_the_text(tmp_path: Path) -> None:
    members = [
        ("1.jpg", jpeg()),
        ("1.txt", b"alt"),
        ("1.caption", b"better"),
        ("1.json", b'{"re_caption": "best"}'),
    ]
    index(tmp_path, *members, text_suffix="caption")
    assert rows(tmp_path)[0]["text"] == "better"
    index(tmp_path / "other", *members, columns={"text": "re_caption"})
    assert rows(tmp_path / "other")[0]["text"] == "best"


def test_a_key_twice_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="has the key '1' twice: captions join by key"):
        index(tmp_path, ("1.jpg", jpeg()), ("2.jpg", jpeg()), ("1.jpg", jpeg()))
