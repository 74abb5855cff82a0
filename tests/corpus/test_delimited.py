"""CSV and TSV that name pictures: separators, quotes, encodings, names in the wild, refusals."""

import json
from pathlib import Path

import fsspec
import pytest

from capwright.core.errors import CapwrightError
from capwright.corpus.index import IndexConfig, left_out, load_index, run, shard_sizes
from capwright.corpus.reader import ReadOptions
from corpus_files import index_rows, picture, stored_pictures, write_files


def table(folder: Path, text: str | bytes, name: str = "pairs.csv", pictures: int = 4) -> Path:
    """A table beside pictures 0.jpg, 1.jpg, …"""
    data = text.encode() if isinstance(text, str) else text
    write_files(folder, {f"{i}.jpg": picture(i) for i in range(pictures)} | {name: data})
    return folder / name


def test_open_clip_table_gives_the_pictures_back(tmp_path: Path) -> None:
    address = table(tmp_path, "filepath\ttitle\n0.jpg\ta cow\n./1.jpg\tein Pferd, groß\n")
    rows = index_rows(address, tmp_path / "work")
    assert [row["key"] for row in rows] == ["000000000", "000000001"]
    assert [row["text"] for row in rows] == ["a cow", "ein Pferd, groß"]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["json"]) == (24, 16, "")
    assert rows[0]["file"] == str(tmp_path / "0.jpg")
    assert stored_pictures(tmp_path / "work") == [picture(0), picture(1)]


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
def test_the_separator_is_guessed_from_the_header(tmp_path: Path, separator: str) -> None:
    lines = [["image", "caption", "a;b"], ["0.jpg", "one", "x"]]
    quoted = [['"a;b"' if cell == "a;b" else cell for cell in line] for line in lines]
    address = table(tmp_path, "\n".join(separator.join(line) for line in quoted))
    rows = index_rows(address, tmp_path / "work")
    assert (rows[0]["text"], json.loads(rows[0]["json"])) == ("one", {"a;b": "x"})


def test_quotes_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = (
        '\ufefffilepath,title\r\n0.jpg,"a ""big"" cow,\r\nstanding"\r\n\r\n1.jpg,5" screen\r\n'
        '2.jpg,"[""a dog"", ""a brown dog""]"\r\n3.jpg,'
    )
    address = table(tmp_path, text)
    rows = index_rows(address, tmp_path / "work", read=ReadOptions(shard_rows=1))
    assert [row["shard"] for row in rows] == [f"pairs-{i:05d}" for i in range(4)]
    assert [row["text"] for row in rows] == ['a "big" cow,\r\nstanding', '5" screen', "a dog", ""]
    assert [row["more_texts"] for row in rows] == [[], [], ["a brown dog"], []]
    assert [row["key"] for row in rows] == [f"{i:09d}" for i in range(4)]


def test_shards_do_not_depend_on_how_many_read_them(tmp_path: Path) -> None:
    lines = [f'{i % 4}.jpg,"text\n{i}"' for i in range(7)]
    address = table(tmp_path, "\n".join(["filepath,title", *lines]))
    options = ReadOptions(shard_rows=3)
    rows = index_rows(address, tmp_path / "one", read=options)
    assert [row["text"] for row in rows] == [f"text\n{i}" for i in range(7)]
    assert list(shard_sizes(tmp_path / "one").values()) == [3, 3, 1]
    assert index_rows(address, tmp_path / "two", read=options, workers=2) == rows


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("image_path,URL,TEXT", "TEXT"),
        ("path,image_url,laion_2b,laion_coco,capsfusion", "laion_2b"),
        ("file_name,re_caption,org_caption", "org_caption"),
        ("filename,re_caption", "re_caption"),
        ("Image,Caption,title", "Caption"),
    ],
)
def test_names_in_the_wild(tmp_path: Path, header: str, text: str) -> None:
    names = header.split(",")
    address = table(tmp_path, f"{header}\n0.jpg," + ",".join(f"is {name}" for name in names[1:]))
    (row,) = index_rows(address, tmp_path / "work")
    assert row["text"] == f"is {text}"
    rest = {name: f"is {name}" for name in names[1:] if name != text}
    assert json.loads(row["json"] or "{}") == rest


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    address = table(tmp_path, "id,filepath,other,title\nx,nope.jpg,0.jpg,one\n")
    chosen = {"picture": "other", "text": "filepath", "key": "title"}
    (row,) = index_rows(address, tmp_path / "work", read=ReadOptions(columns=chosen))
    assert (row["key"], row["text"], json.loads(row["json"])) == ("one", "nope.jpg", {"id": "x"})
    (row,) = index_rows(
        address, tmp_path / "other", read=ReadOptions(columns={"picture": "other", "key": ""})
    )
    assert row["key"] == "000000000"


