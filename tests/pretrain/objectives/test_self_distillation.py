"""SILC's loss against its formula, what teacher and student may see, and both collapses."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import Augmentation, PretrainConfig
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.draws import Draws
from capwright.pretrain.objective import Request
from capwright.pretrain.objectives import self_distillation as sd
from capwright.pretrain.settings.self_distillation import SelfDistillationSettings

Plan = Callable[..., PretrainConfig]
SIDE, LOCAL = 16, 8
SMALL = SelfDistillationSettings(
    local_size=LOCAL, local_views=3, prototypes=12, hidden_width=16, bottleneck=8
)
SCALE = torch.tensor(10.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(pictures: int, views: int = 2, locals_: int = 3, seed: int = 0) -> Batch:
    row = torch.arange(pictures)
    return Batch(
        images_BV3HH=random(pictures, views, 3, SIDE, SIDE, seed=seed).float(),
        tokens_UL=torch.zeros(0, 12, dtype=torch.int64),
        text_ids_U=row[:0],
        pair_picture_P=row[:0],
        pair_text_P=row[:0],
        pair_set_P=row[:0],
        sample_ids_B=row,
        patch_order_BN=torch.arange(16).expand(pictures, 16),
        extras={
            "self_distillation/local": random(
                pictures, locals_, 3, LOCAL, LOCAL, seed=seed + 1
            ).float()
        },
    )


@pytest.fixture
def build(tiny_config: Plan, tiny_model: Any, tmp_path: Path) -> Callable[..., Any]:
    """(model, objective) with these settings, the same every time."""

    def make(settings: SelfDistillationSettings = SMALL) -> Any:
        torch.manual_seed(0)
        model = towers.build(tiny_model)
        config = tiny_config(tmp_path, tmp_path, self_distillation=settings)
        return model, sd.Objective(model, config)

    return make


def reference(
    teacher: np.ndarray, student: np.ndarray, centre: np.ndarray, t_t: float, t_s: float
) -> list[float]:
    """Picture by picture, pair of views by pair of views, prototype by prototype."""
    losses = []
    for b in range(len(teacher)):
        pairs = []
        for g_t in teacher[b]:
            for g_s in student[b]:
                p_t = [math.exp((g - c) / t_t) for g, c in zip(g_t, centre, strict=True)]
                p_s = [math.exp(g / t_s) for g in g_s]
                cross = [
                    p / sum(p_t) * math.log(q / sum(p_s)) for p, q in zip(p_t, p_s, strict=True)
                ]
                pairs.append(-sum(cross))
        losses.append(sum(pairs) / len(pairs))
    return losses


def test_the_loss_equals_its_formula() -> None:
    teacher, student, centre = random(3, 2, 5), random(3, 4, 5, seed=1), random(5, seed=2)
    found = sd.distillation_loss(sd.teacher_answer(teacher, centre, 0.3), student, 0.7)
    expected = reference(teacher.numpy(), student.numpy(), centre.numpy(), 0.3, 0.7)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_gradient() -> None:
    answer = random(2, 2, 4).softmax(dim=-1)
    student = random(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sd.distillation_loss(answer, s, 0.5), student)


def test_logits_are_cosines_whatever_the_length_of_a_prototype() -> None:
    head = sd.Head(6, SMALL)
    embedding = random(2, 3, 6).float()
    before = head(embedding)
    with torch.no_grad():
        head.prototypes_KZ.mul_(random(12, 1).abs() + 0.1)
    assert torch.allclose(before, head(embedding), atol=1e-6)
    assert before.shape == (2, 3, 12)
    assert before.abs().max() <= 1 + 1e-6


def test_the_teacher_sees_global_views_and_the_student_local_ones(build: Any) -> None:
    model, objective = build()
    batch = batch_of(4)
    name = "self_distillation"
    whole = objective.encode(model, batch, {})
    other_locals = replace(batch, extras=batch_of(4, seed=7).extras)
    moved = objective.encode(model, other_locals, {})
    assert torch.equal(whole[f"{name}/logits"], moved[f"{name}/logits"])
    assert not torch.allclose(whole[f"{name}/loss"], moved[f"{name}/loss"])

    tower: list[torch.Size] = []
    hook = model.visual.register_forward_pre_hook(lambda _, x: tower.append(x[0].shape))
    objective.encode(model, replace(batch, images_BV3HH=batch_of(4, seed=9).images_BV3HH), {})
    hook.remove()
    assert [shape[0] for shape in tower] in ([12], [])  # 4 x 3 local views, no global one

    objective.loss(whole, batch, SCALE, ALONE).loss.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is None for p in objective.teacher_head.parameters())
    assert model.visual.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in objective.head.parameters())


def test_the_objectives_own_loss_equals_the_formula_on_its_logits(build: Any) -> None:
    model, objective = build()
    batch = batch_of(3)
    objective.centre_K.copy_(random(12, seed=5) / 10)
    found = objective.loss(objective.encode(model, batch, {}), batch, SCALE, ALONE)
    with torch.no_grad():
        teacher = objective.head(towers.encode_image(model, batch.images_BV3HH.flatten(0, 1)))
        local = batch.extras["self_distillation/local"]
        student = objective.head(towers.encode_image(model, local.flatten(0, 1)))
    expected = reference(
        teacher.view(3, 2, 12).double().numpy(),
        student.view(3, 3, 12).double().numpy(),
        objective.centre_K.double().numpy(),
        0.04,
        0.1,
    )
    assert found.loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    answer = ((teacher.view(3, 2, 12) - objective.centre_K) / 0.04).softmax(-1)
    own = -(answer * answer.log()).sum(-1).mean().item()
    mean = answer.mean(dim=(0, 1))
    assert found.logged["teacher_entropy"].item() == pytest.approx(own, rel=1e-4)
    assert found.logged["kl"].item() == pytest.approx(np.mean(expected) - own, rel=1e-4)
    assert found.logged["batch_entropy"].item() == pytest.approx(
        -(mean * mean.log()).sum().item(), rel=1e-4
    )


def test_parts_of_a_batch_give_the_features_of_the_whole(build: Any) -> None:
    model, objective = build()
    batch = batch_of(5)
    whole = objective.encode(model, batch, {})
    parts = [objective.encode(model, batch.part(i, 2), {}) for i in range(2)]
    for name, value in whole.items():
        assert torch.allclose(value, torch.cat([part[name] for part in parts]), atol=1e-6), name


def test_after_a_step_teacher_and_centre_move_once(build: Any) -> None:
    model, objective = build()
    batch = batch_of(4)
    old = copy.deepcopy(objective.teacher)
    with torch.no_grad():
        for parameter in (*model.visual.parameters(), *objective.head.parameters()):
            parameter.add_(0.1)
    features = objective.encode(model, batch, {})
    for _ in range(2):  # an accumulated step asks for the loss twice
        objective.loss(features, batch, SCALE, ALONE)
    assert not objective.centre_K.any()
    objective.after_step(model, 0.5)
    mean = features["self_distillation/logits"].mean(dim=0)
    assert torch.allclose(objective.centre_K, 0.1 * mean, atol=1e-7)
    students = model.visual.parameters()
    for before, teacher, student in zip(
        old.parameters(), objective.teacher.parameters(), students, strict=True
    ):
        assert torch.allclose(teacher, 0.966 * before + 0.034 * student, atol=1e-6)

    centre = objective.centre_K.clone()
    before = objective.teacher.conv1.weight.clone()
    objective.after_step(model, 0.6)  # the weight was 0: nothing was encoded
    assert torch.equal(objective.centre_K, centre)
    assert int(objective.steps) == 1
    assert not torch.equal(objective.teacher.conv1.weight, before)


def test_the_teacher_stays_out_of_training_mode(build: Any) -> None:
    _, objective = build()
    objective.train()
    assert objective.head.training
    assert not any(module.training for module in objective.teacher.modules())


def _steps(build: Any, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Two steps on this rank's share; averaged loss and gradients, and the centre."""
    model, objective = build()
    group = Group(rank=rank, world=world)
    for seed in (0, 3):
        batch = batch_of(6, seed=seed).part(rank, world)
        model.zero_grad()
        objective.zero_grad()
        found = objective.loss(objective.encode(model, batch, {}), batch, SCALE, group)
        found.loss.backward()
        objective.after_step(model, 0.5)
    values = {"loss": found.loss.detach(), "centre": objective.centre_K, **found.logged}
    for name, parameter in (*model.visual.named_parameters(), *objective.head.named_parameters()):
        if parameter.grad is not None:
            values[f"gradient {name}"] = parameter.grad
    for name, value in values.items():
        if world > 1 and name != "centre":
            dist.all_reduce(value)
            values[name] = value / world
    return values


