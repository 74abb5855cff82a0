import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capwright.captions.features import record_type
from capwright.captions.fuse import rules
from capwright.captions.maps import load_maps
from capwright.captions.runner import stage_folder
from capwright.captions.score import clip, tower
from capwright.captions.score.calibration import shuffled
from capwright.captions.score.clip import ScoreConfig
from capwright.captions.score.judge import embedded_judge, reference_rows
from capwright.captions.score.open_clip_judge import OpenClipJudge
from capwright.captions.score.tower import Tower, TowerConfig, contrastive_loss
from capwright.captions.select import SelectConfig
from capwright.captions.select import run as select
from capwright.core.errors import CapwrightError
from capwright.corpus import index
from capwright.corpus.index import index_shards, load_shard
from capwright.corpus.places import places
from capwright.corpus.sidecars import read_sidecars, write_sidecar
from capwright.models.text import word_text_config, write_word_tokenizer

TINY = TowerConfig(width=16, hidden=16, steps=30, batch_size=16)
WORDS = ("ape", "bear", "crow", "duck")


def planted(count: int) -> tuple[np.ndarray, list[str]]:
    """Records in which one middle cell shows the word of the text."""
    rng = np.random.default_rng(0)
    records = np.zeros(count, record_type(64))
    records["middle"] = rng.normal(0, 0.5, records["middle"].shape)
    records["valid"] = True
    for row in range(count):
        records["middle"][row, row % 4, row % 3, 1] = 40
    return records, [f"photo of a {WORDS[row % 4]}" for row in range(count)]


def test_right_pairs_score_high_and_shuffled_ones_evenly(tmp_path: Path) -> None:
    records, texts = planted(96)
    config = TowerConfig(width=16, hidden=32, steps=60, batch_size=24, learning_rate=0.01)
    model = tower.train_tower(records, texts, [""] * 96, config, tmp_path)
    with torch.no_grad():
        every = model.similarity(model.encode_pictures(load_maps(records, np.arange(96))), texts)
    others = shuffled(every)
    scores = np.array(
        [[o.score(float(v)) for o, v in zip(others, row, strict=True)] for row in every]
    )
    matching = np.equal.outer(np.arange(96) % 4, np.arange(96) % 4)
    assert scores[matching].mean() > scores[~matching].mean() + 0.3
    assert scores.mean() == pytest.approx(0.5, abs=0.05)


def test_pairs_and_the_matrix_agree(tmp_path: Path) -> None:
    records, texts = planted(6)
    torch.manual_seed(0)
    model = Tower(tower.vocabulary_of(texts, 1), TINY).eval()
    with torch.no_grad():
        cells = model.encode_pictures(load_maps(records, np.arange(6)))
        texts[2] = ""
        texts[3] = "unheard words only, many of them"
        pairs = model.pair_similarity(cells, texts)
        torch.testing.assert_close(pairs, model.similarity(cells, texts).diagonal())
    assert pairs[2] == 0
    assert pairs.abs().max() <= 1 + 1e-5


def test_the_loss_is_clips_in_float64() -> None:
    similarity = torch.randn(5, 5, dtype=torch.float64)
    loss = 0.0
    for i in range(5):
        rows, columns = similarity[i] * 7, similarity[:, i] * 7
        loss += -float(rows[i] - rows.logsumexp(0)) - float(columns[i] - columns.logsumexp(0))
    got = contrastive_loss(similarity, torch.tensor(7.0, dtype=torch.float64))
    assert float(got) == pytest.approx(loss / 10)


def test_a_score_is_the_probability_to_beat_a_shuffled_pair() -> None:
    similarity = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
    text, other = shuffled(similarity)
    assert text.score(0.3) == pytest.approx(0.5, abs=0.03)
    beaten = float((similarity[:, 0] < 0.4).float().mean())
    assert text.score(0.4) == pytest.approx(beaten, abs=0.03)
    assert other.score(-1) < 0.001 and other.score(2) > 0.999


def test_text_that_fits_all_pictures_alike_says_nothing() -> None:
    assert shuffled(torch.full((9, 1), 0.7))[0].score(0.9) == 0.5


@pytest.fixture
def described(work: Path) -> Path:
    """The work folder with two captions a picture, the first of which repeats the alt text."""
    for shard in index_shards(work):
        table = load_shard(work, shard, ["key", "text"])
        rows = [
            {"key": key, "source": "describe-small", "text": text}
            for key, alt in zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)
            for text in (alt, "a ruby on the left.")
        ]
        write_sidecar(stage_folder(work, "describe-small"), shard, rows)
    return work


