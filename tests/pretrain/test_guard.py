"""What a run that stops says: of which samples, of gradients, and in one sentence from a loader."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from capwright.core.errors import CapwrightError
from capwright.pretrain import augmentation, engine, guard
from capwright.pretrain.batch import Batch
from capwright.pretrain.batches import Batches
from capwright.pretrain.config import CaptionSource, PretrainConfig
from capwright.pretrain.distributed import ALONE
from capwright.pretrain.prepare import Prepared, claim_inputs, prepare
from capwright.pretrain.step import Stepper

Plan = Callable[..., PretrainConfig]


def ready(config: PretrainConfig) -> Prepared:
    index, sampler = claim_inputs(config, ALONE)
    return prepare(config, index, sampler, ALONE)


def test_a_gradient_that_is_not_finite_blames_no_sample(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Plan
) -> None:
    """The loss is finite, and so are the features: the weights have not moved."""
    backward = Stepper.backward

    def spoil(self: Stepper, batch: Batch) -> dict[str, torch.Tensor]:
        values = backward(self, batch)
        gradient = self.parameters[0].grad
        assert gradient is not None
        gradient.view(-1)[0] = torch.nan
        return values

    monkeypatch.setattr(Stepper, "backward", spoil)
    with pytest.raises(CapwrightError) as raised:
        engine.run(tiny_config(work, tmp_path / "run"))
    assert "not finite at step 0: grad_norm nan; every sample has finite features" in str(
        raised.value
    )


def test_pixels_without_a_label_are_no_fault(work: Path, tmp_path: Path, tiny_config: Plan) -> None:
    prepared = ready(tiny_config(work, tmp_path))
    batch = prepared.batches[0]
    unknown = torch.full((8, 1, 4, 4), torch.nan)
    labelled = replace(batch, extras={"pseudo_labels.depth": unknown})
    assert guard.broken_samples(prepared.task, labelled, "fp32") == []
    other = torch.zeros(8, 3)
    other[5, 1] = torch.inf
    broken = replace(batch, extras={"pseudo_labels.depth": unknown, "reinforced/image/00": other})
    assert guard.broken_samples(prepared.task, broken, "fp32") == [int(batch.sample_ids_B[5])]


def _run(rank: int, config: PretrainConfig, folder: Path, spoilt: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    view = augmentation.view

    def spoil(images: torch.Tensor, theta: torch.Tensor, size: int) -> torch.Tensor:
        seen = view(images, theta, size)
        seen[2] = torch.nan
        return seen

    augmentation.view = spoil if spoilt else view
    try:
        engine.run(config)
        said = "finished"
    except CapwrightError as error:
        said = str(error)
    finally:
        torch.distributed.destroy_process_group()
    (folder / f"{rank}.txt").write_text(said)


def run_two(config: PretrainConfig, folder: Path, *, spoilt: bool) -> list[str]:
    """What either of two processes says in the end."""
    mp.start_processes(_run, (config, folder, spoilt), nprocs=2, start_method="fork")
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_every_process_names_the_samples_of_all(
    mode: str, work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    for said in run_two(tiny_config(work, tmp_path / "run", parallel=mode), tmp_path, spoilt=True):
        assert "not finite at step 0: loss nan" in said
        assert "it begins with 2 of its samples: 0" in said  # the third picture of either
    assert {p.name for p in (tmp_path / "run" / "failed_step").iterdir()} == {
        "rank_0.pt", "rank_1.pt",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_processes_with_fewer_captions_than_parts_wait_for_none(
    mode: str, work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    described = CaptionSource(name="d", folder=work / "captions" / "described", sources=("beam",))
    config = tiny_config(
        work,
        tmp_path / "run",
        captions=(described,),
        accumulation=4,
        parallel=mode,
        samples=16,
    )
    assert run_two(config, tmp_path, spoilt=False) == ["finished"] * 2


class Broken(Batches):
    """Batches of pictures that cannot be read."""

    def __getitem__(self, step: int) -> Batch:
        raise CapwrightError(f"the picture of step {step} cannot be decoded: index it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_is_its_sentence_alone(
    workers: int, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Plan
) -> None:
    config = tiny_config(work, tmp_path / "run", loader_workers=workers)
    prepared = ready(config)
    prepared.batches.__class__ = Broken

    def given(*_: Any) -> Prepared:
        return prepared

    monkeypatch.setattr(engine, "prepare", given)
    with pytest.raises(CapwrightError) as raised:
        engine.run(config)
    assert str(raised.value) == "the picture of step 0 cannot be decoded: index it again"
