"""The whole story on 200 scenes of painted cut-outs: every stage, every arm, one report."""

import json
from pathlib import Path

import pytest

from capwright.core.errors import CapwrightError
from capwright.recipes import demo
from capwright.recipes.demo_evidence import recovered
from scene_cutouts import make_cutouts

TINY = {
    "quick": True,
    "pictures": 200,
    "labelled": 40,
    "tested": 20,
    "samples": 512,
    "batch": 64,
    "probe_seeds": 2,
    "picture_size": 64,
    "human_fraction": 0.15,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoConfig:
    folder = tmp_path_factory.mktemp("demo")
    cutouts = make_cutouts(folder / "cutouts", classes=3, per_class=6)
    config = demo.DemoConfig(out=folder / "run", cutouts=cutouts, arms=demo.ALL_ARMS, **TINY)
    demo.run(config)
    return config


def test_results_hold_every_arm_and_what_was_recovered(finished: demo.DemoConfig) -> None:
    results = json.loads((finished.out / "results.json").read_text())
    assert set(results["arms"]) == {"alt", "quality", "scratch", "oracle", "mae"}
    wanted = {"miou", "rmse", "absrel_objects", "miou_unseen", "rmse_unseen", "retrieval_r1"}
    for arm, metrics in results["arms"].items():
        assert wanted | {"samples_seen", "seconds"} <= metrics.keys()
        assert metrics["samples_seen"] == (0 if arm == "scratch" else 512)
        low, high = metrics["miou_interval"]
        assert low <= metrics["miou"] <= high
    assert set(results["recovered"]) == {"miou", "rmse"}
    assert set(results["captions"]) == {"alt", "description", "fused", "selected"}
    assert {row["protocol"]["name"] for row in results["results"]} == {
        "dense-probe",
        "retrieval",
        "zeroshot-classification",
    }


def test_the_page_shows_captions_and_predictions(finished: demo.DemoConfig) -> None:
    page = (finished.out / "report.html").read_text()
    examples = (finished.out / "report_data/captions.jsonl").read_text().splitlines()
    assert len(examples) == 12
    assert page.count("data:image/") > 12
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_finished_demo_runs_again_without_work(finished: demo.DemoConfig) -> None:
    checkpoint = finished.out / "arms/quality/checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    again = demo.run(finished)
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before
    first = json.loads((finished.out / "results.json").read_text())
    assert again["arms"] == first["arms"]


def test_another_plan_in_the_same_folder_is_refused(finished: demo.DemoConfig) -> None:
    other = demo.DemoConfig(out=finished.out, cutouts=finished.cutouts, **(TINY | {"seed": 7}))
    with pytest.raises(CapwrightError, match="made with another plan"):
        demo.run(other)


def test_unknown_arm_names_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="arm 'best' is unknown: allowed are alt, quality"):
        demo.DemoConfig(out=tmp_path, arms=("best",))


@pytest.mark.parametrize(
    ("metric", "alt", "quality", "oracle", "share"),
    [("miou", 0.1, 0.19, 0.2, 0.9), ("rmse", 3.0, 2.2, 2.0, 0.8), ("miou", 0.2, 0.3, 0.1, None)],
)
def test_recovered_is_the_share_of_the_gap(
    metric: str, alt: float, quality: float, oracle: float, share: float | None
) -> None:
    arms = {"alt": {metric: alt}, "quality": {metric: quality}, "oracle": {metric: oracle}}
    assert recovered(arms, metric) == (None if share is None else pytest.approx(share))
