from pathlib import Path

import pyarrow as pa
import pytest

from capwright.captions.runner import ShardProgress, stage_folder
from capwright.captions.score import clip, concepts, text
from capwright.captions.score.concepts import ConceptScorer, ScoreConfig, agreement
from capwright.captions.score.judge import Judge, Judged
from capwright.captions.score.tower import TowerConfig
from capwright.core.errors import CapwrightError
from capwright.corpus.index import index_shards, load_shard
from capwright.corpus.sidecars import read_sidecars, write_sidecar

TINY = TowerConfig(width=16, hidden=16, steps=4, batch_size=16)


class Eyes(Judge):
    """Sees what it was told."""

    name, naming = "eyes", "a photo of a {}"

    def __init__(self, *things: str) -> None:
        self.things = {self.naming.format(thing) for thing in things}
        self.asked: list[list[str]] = []

    def judge_shard(self, table: pa.Table, texts: object) -> list[list[Judged]]:
        self.asked += [list(row) for row in texts]  # type: ignore[attr-defined]
        return [
            [Judged(0.95 if name in self.things else 0.2, 0.0, 1) for name in row]
            for row in self.asked
        ]


@pytest.fixture
def described(work: Path) -> Path:
    for shard in index_shards(work):
        keys = load_shard(work, shard, ["key"])["key"].to_pylist()
        said = [("a ruby and an emerald.",), ("a sapphire on the left.", "nothing to see")]
        rows = [
            {"key": key, "source": "describe-x", "text": sentence}
            for i, key in enumerate(keys)
            for sentence in said[i % 2]
        ]
        write_sidecar(stage_folder(work, "describe-x"), shard, rows)
    return work


@pytest.mark.parametrize(
    ("names", "seen", "expected"),
    [
        (["pig"], ["pig"], (1, 1, 1)),
        (["pig", "cow"], ["pig"], (0.5, 1, 2 / 3)),
        (["pig"], ["pig", "cow"], (1, 0.5, 2 / 3)),
        (["pig", "cow"], ["pig", "dog"], (0.5, 0.5, 0.5)),
        (["tamworth pig"], ["tamworth pig", "pig"], (1, 1, 1)),
        (["pig"], ["tamworth pig"], (0, 0, 0)),
        (["pig"], [], (0, None, 0)),
        ([], ["pig"], (None, 0, None)),
        ([], [], (None, None, None)),
    ],
)
def test_precision_recall_and_f1(
    names: list[str], seen: list[str], expected: tuple[float | None, ...]
) -> None:
    assert agreement(names, seen) == pytest.approx(expected)


def test_names_of_all_candidates_are_put_to_the_judge(described: Path) -> None:
    config = ScoreConfig(work=described, tower=TINY, picture_size=64)
    scorer = ConceptScorer.__new__(ConceptScorer)
    scorer.config, scorer.stages = config, ("describe-x",)
    scorer.lexicon = concepts.lexicon_of(config, scorer.stages)
    scorer.judge = eyes = Eyes("ruby")
    table = load_shard(described, "00000").slice(0, 2)
    rows = scorer(table, ShardProgress())
    found = {(row["source"], row["text"]): row for row in rows}
    row = found["describe-x", "a ruby and an emerald."]
    assert "a photo of a ruby" in eyes.asked[0] and "a photo of a sapphire" in eyes.asked[1]
    assert (row["seen_concepts"], row["unseen_concepts"]) == (["ruby"], ["emerald"])
    assert (row["concept_precision"], row["concept_recall"]) == (0.5, 1)
    nothing = found["describe-x", "nothing to see"]
    assert nothing["score"] is None and nothing["seen_concepts"] == []
    assert {row["model"] for row in rows} == {"eyes"}


def test_the_score_stages_have_the_same_rows(described: Path) -> None:
    options = {"work": described, "tower": TINY, "picture_size": 64}
    clip.run(clip.ScoreConfig(**options))  # type: ignore[arg-type]
    concepts.run(ScoreConfig(**options))  # type: ignore[arg-type]
    text.run(text.ScoreConfig(work=described))
    tables = [
        read_sidecars(stage_folder(described, stage), columns=["key", "source", "text"])
        for stage in ("score-clip", "score-concepts", "score-text")
    ]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    rows = read_sidecars(stage_folder(described, "score-concepts")).to_pylist()
    names = [{*row["seen_concepts"], *row["unseen_concepts"]} for row in rows]
    for row, its_names in zip(rows, names, strict=True):
        assert (row["concept_precision"] is None) == (not its_names)
        assert its_names or row["score"] is None
    assert set().union(*names) >= {"ruby", "emerald", "sapphire"}
    dry = concepts.dry_run(ScoreConfig(**options), 2)  # type: ignore[arg-type]
    assert [row["text"] for row in dry] == [row["text"] for row in rows[: len(dry)]]


def test_errors_say_what_is_allowed(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"supported is 2, but scores lie between 0 and 1"):
        ScoreConfig(work=work, supported=2)
    with pytest.raises(CapwrightError, match=r"decode_threads is 0, but must be at least 1"):
        ScoreConfig(work=work, decode_threads=0)
