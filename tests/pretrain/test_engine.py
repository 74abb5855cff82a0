"""Whole runs: what they write, how they go on, and that processes can share them."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.multiprocessing as mp
from open_clip_train.scheduler import cosine_lr
from safetensors.torch import load_file

import capwright.models as models
from capwright.core.errors import CapwrightError
from capwright.pretrain import augmentation, checkpoint, engine
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import Augmentation, CaptionSource, PretrainConfig
from capwright.pretrain.optimizer import build_optimizer, learning_rate

Plan = Callable[..., PretrainConfig]
WEIGHTS = "open_clip_model.safetensors"


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def stop_after(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """Die in the middle of the step after `samples`, checkpoints written so far stay."""
    step = engine._Run._step

    def dying(self: engine._Run, number: int, batch: Batch, **rest: Any) -> dict[str, float]:
        if number * self.config.batch_size >= samples:
            raise KeyboardInterrupt
        assert len(batch.sample_ids_B) == self.config.batch_size
        return step(self, number, batch, **rest)

    monkeypatch.setattr(engine._Run, "_step", dying)


@pytest.fixture(scope="module")
def finished(work: Path, tmp_path_factory: pytest.TempPathFactory, tiny_config: Plan) -> Path:
    """Run folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    summary = engine.run(tiny_config(work, out))
    assert summary.samples_seen == 48
    assert summary.checkpoint == out / "checkpoints" / "samples_000000048"
    return out


def test_open_clip_loads_the_checkpoint_and_its_tokenizer(finished: Path) -> None:
    assert models is not None
    last = finished / "checkpoints" / "last"
    assert os.readlink(last) == "samples_000000048"
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{last}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{last}")
    weights = load_file(last / WEIGHTS)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    tokens = tokenizer(["A red square!", "a blue xylophone"])
    assert tokens.shape == (2, 12)
    assert tokens[0, :2].tolist() == [1, tokens[1, 1].item()]
    assert tokens[1].tolist().count(3) == 1  # the word that no caption has
    assert (tokens == 2).sum(dim=1).tolist() == [1, 1]
    assert model.encode_text(tokens).shape == (2, 16)
    assert preprocess is not None


