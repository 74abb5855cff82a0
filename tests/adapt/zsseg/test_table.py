from typing import Any

from capwright.adapt.zsseg.table import markdown


def row(arm: str, **metrics: float | None) -> dict[str, Any]:
    return {
        "options": {"arm": arm},
        "metrics": metrics,
        "interval95": {name: None if value is None else 0.01 for name, value in metrics.items()},
    }


def test_a_page_has_arms_and_the_sweep() -> None:
    two_stages: dict[str, float | None] = {
        "miou_seen": 0.5, "miou_unseen": 0.25, "hiou": 1 / 3, "weight": 0.8,
        "validation/w=0.5/hiou": 0.2, "validation/clip/hiou": 0.1, "test/clip/hiou": None,
    }  # fmt: skip
    rows = [
        row("one_stage", miou_seen=0.6, miou_unseen=None, hiou=None),
        row("fixed", **two_stages),
    ]
    assert markdown(rows).splitlines() == [
        "| arm | seen | unseen | harmonic mean | weight |",
        "| --- | --- | --- | --- | --- |",
        "| one_stage | 60.0 ± 1.0 |  |  |  |",
        "| fixed | 50.0 ± 1.0 | 25.0 ± 1.0 | 33.3 ± 1.0 | 0.80 |",
        "",
        "Harmonic mean, validation:",
        "",
        "| arm | w=0.5 | clip |",
        "| --- | --- | --- |",
        "| fixed | 20.0 ± 1.0 | 10.0 ± 1.0 |",
        "",
        "Harmonic mean, test:",
        "",
        "| arm | clip |",
        "| --- | --- |",
        "| fixed |  |",
    ]
