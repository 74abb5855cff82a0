"""Text rules of `capwright score --with text` against data-juicer's same filters.

Run: python benchmarks/text_rules.py [--peer-python PYTHON]. PYTHON is an interpreter that has
py-data-juicer and aiohttp (which its filters import and its package forgets); without it a virtual
environment of 650 MB is made in the temporary folder, once.

Both sides compute the same six numbers for the same captions: characters, alphanumeric share, share
of special characters, repetition of 10 characters and of 10 words, words. Language is left out on
both sides, since data-juicer's needs a model to be downloaded. data-juicer's filters are called
directly on batches of 1,000, as its executor does, without the executor's own work, and share the
split words as its operator fusion lets them. One process each, timed by turns in one run, the texts
in memory.

The last line is JSON with `ratio` (of the medians), `target`, `ok`, and the share of captions for
which all six numbers agree; `stage_seconds` is what the whole of our stage but the language takes
(tokens, junk, corpus frequencies as well).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

CAPTIONS, ROUNDS, TARGET = 100_000, 5, 3.0
PEER = ["py-data-juicer==1.6.1", "aiohttp"]
PEER_BATCH, OUR_BATCH = 1000, 4096  # data-juicer's default, and the stage's
NUMBERS = ("text_len", "alnum_ratio", "special_char_ratio", "char_rep_ratio", "word_rep_ratio")
NUMBERS = (*NUMBERS, "num_words")
ALT = [
    "{a}", "photo of a {a}", "{a} - PicHaven", "Buy {a} online | free shipping", "{a}, {year}",
    "IMG_{year}.jpg", "Vintage {a} & {b} “{year}”", "{a} {b} {c} stock photo {year}{year}",
    "Café {a} – naïve {b}", "日本の{a}", "{a} 😀 {b}!!!", "click to enlarge", "{a}_{year}.jpg",
]  # fmt: skip
LONG = [
    "a {a} stands on the left, next to a {b}, and a {c} lies in the background.",
    "The image shows a {a} with a {b}; behind it there is a {c} on a table near the window.",
    "A close-up of a {a}. A {b} is visible on the right, and a {c} in the middle of the picture.",
    "a {a} and a {a} and a {a} and a {a} and a {a} and a {a} and a {a} and a {a} and a {a}",
]


def captions() -> list[str]:
    """Alt texts and descriptions, two to one, of things that WordNet knows."""
    from capwright.captions.lexicon import wordnet_lemmas

    names, rng = wordnet_lemmas(), random.Random(0)
    texts = []
    for _ in range(CAPTIONS):
        count = 1 if rng.random() < 2 / 3 else rng.choice([1, 1, 2, 3])
        templates = ALT if count == 1 and rng.random() < 0.9 else LONG
        words = {name: rng.choice(names) for name in "abc"}
        parts = [rng.choice(templates).format(**words, year=1990 + rng.randrange(36))]
        parts += [rng.choice(LONG).format(**words) for _ in range(count - 1)]
        texts.append(" ".join(parts))
    return texts


def ours(texts: list[str]) -> list[Any]:
    """The six numbers, an array for each batch."""
    import numpy as np

    from capwright.captions.score.measures import ALNUM, SPECIAL, Texts

    found = []
    for start in range(0, len(texts), OUR_BATCH):
        batch = Texts(texts[start : start + OUR_BATCH])
        repeated = batch.character_repetition(10), batch.word_repetition(10)
        shares = batch.share(ALNUM), batch.share(SPECIAL)
        found.append(np.stack([batch.length_T, *shares, *repeated, batch.word_count_T], 1))
    return found


def whole_stage(texts: list[str]) -> float:
    """Seconds of all that the stage does to texts, without the language."""
    from capwright.captions.score import frequencies, text

    documents = frequencies.chunks(([one] for one in texts[:20_000]), OUR_BATCH)
    known = frequencies.count(documents, 10, 1e-4)
    language, text.language_of = text.language_of, lambda one: ""
    began = time.perf_counter()
    for start in range(0, len(texts), OUR_BATCH):
        text.measure(texts[start : start + OUR_BATCH], known)
    text.language_of = language
    return time.perf_counter() - began


def peer(file: Path) -> None:
    """In data-juicer's environment: time its filters whenever a line comes in."""
    from data_juicer.ops import filter as filters
    from data_juicer.utils.constant import Fields

    texts = json.loads(file.read_text(encoding="utf-8"))
    alone = [
        filters.TextLengthFilter(),
        filters.AlphanumericFilter(),
        filters.SpecialCharactersFilter(),
        filters.CharacterRepetitionFilter(),
    ]
    sharing = [filters.WordRepetitionFilter(), filters.WordsNumFilter()]
    print("ready", flush=True)
    for _ in sys.stdin:
        stats = []
        began = time.perf_counter()
        for start in range(0, len(texts), PEER_BATCH):
            some = texts[start : start + PEER_BATCH]
            samples = {
                "text": some,
                Fields.stats: [{} for _ in some],
                Fields.context: [{} for _ in some],
            }
            for one in alone:
                one.compute_stats_batched(samples)
            for one in sharing:
                one.compute_stats_batched(samples, context=True)
            stats += samples[Fields.stats]
        seconds = time.perf_counter() - began
        rows = [[row[name] for name in NUMBERS] for row in stats]
        file.with_suffix(".stats").write_text(json.dumps(rows))
        print(seconds, flush=True)


def peer_python() -> Path:
    """An environment with data-juicer, made where it is not there yet."""
    folder = Path(tempfile.gettempdir()) / f"capwright-{PEER[0]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEER], check=True)
        (folder / "complete").touch()
    return python


def agreement(texts: list[str], found: list[Any], file: Path) -> float:
    """Share of captions for which all six numbers are the same."""
    import numpy as np

    theirs = np.array(json.loads(file.with_suffix(".stats").read_text()))
    same = np.isclose(np.concatenate(found), theirs, atol=1e-6).all(1)
    for i in np.flatnonzero(~same)[:3]:
        print("differs:", texts[i], np.concatenate(found)[i], theirs[i], file=sys.stderr)
    return float(same.mean())


def measure(python: Path) -> dict[str, Any]:
    """Time both by turns."""
    texts = captions()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        command = [str(python), __file__, "--peer", str(file)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as child:
            assert child.stdin and child.stdout
            while child.stdout.readline().strip() not in ("ready", ""):
                pass  # what its imports print
            for _ in range(ROUNDS):
                began = time.perf_counter()
                found = ours(texts)
                seconds["ours"].append(time.perf_counter() - began)
                print("go", file=child.stdin, flush=True)
                seconds["theirs"].append(float(child.stdout.readline()))
            child.stdin.close()
        same = agreement(texts, found, file)
    fast, slow = (statistics.median(seconds[side]) for side in ("ours", "theirs"))
    return {
        "captions": len(texts),
        "mean_characters": round(sum(map(len, texts)) / len(texts), 1),
        "captions_per_second": round(len(texts) / fast),
        "peer_captions_per_second": round(len(texts) / slow),
        "stage_seconds": round(whole_stage(texts), 2),
        "agree": round(same, 4),
        "ratio": round(slow / fast, 2),
    }


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", type=Path, help="interpreter that has py-data-juicer")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for both
    if options.peer:
        peer(options.peer)
        return
    report = measure(options.peer_python or peer_python())
    ok = report["ratio"] >= TARGET
    print(json.dumps({"name": "text_rules", **report, "target": TARGET, "ok": ok}))


if __name__ == "__main__":
    main()
