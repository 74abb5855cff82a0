from pathlib import Path

import pytest

from capwright.captions.runner import stage_folder
from capwright.captions.select import Candidate, SelectConfig, choose, run
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index, shard_names
from capwright.corpus.sidecars import captions_of, write_sidecar

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


def test_decisions_add_up_to_the_pictures(work: Path) -> None:
    index = load_index(work)
    for shard in shard_names(index):
        rows = [
            {"key": key, "source": "alt", "text": f"t{i}", "score": i / 24}
            for i, key in enumerate(k for k in index["key"].to_pylist() if k.startswith(shard))
        ]
        write_sidecar(stage_folder(work, "score-clip"), shard, rows)
    summary = run(SelectConfig(work=work, min_score=0.5))
    assert summary.reasons == {"dropped: nothing above 0.5": 24, "kept alt: best score": 24}
    kept = captions_of(index, stage_folder(work, "select"))
    assert [len(texts) for texts in kept] == ([0] * 12 + [1] * 12) * 2


def test_without_scores_the_stage_to_run_is_named(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"score-clip has no captions .*run the stage"):
        run(SelectConfig(work=work))


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
