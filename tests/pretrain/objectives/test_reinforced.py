"""Reinforced training against the paper's formula in loops, and over parts and processes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

import tiny_teachers
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.experts import reinforce
from capwright.pretrain import engine
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.draws import Draws
from capwright.pretrain.objective import Request
from capwright.pretrain.objectives import contrastive, reinforced
from capwright.pretrain.objectives.reinforced import Objective, distillation_loss, slots
from capwright.pretrain.settings.reinforced import ReinforcedSettings
from capwright.pretrain.settings.sampling import CaptionSource, Sampling

SCALE = 7.0


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def softmax(logits: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in logits) for x in logits]


def divergence(
    image: Tensor, text: Tensor, teachers: list[tuple[Tensor, Tensor, float]], scale: float
) -> float:
    """L_distill of one set as the paper writes it, one probability at a time."""
    total, count = 0.0, len(image)
    for u, v, teacher_scale in teachers:
        for student, other, teacher, reference in ((image, text, u, v), (text, image, v, u)):
            for i in range(count):
                p = softmax([teacher_scale * float(teacher[i] @ y) for y in reference])
                q = softmax([scale * float(student[i] @ y) for y in other])
                total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return total / (2 * count * len(teachers))


def cross_entropy(image: Tensor, text: Tensor, ids: list[int], scale: float) -> float:
    """L_CLIP of one set; another sample with the same caption is no negative."""
    total = 0.0
    for one, other in ((image, text), (text, image)):
        for i in range(len(one)):
            left = [j for j in range(len(one)) if j == i or ids[j] != ids[i]]
            q = softmax([scale * float(one[i] @ other[j]) for j in left])
            total -= math.log(q[left.index(i)])
    return total / (2 * len(image))


def features(count: int = 4) -> dict[str, Tensor]:
    return {"image": 3 * unit(count, 1, 6, seed=1), "text": 2 * unit(2 * count - 1, 6, seed=2)}


def batch(count: int = 4) -> Batch:
    """Real captions 0 .. n-1 but for the last picture, which has that of the first; then synthetic
    ones for all. Two teachers of different widths.
    """
    text_P = [*range(count - 1), 0, *range(count - 1, 2 * count - 1)]
    image = torch.zeros(count, 1, 3, 4, 4)
    extras = {reinforced.KNOWN: torch.ones(count, dtype=torch.bool)}
    for k, width in enumerate((5, 3)):
        extras[f"{reinforced.IMAGE}{k:02d}"] = unit(count, width, seed=10 + k)
        extras[f"{reinforced.TEXT}{k:02d}"] = unit(count, 2, width, seed=20 + k)
    return Batch(
        images_BV3HH=image,
        tokens_UL=torch.arange(2 * count - 1)[:, None],
        text_ids_U=torch.arange(2 * count - 1) + 100,
        pair_picture_P=torch.arange(count).repeat(2),
        pair_text_P=torch.tensor(text_P),
        pair_set_P=torch.arange(2).repeat_interleave(count),
        sample_ids_B=torch.arange(count),
        patch_order_BN=torch.zeros(count, 1, dtype=torch.long),
        extras=extras,
        caption_sets=2,
    )


def objective(distillation: float, scales: tuple[float, ...] = (9.0, 5.0)) -> Objective:
    settings = ReinforcedSettings(distillation=distillation, teacher_scales=scales)
    config = PretrainConfig(out=Path("out"), work=Path("work"), reinforced=settings)
    return Objective(None, config)


def reference(found: dict[str, Tensor], this: Batch, share: float) -> float:
    """The whole loss for two sets and two teachers."""
    image = F.normalize(found["image"][:, 0], dim=-1)
    count, total = len(image), 0.0
    for s in range(2):
        rows = this.pair_text_P[s * count : (s + 1) * count]
        text = F.normalize(found["text"], dim=-1)[rows]
        teachers = [
            (this.extras[f"{reinforced.IMAGE}0{k}"], this.extras[f"{reinforced.TEXT}0{k}"][:, s], z)
            for k, z in enumerate((9.0, 5.0))
        ]
        total += (1 - share) * cross_entropy(image, text, rows.tolist(), SCALE)
        total += share * divergence(image, text, teachers, SCALE)
    return total / 2


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_the_loss_is_the_papers_formula(share: float) -> None:
    this, found = batch(), features()
    terms = objective(share).loss(found, this, torch.tensor(SCALE), ALONE)
    # the objective works in float32
    assert terms.loss.item() == pytest.approx(reference(found, this, share), rel=2e-5)
    names = {0.0: {"clip"}, 0.75: {"clip", "distill"}, 1.0: {"distill"}}[share]
    assert terms.logged.keys() == names


def test_the_distillation_is_the_papers_formula_in_float64() -> None:
    image, text = unit(5, 6, seed=1), unit(5, 6, seed=2)
    teachers = [
        (unit(5, 4, seed=3), unit(5, 4, seed=4), 100.0),
        (unit(5, 3, seed=5), unit(5, 3, seed=6), 60.0),
    ]
    found = distillation_loss(image, text, torch.tensor(SCALE, dtype=torch.float64), teachers)
    assert found.item() == pytest.approx(divergence(image, text, teachers, SCALE), abs=1e-10)
    one = [(image, text, SCALE)]  # a student that agrees
    assert distillation_loss(image, text, torch.tensor(SCALE, dtype=torch.float64), one).item() == (
        pytest.approx(0, abs=1e-12)
    )


def test_the_gradient_of_the_distillation() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    image, text = unit(3, 4, seed=3).requires_grad_(), unit(3, 4, seed=4).requires_grad_()
    teachers = [
        (unit(3, 5, seed=5), unit(3, 5, seed=6), 9.0),
        (unit(3, 2, seed=7), unit(3, 2, seed=8), 5.0),
    ]
    assert torch.autograd.gradcheck(
        lambda i, t, s: distillation_loss(i, t, s, teachers), (image, text, scale)
    )


def test_similarities_stay_in_fp32_where_the_run_is_in_bfloat16() -> None:
    image, text, scale = unit(5, 6, seed=1).float(), unit(5, 6, seed=2).float(), torch.tensor(50.0)
    teachers = [(unit(5, 4, seed=3).float(), unit(5, 4, seed=4).float(), 100.0)]
    expected = distillation_loss(image, text, scale, teachers)
    with torch.autocast("cpu", torch.bfloat16):
        assert (image @ text.T).dtype == torch.bfloat16
        assert torch.equal(distillation_loss(image, text, scale, teachers), expected)


def test_without_distillation_it_is_the_contrastive_loss(tmp_path: Path) -> None:
    this, found, scale = batch(), features(), torch.tensor(SCALE)
    config = PretrainConfig(out=tmp_path, work=tmp_path)
    expected = contrastive.Objective(None, config).loss(found, this, scale, ALONE).loss
    assert torch.equal(objective(0.0).loss(found, this, scale, ALONE).loss, expected)
    assert (
        Objective.extras(replace(config, reinforced=ReinforcedSettings(distillation=0)), None)
        is None
    )


def test_a_picture_that_no_teacher_saw_takes_no_part_in_the_distillation() -> None:
    this, found, scale = batch(), features(), torch.tensor(SCALE)
    known = torch.tensor([True, True, False, True])
    masked = replace(this, extras={**this.extras, reinforced.KNOWN: known})
    alone = objective(1.0).loss(found, masked, scale, ALONE).loss
    rows = known.nonzero()[:, 0]
    pairs = torch.cat([rows, rows + 4])
    without = replace(
        this, pair_picture_P=this.pair_picture_P[pairs], pair_text_P=this.pair_text_P[pairs],
        pair_set_P=this.pair_set_P[pairs],
    )  # fmt: skip
    assert torch.allclose(alone, objective(1.0).loss(found, without, scale, ALONE).loss)
    assert not torch.allclose(alone, objective(1.0).loss(found, this, scale, ALONE).loss)
    nobody = replace(this, extras={**this.extras, reinforced.KNOWN: torch.zeros(4).bool()})
    assert objective(1.0).loss(found, nobody, scale, ALONE).loss.item() == 0


def test_slots_count_the_pairs_of_a_picture() -> None:
    assert slots(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]
    assert slots(torch.zeros(0, dtype=torch.long)).tolist() == []


def _half(rank: int, world: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the image features of this rank's pictures (3 and 5, of 8)."""
    this, found = batch(8), features(8)
    rows = {1: [slice(0, 8)], 2: [slice(0, 3), slice(3, 8)]}[world][rank]
    mine = (this.pair_picture_P >= rows.start) & (this.pair_picture_P < rows.stop)
    this = replace(
        this,
        images_BV3HH=this.images_BV3HH[rows],
        pair_picture_P=this.pair_picture_P[mine] - rows.start,
        pair_text_P=this.pair_text_P[mine],
        pair_set_P=this.pair_set_P[mine],
        sample_ids_B=this.sample_ids_B[rows],
        extras={name: value[rows] for name, value in this.extras.items()},
    )
    image, text = found["image"][rows].requires_grad_(), found["text"].requires_grad_()
    group = Group(rank=rank, world=world)
    loss = (
        objective(0.75).loss({"image": image, "text": text}, this, torch.tensor(SCALE), group).loss
    )
    loss.backward()
    assert image.grad is not None
    return loss.detach(), image.grad / world


