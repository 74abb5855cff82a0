"""What is made ready for many processes: batch norms over all of them, and what trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.pretrain import distributed
from capwright.pretrain.config import ContrastiveSettings, PretrainConfig
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.prepare import claim_inputs, prepare
from capwright.pretrain.task import Task

Plan = Callable[..., PretrainConfig]


def test_shared_batch_norms_keep_their_activations(
    work: Path,
    tmp_path: Path,
    tiny_config: Plan,
    tiny_model: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "barrier", lambda group: None)
    vision = {
        "timm_model_name": "test_efficientnet",
        "image_size": 16,
    }  # its norms have activations
    model = {**tiny_model, "vision_cfg": vision}
    config = tiny_config(work, tmp_path, model=model, patch_dropout=0.0, sync_batchnorm=True)
    inputs = claim_inputs(config, ALONE)
    made = [prepare(config, *inputs, group).task.eval() for group in (ALONE, Group(world=2))]
    norms = [m for m in made[1].modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, shared = (towers.encode_image(task.model, images) for task in made)
    assert torch.equal(own, shared)


def test_processes_on_a_cpu_cannot_share_batch_norms(
    work: Path, tmp_path: Path, tiny_config: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_config(work, tmp_path / "run", sync_batchnorm=True)
    message = "sync_batchnorm is True, which 2 processes on a CPU cannot do: set sync_batchnorm=Fal"
    with pytest.raises(CapwrightError, match=message):
        claim_inputs(config, Group(world=2))
    assert not config.out.exists()  # so that it may have another plan


@pytest.mark.parametrize(
    ("changes", "trains"),
    [
        ({"contrastive": ContrastiveSettings(form="sigmoid")}, True),
        ({}, False),
        (
            {
                "contrastive": ContrastiveSettings(form="sigmoid"),
                "objectives": {"multi_positive": 1.0},
            },
            False,
        ),
    ],
    ids=["sigmoid", "softmax", "without"],
)
def test_the_bias_trains_where_a_loss_reads_it(
    changes: dict[str, Any],
    trains: bool,
    tmp_path: Path,
    tiny_config: Plan,
    tiny_model: dict[str, Any],
) -> None:
    model = towers.build({**tiny_model, "init_logit_bias": -10.0})
    Task(model, tiny_config(tmp_path, tmp_path, **changes))
    assert model.logit_bias.requires_grad == trains
    assert model.logit_scale.requires_grad


@pytest.mark.parametrize(
    ("names", "trains"),
    [
        (("contrastive",), True),
        (("multi_positive",), True),
        (("non_contrastive",), False),
        (("non_contrastive", "contrastive"), True),
        (("captioning",), False),
    ],
)
def test_the_scale_trains_where_a_loss_reads_it(
    names: tuple[str, ...],
    trains: bool,
    tmp_path: Path,
    tiny_config: Plan,
    tiny_model: dict[str, Any],
) -> None:
    model = towers.build(tiny_model)
    Task(model, tiny_config(tmp_path, tmp_path, objectives=dict.fromkeys(names, 1.0)))
    assert model.logit_scale.requires_grad == trains
