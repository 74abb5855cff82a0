import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from capwright.captions.rules import Rule
from capwright.captions.runner import Running, stage_folder
from capwright.captions.select import Candidate, SelectConfig, choose, dry_run, run
from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.corpus.index import IndexConfig, load_index
from capwright.corpus.index import run as run_index
from capwright.corpus.sidecars import captions_of, read_sidecars, write_sidecar
from corpus_files import picture, tar_bytes
from indexed import write_index, write_scores

Row = tuple[str, str, float]


def decide(rows: list[Row], **options: object) -> list[tuple[str, bool, str]]:
    config = SelectConfig(work=Path("."), **options)  # type: ignore[arg-type]
    candidates = [Candidate(source=s, text=t, score=v) for s, t, v in rows]
    return [(c.candidate.text, c.keep, c.reason) for c in choose(candidates, config)]


@pytest.mark.parametrize(
    ("rows", "decision"),
    [
        ([("alt", "x", 0.9), ("describe-small", "y", 0.5)], ("x", True, "kept alt: best score")),
        ([("alt", "x", 0.1), ("describe-small", "y", 0.5)], ("y", True, "replaced: alt junk")),
        (
            [("alt", "x", 0.4), ("fuse-rules", "y", 0.5)],
            ("y", True, "replaced: fuse-rules scores higher"),
        ),
        ([("describe-small", "y", 0.5)], ("y", True, "replaced: no alt text")),
        ([("alt", "x", 0.1)], ("x", False, "dropped: nothing above 0.2")),
        ([], ("", False, "dropped: nothing above 0.2")),
        (
            [("alt", "x", 0.9), ("human", "h", 0.0)],
            ("h", True, "kept human: written by a person"),
        ),
    ],
)
def test_the_first_row_carries_the_decision(
    rows: list[Row], decision: tuple[str, bool, str]
) -> None:
    assert decide(rows)[0] == decision


def test_the_rest_says_why() -> None:
    rows = [
        ("alt", "A dog.", 0.9), ("describe-small", "a  dog", 0.8), ("describe-small", "b", 0.7),
        ("describe-small", "c", 0.6), ("describe-small", "d", 0.1), ("fuse-rules", "", 0.5),
    ]  # fmt: skip
    assert decide(rows, preference={})[1:] == [
        ("b", True, "kept too: next best score"),
        ("a  dog", False, "left: says the same"),
        ("c", False, "left: better ones kept"),
        ("", False, "left: empty"),
        ("d", False, "left: below 0.2"),
    ]


def test_sources_and_preferences() -> None:
    rows = [("alt", "x", 0.9), ("describe-small", "y", 0.8), ("fuse-rules", "z", 0.7)]
    assert decide(rows, sources=("describe-small",), keep_top=1)[0][0] == "y"
    assert decide(rows, keep_top=1)[0][0] == "z"  # the default likes fused captions
    preferred = decide(rows, preference={"fuse-rules": 0.3}, keep_top=1)
    assert decide(rows, preference={}, keep_top=1)[0][0] == "x"
    assert preferred[0] == ("z", True, "replaced: fuse-rules scores higher")
    assert ("x", False, "left: better ones kept") in preferred


