"""Whole runs on a tiny model: continuation, weights of 0, odd sets, two processes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file

from capwright.adapt.must import Config, Weights, run
from capwright.adapt.must.run import Adaptation
from capwright.adapt.must.training import Trainer
from capwright.adapt.must.views import RankBatches, ViewMaker, strong_view, weak_view
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.datasets import load
from capwright.datasets.sets import ClassificationItem
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.encoder import load_encoder
from capwright.evaluate.outcomes import read_outcomes
from capwright.evaluate.results import read_results
from capwright.evaluate.zero_shot import classify
from capwright.pretrain.distributed import Group
from tiny_must import COLOURS, write_pictures

Plan = Callable[..., Config]


def state(config: Config) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(config.out / "state.pt", weights_only=True)[
        "module"
    ]
    return found


def assert_equal(one: Config, other: Config, atol: float = 0.0) -> None:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=0, atol=atol), name


def test_before_is_zero_shot_as_the_suite_measures_it(plan: Plan) -> None:
    config = plan(epochs=1)
    summary = run(config)
    embeddings = Embeddings(load_encoder(config.checkpoint))
    test = load("imagenet", config.data, "test")
    metrics, _ = classify(embeddings, test, templates=config.templates)
    assert summary.before == metrics
    assert metrics["acc5"] is None  # three classes


def test_files_of_a_run(plan: Plan) -> None:
    config = plan()
    summary = run(config)
    assert summary.steps == 6
    results = read_results(config.out / "results.json")
    assert [result.options["stage"] for result in results] == ["before", "last", "best"]
    assert [result.metrics for result in results] == [summary.before, summary.last, summary.best]
    tests = read_json(config.out / "tests.json")
    assert list(tests) == ["0", "2", "3", "5", "6"]  # 12 pictures a pass, 8 a step; the end
    assert (summary.best["acc1"] or 0) == max(tests[step]["acc1"] for step in list(tests)[1:])
    outcomes = read_outcomes(config.out / "results.npz")
    for number, result in enumerate(results):
        assert outcomes[number].metrics["acc1"].part.mean() == result.metrics["acc1"]
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert {"self_training", "fairness", "masked_image", "alignment", "sure"} <= set(lines[-1])
    assert run(config) == summary  # a run that is done is only read


def test_the_adapted_model_is_an_open_clip_checkpoint_with_a_classifier(plan: Plan) -> None:
    config = plan()
    summary = run(config)
    folder = config.out / "last"
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    classifier = load_file(folder / "classifier.safetensors")["classifier"]
    test = load("imagenet", config.data, "test")
    hits = []
    with torch.no_grad():
        for number in range(len(test)):
            item = test[number]
            vector = model.encode_image(preprocess(item.image)[None], normalize=True)
            hits.append(int((vector @ torch.nn.functional.normalize(classifier).T).argmax()))
    right = np.mean([found == test[n].label for n, found in enumerate(hits)])
    assert right == summary.last["acc1"]
    assert read_json(folder / "classes.json")["classes"] == ["blue", "green", "red"]


def test_a_run_that_is_cut_off_goes_on_to_the_same_end(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"running_mean": 0.5}
    whole = plan(**settings, out=tmp_path / "whole")
    expected = run(whole)
    step = Trainer._step
    for last in (1, 4):  # before the first state, and between two

        def dying(self: Trainer, number: int, *rest: Any, last: int = last) -> Any:
            if number == last:
                raise KeyboardInterrupt
            return step(self, number, *rest)

        monkeypatch.setattr(Trainer, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(plan(**settings))
    monkeypatch.setattr(Trainer, "_step", step)
    found = run(plan(**settings, workers=1))
    assert replace(found, out=expected.out) == expected
    assert_equal(plan(**settings), whole)


def test_another_plan_is_refused(plan: Plan) -> None:
    run(plan(epochs=1))
    with pytest.raises(CapwrightError, match=r"another plan \(threshold 0.35 -> 0.5\)"):
        run(plan(epochs=1, threshold=0.5))


@pytest.mark.parametrize("name", ["self_training", "fairness", "masked_image", "alignment"])
def test_a_weight_of_zero_is_not_having_the_loss(
    name: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run with the weight 0 has the student of a run whose loss never leaves 0."""
    without = plan(weights=replace(Weights(), **{name: 0.0}), out=tmp_path / "without")
    run(without)
    from capwright.adapt.must import losses

    original = getattr(losses, f"{name}_loss")

    def nothing(first: torch.Tensor, *rest: Any, **options: Any) -> Any:
        found = original(first, *rest, **options)
        silent = (found[0] if isinstance(found, tuple) else found).detach() * 0
        return (silent, found[1]) if isinstance(found, tuple) else silent

    monkeypatch.setattr(losses, f"{name}_loss", nothing)
    silenced = plan(out=tmp_path / "silenced")
    run(silenced)
    first, second = state(without), state(silenced)
    for key, value in first.items():
        if "pixel_head" not in key and key != "log_mean_C":
            assert torch.equal(value, second[key]), key


