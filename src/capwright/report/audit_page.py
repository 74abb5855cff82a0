"""The audit's page: one HTML file that says whether a corpus is worth a training.

Reads WORK/audit/audit.json and WORK/audit/pictures (captions/audit.py writes them), writes
WORK/audit/audit.html or another file. The page has no script and loads nothing; every text goes
through jinja2's autoescape, because alt text comes from strangers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.core.progress import duration
from capwright.report import charts, pictures
from capwright.report.page import flat, reason_bars

Source = Mapping[str, Any]
NAMES = {"alt": "alt text", "select": "selected"}
COLOURS = ("--alt", "--quality", "--oracle", "--mae", "--other", "--better", "--worse", "--ink")
SCORES = {
    "score-clip": ("Scores of score-clip", "0.5 is a shuffled pair"),
    "bits": ("Information of each pair, in bits", "0 tells nothing, below 0 misleads"),
}
GOOD, POOR = 40, 15  # index points; docs/caption-quality-index.md says what they mean


@dataclass(frozen=True, kw_only=True)
class AuditPageConfig:
    """Which audit, and where the page goes."""

    work: Path
    """The work folder."""
    out: Path | None = None
    """HTML file; None is WORK/audit/audit.html."""


@dataclass(frozen=True, kw_only=True)
class AuditPageSummary:
    """Where the page is."""

    page: Path
    bytes: int


def run(config: AuditPageConfig) -> AuditPageSummary:
    """Write the page of an audit."""
    folder = config.work / "audit"
    if not (folder / "audit.json").exists():
        raise CapwrightError(
            f"{folder} has no audit.json: run `capwright audit CORPUS --work {config.work}` first"
        )
    html = render(read_json(folder / "audit.json"), folder / "pictures")
    path = config.out or folder / "audit.html"
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return AuditPageSummary(page=path, bytes=len(html.encode("utf-8")))


def render(audit: Mapping[str, Any], folder: Path) -> str:
    """The page as HTML; `folder` holds the pictures."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("capwright.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources: Sequence[Source] = audit["sources"]
    return environment.get_template("audit.html.j2").render(
        title=headline(sources),
        lead=lead(audit),
        colours=colours(sources),
        index_chart=index_chart(sources),
        rows=[overview(source) for source in sources],
        has_truth=any(source["truth"] for source in sources),
        unmeasured=[
            (name_of(s), s["quality"]["why_not"]) for s in sources if s["quality"]["why_not"]
        ],
        score_charts=list(score_charts(sources)),
        length_chart=histograms(sources, "tokens"),
        shares=[shares(source) for source in sources],
        concepts=[concept_row(source) for source in sources],
        zipf=zipf_chart(sources),
        reasons=[
            (name_of(s), reason_bars(s["reasons"]), reason_bars(s["failed"]))
            for s in sources
            if s.get("reasons") or s.get("failed")
        ],
        corpus=audit,
        left_out=reason_bars(audit["left_out"]),
        examples=[examples(source, folder) for source in sources if source["worst"]],
        missing=audit["missing"],
        settings=flat(audit["settings"]),
        version=audit["version"],
        took=duration(audit["seconds"]),
    )


# ---- the verdict ----------------------------------------------------------------------------


def headline(sources: Sequence[Source]) -> str:
    """What the index says, in one line."""
    measured = [s for s in sources if s["quality"]["index"] is not None]
    if not measured:
        return "Too few captions for a quality index"
    best = max(measured, key=lambda source: source["quality"]["index"])
    alt = next((s for s in measured if s["name"] == "alt"), None)
    text = f"Caption quality {best['quality']['index']:.0f} of 100 with {name_of(best)}"
    if alt is not None and alt is not best:
        text += f", {alt['quality']['index']:.0f} with the alt text alone"
    return text


def lead(audit: Mapping[str, Any]) -> str:
    """Size and worth of the corpus in a few sentences."""
    pictures_n = audit["pictures"]
    text = f"{pictures_n:,} pictures in {audit['shards']:,} shards."
    again = pictures_n - audit["distinct_pictures"]
    if again:
        text += f" {again:,} of them ({again / max(1, pictures_n):.1%}) are copies of others."
    lost = sum(audit["left_out"].values())
    if lost:
        text += f" {lost:,} samples could not be indexed."
    known = [s["quality"]["index"] for s in audit["sources"]]
    best = max((value for value in known if value is not None), default=None)
    if best is None:
        return text
    if best >= GOOD:
        return text + " The best captions tell much about their pictures."
    if best >= POOR:
        return text + " The captions tell something about their pictures; better ones would pay."
    return text + " The captions tell next to nothing about their pictures: improve them first."


def name_of(source: Source) -> str:
    """What the page calls a source."""
    name = str(source["name"])
    return NAMES.get(name, name)


def colours(sources: Sequence[Source]) -> Markup:
    """A colour for each source, as style rules for the charts."""
    rules = []
    for number, source in enumerate(sources):
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in source["name"])
        colour = COLOURS[number % len(COLOURS)]
        rules.append(
            f".chart rect.arm-{name}, .chart .fill.source-{name} {{ fill: var({colour}); }} "
            f".chart .line.arm-{name} {{ stroke: var({colour}); }}"
        )
    return Markup("\n".join(rules))  # letters, digits and dashes only


