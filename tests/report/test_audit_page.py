import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.core.files import write_json
from capwright.report.audit_page import AuditPageConfig, headline, render, run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def source(name: str, index: float | None, **changes: Any) -> dict[str, Any]:
    why = "" if index is not None else "20 pairs are too few"
    quality = {
        "index": index, "error95": None if index is None else 1.5, "bits": index and index * 0.07,
        "pairs": 100, "why_not": why, "scale": [], "elsewhere": [], "pair_bits": [],
    }  # fmt: skip
    card = {"key": HOSTILE, "shard": "0", "text": HOSTILE, "bits": -1.25, "picture": "a.jpg"}
    return {
        "name": name, "texts": 1000, "coverage": 0.9, "with_text": 900, "sampled": 100,
        "distinct": 800, "frequent": [[HOSTILE, 12], ["once", 1]], "quality": quality,
        "scores": {"by": "bits", "edges": [-1, 0, 1], "counts": [3, 5]},
        "tokens": {"edges": [0, 50, 100], "counts": [90, 10], "mean": 20.0, "median": 18.0,
                   "longest": 120, "cut_share": 0.125},
        "junk": {"file name": 30, HOSTILE: 1}, "languages": {"en": 90, "de": 10},
        "languages_of": 100,
        "concepts": {"lexicon": 50, "named": 20, "once": 5, "texts_with_a_name": 80,
                     "names_a_text": 1.2, "top": [[HOSTILE, 30], ["dog", 12]],
                     "zipf": [[1, 30], [2, 12], [20, 1]]},
        "diversity": {"texts": 100, "distinct_texts": 90, "words": 500, "vocabulary": 80,
                      "distinct_1": 0.16, "distinct_2": 0.5, "distinct_3": 0.9},
        "truth": None, "worst": [card], "best": [card | {"picture": "../secret.jpg"}],
        **changes,
    }  # fmt: skip


def audit(*sources: dict[str, Any]) -> dict[str, Any]:
    return {
        "pictures": 1000, "shards": 2, "left_out": {HOSTILE: 4}, "distinct_pictures": 950,
        "distinct_hashes": 940, "small_pictures": 0, "version": "v1", "corpus": "c", "work": "w",
        "sources": list(sources), "missing": [{"what": "x", "command": f"capwright {HOSTILE}"}],
        "settings": {"sample": 100, "quality": {"seed": HOSTILE}}, "seconds": 3.0,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "work" / "audit" / "pictures"
    pictures.mkdir(parents=True)
    Image.new("RGB", (20, 20), (200, 0, 0)).save(pictures / "a.jpg")
    Image.new("RGB", (20, 20), (0, 200, 0)).save(pictures.parent / "secret.jpg")
    return pictures


class Tags(HTMLParser):
    """Collects tags and attributes; complains of what is never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    return tags


def test_hostile_texts_stay_texts(folder: Path) -> None:
    name = 'x"; } body { display: none } <b>'
    html = render(audit(source("alt", 12.0), source(name, 40.0, reasons={HOSTILE: 3}, failed={})),
                  folder)  # fmt: skip
    tags = parsed(html)
    assert not {tag for tag, _ in tags.seen} & {"script", "iframe", "link"}
    assert "<script" not in html and "onerror=alert(2)>" not in html
    assert all(not key.startswith("on") for _, attrs in tags.seen for key in attrs)
    style = html[html.index("<style>") : html.index("</style>")]
    assert name not in style and "x-----body" in style  # all but letters and digits is a dash
    assert html.count("&lt;script&gt;") >= 8
    sources = [attrs["src"] or "" for tag, attrs in tags.seen if tag == "img"]
    assert len(sources) == 2 and all(src.startswith("data:image/jpeg") for src in sources)
    assert not re.search(r"""(?:src|href)=["'](?!data:|\#)""", html)


def test_the_page_has_the_numbers(folder: Path) -> None:
    truth = {"pictures": 9, "precision": 0.8, "recall": 0.4, "f1": 0.5, "names": 9,
             "hallucinated": 0.2}  # fmt: skip
    html = render(audit(source("alt", 12.34), source("describe-x", 43.21, truth=truth)), folder)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "Caption quality 43 of 100 with describe-x, 12 with the alt text alone" in text
    assert "50 of them (5.0%) are copies of others. 4 samples could not be indexed." in text
    for wanted in ("12.3", "43.2", "90.0%", "80.0%", "12.5%", "31.0%", "20.0%", "40.0%", "5 (25%)"):
        assert wanted in text, wanted
    assert "Hallucinated" in text and html.count("<svg") == 4


def test_sources_without_an_index_say_why(folder: Path) -> None:
    bare = source("alt", None, scores={"by": "", "edges": [0, 1], "counts": [0]}, worst=[], best=[])
    html = render(audit(bare), folder)
    parsed(html)
    assert "Too few captions for a quality index" in html
    assert "No index of alt text: 20 pairs are too few." in html


def test_headline_without_alt_text() -> None:
    assert headline([source("select", 20.0)]) == "Caption quality 20 of 100 with selected"


def test_run_writes_the_file_or_says_what_is_missing(folder: Path) -> None:
    work = folder.parents[1]
    with pytest.raises(CapwrightError, match=r"has no audit.json: run `capwright audit CORPUS"):
        run(AuditPageConfig(work=work))
    write_json(folder.parent / "audit.json", copy.deepcopy(audit(source("alt", 5.0))))
    summary = run(AuditPageConfig(work=work))
    assert summary.page == work / "audit" / "audit.html"
    assert summary.page.stat().st_size == summary.bytes
    assert run(AuditPageConfig(work=work, out=work / "x.html")).page == work / "x.html"