def _one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(_half(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.start_processes(_one_of_two, (tmp_path,), nprocs=2, start_method="fork")
    loss, gradient = _half(0, 1)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.allclose((halves[0][0] + halves[1][0]) / 2, loss, atol=1e-6)
    assert torch.allclose(torch.cat([half[1] for half in halves]), gradient, atol=1e-6)


# from here on the whole way: a corpus, teachers, the stage, and batches of a run


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reinforced")
    tiny_teachers.write_corpus(folder / "tars", folder / "work")
    teachers = tuple(
        tiny_teachers.teacher(folder / f"teacher{k}", seed=k, side=16, width=8 * (k + 1))
        for k in range(2)
    )
    reinforce.run(
        reinforce.ReinforceConfig(work=folder / "work", teachers=teachers, augmentations=3)
    )
    return folder / "work"


Plan = Callable[..., PretrainConfig]


@pytest.fixture
def plan(tiny_config: Plan, work: Path, tmp_path: Path) -> Plan:
    def make(**changes: Any) -> PretrainConfig:
        synthetic = CaptionSource(name="tiny", folder=work / "captions" / "describe-tiny")
        settings: dict[str, Any] = {
            "captions": (CaptionSource(name="alt"), synthetic),
            "sampling": Sampling(mode="both"),
            "objectives": {"reinforced": 1.0},
            "patch_dropout": 0.0,
        }
        return tiny_config(work, tmp_path / "out", **(settings | changes))

    return make


def request(rows: list[int], texts: list[str], pictures: list[int]) -> Request:
    row_B, epoch_B = np.array(rows), np.zeros(len(rows), np.int64)
    return Request(
        row_B=row_B,
        epoch_B=epoch_B,
        draws=Draws(3, row_B, epoch_B),
        pixels_BSS3=None,
        theta_BV23=torch.eye(2, 3).expand(len(rows), 1, 2, 3),
        texts_P=texts,
        pair_picture_P=np.array(pictures),
    )


def test_the_extra_brings_the_embeddings_of_the_drawn_view_and_of_each_caption(
    plan: Plan, work: Path
) -> None:
    index = load_index(work)
    extra = Objective.extras(plan(), index)
    assert extra is not None
    keys = index["key"].to_pylist()
    texts = [
        f"alt text {int(keys[4])}",
        f"a photo of picture {keys[4]}",
        f"alt text {int(keys[7])}",
    ]
    asked = request([4, 7], texts, [0, 0, 1])
    found = extra(asked)
    uniform = asked.draws.uniform("reinforced", 1)[:, 0]
    for b, row in enumerate((4, 7)):
        parts = extra.store.split(extra.store.image(row, uniform[b]))
        assert torch.equal(found["reinforced/image/00"][b], parts[0])
        assert torch.equal(found["reinforced/image/01"][b], parts[1])
    for (b, slot), row, text in zip([(0, 0), (0, 1), (1, 0)], (4, 4, 7), texts, strict=True):
        parts = extra.store.split(extra.store.text(row, text))
        assert torch.equal(found["reinforced/text/01"][b, slot], parts[1])
    assert not found["reinforced/text/00"][1, 1].any()
    assert found["reinforced/known"].all()
    with pytest.raises(CapwrightError, match=f"caption 'new' of picture {keys[7]}: reinforce with"):
        extra(request([4, 7], ["new"], [1]))


def test_view_and_embedding_of_a_sample_are_of_the_same_augmentation(
    plan: Plan, work: Path
) -> None:
    """The teacher, asked again about the pictures that the student is shown."""
    index, config = load_index(work), plan()
    extra, asked = Objective.extras(config, index), request([*range(12)], [], [])
    assert extra is not None
    views = Objective.view_maker(config, index)(asked.row_B, asked.draws)[:, 0]
    teacher = reinforce.Teacher(str(work.parent / "teacher0"), torch.device("cpu"), 8)
    bytes_ = (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    again, stored = teacher.images(bytes_), extra(asked)["reinforced/image/00"].float()
    assert torch.allclose(again, stored, atol=4e-3)
    assert not torch.allclose(again.roll(1, 0), stored, atol=4e-3)


@pytest.mark.parametrize("mode", ["both", "mix", "multi_positive"])
def test_parts_of_a_batch_have_the_loss_and_gradient_of_the_whole(plan: Plan, mode: Any) -> None:
    """The whole way of a run; six steps whose losses do not depend on the number of parts."""
    losses = []
    for accumulation in (1, 2):
        config = plan(sampling=Sampling(mode=mode), accumulation=accumulation)
        config = replace(config, out=config.out / str(accumulation))
        losses.append(engine.run(config).final_loss)
        assert losses[-1] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling": Sampling(mode="concat")},
            r"sampling\.mode=concat makes texts that no teacher",
        ),
        (
            {"sampling": Sampling(mode="both", sub_caption=0.5)},
            r"sampling\.sub_caption=0.5 makes texts that no teacher",
        ),
        (
            {"reinforced": ReinforcedSettings(teacher_scales=(1.0, 2.0, 3.0))},
            r"teacher_scales has 3 values, but 2 teachers are stored",
        ),
        (
            {"reinforced": ReinforcedSettings(stage="nothing")},
            r"nothing has no teachers' knowledge for 00000, 00001: run `capwright reinforce`",
        ),
    ],
)
def test_plans_that_do_not_fit_are_refused(
    plan: Plan, work: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapwrightError, match=message):
        Objective.extras(plan(**changes), load_index(work))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distillation": 1.5},
            r"reinforced\.distillation is 1.5: a share of the loss from 0 to 1",
        ),
        ({"teacher_scales": ()}, r"reinforced\.teacher_scales is \[\]: give one logit scale"),
        ({"teacher_scales": (70.0, 0.0)}, r"reinforced\.teacher_scales is \[70.0, 0.0\]"),
        ({"stage": ""}, r"reinforced\.stage is empty"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        ReinforcedSettings(**changes)
