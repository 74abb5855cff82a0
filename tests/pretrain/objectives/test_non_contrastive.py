"""nCLIP's three terms against their formulas, over processes and pairs, and both collapses."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.objectives import non_contrastive as nc
from capwright.pretrain.settings.non_contrastive import XCLIP_OBJECTIVES, NonContrastiveSettings

Plan = Callable[..., PretrainConfig]
SMALL = NonContrastiveSettings(prototypes=6, hidden_width=16)
SCALE = torch.tensor(10.0)
WIDTH = 16  # of the tiny model's embedding


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distributions(logits: list[list[float]]) -> list[list[float]]:
    rows = [[math.exp(value) for value in row] for row in logits]
    return [[value / sum(row) for value in row] for row in rows]


def h(q: list[float], p: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(q, p, strict=True))


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def reference(
    image: torch.Tensor, text: torch.Tensor, sharpness: float, smoothness: float
) -> dict[str, float]:
    """The three terms and their sum, one prototype at a time."""
    v, t = distributions(image.tolist()), distributions(text.tolist())
    pairs = list(zip(v, t, strict=True))
    found = {
        "alignment": sum((h(q, p) + h(p, q)) / 2 for p, q in pairs) / len(pairs),
        "sharpness": sum((h(p, p) + h(q, q)) / 2 for p, q in pairs) / len(pairs),
        "smoothness": (h(mean_of(v), mean_of(v)) + h(mean_of(t), mean_of(t))) / 2,
    }
    total = found["alignment"] + sharpness * found["sharpness"] - smoothness * found["smoothness"]
    return found | {"loss": total}


def test_the_loss_equals_its_formula() -> None:
    image, text = 2 * random(5, 4), 2 * random(5, 4, seed=1)
    found = nc.non_contrastive_loss(nc.parts_of(image, text), 0.3, 0.8)
    assert found.item() == pytest.approx(reference(image, text, 0.3, 0.8)["loss"], abs=1e-12)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_gradient(kept: float) -> None:
    image, text = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    earlier = random(2, 4, seed=2).softmax(dim=-1)
    assert torch.autograd.gradcheck(
        lambda i, t: nc.non_contrastive_loss(nc.parts_of(i, t), 0.3, 0.8, earlier, kept),
        (image, text),
    )


def test_a_running_mean_joins_the_batch_and_its_gradient_keeps_its_weight() -> None:
    image, text = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    earlier = random(2, 4, seed=2).softmax(dim=-1)
    parts = nc.parts_of(image, text)
    loss = nc.non_contrastive_loss(parts, 0.0, 1.0, earlier, 0.75)
    mean = 0.75 * earlier + 0.25 * parts.mean_p_2K
    smooth = sum(h(row.tolist(), row.tolist()) for row in mean) / 2
    assert loss.item() == pytest.approx((parts.alignment - smooth / 0.25).item(), abs=1e-12)
    same = nc.non_contrastive_loss(parts, 0.0, 1.0, parts.mean_p_2K, 0.75) - parts.alignment
    alone = nc.non_contrastive_loss(parts, 0.0, 1.0) - parts.alignment
    (one,) = torch.autograd.grad(same, image, retain_graph=True)
    (other,) = torch.autograd.grad(alone, image)
    assert torch.allclose(one, other, atol=1e-12)


def test_the_extremes() -> None:
    """Sure and all used is best; one prototype for all is worse, and so is knowing nothing."""
    sure = 60 * torch.eye(4)
    one, uniform = sure[[0, 0, 0, 0]], torch.zeros(4, 4)
    best, same, nothing = (
        nc.non_contrastive_loss(nc.parts_of(x, x), 0.5, 1.0) for x in (sure, one, uniform)
    )
    assert best.item() == pytest.approx(-math.log(4), abs=1e-5)
    assert same.item() == pytest.approx(0, abs=1e-5)
    assert nothing.item() == pytest.approx(0.5 * math.log(4), abs=1e-5)
    assert [int(nc.used_prototypes(x)) for x in (sure, one)] == [4, 1]


def test_prototypes_that_nobody_chooses_give_finite_gradients() -> None:
    image = (500 * torch.eye(4)[[0, 0, 1]]).requires_grad_()  # the others underflow to 0
    parts = nc.parts_of(image, image)
    nc.non_contrastive_loss(parts, 0.5, 1.0).backward()
    assert parts.mean_p_2K[0, 3] == 0
    assert image.grad is not None
    assert image.grad.isfinite().all()


PICTURE_P = [0, 0, 1, 2, 3, 3, 3, 4, 5]  # of six pictures, some with several captions
TEXT_P = [0, 1, 2, 2, 3, 0, 4, 5, 6]  # of seven captions, two of them shared


def batch_of(pairs: slice = slice(0, 9), pictures: slice = slice(0, 6)) -> Batch:
    """The pairs of some of the six pictures."""
    picture_P, text_P = torch.tensor(PICTURE_P)[pairs], torch.tensor(TEXT_P)[pairs]
    row = torch.arange(6)[pictures]
    return Batch(
        images_BV3HH=torch.zeros(len(row), 2, 3, 1, 1),
        tokens_UL=torch.zeros(7, 12, dtype=torch.int64),
        text_ids_U=torch.arange(7),
        pair_picture_P=picture_P - pictures.start,
        pair_text_P=text_P,
        pair_set_P=torch.zeros(len(picture_P), dtype=torch.int64),
        sample_ids_B=row,
        patch_order_BN=torch.zeros(len(row), 1, dtype=torch.int64),
    )


@pytest.fixture
def build(tiny_config: Plan, tiny_model: Any, tmp_path: Path) -> Callable[..., nc.Objective]:
    """The objective with these settings, the same every time."""

    def make(settings: NonContrastiveSettings = SMALL, **changes: Any) -> nc.Objective:
        torch.manual_seed(0)
        config = tiny_config(tmp_path, tmp_path, non_contrastive=settings, **changes)
        return nc.Objective(towers.build(tiny_model), config)

    return make


def test_every_view_meets_every_caption_of_its_picture(build: Any) -> None:
    objective = build()
    image, text = random(6, 2, WIDTH).float(), random(7, WIDTH, seed=1).float()
    found = objective.loss({"image": image, "text": text}, batch_of(), SCALE, ALONE)
    rows = [(b, view, u) for b, u in zip(PICTURE_P, TEXT_P, strict=True) for view in range(2)]
    images = torch.stack([image[b, view] for b, view, _ in rows])
    texts = torch.stack([text[u] for _, _, u in rows])
    with torch.no_grad():
        images, texts = (
            head((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
            for head, x in ((objective.image_head, images), (objective.text_head, texts))
        )
    expected = reference(images.double(), texts.double(), 0.5, 2.0)
    assert found.loss.item() == pytest.approx(expected.pop("loss"), abs=1e-5)
    for name, value in expected.items():
        assert found.logged[name].item() == pytest.approx(value, abs=1e-5), name
    assert found.logged["image_prototypes"].item() == len(set(images.argmax(-1).tolist()))
    assert found.logged["text_prototypes"].item() == len(set(texts.argmax(-1).tolist()))
    for what, values in (("image", images), ("text", texts)):
        p = values.softmax(-1)
        own, mean = -(p * p.log()).sum(-1).mean().item(), p.mean(0)
        assert found.logged[f"{what}_entropy"].item() == pytest.approx(own, abs=1e-5)
        spread = -(mean * mean.log()).sum().item()
        assert found.logged[f"{what}_batch_entropy"].item() == pytest.approx(spread, abs=1e-5)


def test_the_running_mean_moves_once_after_a_step(build: Any) -> None:
    objective = build(replace(SMALL, running_mean=0.5))
    features = {"image": random(6, 2, WIDTH).float(), "text": random(7, WIDTH, seed=1).float()}
    batch = batch_of()
    first = objective.loss(features, batch, SCALE, ALONE)
    assert torch.equal(objective.loss(features, batch, SCALE, ALONE).loss, first.loss)
    assert not objective.running_2K.any()
    mean = objective._mean_p_2K
    objective.after_step(None, 0.1)
    assert torch.allclose(objective.running_2K, mean)  # there was nothing to keep
    other = {"image": random(6, 2, WIDTH, seed=5).float(), "text": features["text"]}
    second = objective.loss(other, batch, SCALE, ALONE)
    fresh = build()  # without memory
    assert not torch.allclose(second.loss, fresh.loss(other, batch, SCALE, ALONE).loss)
    new = objective._mean_p_2K
    objective.after_step(None, 0.2)
    assert torch.allclose(objective.running_2K, (mean + new) / 2, atol=1e-7)
    objective.after_step(None, 0.3)  # a step without a loss
    assert torch.allclose(objective.running_2K, (mean + new) / 2, atol=1e-7)
    assert int(objective.steps) == 2


def _two_steps(objective: nc.Objective, batch: Batch, group: Group) -> dict[str, torch.Tensor]:
    """Loss and gradients of the second step, which knows the first; averaged over processes."""
    image, text = random(6, 2, WIDTH).float(), random(7, WIDTH, seed=1).float()
    for power in (1, 2):
        objective.zero_grad()
        images = (image**power)[batch.sample_ids_B].requires_grad_()
        texts = (text**power).requires_grad_()
        found = objective.loss({"image": images, "text": texts}, batch, SCALE, group)
        found.loss.backward()
        objective.after_step(None, 0.5)
    assert texts.grad is not None
    values = {"loss": found.loss.detach(), **found.logged, "gradient of texts": texts.grad}
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None
        values[f"gradient {name}"] = parameter.grad
    if group.world > 1:
        for value in values.values():
            dist.all_reduce(value)
            value /= group.world
    assert images.grad is not None
    images_grad = torch.zeros_like(image)  # rows of other processes stay 0
    images_grad[batch.sample_ids_B] = images.grad / group.world
    return values | {"gradient of images": images_grad, "running": objective.running_2K}


def _one_of_two(rank: int, build: Any, folder: Path) -> None:
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    # four pairs of three pictures, five pairs of the other three
    batch = batch_of(slice(0, 4), slice(0, 3)) if rank == 0 else batch_of(slice(4, 9), slice(3, 6))
    objective = build(replace(SMALL, running_mean=0.5))
    torch.save(_two_steps(objective, batch, Group(rank=rank, world=2)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_numbers_of_pairs_equal_one(build: Any, tmp_path: Path) -> None:
    mp.start_processes(_one_of_two, (build, tmp_path), nprocs=2, start_method="fork")
    one = _two_steps(build(replace(SMALL, running_mean=0.5)), batch_of(), ALONE)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in one.items():
        if name == "gradient of images":
            assert torch.allclose(value, ranks[0][name] + ranks[1][name], atol=1e-6)
        else:
            assert torch.allclose(value, ranks[0][name], atol=1e-6), name
            assert torch.equal(ranks[0][name], ranks[1][name]), name


def test_cached_features_give_the_gradient_of_the_whole_batch(build: Any) -> None:
    """As an accumulated step does: features without a graph, then each part pulled through."""
    objective, batch = build(), batch_of()
    torch.manual_seed(1)
    tower, pixels, words = nn.Linear(5, WIDTH), torch.randn(6, 2, 5), torch.randn(7, 5)

    def encode(pictures: slice, texts: slice) -> dict[str, torch.Tensor]:
        return {"image": tower(pixels[pictures]), "text": tower(words[texts])}

    objective.loss(encode(slice(0, 6), slice(0, 7)), batch, SCALE, ALONE).loss.backward()
    whole = tower.weight.grad.clone()
    tower.zero_grad()
    parts = [(slice(0, 3), slice(0, 3)), (slice(3, 6), slice(3, 7))]
    with torch.no_grad():
        found = [encode(*part) for part in parts]
    leaves = {k: torch.cat([f[k] for f in found]).requires_grad_() for k in found[0]}
    objective.loss(leaves, batch, SCALE, ALONE).loss.backward()
    for (pictures, texts), features in zip(parts, [encode(*p) for p in parts], strict=True):
        pull = (features["image"] * leaves["image"].grad[pictures]).sum()
        (pull + (features["text"] * leaves["text"].grad[texts]).sum()).backward()
    assert torch.allclose(whole, tower.weight.grad, atol=1e-6)


def train(
    build: Any, settings: NonContrastiveSettings, noise: float, *, related: bool = True
) -> tuple[nc.Objective, dict[str, float]]:
    """Pictures and captions are two noisy views of the same numbers, through one layer each."""
    objective = build(settings)
    torch.manual_seed(1)
    layers = nn.ModuleList([nn.Linear(8, WIDTH), nn.Linear(8, WIDTH)])
    common = 6 * torch.randn(2, 8)  # fresh towers give nearly the same embedding to everything
    optimizer = torch.optim.AdamW([*layers.parameters(), *objective.parameters()], lr=1e-2)
    row = torch.arange(32)
    batch = replace(
        batch_of(), pair_picture_P=row, pair_text_P=row, pair_set_P=0 * row, sample_ids_B=row
    )
    for step in range(60):
        about = torch.randn(32, 8)
        image, text = (
            layer(about + noise * torch.randn(32, 8) + shift)
            for layer, shift in zip(layers, common, strict=True)
        )
        features = {"image": image[:, None], "text": text if related else text.roll(1, dims=0)}
        found = objective.loss(features, batch, SCALE, ALONE)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        objective.after_step(None, step / 60)
    return objective, {name: float(value) for name, value in found.logged.items()}


TOY = replace(SMALL, prototypes=32, alarm_after_steps=20)


def test_it_learns_what_pairs_share_without_an_alarm(build: Any) -> None:
    objective, logged = train(build, TOY, 0.2)
    assert objective.alarm(logged) == ""
    for what in ("image", "text"):
        information = logged[f"{what}_batch_entropy"] - logged[f"{what}_entropy"]
        assert information > 1.0, logged
        assert logged[f"{what}_prototypes"] > 10
    independent = logged["smoothness"]  # what the alignment is of unrelated predictions
    assert logged["alignment"] < independent - 0.5, logged


def test_without_smoothness_one_prototype_wins_and_the_alarm_says_so(build: Any) -> None:
    objective, logged = train(build, replace(TOY, smoothness=0.0), 1.0)
    assert "collapsed to few prototypes" in objective.alarm(logged), logged
    assert logged["image_prototypes"] == logged["text_prototypes"] == 1
    objective.steps.fill_(19)
    assert objective.alarm(logged) == ""
    objective, logged = train(build, TOY, 1.0)
    assert objective.alarm(logged) == "", logged


def test_captions_of_other_pictures_leave_all_uniform_and_the_alarm_says_so(build: Any) -> None:
    objective, logged = train(build, TOY, 0.2, related=False)
    assert "collapsed to uniform predictions" in objective.alarm(logged), logged


def test_a_direction_that_all_embeddings_share_does_not_reach_the_heads() -> None:
    rows = random(6, 3)
    whole = nc.standardised(rows, rows)
    assert torch.allclose(whole.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(whole.var(0, correction=0), torch.ones(3).double(), atol=1e-3)
    assert torch.allclose(whole, nc.standardised(rows + 100, rows + 100), atol=1e-9)
    other = nc.standardised(rows[:1], rows)  # one row by the statistics of all
    assert torch.allclose(other, whole[:1])


def test_as_many_prototypes_as_the_batch_unless_told(build: Any) -> None:
    default = NonContrastiveSettings(hidden_width=2)
    assert build(default).prototypes == 8
    assert build(default, batch_size=40_000, samples=40_000).prototypes == 32_768
    assert sum(XCLIP_OBJECTIVES.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prototypes": 1}, "prototypes is 1: it must be 2 or more, or null"),
        ({"hidden_width": 0}, "hidden_width is 0: it must be 1 or more"),
        ({"sharpness": -1.0}, "sharpness is -1.0: a weight of 0 or more"),
        ({"smoothness": -0.5}, "smoothness is -0.5: a weight of 0 or more"),
        ({"running_mean": 1.0}, "running_mean is 1.0: a share from 0"),
        ({"alarm_few": 2.0}, r"alarm_few is 2.0: a share of log\(prototypes\)"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=rf"non_contrastive\.{message}"):
        NonContrastiveSettings(**changes)
