"""Batches: a function of the step alone, shared among ranks, with the right captions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.corpus.pictures import load_pixels
from capwright.pretrain.batches import (
    Batches,
    MemorisedTokens,
    PixelsFromTars,
    augment,
    pixels_of,
    token_ids,
)
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import Augmentation, CaptionSource
from capwright.pretrain.draws import Draws, permutation

SIDE = 16
COLOURS = ("red", "green", "blue", "yellow")
WORDS = {"a": 1, **{colour: i + 2 for i, colour in enumerate(COLOURS)}}


def tokenize(texts: list[str]) -> torch.Tensor:
    """Ids of known words, eight positions."""
    rows = [[WORDS.get(word, 9) for word in text.split()][:8] for text in texts]
    return torch.tensor([row + [0] * (8 - len(row)) for row in rows])


def sources_of(work: Path) -> tuple[CaptionSource, CaptionSource]:
    described = CaptionSource(name="described", folder=work / "captions" / "described")
    return described, CaptionSource(name="alt", probability=0.5)


def make(
    work: Path, *, rank: int = 0, world: int = 1, seed: int = 0, batch_size: int = 8
) -> Batches:
    index = load_index(work)
    return Batches(
        sampler=CaptionSampler(index, sources_of(work)),
        pixels=pixels_of(load_pixels(index, size=SIDE)),
        tokenize=tokenize,
        augmentation=Augmentation(),
        image_size=SIDE,
        mean_std=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        patches=16,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world=world,
    )


def equal(one: object, other: object) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_a_batch_is_a_function_of_the_step(work: Path) -> None:
    one, other = make(work), make(work)
    _ = other[0], other[7], other[2]  # what was asked before plays no part
    assert equal(one[3], other[3])
    assert not equal(one[3], one[4])
    assert not equal(one[3], make(work, seed=1)[3])


def test_ranks_share_the_global_batch(work: Path) -> None:
    whole = make(work)[3]
    parts = [make(work, rank=rank, world=2)[3] for rank in range(2)]
    for name in ("images_B3HH", "text_ids_B", "sample_ids_B", "patch_order_BP"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name
    tokens = torch.cat([part.tokens_UL[part.text_B] for part in parts])
    assert torch.equal(whole.tokens_UL[whole.text_B], tokens)


def test_a_pass_meets_every_captioned_picture_once(work: Path) -> None:
    batches = make(work, batch_size=1)
    count = len(batches.sampler.rows)
    first = [int(batches.rows(step)[0][0]) for step in range(count)]
    second = [int(batches.rows(step)[0][0]) for step in range(count, 2 * count)]
    assert sorted(first) == sorted(second) == sorted(batches.sampler.rows)
    assert first != second
    assert batches.sampler.without_caption == 1  # key 1: no alt text, not described


def test_picture_and_caption_belong_together(work: Path) -> None:
    batches = make(work)
    keys = load_index(work)["key"].to_pylist()
    for step in range(4):
        batch = batches[step]
        for row, tokens in zip(batch.sample_ids_B, batch.tokens_UL[batch.text_B], strict=True):
            assert WORDS[COLOURS[int(keys[row]) % 4]] in tokens


def test_equal_captions_are_encoded_once(work: Path) -> None:
    batch = make(work, batch_size=23)[0]
    tokens = batch.tokens_UL[batch.text_B]
    assert len(batch.tokens_UL) < len(tokens)
    same = (tokens[:, None] == tokens[None]).all(-1)
    assert torch.equal(same, batch.text_ids_B[:, None] == batch.text_ids_B[None])


def test_sources_are_chosen_by_probability_among_those_that_have_a_caption(work: Path) -> None:
    index = load_index(work)
    described = CaptionSource(name="d", folder=work / "captions" / "described", probability=3)
    sampler = CaptionSampler(index, (described, CaptionSource(name="alt")))
    row = index["key"].to_pylist().index("000000010")  # has both
    epochs = np.arange(4000)
    rows = np.full(4000, row)
    chosen = sampler.choose(rows, Draws(0, rows, epochs))
    shares = {text: chosen.count(text) / 4000 for text in set(chosen)}
    assert shares == {
        "a blue square": pytest.approx(0.375, abs=0.03),
        "a blue thing": pytest.approx(0.375, abs=0.03),
        "buy blue now": pytest.approx(0.25, abs=0.03),
    }
    row = index["key"].to_pylist().index("000000002")  # alt text alone
    rows = np.full(50, row)
    assert set(sampler.choose(rows, Draws(0, rows, epochs[:50]))) == {"buy blue one one now"}


def test_a_choice_does_not_depend_on_the_rest_of_the_batch(work: Path) -> None:
    sampler = CaptionSampler(load_index(work), sources_of(work))
    rows, epochs = sampler.rows, np.full(len(sampler.rows), 5)
    together = sampler.choose(rows, Draws(7, rows, epochs))
    alone = [
        sampler.choose(rows[i : i + 1], Draws(7, rows[i : i + 1], epochs[:1]))[0] for i in range(9)
    ]
    assert together[:9] == alone


def test_source_filter_and_counts(work: Path) -> None:
    folder = work / "captions" / "described"
    beams = CaptionSource(name="beams", folder=folder, sources=("beam",))
    sampler = CaptionSampler(load_index(work), (beams,))
    assert sampler.counts() == {"beams": (21, 21)}
    assert {text.split()[-1] for text in sampler.texts()} == {"square"}


def test_no_caption_at_all_is_an_error(work: Path) -> None:
    none = CaptionSource(name="beams", folder=work / "captions" / "described", sources=("nobody",))
    with pytest.raises(
        CapwrightError, match="none of the 24 pictures has a caption from beams: check"
    ):
        CaptionSampler(load_index(work), (none,))
    sampler = CaptionSampler(load_index(work), (none,), required=False)
    rows = sampler.rows[:3]
    assert len(sampler.rows) == 24
    assert sampler.choose(rows, Draws(0, rows, rows)) == ["", "", ""]


def test_draws_are_uniform_and_independent() -> None:
    samples = np.arange(20_000)
    draws = Draws(0, samples, np.zeros_like(samples))
    one, two = draws.uniform("a", 2).T
    again = draws.uniform("b", 1)[:, 0]
    for values in (one, two, again):
        assert values.min() >= 0
        assert values.max() < 1
        counts, _ = np.histogram(values, 10, (0, 1))
        assert ((counts - 2000) ** 2 / 2000).sum() < 28  # chi-squared, 9 degrees, p = 0.001
    for pair in ((one, two), (one, again), (one[:-1], one[1:])):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.03


def test_permutations_differ_by_epoch_and_seed() -> None:
    orders = [tuple(permutation(seed, epoch, 50)) for seed in range(2) for epoch in range(2)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_whole_crop_changes_nothing_and_smaller_ones_magnify() -> None:
    rows = np.arange(4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    whole = Augmentation(crop_area=(1, 1), crop_aspect=(1, 1))
    same = augment(pixels, Draws(0, rows, rows), whole, 16)
    assert torch.allclose(same, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, atol=1e-5)
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 16, (4, 16, 16, 3))
    half = Augmentation(crop_area=(0.25, 0.25), crop_aspect=(1, 1))
    crops = augment(ramp, Draws(0, rows, rows), half, 16)
    slopes = (crops[..., 10] - crops[..., 6]) * 255 / 4
    assert torch.allclose(
        slopes, torch.full_like(slopes, 8.0), atol=0.1
    )  # 16 a pixel, twice as large
    assert len({round(float(x), 3) for x in crops[:, 0, 0, 8]}) > 1  # at different places


def test_mirroring_only_when_asked() -> None:
    rows = np.arange(64)
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 16, (64, 16, 16, 3))
    for flip, expected in ((False, 0), (True, 32)):
        images = augment(ramp, Draws(0, rows, rows), Augmentation(flip=flip), 16)
        mirrored = int((images[:, 0, 8, 4] > images[:, 0, 8, 12]).sum())
        assert mirrored == pytest.approx(expected, abs=12 if flip else 0)


def test_pictures_from_tars_are_those_of_the_cache(work: Path) -> None:
    index = load_index(work)
    rows = np.array([5, 0, 23])
    assert np.array_equal(PixelsFromTars(index, SIDE)(rows), load_pixels(index, size=SIDE)[rows])


def test_a_changed_shard_is_named(work: Path, tmp_path: Path) -> None:
    index = load_index(work)
    broken = tmp_path / "00000.tar"
    broken.write_bytes(bytes(100_000))
    column = index.schema.get_field_index("file")
    index = index.set_column(column, "file", [[str(broken)] * index.num_rows])
    with pytest.raises(CapwrightError, match=r"picture 000000000 in .*00000.tar cannot be decoded"):
        PixelsFromTars(index, SIDE)(np.array([0]))


def test_texts_are_tokenised_once() -> None:
    calls: list[list[str]] = []

    def counting(texts: list[str]) -> torch.Tensor:
        calls.append(list(texts))
        return tokenize(texts)

    memory = MemorisedTokens(counting)
    first = memory(["a red", "a blue", "a red"])
    assert np.array_equal(first, tokenize(["a red", "a blue", "a red"]).numpy())
    assert np.array_equal(memory(["a blue", "a"]), tokenize(["a blue", "a"]).numpy())
    assert calls == [["a red", "a blue"], ["a"]]


def test_token_ids_tell_order_and_padding_apart() -> None:
    rows = np.array([[1, 2, 0], [2, 1, 0], [1, 2, 0], [1, 0, 2], [0, 1, 2]])
    ids = token_ids(rows)
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 4
    assert token_ids(rows[1:2])[0] == ids[1]
