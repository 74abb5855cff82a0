"""Index and sidecar joined for a million samples: seconds, peak memory, and that no tar is touched.

A synthetic index of 100 shards with 10,000 samples each, as img2dataset's tars give (alt text, a
json of 250 characters, members), and a sidecar of three captions a sample of which two are kept.
A fresh process loads the index's keys and joins the captions to them; its own peak of resident
memory is reported. Then a second source of captions is added: bytes written, against the bytes of
the tars that the index points to (pretended, 40 kB a picture), of which none is opened.

Run: python benchmarks/join.py. The last line is JSON with `ratio` (20 s over the seconds), `target`
and `ok`, which asks for the seconds and for less than 1 GB.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capwright.corpus.index import load_index, write_index_shard
from capwright.corpus.sidecars import captions_of, write_sidecar

SHARDS, PER_SHARD = 100, 10_000
SECONDS, GIGABYTES = 20.0, 1.0
PICTURE_BYTES = 40_000
JSON = json.dumps({"url": "https://example.org/" + "p" * 120, "exif": "{}" + "x" * 80})
SENTENCE = "a brown dog and two small cats sit on the old wooden bench near a lake in summer"
WORDS = SENTENCE.split()


def samples(shard: str) -> Iterator[dict[str, Any]]:
    """Rows of the index."""
    for i in range(PER_SHARD):
        at = i * (PICTURE_BYTES + 2048)
        yield {
            "key": f"{shard}{i:04d}",
            "shard": shard,
            "file": f"s3://bucket/web/{shard}.tar",
            "text": f"IMG {i} {' '.join(WORDS[: i % 12])}",
            "more_texts": [],
            "json": JSON,
            "width": 640,
            "height": 480,
            "sha256": f"{i:064x}",
            "phash": i,
            "image_offset": at,
            "image_size": PICTURE_BYTES,
            "image_column": None,
            "members": [{"suffix": "jpg", "offset": at, "size": PICTURE_BYTES}],
        }


def captions(shard: str, source: str) -> Iterator[dict[str, Any]]:
    """Three captions a sample, the third dropped."""
    for i in range(PER_SHARD):
        for number in range(3):
            yield {
                "key": f"{shard}{i:04d}",
                "source": source,
                "text": f"{' '.join(WORDS[number : 8 + i % 9])}, {i}",
                "model": "captioner",
                "prompt": "short/1",
                "score": number / 3,
                "keep": number < 2,
                "reason": "" if number < 2 else "left: better ones kept",
            }


def add_source(work: Path, source: str) -> int:
    """Write the sidecars of a source of captions; returns their bytes."""
    folder = work / "captions" / source
    for shard in shard_names():
        write_sidecar(folder, shard, list(captions(shard, source)))
    return sum(file.stat().st_size for file in folder.iterdir())


def shard_names() -> list[str]:
    """Names as img2dataset gives them."""
    return [f"{number:05d}" for number in range(SHARDS)]


def join(work: Path) -> dict[str, float]:
    """Load and join in this process."""
    began = time.perf_counter()
    index = load_index(work, ["key", "shard", "text"])
    loaded = time.perf_counter()
    joined = captions_of(index, work / "captions" / "describe")
    seconds = time.perf_counter() - began
    assert len(joined) == SHARDS * PER_SHARD and all(len(texts) == 2 for texts in joined)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "load_seconds": loaded - began, "peak_gb": peak / 1e9}


def main() -> None:
    """Make the index, measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for shard in shard_names():
            write_index_shard(work / "index", shard, list(samples(shard)), {})
        add_source(work, "describe")
        command = [sys.executable, __file__, folder]
        measured = json.loads(subprocess.check_output(command, text=True))
        written = add_source(work, "describe-another")
    ratio = SECONDS / measured["seconds"]
    report = {
        "name": "join",
        "samples": SHARDS * PER_SHARD,
        "seconds": round(measured["seconds"], 2),
        "load_seconds": round(measured["load_seconds"], 2),
        "peak_gb": round(measured["peak_gb"], 3),
        "source_bytes": written,
        "source_share_of_tars": round(written / (SHARDS * PER_SHARD * PICTURE_BYTES), 5),
        "ratio": round(ratio, 2),
        "target": 1.0,
        "ok": ratio >= 1.0 and measured["peak_gb"] < GIGABYTES,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(join(Path(sys.argv[1]))))
    else:
        main()