def test_broken_rows_are_counted(tmp_path: Path) -> None:
    good = b"".join(b"0.jpg\tgood %d\n" % i for i in range(20))
    bad = b"1.jpg\tm\xfcller\n2.jpg\n\tno path\ngone.jpg\tgone\nempty.jpg\tx\ntext.jpg\ty\n"
    address = table(tmp_path, b"filepath\ttitle\n" + good + bad, "a.tsv")
    write_files(tmp_path, {"empty.jpg": b"", "text.jpg": b"<html>not found</html>"})
    rows = index_rows(address, tmp_path / "work", max_failure_rate=0.5)
    assert len(rows) == 20
    assert left_out(tmp_path / "work") == {
        "unreadable picture: UnidentifiedImageError": 2,
        "row that is not UTF-8": 1,
        "row with another number of columns than the header": 1,
        "row without a picture": 1,
        "the picture's file is missing": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url,caption\nhttp://a.b/c.jpg,x\n", "but no pictures: fetch them first, .* img2dataset"),
        ("filepath,title\nhttps://a.b/c.jpg,x\n", "row 0 of .* names a picture in the web"),
        ("a,b\n1,2\n", "no column of pictures among 'a', 'b': name the one .* --column picture="),
        ("filepath,title\n", "has a header but no rows"),
        ("", "pairs.csv is empty: expected a header line"),
        ("filepath,title,title\n0.jpg,a,b\n", "two columns 'title': rename one"),
        ('filepath,title\n0.jpg,a\n1.jpg,"b\n2.jpg,c\n', "a quote that is never closed"),
        ("filepath,title\r0.jpg,a\r", "is not a table near line 1"),
        ("filepath,title,key\n0.jpg,a,k\n1.jpg,b,k\n", "has the key 'k' twice"),
        ("filepath,title\n0.jpg,a".encode("utf-16"), "is UTF-16: save it as UTF-8"),
    ],
)
def test_refusals(tmp_path: Path, text: str | bytes, message: str) -> None:
    address = table(tmp_path, text)
    with pytest.raises(CapwrightError, match=message):
        run(IndexConfig(corpus=str(address), work=tmp_path / "work", max_failure_rate=1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"text": "cap"}}, "'cap' is not in .*: it has 'filepath', 'title', so write"),
        ({"separator": "tab"}, "the separator is 'tab', but must be one character"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    address = table(tmp_path, "filepath,title\n0.jpg,a\n")
    with pytest.raises(CapwrightError, match=message):
        index_rows(address, tmp_path / "work", read=ReadOptions(**options))  # type: ignore[arg-type]


def test_memory_addresses(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/csv/pictures/ünï.JPG", picture(3))
    memory.pipe("/csv/a.tsv", "filepath\ttitle\npictures/ünï.JPG\tx\n".encode())
    run(IndexConfig(corpus="memory://csv/*.tsv", work=tmp_path / "work"))
    assert load_index(tmp_path / "work")["file"][0].as_py().endswith("csv/pictures/ünï.JPG")
    assert stored_pictures(tmp_path / "work") == [picture(3)]
