"""Captioning against loops and against open_clip's CoCa, its gradients, and what may not leak."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import CoCaLoss
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.pretrain.batch import Batch
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.objectives import captioning
from capwright.pretrain.settings.captioning import CaptioningSettings
from capwright.pretrain.step import Stepper, scaler_for
from capwright.pretrain.task import Task

SIDE, CONTEXT, WORDS = 16, 12, 20
SMALL = CaptioningSettings(decoder_width=8, decoder_layers=2, decoder_heads=2)
CAPTIONS = [[1, 5, 6, 2], [1, 7, 2], [1, 5, 0, 8, 9, 2], [1, 9, 9, 9, 2], [1, 2]]
PAIRS = [(0, 0), (0, 2), (1, 1), (2, 3), (3, 0), (3, 4)]  # picture 4 has none


def tokens_of(captions: list[list[int]]) -> Tensor:
    return torch.tensor([c + [0] * (CONTEXT - len(c)) for c in captions])


def batch_of(
    pairs: list[tuple[int, int]] = PAIRS, pictures: int = 5, dtype: torch.dtype = torch.float32
) -> Batch:
    generator = torch.Generator().manual_seed(3)
    tokens = tokens_of(CAPTIONS)
    columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Batch(
        images_BV3HH=torch.randn(pictures, 1, 3, SIDE, SIDE, generator=generator, dtype=dtype),
        tokens_UL=tokens,
        text_ids_U=torch.arange(len(tokens)),
        pair_picture_P=columns[:, 0],
        pair_text_P=columns[:, 1],
        pair_set_P=torch.zeros(len(columns), dtype=torch.int64),
        sample_ids_B=torch.arange(pictures),
        patch_order_BN=torch.stack([torch.arange(16)] * pictures),
    )


@pytest.fixture
def make(tmp_path: Path, tiny_config: Any, tiny_model: dict[str, Any]) -> Any:
    """Makes (model, objective), in double precision, for the tiny towers or a tiny CoCa."""

    def made(coca: bool = False, **changes: Any) -> tuple[Any, captioning.Objective]:
        model = towers.build(tiny_coca(tiny_model) if coca else small_words(tiny_model))
        if coca:
            torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)
        config = tiny_config(
            tmp_path, tmp_path, objectives={"captioning": 1.0}, captioning=replace(SMALL, **changes)
        )
        return model.double(), captioning.Objective(model, config).double()

    torch.manual_seed(0)
    return made


def small_words(model: dict[str, Any]) -> dict[str, Any]:
    text = {**model["text_cfg"], "vocab_size": WORDS, "pool_type": "eos", "eos_id": 2}
    return {**model, "text_cfg": text}


def tiny_coca(model: dict[str, Any]) -> dict[str, Any]:
    text = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 16, "heads": 2, "layers": 1}
    pool = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    return {
        "embed_dim": 16,
        "vision_cfg": {**model["vision_cfg"], **pool},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text,
    }


def shared_of(model: Any, batch: Batch) -> dict[str, Tensor]:
    patches = towers.dense_features(model, batch.images_BV3HH.flatten(0, 1))
    return {"patches": patches.unflatten(0, batch.images_BV3HH.shape[:2])}


def loss_of(
    objective: captioning.Objective, model: Any, batch: Batch, group: Group = ALONE
) -> captioning.Terms:
    features = objective.encode(model, batch, shared_of(model, batch))
    return objective.loss(features, batch, torch.tensor(1.0), group)


# ---- the formula


def test_padding_is_the_run_at_the_end() -> None:
    tokens = tokens_of(CAPTIONS)
    assert captioning.lengths(tokens, 0).tolist() == [4, 3, 6, 5, 2]
    read, say, asked = captioning.next_tokens(tokens, 0)
    assert read.shape == say.shape == asked.shape == (5, 5)
    assert [s[a].tolist() for s, a in zip(say, asked, strict=True)] == [c[1:] for c in CAPTIONS]
    assert captioning.lengths(torch.tensor([[1, 5, 2, 0]]), 0).tolist() == [3]
    siglip = torch.tensor([[5, 6, 1, 1, 1], [5, 6, 7, 8, 1]])  # whose 1 ends and pads
    assert captioning.lengths(siglip, 0).tolist() == [2, 5]
    full = torch.tensor([[1, 5, 2]])  # a caption that fills the context
    assert captioning.next_tokens(full, 0)[2].tolist() == [[True, True]]


def reference(objective: captioning.Objective, patches: Tensor, pairs: Any) -> tuple[float, float]:
    """One caption and one token after the other, all of the context, no mask for padding."""
    total, right, count = 0.0, 0, 0
    assert objective.decoder is not None
    for picture, text in pairs:
        words = CAPTIONS[text]
        for t in range(1, len(words)):
            row = patches[picture, 0].flatten(1).T[None]
            hidden = objective.decoder(row, torch.tensor([0]), torch.tensor([words[:t]]))
            logits = objective.decoder.logits(hidden)[0, -1].tolist()
            total -= logits[words[t]] - math.log(sum(math.exp(x) for x in logits))
            right += max(range(WORDS), key=logits.__getitem__) == words[t]
            count += 1
    return total / count, right / count


def test_loss_equals_its_formula(make: Any) -> None:
    model, objective = make()
    batch = batch_of(dtype=torch.float64)
    terms = loss_of(objective, model, batch)
    loss, accuracy = reference(objective, shared_of(model, batch)["patches"], PAIRS)
    assert terms.loss.item() == pytest.approx(loss, abs=1e-12)
    assert terms.logged["accuracy"].item() == pytest.approx(accuracy, abs=1e-6)


def test_gradient(make: Any) -> None:
    _, objective = make(decoder_width=4, decoder_layers=1)
    batch = batch_of([(0, 1), (1, 0)], pictures=2)
    patches = torch.randn(2, 1, 16, 2, 1, dtype=torch.float64, requires_grad=True)
    words = objective.decoder.token_embedding.weight

    def loss(patches: Tensor, words: Tensor) -> Tensor:
        features = objective.encode(None, batch, {"patches": patches})
        return objective.loss(features, batch, torch.tensor(1.0), ALONE).loss

    assert torch.autograd.gradcheck(loss, (patches, words))


def test_the_loss_is_open_clips_for_a_coca(make: Any) -> None:
    model, objective = make(coca=True)
    assert objective.decoder is None
    whole = [[1, 5, 6, 2], [1, 7, 2], [1, 5, 8, 8, 9, 2], [1, 9, 9, 9, 2], [1, 2]]  # no 0 inside
    pairs = [(0, 0), (1, 2), (2, 3), (3, 1), (4, 4)]
    batch = replace(batch_of(pairs, dtype=torch.float64), tokens_UL=tokens_of(whole))
    terms = loss_of(objective, model, batch)
    terms.loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    out = model(batch.images_BV3HH[:, 0], tokens_of(whole)[[0, 2, 3, 1, 4]])
    caption_loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0).caption_loss
    theirs = caption_loss(out["logits"].permute(0, 2, 1), out["labels"])
    theirs.backward()
    assert terms.loss.item() == pytest.approx(theirs.item(), abs=1e-12)
    assert ours.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    assert {"text_decoder", "text", "visual"} == {name.split(".")[0] for name in ours}
    for name, parameter in model.named_parameters():
        if name in ours:
            assert torch.allclose(ours[name], parameter.grad, atol=1e-12), name


# ---- what may not leak


def test_a_place_sees_no_later_token_and_no_other_picture(make: Any) -> None:
    _, objective = make()
    decoder, patches = objective.decoder, torch.randn(2, 4, 16, dtype=torch.float64)
    rows, tokens = torch.tensor([0, 1]), torch.randint(1, WORDS, (2, 6))
    before = decoder(patches, rows, tokens)
    later = tokens.clone()
    later[:, 4] = (later[:, 4] + 1) % WORDS
    after = decoder(patches, rows, later)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    other = patches.clone()
    other[1] = torch.randn(4, 16)
    moved = decoder(other, rows, tokens)
    assert torch.equal(before[0], moved[0])
    assert not torch.allclose(before[1], moved[1])


def test_every_layer_begins_with_weights_of_its_own(make: Any) -> None:
    first, second = make()[1].decoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


# ---- parts and processes


@pytest.mark.parametrize("coca", [False, True])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_are_the_whole(make: Any, coca: bool, parts: int) -> None:
    model, objective = make(coca)
    batch = batch_of(dtype=torch.float64)
    whole = objective.encode(model, batch, shared_of(model, batch))
    found = [batch.part(i, parts) for i in range(parts)]
    pieces = [objective.encode(model, part, shared_of(model, part)) for part in found]
    assert whole["captioning/tokens"].tolist() == [3 + 5, 2, 4, 3 + 1, 0]
    for name, value in whole.items():
        assert torch.allclose(torch.cat([p[name] for p in pieces]), value, atol=1e-12), name


@pytest.mark.parametrize("coca", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    coca: bool, tmp_path: Path, tiny_config: Any, tiny_model: Any
) -> None:
    weights = {"captioning": 2.0, "contrastive": 1.0}
    config = tiny_config(tmp_path, tmp_path, objectives=weights, captioning=SMALL)
    model = towers.build(tiny_coca(tiny_model) if coca else small_words(tiny_model))
    if coca:
        torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)
    task = Task(model, config)
    assert all(p.requires_grad for p in task.parameters())
    found = []
    for parts in (1, 3):
        stepper = Stepper(
            task=task,
            optimizer=torch.optim.SGD(task.parameters(), lr=0.0),
            parameters=list(task.parameters()),
            group=ALONE,
            device=torch.device("cpu"),
            precision="fp32",
            parts=parts,
            grad_clip=0.0,
            seed=0,
            scaler=scaler_for("fp32", torch.device("cpu")),
        )
        values = stepper.backward(batch_of())
        found.append((values, {n: p.grad.clone() for n, p in task.named_parameters()}))
        task.zero_grad(set_to_none=True)
    (whole, gradients), (in_parts, others) = found
    assert whole["captioning"].item() == pytest.approx(in_parts["captioning"].item(), abs=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5), name


def _rank(rank: int, meeting: str, out: str, model: Any, objective: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    # 8 + 2 + 4 tokens here and 4 there: a mean of the ranks' means would be another number
    whole = batch_of(dtype=torch.float64)
    pictures, mine = slice(0, 3), whole.pair_picture_P < 3
    if rank == 1:
        pictures, mine = slice(3, 5), ~mine
    batch = replace(
        whole,
        images_BV3HH=whole.images_BV3HH[pictures],
        pair_picture_P=whole.pair_picture_P[mine] - pictures.start,
        pair_text_P=whole.pair_text_P[mine],
    )
    terms = loss_of(objective, model, batch, Group(rank=rank, world=2))
    terms.loss.backward()
    gradients = {n: p.grad for n, p in model.visual.named_parameters()}
    gradients |= {n: p.grad for n, p in objective.named_parameters()}
    torch.save((terms.loss.detach(), terms.logged["accuracy"], gradients), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(make: Any, tmp_path: Path) -> None:
    model, objective = make()
    torch.multiprocessing.spawn(
        _rank, args=(str(tmp_path / "meeting"), str(tmp_path), model, objective), nprocs=2
    )
    (one, right, gradients), (two, right_two, others) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    alone = loss_of(objective, model, batch_of(dtype=torch.float64))
    alone.loss.backward()
    assert (one + two).item() / 2 == pytest.approx(alone.loss.item(), abs=1e-12)
    assert (right + right_two).item() / 2 == pytest.approx(
        alone.logged["accuracy"].item(), abs=1e-6
    )
    own = dict(model.visual.named_parameters()) | dict(objective.named_parameters())
    checked = 0
    for name, parameter in own.items():
        if parameter.grad is not None:
            mean = (gradients[name] + others[name]) / 2
            assert torch.allclose(mean, parameter.grad, atol=1e-12), name
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("coca", [False, True])
def test_pictures_without_captions_cost_nothing(make: Any, coca: bool) -> None:
    model, objective = make(coca)
    terms = loss_of(objective, model, batch_of([], pictures=2, dtype=torch.float64))
    terms.loss.backward()
    assert terms.loss.item() == 0
    trained = objective.decoder or model.text_decoder
    assert all(p.grad is not None and not p.grad.any() for p in trained.parameters())


# ---- what it learns


def colour_batch(blank: bool = False) -> Batch:
    """Two colours, and captions that say which: two tokens of chance, the rest is certain."""
    captions = [[1, 5, 4, 2], [1, 6, 4, 2]]
    rows = torch.arange(8) % 2
    images = torch.where(rows.bool(), 1.0, -1.0).view(-1, 1, 1, 1, 1).repeat(1, 1, 3, SIDE, SIDE)
    pairs = [(i, i % 2) for i in range(8)]
    batch = replace(batch_of(pairs, pictures=8), tokens_UL=tokens_of(captions))
    return replace(batch, images_BV3HH=images * (0 if blank else 1))


def write(model: Any, images: Tensor) -> list[list[int]]:
    """What open_clip's CoCa writes of itself, the likeliest token at a time."""
    tokens = torch.ones(len(images), 1, dtype=torch.int64)
    for _ in range(3):
        logits = model(images, tokens, output_labels=False)["logits"]
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    return tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("coca", [False, True])
def test_it_learns_what_the_picture_decides_and_nothing_without_it(make: Any, coca: bool) -> None:
    chance = math.log(2) / 3  # nats a token: the first of three says the colour
    reached = []
    for blank in (False, True):
        model, objective = make(coca)
        model, objective, batch = model.float(), objective.float(), colour_batch(blank)
        parameters = [*model.parameters(), *objective.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=2e-2, weight_decay=0.0)
        for _ in range(50):
            terms = loss_of(objective, model, batch)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
        reached.append(terms.loss.item())
        if coca and not blank:
            assert write(model.eval(), batch.images_BV3HH[:2, 0]) == [[1, 5, 4, 2], [1, 6, 4, 2]]
    assert reached[0] < chance / 4
    assert chance - 1e-3 < reached[1] < 1.3 * chance


# ---- beside other objectives


def test_without_weight_it_is_not_there(
    tmp_path: Path, tiny_config: Any, tiny_model: dict[str, Any]
) -> None:
    tasks = {}
    for weight in (None, 0.0, 1.0):
        weights = {"contrastive": 1.0} | ({} if weight is None else {"captioning": weight})
        torch.manual_seed(1)
        model = towers.build(small_words(tiny_model))
        tasks[weight] = Task(model, tiny_config(tmp_path, tmp_path, objectives=weights))
    without, zero, one = (tasks[key].state_dict() for key in (None, 0.0, 1.0))
    assert without.keys() == zero.keys() < one.keys()
    for name, value in without.items():
        assert torch.equal(value, zero[name]) and torch.equal(value, one[name])


def test_settings_are_checked() -> None:
    with pytest.raises(CapwrightError, match=r"captioning.decoder_layers is 0: it must be 1 or"):
        CaptioningSettings(decoder_layers=0)
    with pytest.raises(
        CapwrightError, match=r"decoder_width is 10: choose a multiple of .*decoder_heads \(4\)"
    ):
        CaptioningSettings(decoder_width=10).check_together()