# ---- tables and charts ----------------------------------------------------------------------


def index_chart(sources: Sequence[Source]) -> Markup:
    """The index of every source with its interval."""
    bars = []
    for source in sources:
        quality = source["quality"]
        if quality["index"] is not None:
            low, high = (quality["index"] + s * quality["error95"] for s in (-1, 1))
            bars.append(
                charts.Bar(
                    label=name_of(source),
                    arm=source["name"],
                    value=quality["index"],
                    text=f"{quality['index']:.1f}",
                    interval=(max(0.0, low), high),
                )
            )
    return charts.bars(bars, "Caption quality index")


def overview(source: Source) -> dict[str, str]:
    """One row of the first table."""
    quality, tokens = source["quality"], source["tokens"]
    junk, sampled = sum(source["junk"].values()), max(1, source["sampled"])
    truth = source["truth"]
    wrong = truth["hallucinated"] if truth else None
    return {
        "name": name_of(source),
        "index": number(quality["index"], ".1f"),
        "bits": number(quality["bits"], ".2f"),
        "texts": f"{source['texts']:,}",
        "coverage": f"{source['coverage']:.1%}",
        "distinct": f"{source['distinct'] / max(1, source['texts']):.1%}",
        "tokens": f"{tokens['median']:.0f}",
        "cut": f"{tokens['cut_share']:.1%}",
        "junk": f"{junk / sampled:.1%}",
        "hallucinated": number(wrong, ".1%"),
        "recall": number(truth["recall"] if truth else None, ".1%"),
    }


def number(value: float | None, form: str) -> str:
    """A number or a dash."""
    return "–" if value is None else format(value, form)


def score_charts(sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
    """One chart for each kind of score that sources have."""
    for by, (title, note) in SCORES.items():
        found = [source for source in sources if source["scores"]["by"] == by]
        if found:
            yield {"title": title, "note": note, "svg": histograms(found, "scores")}


def histograms(sources: Sequence[Source], part: str) -> Markup:
    """A row a source over one axis."""
    edges = sources[0][part]["edges"] if sources else [0, 1]
    counts = {s["name"]: s[part]["counts"] for s in sources if sum(s[part]["counts"])}
    return charts.histograms(edges, counts, {s["name"]: name_of(s) for s in sources})


def shares(source: Source) -> dict[str, Any]:
    """Junk, languages, repetition of a source, each as rows for bars."""
    texts = max(1, source["texts"])
    return {
        "name": name_of(source),
        "junk": reason_bars(source["junk"]),
        "junk_share": f"{sum(source['junk'].values()) / max(1, source['sampled']):.1%}",
        "languages": reason_bars(source["languages"]),
        "languages_of": f"{source['languages_of']:,}",
        "frequent": [
            {"text": text, "count": f"{n:,}", "share": f"{n / texts:.2%}"}
            for text, n in source["frequent"]
            if n > 1
        ],
        "diversity": {
            key: f"{source['diversity'][key]:.3f}"
            for key in ("distinct_1", "distinct_2", "distinct_3")
        },
        "vocabulary": f"{source['diversity']['vocabulary']:,}",
        "distinct": f"{source['distinct']:,}",
        "texts": f"{source['texts']:,}",
    }


def concept_row(source: Source) -> dict[str, Any]:
    """Names of things that a source says."""
    found = source["concepts"]
    sampled = max(1, source["sampled"])
    return {
        "name": name_of(source),
        "named": f"{found['named']:,}",
        "lexicon": f"{found['lexicon']:,}",
        "once": f"{found['once']:,}",
        "once_share": f"{found['once'] / max(1, found['named']):.0%}",
        "naming": f"{found['texts_with_a_name'] / sampled:.1%}",
        "a_text": f"{found['names_a_text']:.2f}",
        "top": [f"{name} {count:,}" for name, count in found["top"]],
    }


def zipf_chart(sources: Sequence[Source]) -> Markup:
    """Count against rank of the names, both as powers of ten."""
    lines = {
        source["name"]: [(math.log10(r), math.log10(n)) for r, n in source["concepts"]["zipf"]]
        for source in sources
    }
    return charts.curves(lines, "Names by rank: powers of ten of count against rank")


def examples(source: Source, folder: Path) -> dict[str, Any]:
    """The worst and best pairs of a source with their pictures."""
    return {
        "name": name_of(source),
        "groups": [
            (title, [card(pair, folder) for pair in source[part]])
            for title, part in (("tell least", "worst"), ("tell most", "best"))
        ],
    }


def card(pair: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One pair."""
    picture = str(pair["picture"])
    return {
        "key": str(pair["key"]),
        "text": str(pair["text"]),
        "bits": f"{pair['bits']:+.1f} bits",
        "picture": pictures.file_uri(folder / picture, folder) if picture else None,
    }
