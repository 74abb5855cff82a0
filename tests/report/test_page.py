"""The whole page: its numbers are the results', strangers' text stays text, nothing is loaded."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.report.page import ReportConfig, picture_miou, picture_rmse, run, varied

VOID = {"meta", "img", "link", "br", "hr", "input", "source"}
DIGITS = {"miou": (100, 1), "rmse": (1, 3), "absrel_objects": (1, 3), "miou_unseen": (100, 1),
          "rmse_unseen": (1, 3), "retrieval_r1": (100, 1), "zeroshot_acc1": (100, 1),
          "miou_finetuned": (100, 1), "rmse_finetuned": (1, 3)}  # fmt: skip


class Page(HTMLParser):
    """Tags with attributes, and the text of the cells of the table of arms."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cells: dict[tuple[str, str], str] = {}
        self._open: list[str] = []
        self._cell: tuple[str, str] | None = None
        self.feed(html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append(tag)
        if "data-metric" in found:
            self._cell = (str(found["data-arm"]), str(found["data-metric"]))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)
        if self._cell and data.strip():
            self.cells.setdefault(self._cell, data.strip())  # the number comes first
            self._cell = None

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(folder: Path, **options: Any) -> Page:
    summary = run(ReportConfig(run=folder, **options))
    assert summary.bytes == summary.page.stat().st_size
    return Page(summary.page.read_text(encoding="utf-8"))


def test_numbers_of_the_table_are_those_of_the_results(run_folder: Path) -> None:
    cells = page_of(run_folder).cells
    arms = json.loads((run_folder / "results.json").read_text())["arms"]
    assert len(cells) == len(arms) * len(DIGITS)
    for arm, metrics in arms.items():
        for key, (scale, digits) in DIGITS.items():
            value = metrics[key]
            expected = "–" if value is None else f"{value * scale:.{digits}f}"
            assert cells[arm, key] == expected, (arm, key)


def test_the_headline_says_what_the_captions_bought(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert "Better captions bought 11.4 points of mIoU and took 0.257 m off the depth error." in (
        page.words
    )
    assert "Segmentation 15.2 → 26.6 mIoU, depth RMSE 1.461 → 1.204 m" in page.words
    assert "88% in mIoU and 81% in RMSE is closed" in page.words
    assert "11 min 42 s" in page.words


def test_text_of_strangers_stays_text(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "link")]
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert '<script>alert("x")</script> toucan & <img src=http://evil.test/x' in page.words


@pytest.mark.parametrize("place", ["reasons", "scores", "classes", "arm", "setting"])
def test_hostile_names_stay_text_everywhere(run_folder: Path, place: str) -> None:
    name = "</style></svg><script>x</script>"
    data = run_folder / "report_data"
    if place == "reasons":
        (data / "reasons.json").write_text(json.dumps({name: 3}))
    elif place == "scores":
        (data / "scores.json").write_text(json.dumps({"bins": [0, 1, 2], name: [3, 4]}))
    elif place == "classes":
        (data / "classes.json").write_text(json.dumps({"classes": ["background", name]}))
    else:
        results = json.loads((run_folder / "results.json").read_text())
        if place == "arm":
            results["arms"][name] = {"miou": 0.2, "miou_interval": [0.1, 0.3]}
        else:
            results["settings"][name] = name
        (run_folder / "results.json").write_text(json.dumps(results))
    page = page_of(run_folder)
    assert name in page.words
    assert "script" not in {tag for tag, _ in page.tags}


def test_the_page_loads_nothing(run_folder: Path) -> None:
    page = page_of(run_folder)
    for tag, found in page.tags:
        for key in ("src", "href", "srcset", "data", "poster", "action"):
            target = found.get(key) or "#"
            assert target.startswith(("#", "data:image/")), (tag, key, target[:80])
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    style = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert len(style) == 1 and not re.search(r"url\(|@import|http", style[0])
    assert "prefers-color-scheme: dark" in style[0]


def test_training_curves_are_drawn_for_the_arms_that_were_trained(run_folder: Path) -> None:
    page = page_of(run_folder)
    lines = [found["class"] for tag, found in page.tags if "line" in str(found.get("class"))]
    assert lines == ["line arm-alt", "line arm-quality"]


