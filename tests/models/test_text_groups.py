"""Texts in groups, trimmed, the last block at the end alone: the same numbers with less work."""

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from capwright.models import text_groups, towers

TEXT: dict[str, Any] = {
    "context_length": 16,
    "vocab_size": 50,
    "width": 16,
    "heads": 2,
    "layers": 2,
}
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}


def build(**text: Any) -> Any:
    torch.manual_seed(0)
    return towers.build({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | text}).eval()


def tokens(lengths: list[int], end: int = 49) -> torch.Tensor:
    """Random texts of the given lengths that end with `end`, padded with 0."""
    rows = torch.randint(3, 48, (len(lengths), 16))
    for row, length in zip(rows, lengths, strict=True):
        row[length - 1] = end
        row[length:] = 0
    return rows


def shapes_seen(model: Any) -> list[tuple[int, int]]:
    """(texts, positions) of every call of the first block."""
    seen: list[tuple[int, int]] = []
    first = model.text.transformer.resblocks[0]
    first.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[:2])))
    return seen


VARIANTS: list[dict[str, Any]] = [
    {"pool_type": "argmax"},
    {"pool_type": "eos", "eos_id": 49},
    {"layers": 1, "ls_init_value": 0.3},
    {"proj_bias": True},
    {"proj_type": "none"},
    {"qk_norm": True},  # blocks of another class, called as a whole
]


@pytest.mark.parametrize("cost", [0, 8, 10_000])
@pytest.mark.parametrize("text", VARIANTS)
def test_outputs_and_gradients_are_those_of_the_whole(
    text: dict[str, Any], cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_groups, "GROUP_COST_CPU", cost)
    model = build(**text).double()
    batch = tokens([3, 9, 5, 8, 3, 2])
    ours, whole = towers.encode_text(model, batch), model.encode_text(batch)
    assert torch.allclose(ours, whole, rtol=0, atol=1e-14)
    weights = torch.randn_like(whole)
    parameters = list(model.text.parameters())
    one, other = (
        torch.autograd.grad((out * weights).sum(), parameters, allow_unused=True)
        for out in (ours, whole)
    )
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-11, atol=1e-13)
    assert torch.equal(model.encode_text(batch), whole)  # the mask is whole again


def test_groups_are_as_short_as_their_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    batch = tokens([3, 9, 5, 9, 3, 4])
    seen = shapes_seen(model)
    for cost in (0, 3, 10_000):
        monkeypatch.setattr(text_groups, "GROUP_COST_CPU", cost)
        towers.encode_text(model, batch)
    # by length 3 3 4 5 9 9: apart; 4 joins 5 (one position more, three saved); all together
    assert seen == [(2, 3), (1, 4), (1, 5), (2, 9), (2, 3), (2, 5), (2, 9), (6, 9)]


@pytest.mark.parametrize("cost", [0, 5, 40, 1000])
def test_the_cut_is_the_best_of_all_cuts(cost: int) -> None:
    generator = torch.Generator().manual_seed(cost)
    length_B = torch.randint(2, 30, (9,), generator=generator).sort().values

    def price(cuts: list[int]) -> int:
        spans = list(pairwise(cuts))
        return sum((b - a) * int(length_B[b - 1]) for a, b in spans) + cost * len(spans)

    every = ([0, *inner, 9] for count in range(9) for inner in combinations(range(1, 9), count))
    assert price(text_groups.cut_by_length(length_B, cost)) == min(map(price, every))


def test_activation_checkpointing_changes_nothing() -> None:
    model, batch = build().double(), tokens([4, 9, 6])
    parameters = list(model.text.parameters())
    plain = torch.autograd.grad(towers.encode_text(model, batch).square().sum(), parameters)
    model.set_grad_checkpointing(True)
    model.train()
    seen = shapes_seen(model)
    again = torch.autograd.grad(towers.encode_text(model, batch).square().sum(), parameters)
    assert seen == [(3, 9), (3, 9)]  # forward, and once more on the way back
    for a, b in zip(plain, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


def test_sharded_blocks_are_called_once_and_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # processes with other lengths must gather each block equally often
    monkeypatch.setattr(text_groups, "GROUP_COST_CPU", 0)
    model, batch = build(), tokens([3, 9, 5])
    block = model.text.transformer.resblocks[0]
    block.__class__ = type("Sharded", (FSDPModule, type(block)), {})
    seen = shapes_seen(model)
    last = []
    model.text.transformer.resblocks[1].register_forward_hook(lambda *_: last.append(1))
    ours = towers.encode_text(model, batch)
    assert (seen, last) == ([(3, 9)], [1])
    assert torch.allclose(ours, model.encode_text(batch), atol=1e-6)


def test_a_compiled_tower_is_called_as_a_whole() -> None:
    model, batch = build(), tokens([3, 9, 5])
    calls: list[torch.Size] = []

    def compiled(tokens_BL: torch.Tensor) -> Any:
        calls.append(tokens_BL.shape)
        return model.text._call_impl(tokens_BL)

    model.text._compiled_call_impl = compiled  # what `Module.compile` sets
    assert torch.allclose(towers.encode_text(model, batch), model.encode_text(batch), atol=1e-6)
    assert calls == [(3, 9), (3, 16)]


def test_a_text_without_its_end_is_as_open_clip_has_it() -> None:
    model = build(pool_type="eos", eos_id=49).double()
    batch = tokens([4, 6])
    batch[1] = 7  # no end: open_clip pools at position 0
    assert torch.allclose(towers.encode_text(model, batch), model.encode_text(batch), atol=1e-14)


@pytest.mark.parametrize("text", [*VARIANTS, {"embed_cls": True}])
def test_no_texts_are_an_empty_result_with_a_gradient(text: dict[str, Any]) -> None:
    model = build(**text)
    embedded = towers.encode_text(model, torch.zeros(0, 16, dtype=torch.long))
    assert embedded.shape == (0, 16)
    embedded.sum().backward()
    used = [p.grad for p in model.text.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in used)


@pytest.mark.parametrize(
    "text",
    [{"pool_type": "last"}, {"no_causal_mask": True, "pool_type": "argmax"}, {"embed_cls": True}],
)
def test_towers_that_see_the_padding_are_not_trimmed(text: dict[str, Any]) -> None:
    model, batch = build(**text), tokens([3, 4])
    seen = shapes_seen(model)
    assert torch.equal(towers.encode_text(model, batch), model.encode_text(batch))
    assert {positions for _, positions in seen} == {17 if "embed_cls" in text else 16}


def test_few_tokens_of_captions_are_padding() -> None:
    # lengths as of captions: 18 on average, 40 at most, of a context of 77
    generator = torch.Generator().manual_seed(0)
    drawn = 18 + 7 * torch.randn(256, generator=generator)
    length_B = drawn.round().clamp(5, 40).long().sort().values
    cuts = text_groups.cut_by_length(length_B, text_groups.GROUP_COST_CPU)
    computed = sum((b - a) * int(length_B[b - 1]) for a, b in pairwise(cuts))
    needed, trimmed = int(length_B.sum()), 256 * int(length_B.max())
    print(f"{needed=} {computed=} {trimmed=} whole={256 * 77} groups={len(cuts) - 1}")
    assert computed < 1.1 * needed < 0.6 * trimmed
    assert len(cuts) - 1 <= 10
