import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capwright.core.errors import CapwrightError
from capwright.evaluate.results import (
    Protocol,
    Result,
    code_revision,
    mean_interval,
    read_results,
    summarise,
    write_results,
)

ROW = Result(
    dataset="scenes-seen",
    model="nano",
    pretrained="runs/a",
    task="segmentation",
    metrics={"miou": 0.25, "macc": None},
    protocol=Protocol(name="dense-probe", version="v1"),
    seed=0,
    samples_seen=76_800,
    code_revision="0.1.0",
    options={"mode": "frozen"},
)


def test_results_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    write_results(path, [ROW, replace(ROW, seed=1, samples_seen=None)])
    assert read_results(path) == [ROW, replace(ROW, seed=1, samples_seen=None)]


def test_the_file_has_the_fields_of_clip_benchmark_and_the_origin(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [ROW])
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {
            "dataset": "scenes-seen",
            "model": "nano",
            "pretrained": "runs/a",
            "task": "segmentation",
            "metrics": {"miou": 0.25, "macc": None},
            "language": "en",
            "protocol": {"name": "dense-probe", "version": "v1"},
            "seed": 0,
            "samples_seen": 76800,
            "code_revision": "0.1.0",
            "options": {"mode": "frozen"},
        }
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": None}, "result 0 of {path} lacks task: "),
        ({"extra": 1}, "result 0 of {path} has the unknown field extra: "),
        ({"protocol": "v1"}, "result 0 of {path} has the protocol 'v1': expected"),
        ({"metrics": {"miou": "high"}}, "result 0 of {path} has the metrics {{'miou': 'high'}}: "),
    ],
)
def test_a_row_of_another_form_is_named(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "r.json"
    write_results(path, [ROW])
    row = json.loads(path.read_text())[0] | change
    row = {k: v for k, v in row.items() if v is not None}
    path.write_text(json.dumps([row]))
    with pytest.raises(CapwrightError) as raised:
        read_results(path)
    assert str(raised.value).startswith(sentence.format(path=path))


def test_a_results_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(CapwrightError, match=r"r.json holds a dict: expected a list of results"):
        read_results(tmp_path / "r.json")


def test_a_metric_that_is_not_finite_is_refused() -> None:
    with pytest.raises(CapwrightError, match=r"metric 'rmse' of runs/a on scenes-seen is nan"):
        replace(ROW, metrics={"rmse": float("nan")})


def test_seeds_are_summarised_and_nothing_else_is_mixed() -> None:
    rows = [replace(ROW, seed=s, metrics={"miou": v}) for s, v in enumerate((0.2, 0.3, 0.4))]
    other = replace(ROW, options={"mode": "finetuned"}, metrics={"miou": 0.9})
    first, second = summarise([*rows[:2], other, rows[2]])
    assert first["metrics"]["miou"] == pytest.approx(0.3)
    # Student's t with two degrees of freedom, by hand: 4.303 * 0.1 / sqrt(3)
    assert first["interval95"]["miou"] == pytest.approx(0.24843, abs=1e-4)
    assert first["seeds"] == [0, 1, 2]
    assert second["metrics"] == {"miou": 0.9}
    assert second["interval95"] == {"miou": None}


def test_an_interval_covers_the_mean_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        mean, half = mean_interval(rng.normal(5, 2, 4).tolist())
        assert half is not None
        covered += abs(mean - 5) <= half
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_code_revision_names_the_commit_of_a_checkout() -> None:
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip("not a checkout with a commit")
    assert f"+g{found.stdout.strip()[:7]}" in code_revision()
