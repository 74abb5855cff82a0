"""Two processes: wholes and shards train as one process does, and continue each other's runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from capwright.pretrain import checkpoint, distributed, engine, parallel
from capwright.pretrain.config import (
    NonContrastiveSettings,
    PretrainConfig,
    Sampling,
    SelfDistillationSettings,
)
from capwright.pretrain.distributed import Group

Plan = Callable[..., PretrainConfig]
WEIGHTS = "open_clip_model.safetensors"
BOTH = {
    "sampling": Sampling(mode="both"),
    "objectives": {"contrastive": 1.0, "masked_autoencoder": ((0.5, 0.0), (0.5, 1.0))},
    "ema": 0.9,
}


def join(rank: int, world: int, meeting: Path) -> Group:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    return Group(rank=rank, world=world)


def _train(rank: int, world: int, config: PretrainConfig, meeting: Path, stop: int) -> None:
    join(rank, world, meeting)
    step = engine._Run._step

    def dying(self: engine._Run, number: int, *rest: Any, **options: Any) -> dict[str, float]:
        if stop and number * config.batch_size >= stop:
            raise KeyboardInterrupt
        return step(self, number, *rest, **options)

    engine._Run._step = dying  # type: ignore[method-assign]
    try:
        engine.run(config)
    except KeyboardInterrupt:
        pass
    finally:
        torch.distributed.destroy_process_group()


def train(config: PretrainConfig, world: int, meeting: Path, stop: int = 0) -> Path:
    """Run in `world` processes; returns the last checkpoint."""
    mp.start_processes(_train, (world, config, meeting, stop), nprocs=world, start_method="fork")
    return checkpoint.find(config.out / "checkpoints")[-1]


def assert_alike(one: Path, other: Path) -> None:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-5, rtol=0), name


@pytest.fixture(scope="module")
def alone(work: Path, tmp_path_factory: pytest.TempPathFactory, tiny_config: Plan) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    return train(tiny_config(work, folder / "run", **BOTH), 1, folder / "meeting")


@pytest.mark.parametrize(
    "changes",
    [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"parallel": "fsdp", "accumulation": 2},
     {"parallel": "ddp", "accumulation": 2}],
    ids=str,
)  # fmt: skip
def test_two_processes_train_as_one(
    changes: dict[str, Any], alone: Path, work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    """Caption sets of uneven size, an objective that begins late, averaged weights."""
    config = tiny_config(work, tmp_path / "run", **BOTH, **changes)
    assert_alike(alone, train(config, 2, tmp_path / "meeting"))


@pytest.mark.parametrize(
    ("first", "then"), [((2, "fsdp"), (1, "ddp")), ((1, "ddp"), (2, "fsdp"))], ids=str
)
def test_a_run_goes_on_with_another_number_of_processes(
    first: tuple[int, str],
    then: tuple[int, str],
    alone: Path,
    work: Path,
    tmp_path: Path,
    tiny_config: Plan,
) -> None:
    config = tiny_config(work, tmp_path / "run", **BOTH, parallel=first[1])
    assert train(config, first[0], tmp_path / "one", stop=24).name == "samples_000000016"
    config = replace(config, parallel=then[1])
    assert_alike(alone, train(config, then[0], tmp_path / "other"))
    lines = [json.loads(x) for x in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples_seen"] for line in lines] == [8, 16, 24, 32, 40, 48]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_moving_teacher_is_sharded_with_its_student(
    mode: str, work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    vision = {"timm_model_name": "capwright_vit_nano_s8", "image_size": 16}
    changes: dict[str, Any] = {
        "objectives": {"contrastive": 1.0, "self_distillation": 1.0},
        "self_distillation": SelfDistillationSettings(
            prototypes=24, hidden_width=16, bottleneck=8, local_views=2, local_size=8
        ),
        "model": {**TORCHRUN_MODEL, "vision_cfg": vision},
        "samples": 24,
    }
    one = train(tiny_config(work, tmp_path / "one", **changes), 1, tmp_path / "a")
    two = train(tiny_config(work, tmp_path / "two", parallel=mode, **changes), 2, tmp_path / "b")
    assert_alike(one, two)


def test_stages_of_blocks_are_sharded(work: Path, tmp_path: Path, tiny_config: Plan) -> None:
    """Blocks inside of stages, with batch norms: shards train as wholes do."""
    vision = {"timm_model_name": "capwright_mci_nano_s8", "image_size": 16}
    changes: dict[str, Any] = {
        "model": {**TORCHRUN_MODEL, "vision_cfg": vision},
        "patch_dropout": 0.0,
        "samples": 16,
    }
    whole = train(tiny_config(work, tmp_path / "ddp", **changes), 2, tmp_path / "a")
    cut = train(tiny_config(work, tmp_path / "fsdp", parallel="fsdp", **changes), 2, tmp_path / "b")
    assert_alike(whole, cut)


def test_a_bias_that_the_loss_does_not_read(
    work: Path, tmp_path: Path, tiny_config: Plan, tiny_model: dict[str, Any]
) -> None:
    model = {**tiny_model, "init_logit_bias": -10.0}
    made = train(tiny_config(work, tmp_path / "run", model=model, samples=16), 2, tmp_path / "a")
    assert load_file(made / WEIGHTS)["logit_bias"] == -10.0


def _statistics(rank: int, meeting: Path, mode: Literal["ddp", "fsdp"]) -> None:
    group = join(rank, 2, meeting)
    norm = torch.nn.BatchNorm1d(3, momentum=0.5)
    wrapped = parallel.wrap(norm, mode, group)
    for step in range(2):  # the means are 0 and 1, then 2 and 3
        wrapped(torch.full((4, 3), 2.0 * step + rank)).sum().backward()
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0.5 * (2.0 + rank)] * 3  # from 0, what the first had
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_running_statistics_go_on_from_the_first_process(mode: str, tmp_path: Path) -> None:
    mp.start_processes(_statistics, (tmp_path / "meeting", mode), nprocs=2, start_method="fork")


def _collectives(rank: int, meeting: Path) -> None:
    group = join(rank, 2, meeting)
    rows = torch.arange(6.0).view(3, 2)[rank:].requires_grad_()  # three rows and two
    together = distributed.gather_uneven(rows, group)
    assert together.tolist() == [[0, 1], [2, 3], [4, 5], [2, 3], [4, 5]]
    (together[:, 0] * torch.tensor([1.0, 2, 3, 4, 5])).sum().backward()
    assert rows.grad is not None
    # both ranks feel all rows, so that the mean over ranks of the gradient is the whole's
    assert rows.grad[:, 0].tolist() == ([2, 4, 6] if rank == 0 else [8, 10])
    rows.grad = None
    mean = distributed.mean_over(rows, group)
    assert torch.allclose(mean, torch.tensor([12 / 5, 17 / 5]))
    mean.sum().backward()
    assert torch.allclose(rows.grad, torch.full_like(rows, 2 / 5))
    values = distributed.averages({"a": torch.tensor(float(rank)), "b": torch.ones(())}, group)
    assert values == {"a": 0.5, "b": 1.0}
    torch.distributed.destroy_process_group()


def test_what_ranks_exchange_keeps_its_gradient(tmp_path: Path) -> None:
    mp.start_processes(_collectives, (tmp_path / "meeting",), nprocs=2, start_method="fork")


def test_uneven_ranks_in_a_batch_that_mixes_them(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    """All captions of a picture as positives: ranks have different numbers of pairs."""
    changes: dict[str, Any] = {
        "sampling": Sampling(mode="multi_positive"),
        "objectives": {"multi_positive": 1.0, "non_contrastive": 0.5},
        "non_contrastive": NonContrastiveSettings(prototypes=8, hidden_width=16),
    }
    one = train(tiny_config(work, tmp_path / "one", **changes), 1, tmp_path / "a")
    two = train(tiny_config(work, tmp_path / "two", **changes), 2, tmp_path / "b")
    assert_alike(one, two)


@pytest.mark.slow
def test_torchrun_with_one_shard_two_ranks_and_two_workers_each(work: Path, tmp_path: Path) -> None:
    """More workers than shards cannot hang it; SIGTERM ends it with a checkpoint."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from pathlib import Path\n"
        "from capwright.pretrain.config import PretrainConfig\n"
        f"MODEL = {json.dumps(TORCHRUN_MODEL)}\n"
        "def config():\n"
        f"    return PretrainConfig(out=Path({str(tmp_path / 'run')!r}), work=Path({str(work)!r}),"
        " model=MODEL, image_size=16, batch_size=8, samples=80_000, warmup_samples=8, threads=1,"
        " vocabulary_min_count=1, loader_workers=2, checkpoint_samples=80_000)\n"
    )
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "capwright", "pretrain", str(recipe),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    began = time.monotonic()
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() - began < 120
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert "stopped by SIGTERM at" in said, said[-3000:]
    (last,) = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert last.name in said


TORCHRUN_MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