def test_rules_drop_captions_before_they_are_ranked() -> None:
    config = SelectConfig(work=Path("."), preference={}, keep_top=1)
    junk = Candidate(source="alt", text="free shipping", score=0.9, dropped="junk")
    said = Candidate(source="human", text="h", score=0.0, dropped="too long")
    fine = Candidate(source="describe-small", text="a dog", score=0.5)
    weak = Candidate(source="describe-small", text="a cat", score=0.1)

    def decided(*candidates: Candidate) -> list[tuple[str, bool, str]]:
        return [(c.candidate.text, c.keep, c.reason) for c in choose(candidates, config)]

    assert decided(junk, fine, said) == [
        ("a dog", True, "replaced: alt junk"),
        ("free shipping", False, "dropped: junk"),
        ("h", False, "dropped: too long"),
    ]
    assert decided(said, junk) == [
        ("free shipping", False, "dropped: junk"), ("h", False, "dropped: too long"),
    ]  # fmt: skip
    assert decided(junk, weak)[0] == ("free shipping", False, "dropped: nothing above 0.2")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two shards of 24 pictures, their alt text scored with 0, 1/24, 2/24 ..."""
    keys = {shard: [f"{shard}{i:04d}" for i in range(24)] for shard in ("00000", "00001")}
    work = write_index(
        tmp_path / "work",
        {s: [{"key": k, "width": 100 + i} for i, k in enumerate(keys[s])] for s in keys},
    )
    rows = {s: [(k, "alt", f"t{i}", i / 24) for i, k in enumerate(keys[s])] for s in keys}
    write_scores(work, "score-clip", rows)
    return work


def score_text(work: Path) -> None:
    """Another score: every second caption has 100 tokens."""
    clip = read_sidecars(stage_folder(work, "score-clip"))
    rows = zip(*(clip[name].to_pylist() for name in ("key", "source", "text")), strict=True)
    shards: dict[str, list[tuple[object, ...]]] = {"00000": [], "00001": []}
    for i, row in enumerate(rows):
        shards[row[0][:5]].append((*row, 0.5, 100 * (i % 2)))
    write_scores(work, "score-text", shards, [("tokens", pa.int32())])


def test_decisions_add_up_to_the_pictures(work: Path) -> None:
    summary = run(SelectConfig(work=work, min_score=0.5))
    assert summary.reasons == {"dropped: nothing above 0.5": 24, "kept alt: best score": 24}
    kept = captions_of(load_index(work), stage_folder(work, "select"))
    assert [len(texts) for texts in kept] == ([0] * 12 + [1] * 12) * 2
    row = read_sidecars(stage_folder(work, "select")).to_pylist()[12]
    assert (row["source"], row["prompt"], row["score"]) == ("select", "alt", 0.5)


def test_rules_of_both_scopes_are_counted_and_nothing_is_deleted(work: Path) -> None:
    score_text(work)
    rules = (
        Rule(name="long", drop="tokens > 77"),
        Rule(name="narrow", drop="width < 104", scope="picture"),
    )
    summary = run(SelectConfig(work=work, min_score=0.5, rules=rules))
    assert (summary.pictures, summary.captions, summary.kept) == (48, 48, 12)
    assert summary.reasons == {
        "dropped: long": 20, "kept alt: best score": 12,
        "dropped: narrow": 8, "dropped: nothing above 0.5": 8,
    }  # fmt: skip


def test_the_rank_is_any_expression(work: Path) -> None:
    score_text(work)
    run(SelectConfig(work=work, rank="(clip + text_score) / 2", min_score=0.5))
    scores = read_sidecars(stage_folder(work, "select"))["score"].to_pylist()[:24]
    assert scores == pytest.approx([(i / 24 + 0.5) / 2 for i in range(24)])
    with pytest.raises(CapwrightError, match=r"rank 'concept' cannot be used \(Binder Error: Refe"):
        dry_run(SelectConfig(work=work, rank="concept"), 3)


def test_duplicates_are_dropped_where_that_stage_ran(work: Path) -> None:
    keys = load_index(work)["key"].to_pylist()
    kinds = {keys[20]: "near", keys[21]: "evaluation"}
    for shard in ("00000", "00001"):
        rows = [
            {
                "key": key, "source": "dedup", "text": "",
                "keep": key not in kinds, "kind": kinds.get(key),
            }
            for key in keys if key.startswith(shard)
        ]  # fmt: skip
        write_sidecar(stage_folder(work, "dedup"), shard, rows, [pa.field("kind", pa.string())])
    assert dry_run(SelectConfig(work=work), 21)[-1]["reason"] == "dropped: duplicate"
    summary = run(SelectConfig(work=work, min_score=0.5))
    assert summary.reasons == {
        "dropped: nothing above 0.5": 24, "kept alt: best score": 22,
        "dropped: duplicate": 1, "dropped: in the evaluation set": 1,
    }  # fmt: skip
    with pytest.raises(CapwrightError, match=r"another plan .*drop_duplicates True -> False"):
        run(SelectConfig(work=work, min_score=0.5, drop_duplicates=False))


@pytest.mark.slow
def test_two_processes_write_what_one_does(work: Path) -> None:
    config = SelectConfig(work=work, rules=(Rule(name="some", drop="clip BETWEEN 0.3 AND 0.6"),))
    run(config)
    one = read_sidecars(stage_folder(work, "select"))
    (work / "captions" / "select").rename(work / "captions" / "before")
    run(config, Running(workers=2))
    assert read_sidecars(stage_folder(work, "select")).equals(one)


def test_without_a_rank_no_score_is_needed(tmp_path: Path) -> None:
    people = json.dumps({"human_caption": "by hand"})
    samples = [
        {"key": "1", "text": "alt", "more_texts": ["more"], "json": people},
        {"key": "2", "text": "free shipping"},
    ]
    work = write_index(tmp_path, {"a": samples})
    write_scores(work, "describe-small", {"a": [("1", "describe-small", "a dog", None)]})
    rule = Rule(name="shop", drop="text LIKE '%shipping%'")
    run(SelectConfig(work=work, rank="", preference={"describe-small": 1.0}, rules=(rule,)))
    rows = read_sidecars(stage_folder(work, "select")).to_pylist()
    assert [(row["text"], row["reason"]) for row in rows] == [
        ("by hand", "kept human: written by a person"),
        ("a dog", "kept too: next best score"),
        ("alt", "kept too: next best score"),
        ("more", "left: better ones kept"),
        ("free shipping", "dropped: shop"),
    ]


def test_a_new_score_makes_another_plan(work: Path) -> None:
    run(SelectConfig(work=work))
    assert run(SelectConfig(work=work)).shards_reused == 2
    score_text(work)
    with pytest.raises(CapwrightError, match=r"another plan .*stages.score-text None -> ''"):
        run(SelectConfig(work=work))


def test_without_scores_the_stage_to_run_is_named(work: Path) -> None:
    (work / "captions" / "score-clip" / "00001.parquet").unlink()
    with pytest.raises(CapwrightError, match=r"score-clip has no captions for 00001: run"):
        run(SelectConfig(work=work))
    assert dry_run(SelectConfig(work=work), 24)  # the first shard is there
    (work / "captions" / "score-clip").rename(work / "elsewhere")
    with pytest.raises(CapwrightError, match=r"score-clip has no captions for 00000, 00001: run"):
        run(SelectConfig(work=work))
    assert not stage_folder(work, "select").exists()


def test_the_command_takes_rules_and_subsets(tmp_path: Path) -> None:
    pictures = {}
    for number in range(4):
        sample = {"uid": f"{number:032x}", "number": number}
        pictures[f"{number}.jpg"] = picture(number)
        pictures[f"{number}.txt"] = f"text {number}".encode()
        pictures[f"{number}.json"] = json.dumps(sample).encode()
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "s.tar").write_bytes(tar_bytes(list(pictures.items())))
    work, out = tmp_path / "work", tmp_path / "out.npy"
    run_index(IndexConfig(corpus=str(tmp_path / "corpus"), work=work))
    write_scores(work, "score-clip", {"s": [(str(i), "alt", f"text {i}", 0.9) for i in range(4)]})

    def call(*options: str) -> tuple[int, str, str]:
        command = ["select", str(tmp_path / "corpus"), "--work", str(work), *options]
        result = CliRunner().invoke(group, command)
        return result.exit_code, result.stdout, result.stderr

    code, _, text = call("--rule", "bad: clp < 0.3")
    assert code == 2 and "rule 'bad' cannot be used" in text and "its columns are shard" in text
    second = ["--picture-rule", "two: CAST(json ->> '$.number' AS INT) = 2"]
    code, text, _ = call("--rule", "odd: text LIKE '%1'", *second, "--dry-run", "3")
    assert code == 0 and [json.loads(line)["reason"] for line in text.splitlines()] == [
        "kept alt: best score", "dropped: odd", "dropped: two",
    ]  # fmt: skip
    code, text, _ = call("--rule", "odd: text LIKE '%1'", *second, "--subset", str(out))
    assert code == 0 and json.loads(text)["kept"] == 2
    assert np.load(out).tolist() == [(0, 0), (0, 3)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_score": 2.0}, "min_score is 2.0, but scores lie between 0 and 1: try 0.2"),
        ({"keep_top": 0}, "keep_top is 0, but must be at least 1: try 2"),
    ],
)
def test_errors_say_what_is_allowed(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(CapwrightError) as error:
        SelectConfig(work=Path("."), **options)  # type: ignore[arg-type]
    assert str(error.value) == sentence
