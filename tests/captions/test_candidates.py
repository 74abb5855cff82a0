from pathlib import Path

import pyarrow as pa
import pytest

from capwright.captions.candidates import Candidate, candidates, caption_stages
from capwright.captions.human import human_captions
from capwright.captions.runner import stage_folder
from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import write_sidecar


def table(**columns: object) -> pa.Table:
    rows = {"key": ["a", "b"], "shard": ["0", "0"], "text": ["dog", ""], "json": ["", ""]}
    return pa.table({**rows, "more_texts": [["a dog", "dog"], None], **columns})


def written(work: Path, stage: str, *rows: dict[str, object]) -> None:
    write_sidecar(stage_folder(work, stage), "0", [{"source": stage, **row} for row in rows])


def test_each_text_once_with_its_first_source(tmp_path: Path) -> None:
    written(
        tmp_path,
        "describe-x",
        {"key": "a", "text": "a dog"},
        {"key": "a", "text": "a dog sits"},
        {"key": "b", "text": "not kept", "keep": False},
        {"key": "c", "text": "of a row that was not asked for"},
    )
    written(tmp_path, "fuse-y", {"key": "a", "text": "a dog sits"}, {"key": "b", "text": "a cat"})
    people = ["", '{"human_caption": " A cat sleeps. "}']
    found = candidates(
        tmp_path, ["fuse-y", "describe-x"], table(json=people), human_field="human_caption"
    )
    assert found == {
        "a": [
            Candidate("alt", "dog", ""),
            Candidate("alt", "a dog", ""),
            Candidate("fuse-y", "a dog sits", "fuse-y"),
        ],
        "b": [Candidate("human", "A cat sleeps.", ""), Candidate("fuse-y", "a cat", "fuse-y")],
    }


def test_the_source_is_what_the_stage_calls_it(tmp_path: Path) -> None:
    written(tmp_path, "describe-x", {"key": "b", "text": "a cat", "source": "regions"})
    found = candidates(tmp_path, ["describe-x"], table(), "human_caption")
    assert found["b"] == [Candidate("regions", "a cat", "describe-x")]


@pytest.mark.parametrize(
    ("json", "caption"),
    [
        ('{"légende": " Un chat. "}', "Un chat."),
        ('{"l\\u00e9gende": "Un chat."}', "Un chat."),
        ('{"légende": 3}', ""),
        ('{"other": "légende"}', ""),
        ('["légende"]', ""),
        ('{"légende": "Un ch', ""),
        ("", ""),
        (None, ""),
    ],
)
def test_captions_by_people_are_a_field_of_the_json(json: str | None, caption: str) -> None:
    assert human_captions(pa.table({"json": [json]}), "légende") == [caption]
    assert human_captions(pa.table({"json": [json]}), "") == [""]


def test_no_rows_have_no_candidates(tmp_path: Path) -> None:
    assert candidates(tmp_path, ["describe-x"], table().slice(0, 0), "") == {}


def test_stages_are_those_that_write_captions(work: Path) -> None:
    for stage in ("describe-small", "describe-a", "fuse-rules", "score-clip", "select"):
        stage_folder(work, stage).mkdir(parents=True)
    assert list(caption_stages(work, complete=False)) == [
        "fuse-rules", "describe-a", "describe-small",
    ]  # fmt: skip
    assert list(caption_stages(work, ("describe-a",), complete=False)) == ["describe-a"]
    with pytest.raises(CapwrightError, match=r"fuse-rules has no captions for 00000, 00001: run"):
        caption_stages(work)
    with pytest.raises(CapwrightError, match=r"no captions of the stage 'fuse-llm' .*capwright fu"):
        caption_stages(work, ("fuse-llm",))
