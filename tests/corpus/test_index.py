"""The index over real tars: offsets that read back, broken input counted, clear refusals."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.corpus.index import IndexConfig, load_index, run
from capwright.corpus.pictures import ByteReader, PictureError, decode_rgb, load_pixels


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pair(
    key: str, colour: tuple[int, int, int] = (255, 0, 0), text: str = "a cow"
) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.jpg", jpeg(colour)),
        (f"{key}.txt", text.encode()),
        (f"{key}.json", json.dumps({"caption": text}).encode()),
        (f"{key}.seg.png", b"labels"),
    ]


def test_index_reads_back_by_offset(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "data/00000.tar",
        pair("000000000") + pair("000000001", (0, 0, 255), "ein Pferd "),
    )
    summary = run(IndexConfig(corpus=str(tmp_path / "data"), work=tmp_path / "work"))
    assert (summary.samples, summary.shards, summary.with_text, summary.failures) == (2, 1, 2, {})
    rows = load_index(tmp_path / "work").to_pylist()
    assert [row["text"] for row in rows] == ["a cow", "ein Pferd"]
    assert (rows[0]["width"], rows[0]["height"]) == (24, 16)
    assert [m["suffix"] for m in rows[0]["members"]] == ["jpg", "txt", "json", "seg.png"]
    with ByteReader() as reader:
        labels = rows[1]["members"][3]
        assert reader.read(rows[1]["file"], labels["offset"], labels["size"]) == b"labels"
        data = reader.read(rows[1]["file"], rows[1]["image_offset"], rows[1]["image_size"])
    assert decode_rgb(data, size=8)[4, 4, 2] > 200


def test_memory_addresses_work_too(tmp_path: Path) -> None:
    import fsspec

    write_tar(tmp_path / "a.tar", pair("1"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())
    summary = run(IndexConfig(corpus="memory://bucket/*.tar", work=tmp_path / "work"))
    assert summary.samples == 1
    assert load_pixels(load_index(tmp_path / "work"), size=8).shape == (1, 8, 8, 3)


def test_broken_pictures_and_a_cut_tar_are_counted(tmp_path: Path) -> None:
    good = [member for i in range(30) for member in pair(f"{i:04d}")]
    broken = [
        ("9000.jpg", jpeg((1, 2, 3), (200, 200))[:300]),
        ("9000.txt", b"cut"),
        ("9001.txt", b"alone"),
    ]
    write_tar(tmp_path / "data/00000.tar", good + broken)
    write_tar(tmp_path / "data/00001.tar", pair("a") + pair("b"))
    whole = (tmp_path / "data/00001.tar").read_bytes()
    (tmp_path / "data/00001.tar").write_bytes(whole[: whole.index(b"b.jpg") + 700])
    summary = run(
        IndexConfig(corpus=str(tmp_path / "data"), work=tmp_path / "work", max_failure_rate=0.2)
    )
    assert summary.samples == 31
    assert sum(summary.failures.values()) == 3
    assert "no picture in the sample" in summary.failures
    with pytest.raises(CapwrightError, match=r"samples failed, more than the allowed share 0.05"):
        run(IndexConfig(corpus=str(tmp_path / "data"), work=tmp_path / "other"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no shards in"),
        ([("a.jpg", jpeg((0, 0, 0))), ("b.txt", b""), ("a.jpg", jpeg((0, 0, 0)))], "twice"),
    ],
)
def test_refusals(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    if members:
        write_tar(tmp_path / "data/00000.tar", members)
    with pytest.raises(CapwrightError, match=message):
        run(
            IndexConfig(corpus=str(tmp_path / "data"), work=tmp_path / "work", max_failure_rate=1.0)
        )


def test_the_same_shards_by_another_name_are_the_same_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "one/00000.tar", pair("a"))
    run(IndexConfig(corpus=str(tmp_path / "one"), work=tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    assert run(IndexConfig(corpus="one/*.tar", work=tmp_path / "work")).samples == 1


def test_another_corpus_in_the_same_work_folder_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "one/00000.tar", pair("a"))
    write_tar(tmp_path / "two/00000.tar", pair("b"))
    run(IndexConfig(corpus=str(tmp_path / "one"), work=tmp_path / "work"))
    with pytest.raises(CapwrightError, match="was made with another plan"):
        run(IndexConfig(corpus=str(tmp_path / "two"), work=tmp_path / "work"))
    write_tar(tmp_path / "one/00000.tar", [member for key in "abcde" for member in pair(key)])
    with pytest.raises(CapwrightError, match="was made with another plan"):
        run(IndexConfig(corpus=str(tmp_path / "one"), work=tmp_path / "work"))
    with pytest.raises(CapwrightError, match="has no index: run `capwright index"):
        load_index(tmp_path / "nowhere")


def test_pixel_cache_is_the_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/00000.tar", pair("a") + pair("b", (0, 255, 0)))
    run(IndexConfig(corpus=str(tmp_path / "data"), work=tmp_path / "work"))
    index = load_index(tmp_path / "work")
    plain = load_pixels(index, size=16)
    cached = load_pixels(index, size=16, cache=tmp_path / "cache")
    assert isinstance(cached, np.memmap) and np.array_equal(plain, cached)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(PictureError, match="unreadable picture"):
        decode_rgb(b"not a picture")
