"""CLIPTeX's losses against loops in float64, labels that follow their pictures, and ranks."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.multiprocessing
from safetensors import safe_open
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.pretrain import labels as store
from capwright.pretrain.augmentation import as_floats, crops, view
from capwright.pretrain.batch import Batch
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.draws import Draws
from capwright.pretrain.objective import Request
from capwright.pretrain.objectives import pseudo_labels as cliptex
from capwright.pretrain.settings.augmentation import Augmentation
from capwright.pretrain.settings.pseudo_labels import PseudoLabelsSettings
from expert_labels import label_corpus, write_labels

CLASSES, SIDE = 5, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(views: int, seed: int = 1) -> dict[str, Tensor]:
    """Labels with holes; the last view has none at all."""
    generator = torch.Generator().manual_seed(seed)
    seg = torch.randint(0, CLASSES, (views, SIDE, SIDE), generator=generator).to(torch.uint8)
    hole = torch.rand(views, SIDE, SIDE, generator=generator) < 0.3
    hole[-1] = True
    depth = random(views, SIDE, SIDE, seed=seed).masked_fill(hole, torch.nan).half()
    normals = torch.nn.functional.normalize(random(views, 3, SIDE, SIDE, seed=seed), dim=1) * 127
    normals = normals.round().to(torch.int8).masked_fill(hole[:, None], 0)
    return {"segmentation": seg.masked_fill(hole, 255), "depth": depth, "normals": normals}


def reference(task: str, pred: np.ndarray, label: np.ndarray) -> float | None:
    """One view's loss, pixel by pixel."""
    side = range(SIDE)
    if task == "segmentation":
        pixels = [(y, x) for y in side for x in side if label[y, x] != 255]
        each = [
            math.log(sum(math.exp(pred[c, y, x]) for c in range(CLASSES))) - pred[label[y, x], y, x]
            for y, x in pixels
        ]
    elif task == "normals":
        pixels = [(y, x) for y in side for x in side if any(label[:, y, x])]
        each = []
        for y, x in pixels:
            a, b = pred[:, y, x], label[:, y, x].astype(float)
            each.append(1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
    else:
        pixels = [(y, x) for y in side for x in side if not math.isnan(label[y, x])]
        values = [float(label[y, x]) for y, x in pixels]
        guesses = [float(pred[0, y, x]) for y, x in pixels]
        if task == "metric":
            d = [g - v for g, v in zip(guesses, values, strict=True)]
            each = [abs(x - 0.5 * sum(d) / len(d)) for x in d]
        elif values:
            middle = sorted(values)[(len(values) - 1) // 2]
            spread = sum(abs(v - middle) for v in values) / len(values)
            each = [abs(g - (v - middle) / spread) for g, v in zip(guesses, values, strict=True)]
        else:
            each = []
    return sum(each) / len(each) if each else None


LOSSES: dict[str, tuple[str, int, Callable[..., tuple[Tensor, Tensor]]]] = {
    "segmentation": ("segmentation", CLASSES, cliptex.segmentation_loss),
    "metric": ("depth", 1, lambda p, y: cliptex.metric_depth_loss(p, y, 0.5)),
    "relative": ("depth", 1, cliptex.relative_depth_loss),
    "normals": ("normals", 3, lambda p, y: cliptex.normals_loss(p, y, "cosine")),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_equals_a_loop_over_pixels(name: str) -> None:
    task, channels, loss_of = LOSSES[name]
    pred, label = random(4, channels, SIDE, SIDE, seed=3), some_labels(4)[task]
    loss, known = loss_of(pred, label)
    expected = [reference(name, p.numpy(), y.numpy()) for p, y in zip(pred, label, strict=True)]
    assert [value is not None for value in expected] == known.tolist() == [True] * 3 + [False]
    assert loss.tolist() == pytest.approx([value or 0.0 for value in expected], abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    task, channels, loss_of = LOSSES[name]
    pred = random(2, channels, SIDE, SIDE, seed=3).requires_grad_()
    label = some_labels(2)[task]  # the second view is without a label: its gradient is 0
    assert torch.autograd.gradcheck(lambda p: loss_of(p, label)[0], (pred,))
    loss_of(pred, label)[0].sum().backward()
    assert pred.grad is not None and not pred.grad[1].any() and pred.grad[0].any()


def test_the_angle_is_the_angle_and_its_gradient_is_finite_where_it_is_0() -> None:
    pred = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 1, 0]]).T.reshape(1, 3, 1, 3).requires_grad_()
    label = torch.tensor([[127, 0, 0]] * 3, dtype=torch.int8).T.reshape(1, 3, 1, 3)
    loss, _ = cliptex.normals_loss(pred, label, "angular")
    assert loss.item() == pytest.approx((0 + math.pi / 2 + math.pi / 4) / 3, abs=1e-3)
    loss.sum().backward()
    assert pred.grad is not None and pred.grad.isfinite().all()


def test_what_the_depth_losses_forgive() -> None:
    label = some_labels(2)["depth"][:1]
    pred = random(1, 1, SIDE, SIDE, seed=4)
    whole = cliptex.metric_depth_loss(pred, label, 1.0)[0]
    assert torch.allclose(whole, cliptex.metric_depth_loss(pred + 3, label, 1.0)[0])
    strict = cliptex.metric_depth_loss(pred, label, 0.0)[0]
    assert not torch.allclose(strict, cliptex.metric_depth_loss(pred + 3, label, 0.0)[0])
    relative = cliptex.relative_depth_loss(pred, label.double())[0]
    stretched = cliptex.relative_depth_loss(pred, label.double() * 7 - 2)[0]
    assert torch.allclose(relative, stretched)


def test_a_flat_view_of_relative_depth_gives_no_huge_targets() -> None:
    label = torch.full((1, SIDE, SIDE), 0.5).half()
    label[0, 0, 0] = 0.5005  # one step of float16
    loss, _ = cliptex.relative_depth_loss(torch.zeros(1, 1, SIDE, SIDE), label)
    assert loss.item() < 0.1


# ---- labels follow their pictures


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Blocks whose grey value is 40 times their class."""
    seg = np.kron(np.arange(16).reshape(4, 4) * 7 % 5, np.ones((8, 8), int)).astype(np.uint8)
    return seg, np.repeat((seg * 40)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("flip", [False, True])
def test_labels_stay_on_their_colours_under_all_augmentations(flip: bool) -> None:
    seg, pixels = scene()
    count, size = 64, 32
    rows = np.arange(count)
    theta = crops(Draws(0, rows, rows * 0), Augmentation(crop_area=(0.2, 1.0), flip=flip))
    assert bool((theta[:, 0, 0] < 0).any()) == flip
    images = as_floats(np.repeat(pixels[None], count, axis=0))
    colour = view(images, theta, size)[:, 0] * 255 / 40
    label = torch.from_numpy(np.repeat(seg[None], count, axis=0))
    seen = cliptex.view_labels(label, theta[:, None], size, 255)[:, 0]
    pure = (colour - colour.round()).abs() < 1e-3  # not a mixture at an edge
    # a mixture of classes 0 and 2 looks like class 1, so its neighbours must agree too
    inner = torch.nn.functional.max_pool2d(colour, 3, 1, 1) + torch.nn.functional.max_pool2d(
        -colour, 3, 1, 1
    )
    pure &= inner.abs() < 1e-3
    assert pure.float().mean() > 0.5
    assert torch.equal(seen[pure].float(), colour[pure].round())


def test_nearest_pixels_are_those_of_grid_sample_and_nothing_is_known_outside() -> None:
    rows = np.arange(8)
    theta = crops(Draws(1, rows, rows), Augmentation(crop_area=(0.3, 1.0), flip=True))
    theta[4:, :, 2] += 0.7  # beyond the picture
    label = torch.randint(0, 200, (8, 20, 20), generator=torch.Generator().manual_seed(0))
    where = torch.nn.functional.affine_grid(theta.double(), [8, 1, 11, 11], align_corners=False)
    expected = torch.nn.functional.grid_sample(
        label[:, None].double() + 1, where, mode="nearest", align_corners=False
    )[:, 0]  # 0 is outside
    seen = cliptex.view_labels(label.to(torch.uint8), theta[:, None], 11, 255)[:, 0]
    assert (expected == 0).any() and not (expected[:4] == 0).any()
    assert torch.equal(torch.where(expected == 0, 255, expected - 1), seen.double())


def request(theta_BV23: Tensor) -> Request:
    rows = np.arange(len(theta_BV23))
    return Request(
        row_B=rows,
        epoch_B=rows * 0,
        draws=Draws(0, rows, rows * 0),
        pixels_BSS3=None,
        theta_BV23=theta_BV23,
        texts_P=[],
        pair_picture_P=rows,
    )


IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
MIRROR = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])


def test_a_mirrored_view_has_its_labels_mirrored_and_its_normals_x_turned(tmp_path: Path) -> None:
    index = write_labels(tmp_path)
    loaded = store.load_labels(tmp_path / "captions" / "experts", index, tmp_path / "labels")
    extra = pickle.loads(pickle.dumps(cliptex.LabelViews(loaded, 4)))
    found = extra(request(torch.stack([IDENTITY, MIRROR]).expand(6, 2, 2, 3)))
    assert set(found) == {f"pseudo_labels.{task}" for task in store.TASKS}
    for task in ("segmentation", "depth"):
        straight, mirrored = found[f"pseudo_labels.{task}"].unbind(1)
        assert torch.equal(straight.flip(-1).nan_to_num(9), mirrored.nan_to_num(9))
    straight, mirrored = found["pseudo_labels.normals"].unbind(1)
    assert torch.equal(straight[:, 0].flip(-1), -mirrored[:, 0])
    assert torch.equal(straight[:, 1:].flip(-1), mirrored[:, 1:])
    assert straight[0, 0].any()


def test_a_crop_takes_the_depth_of_its_part(tmp_path: Path) -> None:
    index = write_labels(tmp_path)
    loaded = store.load_labels(tmp_path / "captions" / "experts", index, tmp_path / "labels")
    corner = torch.tensor([[0.5, 0, -0.5], [0, 0.5, -0.5]])  # the upper left quarter
    found = cliptex.LabelViews(loaded, 4)(request(corner.expand(6, 1, 2, 3)))
    whole = torch.from_numpy(loaded(np.arange(6))["depth"])
    enlarged = whole[:, :2, :2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    seen = found["pseudo_labels.depth"][:, 0]
    assert torch.equal(seen.nan_to_num(9), enlarged.nan_to_num(9))


# ---- the objective


@pytest.fixture
def made(tmp_path: Path, tiny_model: Any) -> Callable[..., cliptex.Objective]:
    from capwright.models import towers

    def make(**settings: Any) -> cliptex.Objective:
        write_labels(tmp_path)
        config = SimpleNamespace(
            work=tmp_path, image_size=16, pseudo_labels=PseudoLabelsSettings(
                hidden=4, label_size=SIDE, **settings
            ),
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cliptex.Objective(towers.build(tiny_model), config)  # type: ignore[arg-type]

    return make


def batch_of(labels: dict[str, Tensor]) -> Batch:
    """A batch of 4 pictures with 2 views each."""
    return Batch(
        images_BV3HH=torch.zeros(4, 2, 3, 16, 16),
        tokens_UL=torch.zeros(4, 1, dtype=torch.int64),
        text_ids_U=torch.arange(4),
        pair_picture_P=torch.arange(4),
        pair_text_P=torch.arange(4),
        pair_set_P=torch.zeros(4, dtype=torch.int64),
        sample_ids_B=torch.arange(4),
        patch_order_BN=torch.arange(16).repeat(4, 1),
        extras={f"pseudo_labels.{task}": v.unflatten(0, (4, 2)) for task, v in labels.items()},
    )


def one_loss(objective: cliptex.Objective, group: Group, parts: list[Batch]) -> Tensor:
    """Phase 1 in parts, phase 2 on all of them; a picture's patch map depends on its number."""
    map_BVDhw = random(4, 2, 16, 4, 4, seed=5).float()
    found = [objective.encode(None, p, {"patches": map_BVDhw[p.sample_ids_B]}) for p in parts]
    features = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return objective.loss(features, parts[0], torch.tensor(1.0), group).loss


def test_the_loss_is_the_weighted_sum_of_means_over_labelled_views(made: Any) -> None:
    objective = made(depth=0.5, normals=2.0)
    feats, labels = random(8, 16, 4, 4, seed=5).float(), some_labels(8)
    batch = batch_of(labels)
    features = objective.encode(None, batch, {"patches": feats.unflatten(0, (4, 2))})
    terms = objective.loss(features, batch, torch.tensor(1.0), ALONE)
    total = 0.0
    for task, weight in (("segmentation", 1.0), ("depth", 0.5), ("normals", 2.0)):
        pred = objective.heads[task](feats, SIDE).detach().double().numpy()
        name = "metric" if task == "depth" else task
        each = [reference(name, p, y.numpy()) for p, y in zip(pred, labels[task], strict=True)]
        known = [value for value in each if value is not None]
        assert len(known) == 7
        assert terms.logged[task].item() == pytest.approx(sum(known) / 7, abs=1e-4)
        assert terms.logged[f"{task}_labelled"].item() == pytest.approx(7 / 8)
        total += weight * sum(known) / 7
    assert terms.loss.item() == pytest.approx(total, abs=1e-3)


def test_two_parts_have_the_loss_and_gradients_of_the_whole(made: Any) -> None:
    whole, parted = made(), made()
    batch = batch_of(some_labels(8))
    loss = one_loss(whole, ALONE, [batch])
    other = one_loss(parted, ALONE, [batch.part(0, 2), batch.part(1, 2)])
    assert loss.item() == pytest.approx(other.item(), abs=1e-6)
    loss.backward()
    other.backward()
    for one, two in zip(whole.parameters(), parted.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-6)


def test_no_norm_mixes_pictures(made: Any) -> None:
    objective = made()
    assert not [m for m in objective.modules() if "Norm" in type(m).__name__]
    feats = random(3, 16, 4, 4).float()
    together = objective.heads["depth"](feats, SIDE)
    assert torch.allclose(together[1:2], objective.heads["depth"](feats[1:2], SIDE), atol=1e-6)


def test_a_batch_without_labels_costs_nothing(made: Any) -> None:
    objective = made()
    batch = batch_of({task: y[-1:].expand_as(y) for task, y in some_labels(8).items()})
    feats = random(4, 2, 16, 4, 4).float().requires_grad_()
    features = objective.encode(None, batch, {"patches": feats})
    loss = objective.loss(features, batch, torch.tensor(1.0), ALONE).loss
    loss.backward()
    assert loss.item() == 0 and feats.grad is not None and not feats.grad.any()
    assert all(p.grad is not None for p in objective.parameters())  # ranks agree on which have one


def _rank(rank: int, meeting: str, out: str, objective: cliptex.Objective) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    # pictures 0 and 1, or 2 and 3; the last one has a view without any label
    mine = batch_of(some_labels(8)).part(rank, 2)
    loss = one_loss(objective, Group(rank=rank, world=2), [mine])
    loss.backward()
    grads = [p.grad for p in objective.parameters()]
    torch.save((loss.detach(), grads), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(made: Any, tmp_path: Path) -> None:
    objective = made()
    torch.multiprocessing.spawn(
        _rank, args=(str(tmp_path / "meeting"), str(tmp_path), objective), nprocs=2
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = one_loss(objective, ALONE, [batch_of(some_labels(8))])
    alone.backward()
    assert (ranks[0][0] + ranks[1][0]).item() / 2 == pytest.approx(alone.item(), abs=1e-6)
    for parameter, one, other in zip(objective.parameters(), ranks[0][1], ranks[1][1], strict=True):
        assert parameter.grad is not None
        assert torch.allclose((one + other) / 2, parameter.grad, atol=1e-6)


# ---- a user's faults


def test_settings_are_checked() -> None:
    for wrong, said in (
        ({"depth": -1}, "pseudo_labels.depth is -1.0: a weight of 0 or more"),
        ({"label_size": 0}, "pseudo_labels.label_size is 0"),
        ({"scale_free": 2}, "pseudo_labels.scale_free is 2: a share from 0"),
        ({"normals_loss": "l1"}, "pseudo_labels.normals_loss is 'l1': cosine or angular"),
    ):
        with pytest.raises(CapwrightError, match=said):
            PseudoLabelsSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match="the weight 0 for segmentation, depth and normals"):
        _ = PseudoLabelsSettings(segmentation=0, depth=0, normals=0).tasks


@pytest.mark.slow
def test_a_run_learns_the_labels_and_its_checkpoint_has_no_heads(
    work: Path, tmp_path: Path, tiny_config: Any
) -> None:
    from capwright.pretrain import engine

    shutil.copytree(work, tmp_path / "work")
    label_corpus(tmp_path / "work")
    config = tiny_config(
        tmp_path / "work", tmp_path / "run", objectives={"contrastive": 1.0, "pseudo_labels": 1.0},
        pseudo_labels=PseudoLabelsSettings(normals=0, hidden=8, label_size=8),
        augmentation=Augmentation(flip=True), batch_size=8, samples=320, warmup_samples=16,
        learning_rate=1e-2, log_every_steps=1, accumulation=2,
    )  # fmt: skip
    summary = engine.run(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    losses = [v["pseudo_labels/segmentation"] for v in logged if "pseudo_labels/segmentation" in v]
    assert losses[0] > 1 and losses[-1] < 0.5
    open_clip.create_model_and_transforms(f"local-dir:{summary.checkpoint}")
    with safe_open(summary.checkpoint / "open_clip_model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "heads" in name]  # noqa: SIM118
