"""Towers on parameters that FSDP2 shards by block, on two processes with texts of other lengths."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from capwright.models import text_groups, towers

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2},
}
LENGTHS = ((3, 9, 5), (4, 4, 4))  # of the texts of either process: three groups, and one


class Both(nn.Module):
    """A task as the engine has it: hooks sit on its forward and on the blocks'."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = towers.build(CONFIG)
        self.model.set_grad_checkpointing(True)
        self.model.logit_scale.requires_grad_(False)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        image, patches = towers.embed_with_patches(self.model, images)
        local = towers.encode_image(self.model, images[..., :16, :16])
        text = towers.encode_text(self.model, tokens)
        return sum(x.square().mean() for x in (image, patches, local, text))  # type: ignore


def inputs(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randint(3, 48, (3, 16), generator=generator)
    for row, length in zip(tokens, LENGTHS[rank], strict=True):
        row[length - 1], row[length:] = 49, 0
    return torch.randn(3, 3, 48, 48, generator=generator), tokens


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    text_groups.GROUP_COST_CPU = 0
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    task, mesh = Both(), init_device_mesh("cpu", (2,))
    for tower in (task.model.visual, task.model.text):
        for block in tower.transformer.resblocks:
            fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh, ignored_params={task.model.logit_scale})
    task(*inputs(rank)).backward()
    gradients = {n: p.grad.full_tensor() for n, p in task.named_parameters() if p.grad is not None}
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_sharded_towers_are_those_of_whole_ones(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    task = Both()
    (sum(task(*inputs(rank)) for rank in (0, 1)) / 2).backward()
    expected = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, atol=1e-6), name
