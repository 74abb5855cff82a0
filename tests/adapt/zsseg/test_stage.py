"""The stage as a whole on toy scenes: berries are unseen."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import toy_scenes
from capwright.adapt.zsseg import Config, arms, run
from capwright.adapt.zsseg.config import FIXED, LEARNED, ONE_STAGE, SELF_TRAINED
from capwright.adapt.zsseg.inference import InferenceSettings, Segmenter, readings
from capwright.adapt.zsseg.prompts import PromptSettings
from capwright.adapt.zsseg.proposals import ProposalNetwork, ProposalSettings
from capwright.adapt.zsseg.self_training import pseudo_labels
from capwright.adapt.zsseg.splits import split_of
from capwright.adapt.zsseg.views import ViewSettings
from capwright.core.errors import CapwrightError
from capwright.datasets.sets import SegmentationItem
from capwright.evaluate.encoder import Encoder
from capwright.evaluate.outcomes import read_outcomes
from capwright.evaluate.results import read_results
from capwright.evaluate.transfer.loop import Schedule

SCHEDULE = Schedule(steps=3, batch=4, learning_rate=1e-3, encoder_learning_rate=1e-3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_scenes.write_scenes(tmp_path_factory.mktemp("toys") / "scenes")


@pytest.fixture
def plan(
    scenes: Path, tmp_path: Path, clip_config: dict[str, Any], settings: ProposalSettings
) -> Config:
    return Config(
        checkpoint=None,
        data=scenes,
        test_data=toy_scenes.write_scenes(tmp_path / "tested"),
        out=tmp_path / "out",
        dataset="scenes",
        model=clip_config,
        unseen=("berries",),
        templates=("a {}",),
        test_pictures=5,
        validation=0.2,
        weights=(0.0, 0.5, 1.0),
        weight=0.5,
        prompts=PromptSettings(vectors=3, steps=4, batch=4, samples_per_class=4, save_every=2),
        proposals=settings,
        views=ViewSettings(short_sides=(32, 48), cut=32, test_short_side=40),
        schedule=SCHEDULE,
        baseline=SCHEDULE,
        self_training=replace(SCHEDULE, steps=2),
        inference=InferenceSettings(pictures=3),
        loader_workers=0,
    )


@pytest.mark.slow
def test_every_arm_ends_with_numbers(plan: Config) -> None:
    plan = replace(plan, arms=(ONE_STAGE, FIXED, LEARNED, SELF_TRAINED))
    summary = run(plan)
    assert set(summary.arms) == {ONE_STAGE, FIXED, LEARNED, SELF_TRAINED}
    results = read_results(plan.out / "results.json")
    assert [result.options["arm"] for result in results] == list(plan.arms)
    learned = next(result for result in results if result.options["arm"] == LEARNED)
    for name in ("miou_seen", "miou_unseen", "hiou", "weight"):
        assert 0 <= (learned.metrics[name] or 0) <= 1
    assert learned.metrics["weight"] in plan.weights
    # at the plan's own weight too, whether or not it is the one that was chosen
    assert {"validation/w=0.5/hiou", "validation/clip/hiou", "test/w=0.5/hiou"} <= set(
        learned.metrics
    )
    outcomes = read_outcomes(plan.out / "0" / LEARNED / "results.npz")[0]
    assert len(outcomes.keys) == 5
    found = outcomes.metrics["miou_unseen"]
    expected = found.part.sum() / max(1, found.whole.sum())
    assert learned.metrics["miou_unseen"] == pytest.approx(float(expected))
    labels = list((plan.out / "0" / SELF_TRAINED / "labels").glob("*.png"))
    assert len(labels) == learned.options["learned"] == 19
    page = (plan.out / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in page[2:6]] == [f"| {arm}" for arm in plan.arms]
    before = (plan.out / "results.json").read_bytes()
    states = {path: path.stat().st_mtime_ns for path in plan.out.rglob("*.pt")}
    assert run(plan).arms == summary.arms
    assert (plan.out / "results.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in plan.out.rglob("*.pt")} == states


@pytest.mark.slow
@pytest.mark.parametrize("arm", [ONE_STAGE, LEARNED])
def test_a_run_that_was_cut_off_ends_as_an_unbroken_one(
    plan: Config, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(plan, arms=(arm,), out=plan.out / "whole", save_every=1)
    expected = run(whole)
    cut = replace(whole, out=plan.out / "cut")
    real, calls = arms.learners._stacked, []

    def cut_off(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(arms.learners, "_stacked", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(cut)
    assert not (cut.out / "results.json").exists()
    assert run(cut).arms == expected.arms
    states = [
        torch.load(out / "0" / arm / "state.pt", weights_only=True)["module"]
        for out in (whole.out, cut.out)
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0)


def test_another_plan_in_the_folder_is_refused(plan: Config) -> None:
    folder = plan.out
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"plan": {"weight": 0.1}}))
    with pytest.raises(CapwrightError, match="was made with another plan"):
        run(plan)


def test_no_learned_picture_is_left(plan: Config) -> None:
    with pytest.raises(CapwrightError, match="1 pictures to learn from, of which 1 choose"):
        arms.prepare(replace(plan, train_pictures=1), 0)


def test_names_of_metrics_are_the_same_whichever_weight_is_best() -> None:
    def found(*hious: float | None) -> dict[str, dict[str, float | None]]:
        names = ("w=0.5", "w=0.7", "w=0.8", "proposals", "clip")
        return {name: {"hiou": hiou} for name, hiou in zip(names, hious, strict=True)}

    weights, tested = (0.5, 0.7, 0.8), found(0.1, 0.2, 0.3, 0.4, 0.5)
    seeds = []
    for validation, expected in (
        (found(0.3, 0.4, 0.1, 0.0, 0.0), 0.7),
        (found(0.1, 0.2, 0.5, 0.0, 0.0), 0.8),
        (found(None, None, None, None, None), 0.8),  # a tie goes to the usual weight
    ):
        weight = arms.best_weight(weights, validation, 0.8)
        assert weight == expected
        seeds.append(arms.metrics_of(tested, validation, weight, 0.8))
    assert seeds[0].keys() == seeds[1].keys() == seeds[2].keys()
    assert [seed["hiou"] for seed in seeds] == [0.2, 0.3, 0.3]
    assert seeds[0]["test/w=0.8/hiou"] == 0.3
    assert "test/w=0.7/hiou" not in seeds[0]


def test_pictures_that_are_learned_from_are_not_tested_on(plan: Config) -> None:
    with pytest.raises(CapwrightError, match="would be learned from and tested on"):
        arms.prepare(replace(plan, test_data=None), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("two_stage",)}, "one of one_stage, fixed, learned, self_trained"),
        ({"validation": 1.0}, "a validation share of 1.0"),
        ({"seeds": ()}, "0 seeds"),
        ({"weights": (0.5, 1.5)}, "ensemble weights lie from 0 to 1"),
        ({"save_every": 0}, "save_every=0"),
    ],
)
def test_plans_that_are_none(plan: Config, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        replace(plan, **changes)


def test_a_set_without_classes_at_pixels(plan: Config, tmp_path: Path) -> None:
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "n01440764" / "a.jpg")
    with pytest.raises(CapwrightError):
        arms.prepare(replace(plan, dataset="imagenet", data=tmp_path), 0)


def picture(height: int, width: int) -> SegmentationItem:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    seg = np.zeros((height, width), np.uint8)
    return SegmentationItem(key="a", image=Image.open(stream), seg_HW=seg)


def segmenter(network: ProposalNetwork, encoder: Encoder, threshold: float = 0.5) -> Segmenter:
    torch.manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    settings = InferenceSettings(mask_threshold=threshold, precision="fp32")
    return Segmenter(network, encoder, texts, short_side=40, settings=settings)


def test_pictures_of_any_size_are_answered_at_their_size(
    network: ProposalNetwork, encoder: Encoder
) -> None:
    sizes = ((3, 5), (33, 71), (64, 64))
    found = segmenter(network, encoder).opinions([picture(*size) for size in sizes])
    exponent = readings(torch.tensor([True, True, False]), [0.8])["w=0.8"]
    for size, opinions in zip(sizes, found, strict=True):
        labels = opinions.labels(exponent)
        assert labels.shape == size and labels.max() < 3


def test_neighbours_do_not_change_an_answer(network: ProposalNetwork, encoder: Encoder) -> None:
    items = [picture(20, 30), picture(50, 40)]
    ours = segmenter(network, encoder)
    for alone, together in zip(
        [ours.opinions([item])[0] for item in items], ours.opinions(items), strict=True
    ):
        torch.testing.assert_close(alone.clip_QC, together.clip_QC, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.masks_QHW, together.masks_QHW, rtol=0, atol=0)


def test_all_masks_empty_is_the_proposals_opinion(
    network: ProposalNetwork, encoder: Encoder
) -> None:
    item = picture(20, 30)
    opinions = segmenter(network, encoder, threshold=0.9999999).opinions([item])[0]
    assert (opinions.clip_QC == 1).all()
    exponent = readings(torch.tensor([True, True, False]), [])
    expected = torch.einsum("qc,qhw->chw", opinions.proposal_QC, opinions.masks_QHW).argmax(dim=0)
    assert opinions.labels(exponent["proposals"]).tolist() == expected.tolist()


def test_pseudo_labels_fill_what_is_not_labelled() -> None:
    split = split_of("toys", ("grey", "red", "blue"), ("blue",))
    seg = np.array([[0, 1, 2, 255, 255, 255]], np.uint8)
    answer = np.array([[2, 2, 0, 2, 1, 0]], np.uint8)
    assert pseudo_labels(seg, answer, split).tolist() == [[0, 1, 255, 2, 255, 255]]
    hidden = np.where(seg == 2, 255, seg).astype(np.uint8)
    assert (
        pseudo_labels(hidden, answer, split).tolist() == pseudo_labels(seg, answer, split).tolist()
    )