def test_without_losses_of_hidden_patches_nothing_is_hidden(plan: Plan) -> None:
    config = plan(weights=Weights(fairness=0, masked_image=0, alignment=0), mask_patch=5)
    run(config)  # 5 is no multiple of the patch, which matters to no one here
    assert not any("mask_token" in name or "pixel_head" in name for name in state(config))


def test_a_step_in_which_nobody_is_sure_changes_nothing(plan: Plan) -> None:
    alone = Weights(fairness=0, masked_image=0, alignment=0)
    config = plan(weights=alone, threshold=0.999999, weight_decay=0.0)
    before, after = Adaptation(config), Adaptation(config)
    summary = after.run()
    assert summary is None
    for (name, old), new in zip(
        before.pair.student.named_parameters(), after.pair.student.parameters(), strict=True
    ):
        assert torch.equal(old, new), name
    tests = read_json(config.out / "tests.json")
    assert len({test["acc1"] for test in tests.values()}) == 1


def test_a_class_that_no_picture_shows_is_no_nan(plan: Plan, tmp_path: Path) -> None:
    counts = {"train": {"blue": 4, "green": 4, "red": 0}, "test": dict.fromkeys(COLOURS, 1)}
    folder = write_pictures(tmp_path / "few", counts)
    config = plan(data=folder)
    run(config)
    assert all(value.isfinite().all() for value in state(config).values())


def test_one_class_is_refused(plan: Plan, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "one", {"train": {"red": 2}, "test": {"red": 1}})
    with pytest.raises(CapwrightError, match="has 1 class: a picture needs at least two"):
        run(plan(data=folder))


def test_splits_with_other_classes_are_refused(plan: Plan, tmp_path: Path) -> None:
    counts = {"train": {"red": 2, "blue": 2}, "test": {"red": 1, "green": 1}}
    folder = write_pictures(tmp_path / "other", counts)
    with pytest.raises(CapwrightError, match="both need the same classes in the same order"):
        run(plan(data=folder))


def test_two_names_of_a_class_are_averaged(plan: Plan, tmp_path: Path) -> None:
    counts = {"train": {"red": 2, "blue": 2}, "test": {"red": 1, "blue": 1}}
    folder = write_pictures(tmp_path / "names", counts)
    (folder / "classnames.txt").write_text("sky|sea\nblood\n")
    config = plan(data=folder, templates=("{}",))
    vectors = Embeddings(load_encoder(config.checkpoint)).text_embeddings(["sky", "sea", "blood"])
    expected = torch.nn.functional.normalize(vectors[:2].mean(dim=0), dim=0)
    student = Adaptation(config).pair.student
    assert torch.allclose(student.classifier[0], expected, atol=1e-6)
    assert torch.allclose(student.classifier[1], vectors[2], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 90), (300, 7)])
