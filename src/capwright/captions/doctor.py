"""What is in a corpus and what will go wrong with it later, before a night is spent on it.

Reads: the corpus, by its index (made here where it is missing, however broken the corpus is; one
that is there is taken as it is, so `capwright index` with other options goes first). Writes the
index alone. Run: `capwright doctor CORPUS --work WORK`.

The counts are DuckDB's over the index. Tokens and languages are measured on samples that are the
same in every run. Near duplicates have the same 64-bit perceptual hash and other bytes. A problem
is what makes a training hang or lose samples without a word; all else is a warning.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capwright.captions.doctor_report import SMALL_SIDE, Report, Spread
from capwright.captions.doctor_rules import judge
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.corpus import index
from capwright.corpus.addresses import detect
from capwright.corpus.picture_files import read_files
from capwright.corpus.reader import ReadOptions, Shard

TOKEN_SAMPLE = 200_000
LANGUAGE_SAMPLE = 2_000
LANGUAGE_BYTES = 20  # shorter texts are too short to tell
LEAST_BITS = 8  # a perceptual hash with fewer bits set is that of a picture of one colour
SHARES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to look at."""

    corpus: str
    """Any address that `capwright index` takes."""
    work: Path
    """Work folder; the index goes to WORK/index."""
    workers: int = 1
    """Data-loading workers of each process of the training."""
    ranks: int = 1
    """Processes of the training, one a GPU."""

    def __post_init__(self) -> None:
        for name in ("workers", "ranks"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")


def run(config: DoctorConfig) -> Report:
    """Look at a corpus. Raises CapwrightError where none lies there, or the work folder is not
    this corpus's.
    """
    kind, shards = _find(config)
    stopped = ""
    try:
        if (config.work / "index" / "manifest.json").exists():
            index.run_as_before(config.corpus, config.work)
        else:
            settings = index.IndexConfig(
                corpus=config.corpus, work=config.work, format=kind, max_failure_rate=1.0
            )
            index.run(settings)
    except CapwrightError as error:
        if str(config.work / "index") in str(error):
            raise  # the work folder is at fault, not the corpus
        stopped = str(error)
    found: dict[str, Any] = {
        "corpus": config.corpus,
        "format": kind,
        "shards": len(shards),
        "files": len({shard.address for shard in shards}),
    }
    if any((config.work / "index").glob("*.parquet")):
        found |= _measure(config.work, kind, shards)
    report = Report(**found)
    problems, warnings = judge(
        report,
        workers=config.workers * config.ranks,
        stopped=stopped,
        first_shard=shards[0].address,
    )
    return Report(**found, problems=problems, warnings=warnings)


def _find(config: DoctorConfig) -> tuple[str, list[Shard]]:
    """Format and shards of the corpus, as its index has them where there is one."""
    manifest = config.work / "index" / "manifest.json"
    if manifest.exists():
        plan = read_json(manifest)["plan"]
        kind, options = plan["format"], ReadOptions(**plan["read"])
    else:
        kind, options = detect(config.corpus), ReadOptions()
    return kind, index.find_shards(config.corpus, kind, options)


def _measure(work: Path, kind: str, shards: Sequence[Shard]) -> dict[str, Any]:
    import duckdb

    files = [str(work / "index" / f"{name}.parquet") for name in index.index_shards(work)]
    with duckdb.connect() as base:
        base.execute("SET enable_progress_bar = false")
        relation = base.read_parquet(files, file_row_number=True, hive_partitioning=False)
        relation.create_view("samples")
        found = _counts(base) | _texts(base) | _duplicates(base)
        if kind == "webdataset":
            found |= _tars(base)
            found["img2dataset"] = _img2dataset(shards, index.shard_sizes(work))
        if kind == "tables":
            found["row_group_rows"] = _largest_row_group(base)
    sizes = index.shard_sizes(work)
    found["shard_samples"] = _spread(list(sizes.values()))
    return found | {"left_out": index.left_out(work)}


def _counts(base: Any) -> dict[str, Any]:
    row = base.execute(
        """
        SELECT count(*), count(*) FILTER (text <> ''), count(*) FILTER (len(more_texts) > 0),
               coalesce(sum(image_size), 0)::BIGINT, count(*) FILTER (least(width, height) < ?)
        FROM samples
        """,
        [SMALL_SIDE],
    ).fetchone()
    names = ("samples", "with_text", "several_texts", "bytes", "small")
    found: dict[str, Any] = dict(zip(names, row, strict=True))
    for name, column in (
        ("picture_bytes", "image_size"),
        ("width", "width"),
        ("height", "height"),
    ):
        mean, quantiles, largest = base.execute(
            f"SELECT avg({column}), quantile_cont({column}, ?), max({column}) FROM samples",
            [list(SHARES)],
        ).fetchone()
        if quantiles:
            p5, p50, p95 = quantiles
            found[name] = Spread(mean=mean, p5=p5, p50=p50, p95=p95, max=largest)
    return found


def _texts(base: Any) -> dict[str, Any]:
    import py3langid

    from capwright.captions.score.tokens import CONTEXT_TOKENS, count_tokens

    texts = _sample(base, TOKEN_SAMPLE)
    tokens = count_tokens(texts)
    languages: Counter[str] = Counter()
    for text in _sample(base, LANGUAGE_SAMPLE):
        if len(text.encode()) >= LANGUAGE_BYTES:
            languages[py3langid.classify(text)[0]] += 1
    judged = languages.total()
    return {
        "tokens": _spread(tokens),
        "texts_counted": len(texts),
        "cut_at_77": sum(n > CONTEXT_TOKENS for n in tokens) / max(1, len(tokens)),
        "languages": {name: n / judged for name, n in languages.most_common(8)},
    }


def _sample(base: Any, most: int) -> list[str]:
    """At most about `most` texts, evenly from all shards."""
    total = base.execute("SELECT count(*) FROM samples WHERE text <> ''").fetchone()[0]
    rows = base.execute(
        "SELECT text FROM samples WHERE text <> '' AND file_row_number % ? = 0",
        [max(1, -(-total // most))],
    ).fetchall()
    return [text for (text,) in rows]


def _duplicates(base: Any) -> dict[str, Any]:
    pictures, looks = base.execute(
        """
        SELECT (SELECT count(*) - count(DISTINCT sha256) FROM samples), (
            SELECT count(*) - count(DISTINCT phash)
            FROM (SELECT DISTINCT sha256, phash FROM samples) WHERE bit_count(phash) >= ?
        )
        """,
        [LEAST_BITS],
    ).fetchone()
    texts = base.execute(
        """
        SELECT text, count(*) AS n, sum(count(*) - 1) OVER ()
        FROM samples WHERE text <> '' GROUP BY text ORDER BY n DESC, text LIMIT 1
        """
    ).fetchone()
    text, count, repeated = texts or ("", 0, 0)
    return {
        "same_pictures": pictures,
        "near_pictures": looks,
        "same_texts": int(repeated),
        "most_frequent_text": text if count > 1 else "",
        "most_frequent_text_count": count if count > 1 else 0,
    }


def _tars(base: Any) -> dict[str, Any]:
    members = base.execute(
        """
        SELECT m.suffix, count(*) AS n FROM (SELECT unnest(members) AS m FROM samples)
        GROUP BY m.suffix ORDER BY n DESC, m.suffix LIMIT 20
        """
    ).fetchall()
    dotted = base.execute(
        r"SELECT count(*) FROM samples WHERE regexp_matches(key, '\.[^/]*$')"
    ).fetchone()[0]
    return {"members": dict(members), "dotted_keys": dotted}


def _img2dataset(shards: Sequence[Shard], sizes: dict[str, int]) -> dict[str, int]:
    """What img2dataset counted in its `_stats.json` beside the tars, against what is in them."""
    read = [shard for shard in shards if shard.name in sizes]
    files = read_files(f"{shard.address.removesuffix('.tar')}_stats.json" for shard in read)
    found = successes = pictures = 0
    for shard, data in zip(read, files, strict=True):
        try:
            counted = int(json.loads(data or b"")["successes"])
        except (ValueError, KeyError, TypeError):
            continue
        found, successes = found + 1, successes + counted
        pictures += sizes[shard.name]
    return {"shards": found, "successes": successes, "pictures": pictures} if found else {}


def _largest_row_group(base: Any) -> int:
    """Rows of the largest row group of the parquet files that hold pictures."""
    import fsspec
    import pyarrow.parquet as pq

    files = base.execute(
        "SELECT DISTINCT file FROM samples WHERE image_column IS NOT NULL"
    ).fetchall()
    largest = 0
    for (file,) in files:
        with fsspec.open(file, "rb") as stream:
            metadata = pq.ParquetFile(stream).metadata
            groups = range(metadata.num_row_groups)
            largest = max([largest, *(metadata.row_group(i).num_rows for i in groups)])
    return largest


def _spread(values: list[int]) -> Spread:
    import numpy as np

    if not values:
        return Spread()
    p5, p50, p95 = np.quantile(values, SHARES).tolist()
    return Spread(mean=float(np.mean(values)), p5=p5, p50=p50, p95=p95, max=float(max(values)))
