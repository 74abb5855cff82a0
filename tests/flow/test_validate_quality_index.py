"""The validation of the caption quality index on a few painted scenes: the plumbing, no numbers."""

import json
from pathlib import Path

import pytest

from capwright.captions.quality_index import QualityConfig
from capwright.captions.score.tower import TowerConfig
from capwright.core.errors import CapwrightError
from capwright.recipes import validate_quality_index as validation
from capwright.recipes.graded_captions import CORPORA, SceneTexts, degrade, things_of
from capwright.recipes.validate_quality_index import ValidationConfig, spearman
from scene_cutouts import make_cutouts

TINY = QualityConfig(
    pictures=200,
    contrast=16,
    rounds=2,
    picture_size=64,
    tower=TowerConfig(width=32, hidden=32, steps=80, batch_size=32, learning_rate=0.01),
)


@pytest.mark.slow
def test_every_corpus_is_measured_and_ranked(tmp_path: Path) -> None:
    config = ValidationConfig(
        out=tmp_path / "run",
        corpora=("oracle", "swapped-75", "dropped-75", "alt"),
        cutouts=make_cutouts(tmp_path / "cutouts", classes=3, per_class=6),
        per_class=6,
        pictures=200,
        labelled=20,
        tested=10,
        samples=128,
        batch=32,
        probe_samples=200,
        workers=1,
        quality=TINY,
    )
    found = validation.run(config)
    rows = {row["corpus"]: row for row in found["corpora"]}
    assert rows["dropped-75"]["coverage"] == 0.25
    assert rows["oracle"]["index"] > rows["swapped-75"]["index"] + 5
    assert all(0 < row["miou"] < 1 for row in rows.values())
    assert json.loads((config.out / "results.json").read_text())["spearman"] == found["spearman"]
    assert (config.out / "results.md").read_text().count("\n| ") == 4
    checkpoint = config.out / "arms/oracle/clip"
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert validation.run(config)["corpora"] == found["corpora"]
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before


def scene_texts(count: int = 40) -> SceneTexts:
    """Descriptions that are all different, and alt text of which every second is junk."""
    return SceneTexts(
        oracle=[f"On the left, a pig {n} is big, a guinea pig behind it." for n in range(count)],
        alt=["IMG_1.jpg" if n % 2 else f"a pig {n} - shop" for n in range(count)],
        things=[[(f"pig {n}", f"a pig {n}"), ("guinea pig", "a guinea pig")] for n in range(count)],
    )  # fmt: skip


def test_every_corpus_is_worse_by_what_its_name_says() -> None:
    texts = scene_texts()
    found = {corpus: degrade(texts, corpus, 0) for corpus in CORPORA}
    assert found["oracle"] == texts.oracle and found["alt"] == texts.alt
    for share in (25, 50, 75):
        changed = [a != b for a, b in zip(found[f"swapped-{share}"], texts.oracle, strict=True)]
        assert sum(changed) == 40 * share // 100
        assert sorted(found[f"swapped-{share}"]) == sorted(texts.oracle)
    assert found["junk-50"].count("IMG_1.jpg") == 20
    assert found["dropped-75"].count("") == 30
    assert found["largest-alone"][7] == "On the left, a pig 7 is big."
    kept = [a == b for a, b in zip(found["misnamed-50"], texts.oracle, strict=True)]
    assert 2 < sum(kept) < 20  # both things keep their names in a quarter
    assert all("is big, " in text for text in found["misnamed-50"])
    assert degrade(texts, "junk-50", 0) == found["junk-50"] != degrade(texts, "junk-50", 1)


def test_a_wrong_name_replaces_the_longest_and_keeps_the_capital() -> None:
    things = things_of(b'[{"name": "pig", "caption": "a pig"}, {"name": "ox", "caption": "an ox"}]')
    texts = SceneTexts(
        oracle=["A pig on the left, a pigsty, another pig."], alt=[""], things=[things]
    )
    found = {degrade(texts, "misnamed-50", seed)[0] for seed in range(30)}
    assert found == {
        "A pig on the left, a pigsty, another pig.", "An ox on the left, a pigsty, another ox."
    }  # fmt: skip


def test_spearman_by_its_formula() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 4, 5]) == pytest.approx(1 - 6 * 2 / (5 * 24))


def test_wrong_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="corpus 'best' is unknown: allowed are oracle, swap"):
        ValidationConfig(out=tmp_path, corpora=("best",))
    with pytest.raises(CapwrightError, match="2 corpora cannot show a ranking: name at least 3"):
        ValidationConfig(out=tmp_path, corpora=("oracle", "alt"))
