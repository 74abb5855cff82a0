import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from capwright.captions import audit, audit_texts
from capwright.captions.audit import AuditConfig
from capwright.captions.audit_counts import corpus_counts, stage_counts, text_counts
from capwright.captions.lexicon import Lexicon
from capwright.captions.quality_index import QualityConfig
from capwright.captions.runner import stage_folder
from capwright.captions.sampled_pairs import draw_pairs
from capwright.captions.score.tower import TowerConfig
from capwright.core.errors import CapwrightError
from capwright.corpus.index import index_shards, load_index
from capwright.corpus.sidecars import write_sidecar

TINY = QualityConfig(
    pictures=48,
    contrast=16,
    picture_size=64,
    tower=TowerConfig(width=16, hidden=16, steps=10, batch_size=16),
)


def describe(work: Path, name: str, texts: list[str], **columns: Any) -> None:
    """A stage with these texts in turn; the last picture of each shard failed."""
    index = load_index(work, ["shard", "key"])
    for shard in index_shards(work):
        keys = [k for k, s in zip(*(index[c].to_pylist() for c in ("key", "shard")), strict=True)
                if s == shard]  # fmt: skip
        rows = [
            {"key": key, "source": name, "text": texts[i % len(texts)], **columns}
            for i, key in enumerate(keys)
        ]
        rows[-1] |= {"text": "", "keep": False, "reason": "failed: unreadable picture"}
        write_sidecar(stage_folder(work, name), shard, rows)


@pytest.fixture
def described(work: Path) -> Path:
    describe(work, "describe-x", ["A ruby on the left.", "An amber."], score=0.5)
    describe(work, "select", ["A ruby."], score=0.5, reason="kept alt: best score")
    describe(work, "score-clip", ["A ruby on the left.", "An amber."], score=0.75)
    return work


def test_every_source_has_its_numbers(described: Path) -> None:
    summary = audit.run(AuditConfig(work=described, quality=TINY, wordnet=False, shown=3))
    found = json.loads((described / "audit" / "audit.json").read_text())
    sources = {source["name"]: source for source in found["sources"]}
    assert list(sources) == ["alt", "describe-x", "select"] == list(summary.index)
    assert (found["pictures"], found["shards"], found["left_out"]) == (48, 2, {})
    alt, x = sources["alt"], sources["describe-x"]
    assert alt["junk"] == {"file name": 12}
    assert alt["frequent"][0] == ["IMG_20.jpg", 12]
    assert alt["scores"]["by"] == "bits" and sum(alt["scores"]["counts"]) == 48
    assert (x["texts"], x["with_text"], x["coverage"]) == (46, 46, 46 / 48)
    assert (x["rows"], x["kept"], x["failed"]) == (48, 46, {"unreadable picture": 2})
    assert x["distinct"] == 2 and x["frequent"][1][1] == 22
    assert x["scores"]["by"] == "score-clip" and x["scores"]["counts"][15] == 46
    assert sources["select"]["reasons"] == {"kept alt: best score": 46}
    assert alt["quality"]["index"] is not None
    assert alt["quality"]["pair_bits"] == []
    assert [len(alt[part]) for part in ("worst", "best")] == [3, 3]
    bits = [card["bits"] for card in alt["worst"] + alt["best"][::-1]]
    assert bits == sorted(bits)
    for card in alt["worst"]:
        with Image.open(described / "audit" / "pictures" / card["picture"]) as picture:
            assert picture.format == "JPEG" and max(picture.size) == 64
    wanted = {part["command"] for part in found["missing"]}
    assert f"capwright fuse CORPUS --work {described}" in wanted
    assert not any("describe" in command or "--with clip" in command for command in wanted)


