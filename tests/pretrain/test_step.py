"""One step: in parts as at once, for every objective; scaling, clipping, weights of 0."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.pretrain import parallel
from capwright.pretrain.config import (
    CaptionSource,
    ContrastiveSettings,
    NonContrastiveSettings,
    PretrainConfig,
    Sampling,
    SelfDistillationSettings,
)
from capwright.pretrain.distributed import ALONE
from capwright.pretrain.prepare import Prepared, claim_inputs, prepare
from capwright.pretrain.step import LEAST_SCALE, Stepper, scaler_for, unmoved_statistics

Plan = Callable[..., PretrainConfig]

COMBINATIONS: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "sigmoid": {"contrastive": ContrastiveSettings(form="sigmoid")},
    "both": {"sampling": Sampling(mode="both")},
    "multi_positive": {
        "objectives": {"multi_positive": 1.0},
        "sampling": Sampling(mode="multi_positive"),
    },
    "masked_autoencoder": {"objectives": {"contrastive": 1.0, "masked_autoencoder": 0.5}},
    "captioning": {"objectives": {"contrastive": 1.0, "captioning": 0.5}},
    "self_distillation": {
        "objectives": {"contrastive": 1.0, "self_distillation": 1.0},
        "self_distillation": SelfDistillationSettings(
            prototypes=24, hidden_width=16, bottleneck=8, local_views=2, local_size=8
        ),
        "model": "vit",
    },
    "non_contrastive": {
        "objectives": {"contrastive": 0.3, "non_contrastive": 0.7},
        "non_contrastive": NonContrastiveSettings(prototypes=8, hidden_width=16),
    },
    "all": {
        "objectives": {"contrastive": 0.3, "non_contrastive": 0.7, "masked_autoencoder": 1.0},
        "non_contrastive": NonContrastiveSettings(prototypes=8, hidden_width=16),
    },
}


def ready(config: PretrainConfig) -> Prepared:
    index, sampler = claim_inputs(config, ALONE)
    return prepare(config, index, sampler, ALONE)


def stepper(prepared: Prepared, parts: int = 1) -> Stepper:
    parameters = [p for p in prepared.task.parameters() if p.requires_grad]
    return Stepper(
        task=prepared.task,
        optimizer=torch.optim.SGD(parameters, lr=0.1),
        parameters=parameters,
        group=ALONE,
        device=prepared.device,
        precision="fp32",
        parts=parts,
        grad_clip=1.0,
        seed=0,
        scaler=scaler_for("fp32", prepared.device),
    )


def gradients(prepared: Prepared, parts: int, step: int = 1) -> tuple[float, dict[str, Any]]:
    task = prepared.task.train()
    values = stepper(prepared, parts).backward(prepared.batches[step])
    found = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    task.zero_grad(set_to_none=True)
    return float(values["loss"]), found


def models(name: Any, tiny_model: dict[str, Any]) -> Any:
    if name != "vit":
        return tiny_model
    vision = {"timm_model_name": "capwright_vit_nano_s8", "image_size": 16}
    return {**tiny_model, "vision_cfg": vision}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_in_parts_as_at_once(
    name: str, work: Path, tmp_path: Path, tiny_config: Plan, tiny_model: Any
) -> None:
    """Loss and gradients of 3 uneven parts are those of the whole batch, dropout included."""
    changes = dict(COMBINATIONS[name])
    changes["model"] = models(changes.get("model"), tiny_model)
    prepared = ready(tiny_config(work, tmp_path, **changes))
    before = {k: v.clone() for k, v in prepared.task.state_dict().items()}
    loss, whole = gradients(prepared, 1)
    prepared.task.load_state_dict(before)  # moving averages of the objective
    loss_in_parts, parts = gradients(prepared, 3)
    assert loss_in_parts == pytest.approx(loss, abs=1e-5)
    assert parts.keys() == whole.keys()
    for parameter, gradient in whole.items():
        off = (parts[parameter] - gradient).abs().max() / gradient.abs().max().clamp(min=1)
        assert off < 1e-5, parameter
    assert sum(float(g.abs().sum()) for g in whole.values()) > 0.1


def test_every_parameter_that_trains_gets_a_gradient(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    prepared = ready(tiny_config(work, tmp_path))
    _, found = gradients(prepared, 2)
    assert found.keys() == {n for n, p in prepared.task.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["masked_autoencoder", "captioning", "non_contrastive"])
def test_weight_zero_is_not_having_it(
    name: str, work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    """The control of every objective: with weight 0 the same bits as without."""
    plans = [{"contrastive": 1.0}, {name: 0.0, "contrastive": 1.0}]
    found = [
        gradients(ready(tiny_config(work, tmp_path / str(i), objectives=plan)), 1)
        for i, plan in enumerate(plans)
    ]
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.equal(found[0][1][k], found[1][1][k]) for k in found[0][1])


def test_an_objective_that_has_not_begun_changes_nothing(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    late = {"contrastive": 1.0, "masked_autoencoder": ((0.5, 0.0), (0.5, 1.0))}
    plans = [{"contrastive": 1.0}, late]
    prepared = [
        ready(tiny_config(work, tmp_path / str(i), objectives=plan)) for i, plan in enumerate(plans)
    ]
    early = [gradients(p, 1, step=2)[1] for p in prepared]
    assert early[0].keys() == early[1].keys()
    assert all(torch.equal(early[0][k], early[1][k]) for k in early[0])
    assert "objectives.masked_autoencoder.predict.weight" in gradients(prepared[1], 1, step=3)[1]


def test_batch_norms_do_not_count_the_pass_without_a_graph() -> None:
    norm = torch.nn.BatchNorm1d(3)
    with unmoved_statistics(norm):
        norm(torch.randn(8, 3) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    norm(torch.randn(8, 3) + 5)
    assert norm.running_mean.min() > 0.3


def test_a_long_gradient_is_scaled_to_the_norm() -> None:
    one, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    one.grad, other.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert parallel.clip([one, other], 10.0) == pytest.approx(5.0)
    assert one.grad.tolist() == [3.0, 0.0]
    assert parallel.clip([one, other], 1.0) == pytest.approx(5.0)
    assert torch.allclose(torch.cat([one.grad, other.grad]), torch.tensor([0.6, 0, 0, 0.8]))


def test_float16_scales_the_loss_and_skips_what_overflows(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    prepared = ready(tiny_config(work, tmp_path, patch_dropout=0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    half = replace(stepper(prepared, 2), precision="fp16", scaler=scaler)
    half.backward(prepared.batches[0])
    large = prepared.task.model.visual.proj.grad.clone()
    half.update()
    _, exact = gradients(ready(tiny_config(work, tmp_path / "exact", patch_dropout=0.0)), 1, step=0)
    assert torch.allclose(large / 2**10, exact["model.visual.proj"], atol=2e-3)

    weights = {n: p.detach().clone() for n, p in prepared.task.named_parameters()}
    overflow = replace(half, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**126))
    overflow.backward(prepared.batches[0])
    overflow.update()
    assert all(torch.equal(p, weights[n]) for n, p in prepared.task.named_parameters())


def test_a_gradient_that_is_not_finite_moves_nothing(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    prepared = ready(tiny_config(work, tmp_path))
    one = stepper(prepared)
    one.backward(prepared.batches[0])
    prepared.task.model.visual.proj.grad[0, 0] = torch.inf
    before = {n: p.detach().clone() for n, p in prepared.task.named_parameters()}
    assert not math.isfinite(one.update())
    assert all(torch.equal(p, before[n]) for n, p in prepared.task.named_parameters())


def test_float16_gives_up_where_no_scale_helps(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    prepared = ready(tiny_config(work, tmp_path, patch_dropout=0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=4 * LEAST_SCALE)
    half = replace(stepper(prepared), precision="fp16", scaler=scaler)
    for left in (2, 1):  # halved at each step
        half.backward(prepared.batches[0])
        prepared.task.model.visual.proj.grad[0, 0] = torch.nan
        half.update()
        assert scaler.get_scale() == pytest.approx(left * LEAST_SCALE)
    half.backward(prepared.batches[0])
    half.update()  # a good one at the last scale
    half.backward(prepared.batches[0])
    prepared.task.model.visual.proj.grad[0, 0] = torch.nan
    with pytest.raises(CapwrightError, match="not finite at any scale of the loss down to"):
        half.update()


def test_more_parts_than_captions_as_at_once(work: Path, tmp_path: Path, tiny_config: Plan) -> None:
    described = CaptionSource(name="d", folder=work / "captions" / "described", sources=("beam",))
    prepared = ready(tiny_config(work, tmp_path, captions=(described,)))
    assert len(prepared.batches[1].tokens_UL) < 8  # four colours
    loss, whole = gradients(prepared, 1)
    loss_in_parts, parts = gradients(prepared, 8)
    assert loss_in_parts == pytest.approx(loss, abs=1e-5)
    assert parts.keys() == whole.keys()
    assert all(torch.allclose(parts[k], whole[k], atol=1e-5) for k in whole)


@pytest.mark.parametrize("parts", [1, 2])
def test_activations_that_are_computed_twice_give_the_same_gradient(
    parts: int, work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    _, kept = gradients(ready(tiny_config(work, tmp_path / "kept")), parts)
    twice = ready(tiny_config(work, tmp_path / "twice", grad_checkpointing=True))
    assert twice.task.model.visual.transformer.grad_checkpointing
    _, found = gradients(twice, parts)
    assert found.keys() == kept.keys()
    assert all(torch.allclose(found[k], kept[k], atol=1e-5, rtol=1e-4) for k in kept)
