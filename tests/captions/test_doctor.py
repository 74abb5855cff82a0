"""`capwright doctor` on good corpora and on those that users fall over."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from capwright.captions.doctor import DoctorConfig, run
from capwright.captions.doctor_report import Report, Spread
from capwright.captions.doctor_rules import judge
from capwright.cli import group
from capwright.core.errors import CapwrightError
from corpus_files import picture, tar_bytes, write_files

ENGLISH = "a photo of a red cow that stands in a field, number"


def photo(number: int) -> bytes:
    """A picture that looks like no other number's."""
    small = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((96 + number, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


def pairs(numbers: range, text: str = ENGLISH, suffix: str = "jpg") -> list[tuple[str, bytes]]:
    members = []
    for i in numbers:
        members += [(f"{i:06d}.{suffix}", photo(i)), (f"{i:06d}.txt", f"{text} {i}".encode())]
    return members


def doctor(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(group, ["doctor", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def test_a_good_corpus(tmp_path: Path) -> None:
    shards = {f"{i:05d}.tar": tar_bytes(pairs(range(i * 8, i * 8 + 8))) for i in range(2)}
    stats = {f"{i:05d}_stats.json": b'{"count": 9, "successes": 8}' for i in range(2)}
    corpus = write_files(tmp_path / "data", shards | stats)
    ended = doctor(corpus, "--work", tmp_path / "work", "--workers", 2)
    assert ended.code == 0
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if " " in line)
    assert lines["samples"] == "16"
    assert lines["shards"] == "2, 8 samples each (at most 8)"
    assert lines["members"] == "jpg 16, txt 16"
    assert lines["texts"] == "16 of 16 (100.0%) samples have one; 0 have several"
    assert lines["tokens"].startswith("median 14, ") and "0.0% cut at 77" in lines["tokens"]
    assert lines["languages"] == "en 100%"
    assert lines["img2dataset"] == "16 pictures by its own count in 2 shards, 16 found"
    assert "Nothing will go wrong that can be seen from here." in ended.out
    again = doctor(corpus, "--work", tmp_path / "work", "--workers", 2, "--json")
    report = json.loads(again.out)
    assert (report["samples"], report["problems"], report["warnings"]) == (16, [], [])
    assert report["width"] == {"mean": 103.5, "p5": 96.75, "p50": 103.5, "p95": 110.25, "max": 111}


def test_fewer_shards_than_workers_hang(tmp_path: Path) -> None:
    corpus = write_files(tmp_path / "data", {"0.tar": tar_bytes(pairs(range(3)))})
    ended = doctor(corpus, "--work", tmp_path / "work", "--workers", 2, "--ranks", 4)
    assert ended.code == 1
    assert "1 shards for 8 loading workers (workers x ranks)" in ended.out
    assert "use at most 1 workers or write smaller shards" in ended.out


def test_names_that_never_join_are_shown(tmp_path: Path) -> None:
    members = []
    for i in range(30):
        members += [(f"{i}/input.jpg", picture(i)), (f"{i}/output.txt", b"a cow")]
    corpus = write_files(tmp_path / "data", {"0.tar": tar_bytes(members)})
    ended = doctor(corpus, "--work", tmp_path / "work")
    assert ended.code == 1
    assert "30 samples have no picture and 30 pictures have no text" in ended.out
    assert "for example 0/input.jpg, 0/output.txt, 1/input.jpg, 1/output.txt" in ended.out


def test_what_is_too_broken_to_index_is_still_described(tmp_path: Path) -> None:
    broken = [(f"{i}.jpg", b"<html>") for i in range(25)]
    whole = tar_bytes(pairs(range(4)))
    cut = whole[: whole.index(b"000003.jpg") + 600]
    corpus = write_files(tmp_path / "data", {"0.tar": tar_bytes(broken), "1.tar": cut})
    report = run(DoctorConfig(corpus=str(corpus), work=tmp_path / "work"))
    assert report.samples == 3
    assert any("26 of 29 (89.7%) samples are broken (25 x unre" in p for p in report.problems)
    assert any("1 tars end in the middle" in problem for problem in report.problems)
    nothing = write_files(tmp_path / "html", {"0.tar": tar_bytes(broken)})
    ended = doctor(nothing, "--work", tmp_path / "other")
    assert ended.code == 1 and "25 of 25 (100.0%) samples are broken" in ended.out


def test_a_key_twice_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    twice = tar_bytes([*pairs(range(2)), *pairs(range(1))])
    corpus = write_files(tmp_path / "data", {"0.tar": tar_bytes(pairs(range(3))), "1.tar": twice})
    report = run(DoctorConfig(corpus=str(corpus), work=tmp_path / "work"))
    assert report.samples == 3
    assert "has the key '000000' twice" in report.problems[0]


def test_texts_and_duplicates(tmp_path: Path) -> None:
    long = "a very long text about one cow " * 12
    german = "ein Foto von einer braunen Kuh, die auf der Wiese steht"
    lines = [f"{i}.jpg\t{german} {i}" for i in range(8)]
    lines += ["0.jpg\tshop now"] * 4 + [f"{i}.jpg\t{long}{i}" for i in (1, 2)] + ["3.jpg\t"] * 2
    lines += ["near.png\tone more time the cow in a green field"]
    files = {f"{i}.jpg": picture(i, "jpg", (80, 96)) for i in range(8)}
    files["near.png"] = picture(0, "png", (80, 96))
    files["pairs.tsv"] = "\n".join(["filepath\ttitle", *lines]).encode()
    corpus = write_files(tmp_path / "data", files) / "pairs.tsv"
    report = run(DoctorConfig(corpus=str(corpus), work=tmp_path / "work"))
    assert (report.samples, report.with_text, report.problems) == (17, 15, [])
    assert (report.same_pictures, report.same_texts) == (8, 3)
    assert (report.most_frequent_text, report.most_frequent_text_count) == ("shop now", 4)
    assert report.near_pictures >= 1
    assert report.cut_at_77 == pytest.approx(2 / 15)
    assert report.tokens.max > 77
    found = " ".join(report.warnings)
    for part in (
        "2 of 17 (11.8%) samples have no text",
        "13.3% of the texts are longer than CLIP's 77 tokens",
        "3 of 15 (20.0%) texts repeat another's, 'shop now' 4 times",
        "are not English, most of them de",
        "8 of 17 (47.1%) samples repeat another's picture",
    ):
        assert part in found
    assert doctor(corpus, "--work", tmp_path / "work").code == 0


def test_no_texts_at_all(tmp_path: Path) -> None:
    corpus = write_files(tmp_path / "pics", {f"{i}.jpg": picture(i) for i in range(3)})
    ended = doctor(corpus, "--work", tmp_path / "work")
    assert ended.code == 1
    assert "no sample has a text: name the column or suffix" in ended.out
    assert "warning      3 of 3 (100.0%) pictures have a side under 64 pixels" in ended.out


def test_what_other_loaders_drop(tmp_path: Path) -> None:
    members = [("tower.v2.jpg", picture(0)), ("tower.v2.txt", b"x"), *pairs(range(40))]
    members += pairs(range(40, 41), suffix="gif")
    tars = {"0.tar": tar_bytes(members), "1.tar": tar_bytes(pairs(range(50, 52)))}
    stats = {"0_stats.json": b'{"successes": 60}'}
    corpus = write_files(tmp_path / "data", tars | stats)
    report = run(DoctorConfig(corpus=str(corpus), work=tmp_path / "work"))
    assert any("1 samples have a dot in their name" in problem for problem in report.problems)
    assert any("60 pictures, but 18 of them are not in" in problem for problem in report.problems)
    assert any("1 members are gif|bmp|tif|tiff" in warning for warning in report.warnings)
    assert any("1 of 2 shards have no _stats.json" in warning for warning in report.warnings)


def test_a_parquet_file_of_one_row_group(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [picture(i) for i in range(9)], "text": [f"cow {i}" for i in range(9)]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    report = run(DoctorConfig(corpus=str(tmp_path / "a.parquet"), work=tmp_path / "work"))
    assert report.row_group_rows == 9 and report.files == 1
    large = Report(
        corpus="c", format="tables", shards=9, files=1, samples=900, with_text=900,
        row_group_rows=900, picture_bytes=Spread(mean=100_000.0),
    )  # fmt: skip
    problems, warnings = judge(large, workers=2, stopped="", first_shard="a.parquet")
    assert problems == []
    assert any("a row group holds 900 pictures (90.0 MB), all of which" in w for w in warnings)
    assert any(w.startswith("1 shards for 2 loading workers") for w in warnings)


def test_the_users_fault_is_exit_code_2(tmp_path: Path) -> None:
    ended = doctor(tmp_path / "nothing", "--work", tmp_path / "work")
    assert (ended.code, ended.out) == (2, "") and "no shards in" in ended.err
    one = write_files(tmp_path / "one", {"0.tar": tar_bytes(pairs(range(2)))})
    two = write_files(tmp_path / "two", {"0.tar": tar_bytes(pairs(range(3)))})
    assert doctor(one, "--work", tmp_path / "work").code == 0
    ended = doctor(two, "--work", tmp_path / "work")
    assert ended.code == 2 and "was made with another plan" in ended.err
    with pytest.raises(CapwrightError, match="ranks is 0, but must be at least 1"):
        DoctorConfig(corpus="x", work=tmp_path, ranks=0)