def test_views_of_tiny_and_long_pictures(size: tuple[int, int], plan: Plan) -> None:
    picture = Image.new("RGB", size, (200, 10, 10))
    item = ClassificationItem(key="x", image=picture, label=0)
    maker = ViewMaker(config=plan(operations=0), size=16, grid=(4, 4), square=2)
    for seed in range(10):
        views = maker(item, np.random.default_rng(seed))
        assert views.weak_SS3.shape == views.strong_SS3.shape == (16, 16, 3)
        for view in views[:2]:
            assert np.abs(view.astype(int) - (200, 10, 10)).max() <= 1  # nothing from outside


def test_views_do_not_depend_on_whether_something_is_hidden(plan: Plan) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    item = ClassificationItem(key="x", image=Image.fromarray(pixels), label=0)
    maker = ViewMaker(config=plan(), size=16, grid=(4, 4), square=2)
    fewer = replace(maker, config=plan(mask_ratio=0.6))
    one, other = (each(item, np.random.default_rng(3)) for each in (maker, fewer))
    assert np.array_equal(one.weak_SS3, other.weak_SS3)
    assert np.array_equal(one.strong_SS3, other.strong_SS3)
    assert one.hidden_hw.sum() < other.hidden_hw.sum()


def test_the_weak_view_is_a_crop_of_the_resized_picture_and_the_strong_one_is_not(
    plan: Plan,
) -> None:
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 30, axis=0)
    picture = Image.fromarray(np.repeat(ramp, 3, axis=2))
    weak = [weak_view(picture, 30, np.random.default_rng(seed)) for seed in range(40)]
    assert all(np.array_equal(np.diff(view[0, :, 0].astype(int)), [4] * 29) for view in weak)
    assert len({int(view[0, 0, 0]) for view in weak}) > 10
    strong = [strong_view(picture, 30, plan(), np.random.default_rng(seed)) for seed in range(40)]
    mirrored = sum(int(view[:, :15].mean() > view[:, 15:].mean()) for view in strong)
    assert 5 < mirrored < 35


def _of_two(rank: int, config: Config, meeting: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    run(config)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_adapt_as_one_does(plan: Plan, tmp_path: Path) -> None:
    settings = {"running_mean": 0.5, "learning_rate": 1e-3}
    alone, together = plan(**settings), plan(**settings, out=tmp_path / "two")
    run(alone)
    mp.start_processes(_of_two, (together, tmp_path / "meeting"), nprocs=2, start_method="fork")
    assert_equal(alone, together, atol=2e-5)


def test_a_batch_that_processes_cannot_share_is_refused(plan: Plan) -> None:
    pictures = load("imagenet", plan().data, "train")
    with pytest.raises(CapwrightError, match="batch is 8, which 3 processes cannot share"):
        RankBatches(pictures, range(12), 8, 0, None, group=Group(rank=0, world=3))


def test_losses_that_leave_the_classifier_alone_want_one_process(plan: Plan) -> None:
    config = plan(weights=Weights(self_training=0, fairness=0))
    run = Adaptation(config)
    with pytest.raises(CapwrightError, match="which 2 processes cannot do together"):
        Trainer(
            run.pair,
            RankBatches(run.train, range(12), 8, 0, None),
            run.encoder.normalised,
            config,
            Group(rank=0, world=2),
        )


def test_another_size_with_squares_that_do_not_divide_its_grid(plan: Plan) -> None:
    config = plan(image_size=24, mask_patch=16, mask_ratio=0.5, epochs=1)  # 6 patches, squares of 4
    run(config)
    assert all(value.isfinite().all() for value in state(config).values())


def test_a_size_that_patches_do_not_divide_is_refused(plan: Plan) -> None:
    with pytest.raises(CapwrightError, match="18 x 18 pixels: both must be multiples of 4"):
        run(plan(image_size=18))