def test_only_the_pictures_of_the_sample_are_read(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(described / "features")
    read: list[tuple[Any, ...]] = []
    plain = audit.ByteReader.read

    def counting(self: Any, *place: Any) -> bytes:
        read.append(place)
        return plain(self, *place)

    monkeypatch.setattr(audit.ByteReader, "read", counting)
    small = QualityConfig(pictures=34, contrast=16, picture_size=64, tower=TINY.tower)
    audit.run(AuditConfig(work=described, quality=small, wordnet=False, shown=2))
    assert 30 < len(set(read)) <= 34


def test_truth_from_a_field_counts_hallucinations(described: Path) -> None:
    with pytest.raises(CapwrightError, match=r"--truth 'things' is in no sample: name a field"):
        audit.run(AuditConfig(work=described, quality=TINY, wordnet=False, truth="things"))
    for path in (described / "index").glob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        told = [json.dumps({"things": ["A ruby", "pearl"]})] * table.num_rows
        column = table.schema.get_field_index("json")
        pq.write_table(table.set_column(column, "json", [told]), path)
    audit.run(AuditConfig(work=described, quality=TINY, wordnet=False, truth="things"))
    sources = json.loads((described / "audit" / "audit.json").read_text())["sources"]
    truth = {source["name"]: source["truth"] for source in sources}
    assert truth["select"]["hallucinated"] == 0 and truth["select"]["recall"] == 0.5
    assert truth["describe-x"]["recall"] == pytest.approx(24 / 46 / 2)


def test_boxes_members_are_truth_and_what_is_elsewhere_named_is_hallucinated() -> None:
    texts = ["a ruby and a pearl", "a pearl", "nothing"]
    truth = [{"ruby"}, {"ruby", "pearl"}, {"ruby"}]
    found = audit_texts.against_truth(texts, truth, {"ruby", "pearl"})
    assert found["hallucinated"] == pytest.approx(1 / 3)
    assert found["recall"] == 0.5
    row = {"members": None, "json": '{"objects": [{"name": "A ruby."}, "pearl"]}', "file": ""}
    assert audit._true_names(row, "objects", audit.ByteReader()) == {"ruby", "pearl"}
    assert audit._true_names(row | {"json": "[1]"}, "objects", audit.ByteReader()) is None


def test_measures_of_texts() -> None:
    long = " ".join(["word"] * 90)
    lengths = audit_texts.lengths(["a dog", long, "a cat on a mat"])
    assert (lengths["median"], lengths["longest"]) == (5, 90)
    assert lengths["cut_share"] == pytest.approx(1 / 3)
    assert sum(lengths["counts"]) == 3
    diversity = audit_texts.diversity(["a dog", "a dog", "a cat ran"])
    assert (diversity["words"], diversity["vocabulary"], diversity["distinct_texts"]) == (7, 4, 2)
    assert diversity["distinct_1"] == 4 / 7 and diversity["distinct_2"] == 3 / 4
    assert diversity["distinct_3"] == 1
    named = audit_texts.concepts(
        ["a dog and a dog", "two dogs", "a sea lion", "x"], Lexicon(("dog", "lion", "sea lion"))
    )
    assert named["top"] == [["dog", 2], ["sea lion", 1]]
    assert (named["named"], named["once"], named["texts_with_a_name"]) == (2, 1, 3)
    assert named["zipf"] == [[1, 2], [2, 1]]
    assert audit_texts.zipf(list(range(5000, 0, -1)))[-1] == [5000, 1]
    assert len(audit_texts.zipf([1] * 5000)) <= audit_texts.ZIPF_POINTS
    assert audit_texts.top({"en": 5, "de": 3, "fr": 1}, 2) == {"en": 5, "de": 3, "others": 1}


def test_empty_texts_have_no_numbers_but_do_not_fail() -> None:
    assert audit_texts.lengths([])["cut_share"] == 0
    assert audit_texts.diversity([])["distinct_2"] == 0
    assert audit_texts.concepts([], Lexicon(()))["zipf"] == []


def test_counts_over_all_rows(described: Path) -> None:
    counts = corpus_counts(described)
    assert counts["pictures"] == 48 and counts["distinct_pictures"] < 48
    assert stage_counts(described, "describe-x")["shards_done"] == 2
    (stage_folder(described, "describe-x") / "00001.parquet").unlink()
    assert stage_counts(described, "describe-x")["rows"] == 24
    assert text_counts(described, stage_folder(described, "describe-x"))["frequent"][0][1] == 12


def test_further_alt_texts_are_texts_of_the_alt_source(described: Path) -> None:
    for path in (described / "index").glob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        more = pa.array([["more of it", ""]] * table.num_rows, pa.list_(pa.string()))
        column = table.schema.get_field_index("more_texts")
        pq.write_table(table.set_column(column, "more_texts", more), path)
    assert text_counts(described, None)["frequent"][0] == ["more of it", 48]
    assert draw_pairs(described, None, 48, 0).texts >= 96


def test_wrong_settings_are_refused(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"stage 'describe-y' has no .*: there are none"):
        audit.run(AuditConfig(work=work, stages=("describe-y",)))
    with pytest.raises(CapwrightError, match="shown is 0, but must be at least 1"):
        AuditConfig(work=work, shown=0)


def test_a_corpus_without_text_says_what_to_do(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(3):
        stream = io.BytesIO()
        Image.new("RGB", (80, 80), (number * 60, 0, 0)).save(stream, "JPEG")
        (corpus / f"{number}.jpg").write_bytes(stream.getvalue())
    from capwright.corpus.index import run_as_before

    run_as_before(str(corpus), tmp_path / "work")
    with pytest.raises(CapwrightError, match=r"has no text at all: .*capwright describe CORPUS"):
        audit.run(AuditConfig(work=tmp_path / "work", quality=TINY, wordnet=False))


@pytest.mark.slow
def test_the_command_writes_page_and_prints_the_index(corpus: Path, tmp_path: Path) -> None:
    from capwright.cli import group

    arguments = ["audit", str(corpus), "--work", str(tmp_path / "work"), "--set", "wordnet=false"]
    small = {"pictures": 48, "contrast": 16, "picture_size": 64}
    for key, value in small.items():
        arguments += ["--set", f"quality.{key}={value}"]
    arguments += ["--set", "quality.tower.steps=10"]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[-1])
    assert printed["index"].keys() == {"alt"}
    page = Path(printed["page"]).read_text()
    assert "Caption quality" in page and "IMG_20.jpg" in page