def test_pictures_are_there_with_masks_and_depth_of_every_arm(run_folder: Path) -> None:
    page = page_of(run_folder, max_pictures=2)
    alts = [found.get("alt") for tag, found in page.tags if tag == "img"]
    assert alts.count("True mask") == alts.count("True depth") == 2 * 2  # two splits
    for arm in ("alt", "quality", "scratch"):
        assert alts.count(f"Mask that {arm} predicts") == 2 * 2
        assert alts.count(f"Depth that {arm} predicts") == 2 * 2
    assert sum(str(alt).startswith("Picture 0") for alt in alts) == 8


@pytest.mark.parametrize(
    ("gone", "left_out", "said"),
    [
        ("report_data", "classes examples pictures reasons scores", "caption examples"),
        ("config.json", "config", "the resolved configuration"),
        ("report_data/scores.json", "scores", "report_data/scores.json does not exist"),
        ("report_data/captions.jsonl", "examples", "report_data/captions.jsonl does not exist"),
        ("arms", "curves", "arms/ARM/metrics.jsonl do not exist or have one line"),
    ],
)
def test_a_missing_part_is_left_out_with_a_note(
    run_folder: Path, gone: str, left_out: str, said: str
) -> None:
    path = run_folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(ReportConfig(run=run_folder)).left_out == tuple(left_out.split())
    words = page_of(run_folder).words
    assert "Left out:" in words and said in words
    assert str(run_folder) not in words


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("report_data/captions.jsonl", b"{broken", "examples"),
        ("report_data/scores.json", b'{"bins": [0, 1], "alt": [1, 2]}', "scores"),
        ("report_data/scores.json", b'{"alt": [1, 2]}', "scores"),
        ("report_data/reasons.json", b"[1]", "reasons"),
        ("report_data/classes.json", b"{}", "classes"),
        ("report_data/predictions_seen_alt.npz", b"no zip", "pictures"),
        ("arms/alt/metrics.jsonl", b"3\n", "curves"),
    ],
)
def test_a_broken_part_is_left_out(run_folder: Path, name: str, content: bytes, part: str) -> None:
    (run_folder / name).write_bytes(content)
    assert run(ReportConfig(run=run_folder)).left_out == (part,)


def test_results_alone_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"arms": {"only": {"miou": 0.5}}}')
    page = page_of(tmp_path)
    assert page.cells == {("only", "miou"): "50.0"}
    assert "What 1 encoder knows" in page.words


@pytest.mark.parametrize("content", ["[]", "{}", '{"arms": {}}', '{"arms": {"alt": 3}}'])
def test_results_without_arms_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(CapwrightError, match=r"results.json has no arms: a report needs .*demo"):
        run(ReportConfig(run=tmp_path))


def test_the_command_says_where_the_page_is(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep/page.html"
    result = CliRunner().invoke(group, ["report", str(run_folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "page": str(out), "bytes": out.stat().st_size, "left_out": []
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere/results.json does not exist: run the step that writes it first"),
        (["nowhere", "--max-pictures", "0"], "max_pictures is 0: a report shows at least 1"),
    ],
)
def test_faults_of_the_user(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(group, ["report", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_examples_take_turns_between_reasons() -> None:
    rows = [{"key": i, "reason": "a" if i < 5 else "b"} for i in range(7)]
    assert [row["key"] for row in varied(rows, 5)] == [0, 5, 1, 6, 2]


def test_a_picture_outside_the_run_is_not_shown(run_folder: Path, tmp_path: Path) -> None:
    data = run_folder / "report_data"
    shutil.copy(next((data / "captions").iterdir()), tmp_path / "secret.jpg")
    row = {"key": "1", "image": "../../secret.jpg", "alt": "a", "selected": ["a"]}
    (data / "captions.jsonl").write_text(json.dumps(row))
    page = page_of(run_folder)
    assert "no picture" in page.words
    assert "Picture 1" not in [found.get("alt") for _, found in page.tags]


def test_errors_of_one_picture() -> None:
    true = np.array([[0, 0], [1, 255]], np.uint8)
    pred = np.array([[0, 1], [1, 3]], np.uint8)
    assert picture_miou(pred, true) == pytest.approx((1 / 2 + 1 / 2) / 2)
    depth = np.array([[1.0, 2.0], [0.0, np.nan]], np.float32)  # the last two have no truth
    assert picture_rmse(depth + np.float32(0.5), depth) == pytest.approx(0.5)