def test_fuse_score_and_select_in_a_row(described: Path) -> None:
    fused = rules.run(rules.FuseConfig(work=described, picture_size=64, tower=TINY))
    assert fused.captions == 48
    assert set(fused.reasons) <= {
        "alt junk", "no alt text", "alt agrees", "alt specifies", "alt corrects", "alt adds",
        "alt not supported", "no description",
    }  # fmt: skip
    scored = clip.run(ScoreConfig(work=described, picture_size=64, tower=TINY))
    rows = read_sidecars(stage_folder(described, "score-clip")).to_pylist()
    assert scored.captions == len(rows) >= 48 * 2
    assert {row["source"] for row in rows} >= {"alt", "human", "describe-small"}
    assert all(0 <= row["score"] <= 1 for row in rows)
    texts = [(row["key"], row["text"]) for row in rows]
    assert len(texts) == len(set(texts))  # what the captioner repeats is scored once
    chosen = select(SelectConfig(work=described))
    decisions = {r: n for r, n in chosen.reasons.items() if not r.startswith(("left", "kept too"))}
    assert sum(decisions.values()) == 48
    assert decisions["kept human: written by a person"] == 24


def test_a_shard_scored_again_has_the_same_scores(described: Path) -> None:
    config = ScoreConfig(work=described, picture_size=64, tower=TINY)
    clip.run(config)
    folder = stage_folder(described, "score-clip")
    before = read_sidecars(folder)
    (folder / "00001.parquet").unlink()
    assert clip.run(config).shards_reused == 1
    assert read_sidecars(folder).equals(before)


def test_any_open_clip_checkpoint_takes_the_towers_place(described: Path, tmp_path: Path) -> None:
    checkpoint = tiny_open_clip(tmp_path / "tiny")
    scored = clip.run(ScoreConfig(work=described, model=str(checkpoint)))
    rows = read_sidecars(stage_folder(described, "score-clip")).to_pylist()
    assert scored.captions == len(rows)
    assert {row["model"] for row in rows} == {str(checkpoint)}
    assert len({row["revision"] for row in rows}) == 1 and rows[0]["revision"]
    assert {row["clip_windows"] for row in rows} == {1}
    values = np.array([row["score"] for row in rows])
    assert 0.2 < values.mean() < 0.8 and values.std() > 0.05  # untrained: calibrated all the same
    assert not (described / "models" / "clip-tower").exists()


def test_a_long_text_is_the_weighted_mean_of_its_windows(work: Path, tmp_path: Path) -> None:
    checkpoint = tiny_open_clip(tmp_path / "tiny", context_length=12)
    judge = OpenClipJudge(str(checkpoint), work, seed=0)
    table = load_shard(work, "00000").slice(3, 2)
    parts = ["a red ruby on the left.", "a green emerald stands on the right side,"]
    rest = "and a sapphire"
    whole = " ".join([*parts, rest])
    judged = judge.judge_shard(table, [[whole, *parts, rest], [whole, whole]])
    long, *short = judged[0]
    assert (long.windows, [one.windows for one in short]) == (3, [1, 1, 1])
    weights = np.array([judge.count(text) for text in (*parts, rest)], float)
    similar = np.array([one.similarity for one in short])
    assert long.similarity == pytest.approx(weights @ similar / weights.sum(), abs=1e-5)
    assert judged[1][0] == judged[1][1]
    cut = judge.judge_shard(table, [[parts[0]], []])
    assert cut[0][0].similarity == pytest.approx(short[0].similarity, abs=1e-5)
    assert cut[1] == []


def test_a_checkpoint_with_a_tokenizer_of_its_own(work: Path, tmp_path: Path) -> None:
    texts = ["a red ruby on the left.", "a green emerald, a sapphire and a ruby."]
    checkpoint = tiny_open_clip(tmp_path / "tiny", context_length=8, words=texts)
    judge = OpenClipJudge(str(checkpoint), work, seed=0)
    table = load_shard(work, "00000").slice(0, 1)
    judged = judge.judge_shard(table, [[*texts, " ".join(texts)]])[0]
    assert [one.windows for one in judged] == [2, 2, 4]
    assert all(0 <= one.score <= 1 for one in judged)


