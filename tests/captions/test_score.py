import shutil
from pathlib import Path

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
from capwright.captions.score.tower import Tower, TowerConfig, contrastive_loss
from capwright.captions.select import SelectConfig
from capwright.captions.select import run as select
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index, shard_names
from capwright.corpus.sidecars import read_sidecars, write_sidecar

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
    index = load_index(work)
    for shard in shard_names(index):
        rows = [
            {"key": key, "source": "describe-small", "text": text}
            for key, alt in zip(index["key"].to_pylist(), index["text"].to_pylist(), strict=True)
            if key.startswith(shard)
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
    values = np.array([row["score"] for row in rows])
    assert 0.2 < values.mean() < 0.8 and values.std() > 0.05  # untrained: calibrated all the same
    assert not (described / "models" / "clip-tower").exists()


def tiny_open_clip(folder: Path) -> Path:
    """An untrained checkpoint in open_clip's form, small enough to build here."""
    from safetensors.torch import save_file

    from capwright.core.files import write_json
    from capwright.models import towers

    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    torch.manual_seed(0)
    model = towers.build(config)
    folder.mkdir()
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
