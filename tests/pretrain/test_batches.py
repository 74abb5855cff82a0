"""Batches: a function of the step alone, shared among ranks, with the right captions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.corpus.pictures import load_pixels
from capwright.pretrain.batch import Batch
from capwright.pretrain.batches import (
    Batches,
    MemorisedTokens,
    PixelsFromTars,
    pixels_of,
    token_ids,
)
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import CaptionSource, PretrainConfig
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
    config = PretrainConfig(
        out=work, work=work, captions=sources_of(work), image_size=SIDE, batch_size=batch_size,
        samples=8 * batch_size, warmup_samples=0, seed=seed,
    )  # fmt: skip
    return Batches(
        config,
        sampler=CaptionSampler(index, config.captions, config.sampling),
        pixels=pixels_of(load_pixels(index, size=SIDE)),
        tokenize=tokenize,
        mean_std=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        patches=16,
        rank=rank,
        world=world,
    )


def captions(batch: Batch) -> torch.Tensor:
    """Tokens of every pair, in order of the pictures."""
    assert torch.equal(batch.pair_picture_P, torch.arange(batch.pictures))
    return batch.tokens_UL[batch.pair_text_P]


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))


def test_a_batch_is_a_function_of_the_step(work: Path) -> None:
    one, other = make(work), make(work)
    _ = other[0], other[7], other[2]  # what was asked before plays no part
    assert equal(one[3], other[3])
    assert not equal(one[3], one[4])
    assert not equal(one[3], make(work, seed=1)[3])


def test_ranks_share_the_global_batch(work: Path) -> None:
    whole = make(work)[3]
    parts = [make(work, rank=rank, world=2)[3] for rank in range(2)]
    for name in ("images_BV3HH", "sample_ids_B", "patch_order_BN"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name
    assert torch.equal(captions(whole), torch.cat([captions(part) for part in parts]))


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
        for row, tokens in zip(batch.sample_ids_B, captions(batch), strict=True):
            assert WORDS[COLOURS[int(keys[row]) % 4]] in tokens


def test_equal_captions_are_encoded_once(work: Path) -> None:
    batch = make(work, batch_size=23)[0]
    tokens = captions(batch)
    assert len(batch.tokens_UL) < len(tokens)
    same = (tokens[:, None] == tokens[None]).all(-1)
    ids = batch.text_ids_U[batch.pair_text_P]
    assert torch.equal(same, ids[:, None] == ids[None])


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


def test_features_of_the_parts_are_those_of_the_whole(work: Path) -> None:
    """Pictures, captions and pairs are cut so that nothing is lost or moved."""
    batch = make(work, batch_size=7)[0]
    parts = [batch.part(i, 3) for i in range(3)]
    assert [part.pictures for part in parts] == [2, 2, 3]
    images = torch.cat([part.images_BV3HH for part in parts])
    assert torch.equal(images, batch.images_BV3HH)
    tokens = torch.cat([part.tokens_to_encode_UL for part in parts])
    assert torch.equal(tokens, batch.tokens_UL)
    seen = torch.cat([part.tokens_UL[part.pair_text_P] for part in parts])
    assert torch.equal(seen, captions(batch))
    for part in parts:
        assert torch.equal(part.pair_picture_P, torch.arange(part.pictures))