def test_the_tower_reads_long_texts_in_windows_too(work: Path) -> None:
    short = TowerConfig(width=16, hidden=16, steps=3, batch_size=16, max_words=4)
    judge = embedded_judge(work, short, 64, "human_caption")
    table = load_shard(work, "00001").slice(5, 1)
    texts = ["a ruby, left.", "an emerald on top", "a ruby, left. an emerald on top"]
    one, other, both = judge.judge_shard(table, [texts])[0]
    assert (one.windows, both.windows) == (1, 2)
    expected = (3 * (one.similarity or 0) + 4 * (other.similarity or 0)) / 7
    assert both.similarity == pytest.approx(expected, abs=1e-5)
    whole = judge.judge_shard(
        load_shard(work, "00001"), [texts if i == 5 else [] for i in range(24)]
    )
    assert [j.similarity for j in whole[5]] == pytest.approx(
        [j.similarity for j in (one, other, both)], abs=1e-5
    )


@pytest.mark.parametrize("model", ["", "tiny"])
def test_an_unreadable_picture_has_its_rows_and_a_reason(
    corpus: Path, tmp_path: Path, model: str
) -> None:
    work, broken = tmp_path / "work", tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    index.run(index.IndexConfig(corpus=str(broken), work=work))
    place = places(load_shard(work, "00000").slice(7, 1))[0]
    with Path(place.file).open("r+b") as file:
        file.seek(place.offset)
        file.write(b"x" * place.size)
    options = {"model": str(tiny_open_clip(tmp_path / "tiny"))} if model else {}
    config = ScoreConfig(work=work, picture_size=64, tower=TINY, **options)
    summary = clip.run(config)
    rows = read_sidecars(stage_folder(work, "score-clip")).to_pylist()
    bad = [row for row in rows if row["reason"]]
    assert {row["key"] for row in bad} == {"000000007"} and len(bad) == 2
    assert all(row["reason"].startswith("failed: unreadable picture") for row in bad)
    assert all(row["score"] == 0 and row["clip_similarity"] is None for row in bad)
    assert not any(row["keep"] for row in bad)
    assert summary.kept == len(rows) - 2


def test_reference_pictures_come_from_everywhere_and_from_the_sizes_alone() -> None:
    sizes = {"a": 3000, "b": 1, "c": 3000}
    rows = reference_rows(sizes, seed=0)
    assert sum(map(len, rows.values())) == 128
    assert 30 < len(rows["a"]) < 98
    assert all(0 <= row < sizes[shard] for shard, some in rows.items() for row in some)
    again = reference_rows(sizes, seed=0)
    assert all((rows[shard] == again[shard]).all() for shard in rows)
    assert rows["a"].tolist() != reference_rows(sizes, seed=1)["a"].tolist()
    assert {s: r.tolist() for s, r in reference_rows({"a": 2, "b": 1}, 0).items()} == {
        "a": [0, 1], "b": [0],
    }  # fmt: skip


def tiny_open_clip(folder: Path, context_length: int = 77, words: Sequence[str] = ()) -> Path:
    """An untrained checkpoint in open_clip's form; `words` are those of its own tokenizer."""
    from safetensors.torch import save_file

    from capwright.core.files import write_json
    from capwright.models import towers

    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    if words:
        size = write_word_tokenizer(folder, words, vocabulary=99, min_count=1)
        config["text_cfg"] |= word_text_config(size)
    torch.manual_seed(0)
    model = towers.build(config)
    folder.mkdir(exist_ok=True)
    written = {
        "model_cfg": towers.model_config(config),
        "preprocess_cfg": towers.preprocess_config(config),
    }
    write_json(folder / towers.CONFIG_FILE, written)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / towers.WEIGHTS_FILE
    )
    return folder


def test_errors_say_what_to_do(work: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CapwrightError, match=r"no captions of the stage 'fuse-rules' .*capwright fuse"
    ):
        clip.run(ScoreConfig(work=work, stages=("fuse-rules",)))
    with pytest.raises(CapwrightError, match=r"describe-small has no captions"):
        rules.run(rules.FuseConfig(work=work))
    with pytest.raises(CapwrightError, match=r"batch_size is 1, but a contrast needs at least 2"):
        TowerConfig(batch_size=1)
    with pytest.raises(CapwrightError, match=r"has 1 pictures with a text, .* at least 4"):
        records, texts = planted(1)
        tower.train_tower(records, texts, [""], TINY, tmp_path)
    shutil.rmtree(work / "index")
    with pytest.raises(CapwrightError, match=r"has no index: run `capwright index"):
        clip.run(ScoreConfig(work=work))