def test_metrics_plan_and_summary(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples_seen"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert {"loss", "contrastive", "grad_norm", "learning_rate", "logit_scale"} <= lines[0].keys()
    plan = json.loads((finished / "manifest.json").read_text())["plan"]
    assert plan["batch_size"] == 8
    assert len(plan["inputs"]["captions"]) == 12
    assert json.loads((finished / "summary.json").read_text())["samples_seen"] == 48


def test_only_the_newest_checkpoints_are_kept(finished: Path) -> None:
    names = [path.name for path in checkpoint.find(finished / "checkpoints")]
    assert names == ["samples_000000032", "samples_000000048"]


def test_printed_plan(
    work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_config: Plan
) -> None:
    engine.run(tiny_config(work, tmp_path / "run", samples=8, warmup_samples=0))
    shown = capfd.readouterr().err
    assert "8 = 1 steps of 8 · 0.3 passes over 23 pictures (1 have no caption)" in shown
    assert "described  21 pictures · 42 captions" in shown
    assert "alt        22 pictures · 22 captions" in shown
    assert "pretrain: 8/8 samples" in shown


def test_an_interrupted_run_ends_with_the_same_weights(
    work: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Plan
) -> None:
    config = tiny_config(work, tmp_path / "broken")
    with monkeypatch.context() as patched:
        stop_after(patched, 40)  # the last checkpoint is at 32, in the second pass
        with pytest.raises(KeyboardInterrupt):
            engine.run(config)
    assert checkpoint.find(config.out / "checkpoints")[-1].name == "samples_000000032"
    with (config.out / "metrics.jsonl").open("a") as log:
        log.write('{"samples_')  # what a kill in the middle of a write leaves
    summary = engine.run(config)
    assert same_weights(summary.checkpoint, finished / "checkpoints" / "last")
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples_seen"] for line in lines] == [8, 16, 24, 32, 40, 48]


def test_what_a_model_draws_inside_is_the_same_after_an_interruption(
    work: Path, tmp_path: Path, tiny_config: Plan, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {"timm_model_name": "capwright_vit_nano_s8", "image_size": 16, "timm_drop": 0.5}
    changes = {"model": {**tiny_model, "vision_cfg": vision}, "samples": 32, "precision": "bf16"}
    whole = engine.run(tiny_config(work, tmp_path / "whole", **changes))
    config = tiny_config(work, tmp_path / "broken", **changes)
    with monkeypatch.context() as patched:
        stop_after(patched, 24)
        with pytest.raises(KeyboardInterrupt):
            engine.run(config)
    torch.rand(5)  # the state of torch's generator plays no part
    assert same_weights(engine.run(config).checkpoint, whole.checkpoint)


def test_workers_and_tars_change_nothing(
    work: Path, tmp_path: Path, finished: Path, tiny_config: Plan
) -> None:
    config = tiny_config(work, tmp_path / "run", cache_pixels=False, loader_workers=2)
    assert same_weights(engine.run(config).checkpoint, finished / "checkpoints" / "last")


def test_a_finished_run_is_not_repeated(
    work: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Plan
) -> None:
    monkeypatch.setattr(engine._Run, "train", lambda *_: pytest.fail("trained again"))
    assert engine.run(tiny_config(work, finished)).samples_seen == 48


def test_another_plan_is_refused(work: Path, finished: Path, tiny_config: Plan) -> None:
    with pytest.raises(CapwrightError, match=r"another plan \(seed 0 -> 1\)"):
        engine.run(tiny_config(work, finished, seed=1))


def test_resume_never_refuses(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Plan
) -> None:
    config = tiny_config(work, tmp_path / "run")
    with monkeypatch.context() as patched:
        stop_after(patched, 16)
        with pytest.raises(KeyboardInterrupt):
            engine.run(config)
    with pytest.raises(CapwrightError, match="has the checkpoint samples_000000016 and resume is"):
        engine.run(tiny_config(work, config.out, resume="never"))


def _train_slowly(config: PretrainConfig) -> None:
    step = engine._Run._step

    def slow(*rest, **options):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return step(*rest, **options)

    engine._Run._step = slow  # type: ignore[method-assign]
    engine.run(config)


def test_a_kill_in_the_middle_leaves_a_run_that_goes_on(
    work: Path, tmp_path: Path, finished: Path, tiny_config: Plan
) -> None:
    """SIGKILL as soon as a checkpoint exists; the second start ends with the same weights."""
    config = tiny_config(work, tmp_path / "run")
    process = mp.get_context("fork").Process(target=_train_slowly, args=(config,))
    process.start()
    while process.is_alive() and not checkpoint.find(config.out / "checkpoints"):
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (config.out / "summary.json").exists()
    assert checkpoint.find(config.out / "checkpoints")
    assert same_weights(engine.run(config).checkpoint, finished / "checkpoints" / "last")


def test_a_loss_that_is_not_finite_names_the_sample_and_keeps_the_batch(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Plan
) -> None:
    view = augmentation.view

    def spoil(images: torch.Tensor, theta: torch.Tensor, size: int) -> torch.Tensor:
        seen = view(images, theta, size)
        seen[2] = torch.nan
        return seen

    monkeypatch.setattr(augmentation, "view", spoil)
    with pytest.raises(CapwrightError) as raised:
        engine.run(tiny_config(work, tmp_path / "run"))
    message = str(raised.value)
    assert "not finite at step 0: loss nan" in message
    assert "lower learning_rate or set precision=fp32" in message
    saved = torch.load(tmp_path / "run" / "failed_step" / "rank_0.pt", weights_only=True)
    assert saved["batch"]["images_BV3HH"].shape == (8, 1, 3, 16, 16)
    assert f"it begins with 1 of its samples: {saved['keys'][2]}." in message


def _one_of_two(rank: int, config: PretrainConfig, meeting: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    try:
        engine.run(config)
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_whole_batch(
    work: Path, tmp_path: Path, finished: Path, tiny_config: Plan
) -> None:
    mp.start_processes(
        _one_of_two,
        (tiny_config(work, tmp_path / "two"), tmp_path / "meeting"),
        nprocs=2,
        start_method="fork",
    )
    one = load_file(finished / "checkpoints" / "last" / WEIGHTS)
    two = load_file(tmp_path / "two" / "checkpoints" / "last" / WEIGHTS)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5, rtol=0), name
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_small_tower_learns_colours_from_captions(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    described = CaptionSource(name="d", folder=work / "captions" / "described", sources=("beam",))
    summary = engine.run(
        tiny_config(
            work,
            tmp_path / "run",
            captions=(described,),
            batch_size=16,
            samples=1600,
            warmup_samples=160,
            checkpoint_samples=10_000,
            learning_rate=5e-3,
            patch_dropout=0.25,
        )
    )
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first > 1.0
    assert summary.final_loss < 0.1  # equal captions are no negatives, so zero can be reached


def test_masked_autoencoder_runs_without_text_and_leaves_the_text_tower(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    config = tiny_config(
        work,
        tmp_path / "run",
        objectives={"masked_autoencoder": 1.0},
        samples=160,
        learning_rate=3e-3,
    )
    summary = engine.run(config)
    lines = [json.loads(x) for x in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert summary.final_loss < lines[0]["loss"]
    short = engine.run(
        tiny_config(work, tmp_path / "short", objectives={"masked_autoencoder": 1.0})
    )
    one, other = load_file(summary.checkpoint / WEIGHTS), load_file(short.checkpoint / WEIGHTS)
    for name in one:
        changed = not torch.equal(one[name], other[name])
        assert changed == (name.startswith("visual.") and name != "visual.proj"), name
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{summary.checkpoint}")
    assert "decoder" not in " ".join(model.state_dict())


def test_two_objectives_at_once(work: Path, tmp_path: Path, tiny_config: Plan) -> None:
    config = tiny_config(
        work, tmp_path, objectives={"contrastive": 1.0, "masked_autoencoder": 0.5}, samples=8,
        warmup_samples=0,
    )  # fmt: skip
    engine.run(config)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(
        line["contrastive"] + 0.5 * line["masked_autoencoder"], rel=1e-5
    )


def test_the_learning_rate_is_that_of_open_clip(work: Path, tiny_config: Plan) -> None:
    config = tiny_config(work, work, learning_rate=2.0, warmup_samples=24)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = cosine_lr(optimizer, 2.0, config.warmup_samples // config.batch_size, config.steps)
    for step in range(config.steps):
        expected = pytest.approx(theirs(step))
        assert learning_rate(config, step * config.batch_size) == expected
    assert learning_rate(config, config.steps * config.batch_size) == pytest.approx(0)


def test_weight_decay_spares_vectors_and_positions(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(2, 2)
    model.pos_embed = torch.nn.Parameter(torch.zeros(1, 3, 2))
    model.frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    decayed, spared = build_optimizer(model, tiny_config(work, tmp_path)).param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 2)]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in spared["params"]] == [(1, 3, 2), (2,)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_dropout": 1.0}, "patch_dropout is 1.0: a share of the patches from 0 up to"),
        ({"objectives": {}}, "objectives is empty: name at least one"),
        ({"captions": ()}, r"captions has the sources \[\]: at least one"),
        ({"image_size": 0}, "image_size is 0: it must be 1 or more"),
    ],
)
def test_a_wrong_plan_is_refused_at_once(
    work: Path, changes: dict[str, object], message: str, tiny_config: Plan
) -> None:
    with pytest.raises(CapwrightError, match=message):
        tiny_config(work, work, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objectives": {"contrastiv": 1.0}},
            "'contrastiv' is unknown: did you mean 'contrastive'?",
        ),
        ({"model": "ViT-B-33"}, r"model 'ViT-B-33' is unknown: did you mean 'ViT-B-32'"),
        ({"model": {"embed_dim": 4}}, "model configuration has no vision_cfg, text_cfg"),
        (
            {"model": "RN50", "image_size": 64, "tokenizer": "open_clip"},
            "image tower ModifiedResNet has no patches to drop: set patch_dropout=0",
        ),
    ],
)
def test_a_wrong_model_or_objective_is_named(
    work: Path, tmp_path: Path, changes: dict[str, object], message: str, tiny_config: Plan
) -> None:
    with pytest.raises(CapwrightError, match=message):
        engine.run(tiny_config(work, tmp_path / "run", **changes))


def test_crops_and_probabilities_are_checked() -> None:
    with pytest.raises(CapwrightError, match=r"crop_area is \(0.5, 1.2\): two shares"):
        Augmentation(crop_area=(0.5, 1.2))
    with pytest.raises(CapwrightError, match="caption source 'alt' has probability 0: it must be"):
        CaptionSource(name="alt", probability=0)


def test_how_to_run_is_not_part_of_the_plan(work: Path, tiny_config: Plan) -> None:
    plan = tiny_config(work, work).plan()
    assert plan == tiny_config(work, work / "elsewhere", threads=2, loader_workers=3).plan()
    assert plan != tiny_config(work, work, learning_rate=1.0).plan()