def _one_of_two(rank: int, build: Any, folder: Path) -> None:
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(_steps(build, rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(build: Any, tmp_path: Path) -> None:
    mp.start_processes(_one_of_two, (build, tmp_path), nprocs=2, start_method="fork")
    one = _steps(build, 0, 1)
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.allclose(value, two[name], atol=1e-5), name
    assert one["centre"].any()


def requests(rows: list[int], pixels: np.ndarray | None, epoch: int = 0) -> Request:
    row_B, epoch_B = np.array(rows), np.full(len(rows), epoch)
    return Request(
        row_B=row_B,
        epoch_B=epoch_B,
        draws=Draws(0, row_B, epoch_B),
        pixels_BSS3=pixels,
        theta_BV23=torch.eye(2, 3).expand(len(rows), 1, 2, 3),
        texts_P=[],
        pair_picture_P=row_B[:0],
    )


def ramps(pictures: int, side: int = 64) -> np.ndarray:
    """Red rises from left to right, green from top to bottom."""
    across = np.broadcast_to(np.linspace(0, 255, side), (side, side))
    picture = np.stack([across, across.T, 0 * across], axis=-1).astype(np.uint8)
    return np.repeat(picture[None], pictures, axis=0)


def test_local_views_are_small_crops_that_depend_on_sample_and_epoch(
    tiny_config: Plan, tmp_path: Path
) -> None:
    settings = replace(SMALL, local_area=(0.05, 0.4), local_size=32)
    config = tiny_config(tmp_path, tmp_path, self_distillation=settings)
    make = sd.Objective.extras(config, None)  # type: ignore[arg-type]
    assert isinstance(make, sd.Locals)
    make = pickle.loads(pickle.dumps(replace(make, mean_std=((0.0,) * 3, (1.0,) * 3))))
    rows = list(range(40))
    views = make(requests(rows, ramps(40)))["self_distillation/local"]
    assert views.shape == (40, 3, 3, 32, 32)
    across = views[:, :, 0].amax(dim=(2, 3)) - views[:, :, 0].amin(dim=(2, 3))
    down = views[:, :, 1].amax(dim=(2, 3)) - views[:, :, 1].amin(dim=(2, 3))
    area = across * down  # of the crop, but for half a pixel at its edges
    assert area.max() < 0.42
    assert area.min() > 0.03
    assert area.std() > 0.05

    alone = make(requests([7], ramps(1)))["self_distillation/local"]
    assert torch.equal(alone[0], views[7])
    later = make(requests([7], ramps(1), epoch=1))["self_distillation/local"]
    assert not torch.allclose(later, alone)
    assert (views[:, :, 0, 0, 0] < views[:, :, 0, 0, -1]).all()  # none is mirrored

    mirrored = replace(config, augmentation=Augmentation(flip=True))
    make = sd.Objective.extras(mirrored, None)  # type: ignore[arg-type,assignment]
    views = make(requests(rows, ramps(40)))["self_distillation/local"]
    share = (views[:, :, 0, 0, 0] > views[:, :, 0, 0, -1]).float().mean()
    assert 0.2 < share < 0.8


def test_local_views_are_normalised_as_the_main_ones(tiny_config: Plan, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, self_distillation=SMALL)
    make = sd.Objective.extras(config, None)  # type: ignore[arg-type]
    assert make is not None
    white = np.full((1, 20, 20, 3), 255, np.uint8)
    views = make(requests([0], white))["self_distillation/local"]
    expected = (1 - torch.tensor(sd.CLIP_MEAN_STD[0])) / torch.tensor(sd.CLIP_MEAN_STD[1])
    assert torch.allclose(views, expected.view(3, 1, 1).expand_as(views), atol=1e-5)


def test_no_stored_pictures_is_the_users_fault(tiny_config: Plan, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, self_distillation=SMALL)
    make = sd.Objective.extras(config, None)  # type: ignore[arg-type]
    assert make is not None
    with pytest.raises(CapwrightError, match="crops local views from the stored pictures"):
        make(requests([0], None))


def train(
    build: Any, settings: SelfDistillationSettings, learning_rate: float = 1e-2
) -> tuple[Any, dict[str, float], dict[str, float]]:
    """Pictures of four colours, local views of the same colour: first and last answers."""
    model, objective = build(settings)
    model.train()
    parameters = [*model.visual.parameters(), *objective.head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    logged: list[dict[str, float]] = []
    paint = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [2, 2, -1]])
    colour = paint.repeat(2, 1).view(8, 1, 3, 1, 1)
    for step in range(STEPS):
        batch = batch_of(8, views=1, locals_=2, seed=2 * step)
        local = batch.extras["self_distillation/local"]
        batch = replace(
            batch,
            images_BV3HH=0.3 * batch.images_BV3HH + colour,
            extras={"self_distillation/local": 0.3 * local + colour},
        )
        found = objective.loss(objective.encode(model, batch, {}), batch, SCALE, ALONE)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        objective.after_step(model, step / STEPS)
        logged.append({name: float(value) for name, value in found.logged.items()})
    first, last = (
        {name: sum(row[name] for row in rows) / len(rows) for name in found.logged}
        for rows in (logged[:5], logged[-5:])
    )
    return objective, first, last


STEPS = 60
TOY = replace(SMALL, momentum=0.9, alarm_after_steps=20)


def test_it_learns_without_an_alarm(build: Any) -> None:
    objective, _, last = train(build, TOY, 3e-3)
    assert objective.alarm(last) == ""
    information = last["batch_entropy"] - last["teacher_entropy"]
    assert information > 0.5, last  # of log 4 nats, the colours


def test_without_centring_one_prototype_wins_and_the_alarm_says_so(build: Any) -> None:
    objective, first, last = train(build, replace(TOY, centre_momentum=1.0))
    assert objective.alarm(first) == ""
    assert "collapsed to one prototype" in objective.alarm(last), last
    objective.steps.fill_(19)
    assert objective.alarm(last) == ""


def test_without_sharpening_answers_become_uniform_and_the_alarm_says_so(build: Any) -> None:
    objective, first, last = train(build, replace(TOY, teacher_temperature=0.3, momentum=0.5))
    assert objective.alarm(first) == "", first
    assert "collapsed to uniform answers" in objective.alarm(last), last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.5}, r"momentum is 1.5: it must be from 0 to 1"),
        ({"teacher_temperature": 0.0}, r"teacher_temperature is 0.0: it must be above 0"),
        ({"local_views": 0}, r"local_views is 0: it must be 1 or more"),
        ({"prototypes": 1}, r"prototypes is 1: it must be 2 or more"),
        ({"local_size": 0}, r"local_size is 0: give pixels a side, or null"),
        ({"local_area": (0.5, 0.4)}, r"local_area is \(0.5, 0.4\): two shares"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=rf"self_distillation\.{message}"):
        SelfDistillationSettings(**changes)


def test_local_views_that_the_tower_cannot_see(
    build: Any, tiny_config: Plan, tmp_path: Path
) -> None:
    with pytest.raises(
        CapwrightError, match=r"self_distillation.local_size is 3: .*multiples of 4"
    ):
        build(replace(SMALL, local_size=3))
    config = tiny_config(tmp_path, tmp_path, image_size=256)
    assert sd.local_size(config) == 96
    assert sd.local_size(replace(config, self_distillation=SMALL)) == LOCAL
    assert sd.Objective.views(config) == 2
