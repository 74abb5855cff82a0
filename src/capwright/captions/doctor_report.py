"""What the doctor found in a corpus, and the page that says so.

Reads and writes nothing.
"""

from dataclasses import dataclass, field

SMALL_SIDE = 64  # pixels


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A quantity over the samples."""

    mean: float = 0.0
    p5: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    max: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found; `problems` and `warnings` are what the command ends with."""

    corpus: str
    format: str
    shards: int
    files: int
    """Different files or folders that the shards lie in."""
    shard_samples: Spread = field(default_factory=Spread)
    samples: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    """Suffix to number of members, of tars."""
    bytes: int = 0
    picture_bytes: Spread = field(default_factory=Spread)
    width: Spread = field(default_factory=Spread)
    height: Spread = field(default_factory=Spread)
    small: int = 0
    """Pictures whose shorter side is under `SMALL_SIDE` pixels."""
    with_text: int = 0
    several_texts: int = 0
    tokens: Spread = field(default_factory=Spread)
    texts_counted: int = 0
    cut_at_77: float = 0.0
    """Share of the texts that CLIP's context does not hold."""
    languages: dict[str, float] = field(default_factory=dict)
    """Share of the sampled texts, the most frequent first."""
    same_pictures: int = 0
    """Samples whose picture's bytes another sample has too, all but one of each."""
    near_pictures: int = 0
    """Different pictures that look the same, all but one of each."""
    same_texts: int = 0
    """Samples whose text another sample has too, all but one of each."""
    most_frequent_text: str = ""
    most_frequent_text_count: int = 0
    dotted_keys: int = 0
    """Samples of tars with a dot in their key."""
    img2dataset: dict[str, int] = field(default_factory=dict)
    """Shards with a `_stats.json`, the `successes` there, and the pictures in those shards."""
    row_group_rows: int = 0
    """Rows of the largest row group that holds pictures; parquet files alone."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def page(report: Report) -> str:
    """The report as text, one page."""
    samples = f"{report.samples:,}"
    if report.left_out:
        samples += f" ({sum(report.left_out.values()):,} left out: {reasons_text(report)})"
    each = report.shard_samples
    lines = [
        ("corpus", f"{report.corpus} ({report.format})"),
        ("shards", f"{report.shards:,}, {each.p50:,.0f} samples each (at most {each.max:,.0f})"),
        ("samples", samples),
        ("members", ", ".join(f"{name} {n:,}" for name, n in report.members.items())),
        ("bytes", f"{bytes_text(report.bytes)} of pictures, "
                  f"{bytes_text(report.picture_bytes.mean)} each"),
        ("width", _spread(report.width, "px")),
        ("height", _spread(report.height, "px")),
        ("texts", f"{part_text(report.with_text, report.samples)} samples have one; "
                  f"{report.several_texts:,} have several"),
        ("tokens", f"{_spread(report.tokens, '')}; {report.cut_at_77:.1%} cut at 77"),
        ("languages", ", ".join(f"{name} {share:.0%}" for name, share in report.languages.items())),
        ("duplicates", f"pictures {report.same_pictures:,} exact, {report.near_pictures:,} near; "
                       f"texts {report.same_texts:,}"),
        ("img2dataset", _img2dataset(report)),
    ]  # fmt: skip
    shown = [f"{name:<12} {value}" for name, value in lines if value]
    if not report.problems and not report.warnings:
        return "\n".join([*shown, "", "Nothing will go wrong that can be seen from here."])
    found = [("problem", text) for text in report.problems]
    found += [("warning", text) for text in report.warnings]
    return "\n".join([*shown, "", "What will go wrong", *(f"{name:<12} {t}" for name, t in found)])


def _img2dataset(report: Report) -> str:
    counted = report.img2dataset
    if not counted:
        return ""
    return (
        f"{counted['successes']:,} pictures by its own count in {counted['shards']:,} shards, "
        f"{counted['pictures']:,} found"
    )


def reasons_text(report: Report) -> str:
    """The three most frequent reasons why samples are left out."""
    most = list(report.left_out.items())[:3]
    return "; ".join(f"{n:,} x {reason}" for reason, n in most)


def part_text(count: int, total: int) -> str:
    """`3 of 10 (30.0%)`."""
    return f"{count:,} of {total:,} ({count / max(1, total):.1%})"


def _spread(spread: Spread, unit: str) -> str:
    values = f"median {spread.p50:,.0f}, 5% under {spread.p5:,.0f}, 5% over {spread.p95:,.0f}"
    return f"{values}, at most {spread.max:,.0f} {unit}".strip()


def bytes_text(count: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
