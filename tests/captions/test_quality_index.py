import math
from pathlib import Path

import numpy as np
import pytest
import torch

from capwright.captions.features import record_type
from capwright.captions.quality_index import (
    QualityConfig,
    calibrated,
    draw_batches,
    log_probability,
    quality_index,
    split_halves,
)
from capwright.captions.runner import stage_folder
from capwright.captions.sampled_pairs import PictureFeatures, draw_pairs, source_quality
from capwright.captions.score.tower import TowerConfig
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index, shard_sizes
from capwright.corpus.sidecars import write_sidecar

WORDS = ("ape", "bear", "crow", "duck", "eel", "fox", "goat", "hare")
TINY = QualityConfig(
    pictures=256,
    contrast=16,
    picture_size=64,
    tower=TowerConfig(width=16, hidden=32, steps=30, batch_size=32, learning_rate=0.02),
)


def planted(count: int = 256) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Records in which one channel shows the word of the text, with hashes far apart."""
    rng = np.random.default_rng(0)
    records = np.zeros(count, record_type(64))
    records["middle"] = rng.normal(0, 0.5, records["middle"].shape)
    records["valid"] = True
    for row in range(count):
        records["middle"][row, row % 8, row % 3, 1] = 40
    hashes = rng.integers(-(2**63), 2**63, count)
    return records, hashes, [f"photo of a {WORDS[row % 8]}" for row in range(count)]


def test_the_index_falls_as_more_captions_belong_to_other_pictures() -> None:
    records, hashes, texts = planted()
    found = []
    for wrong in (0, 128, 256):
        mixed = texts.copy()
        rows = np.random.default_rng(1).permutation(256)[:wrong]
        for row, other in zip(rows, np.random.default_rng(2).permutation(rows), strict=True):
            mixed[row] = texts[other]
        found.append(quality_index(records, hashes, mixed, TINY))
    right, half, none = (quality.index for quality in found)
    assert right is not None and half is not None and none is not None
    # eight words tell three of four bits, less what equal words in a batch of 16 hide
    assert 55 < right <= 75
    assert right > half + 20
    assert half > none + 5
    assert none < 5
    assert found[0].elsewhere[0] < 0.05 < 0.3 < found[1].elsewhere[0] < 0.7


def test_one_text_for_all_pictures_tells_nothing() -> None:
    records, hashes, texts = planted()
    same = quality_index(records, hashes, ["photo of a bear"] * 256, TINY)
    assert same.index == pytest.approx(0, abs=0.1)
    full = quality_index(records, hashes, texts, TINY)
    assert full.index == pytest.approx(100 * np.mean(full.pair_bits) / 4)
    assert full.error95 is not None and 0 < full.error95 < 10


def test_it_is_the_same_again_and_says_why_it_is_not() -> None:
    records, hashes, texts = planted(40)
    first, again = (quality_index(records, hashes, texts, TINY) for _ in range(2))
    assert first == again
    few = quality_index(records[:20], hashes[:20], texts[:20], TINY)
    assert few.index is None
    assert few.why_not == (
        "20 pairs give a half of 10 different pictures, and the index needs 16 in each half"
    )


def test_log_probability_is_the_formula_in_float64() -> None:
    similarity = torch.randn(2, 5, 5, dtype=torch.float64)
    found = log_probability(similarity, torch.tensor(3.0), torch.tensor(0.2))
    logits = 3.0 * similarity.numpy()
    for k in range(2):
        for i in range(5):
            row = np.exp(logits[k, i, i]) / np.exp(logits[k, i]).sum()
            column = np.exp(logits[k, i, i]) / np.exp(logits[k, :, i]).sum()
            both = [math.log(0.8 * p + 0.2 / 5) for p in (row, column)]
            assert float(found[k, i]) == pytest.approx(sum(both) / 2, abs=1e-6)


def test_calibration_gives_all_bits_to_sure_pairs_and_none_to_noise() -> None:
    sure, _, elsewhere = calibrated(torch.eye(16).expand(8, 16, 16).contiguous())
    assert float(sure.mean()) == pytest.approx(0, abs=0.02)
    assert elsewhere < 0.02
    torch.manual_seed(0)
    noise, _, _ = calibrated(torch.randn(32, 16, 16))
    assert float(noise.mean()) >= -math.log(16) - 1e-4
    assert float(noise.mean()) == pytest.approx(-math.log(16), abs=0.02)


def test_near_pictures_stay_in_one_half_and_blank_ones_do_not_stick() -> None:
    hashes = np.random.default_rng(0).integers(-(2**63), 2**63, 100)
    hashes[10:40] = hashes[0] ^ np.left_shift(1, np.arange(30) % 3)  # at most two bits apart
    hashes[40:80] = 1  # one bit set: a picture of one colour
    one, other = split_halves(hashes, 0)
    assert sorted([*one, *other]) == list(range(100))
    assert len(one) == len(other) == 50
    near = {0, *range(10, 40)}
    assert near <= set(one) or near <= set(other)
    assert set(range(40, 80)) & set(one) and set(range(40, 80)) & set(other)


def test_batches_ask_about_every_row_without_repetition() -> None:
    rows = np.arange(100, 137)
    batches = draw_batches(rows, 16, 3, 0)
    assert batches.shape == (9, 16)
    assert all(len(set(batch)) == 16 for batch in batches.tolist())
    for part in batches.reshape(3, -1):
        assert set(part) == set(rows)


def test_a_smaller_sample_is_part_of_a_larger_and_sources_share_pictures(work: Path) -> None:
    index = load_index(work)
    folder = stage_folder(work, "describe-x")
    start = 0
    for shard, size in shard_sizes(work).items():
        keys = index["key"][start : start + size].to_pylist()
        rows = [
            {"key": key, "source": "x", "text": f"{key} {n}", "keep": n < 2}
            for key in keys[: size // 2]
            for n in range(3)
        ]
        write_sidecar(folder, shard, rows)
        start += size
    alt = draw_pairs(work, None, 48, 0)
    assert (alt.pictures, alt.with_text, alt.texts, alt.coverage) == (48, 48, 48, 1.0)
    few = draw_pairs(work, None, 10, 0)
    assert len(few.pairs) == 10 and set(few.pairs) < set(alt.pairs)
    described = draw_pairs(work, folder, 10, 0)
    assert (described.with_text, described.texts, described.coverage) == (24, 48, 0.5)
    half = {pair.key for pair in draw_pairs(work, folder, 48, 0).pairs}
    assert len(half) == 24
    assert {p.key for p in described.pairs} == {p.key for p in few.pairs} & half
    assert {pair.text[-1] for pair in draw_pairs(work, folder, 48, 0).pairs} == {"0", "1"}


def test_features_of_a_sample_equal_the_cached_ones(work: Path, tmp_path: Path) -> None:
    pairs = draw_pairs(work, None, 6, 0).pairs
    cached = PictureFeatures(work, 64).of(pairs)
    (work / "features").rename(tmp_path / "away")
    computed = PictureFeatures(work, 64).of(pairs)
    assert computed["valid"].all()
    for name in ("middle", "deep"):
        np.testing.assert_allclose(
            computed[name].astype(np.float32), cached[name].astype(np.float32), atol=0.05
        )


def test_unreadable_pictures_are_no_pairs(work: Path) -> None:
    for path in (work / "features").rglob("*.npy"):
        records = np.load(path)
        records["valid"][:20] = False
        np.save(path, records)
    config = QualityConfig(pictures=48, contrast=16, picture_size=64, tower=TINY.tower)
    measured = source_quality(work, None, config)
    assert len(measured.pairs) == 8 and measured.quality.index is None
    assert measured.coverage == 1.0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(CapwrightError, match="contrast is 1, but a contrast needs at least 2"):
        QualityConfig(contrast=1)
    with pytest.raises(CapwrightError, match="rounds is 0, but must be at least 1"):
        QualityConfig(rounds=0)
