"""What the demo found: results.json and the pictures, captions and counts behind the report.

Reads what the steps wrote below OUT. Writes OUT/report_data; `results` returns what goes into
OUT/results.json: `arms`, `recovered` (share of the gap from alt text to the oracle's captions that
Capwright's captions close), `captions` (precision and recall of the named objects) and every row.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capwright.captions.runner import stage_folder
from capwright.core.config import as_dict
from capwright.core.files import atomic_path, read_json, write_json
from capwright.corpus.index import load_index
from capwright.corpus.pictures import read_members
from capwright.corpus.places import ByteReader, places
from capwright.corpus.sidecars import captions_of, read_sidecars
from capwright.datasets.labelled import class_names
from capwright.evaluate import results as rows
from capwright.evaluate.dense_probe import headline
from capwright.evaluate.dense_training import Mode
from capwright.evaluate.named_objects import precision_recall, truth_of
from capwright.recipes.demo import SPLITS, DemoConfig

HEADLINE: Mode = "frozen"
EXAMPLES = 12
BINS = 20
STAGES = {"description": "describe-small", "fused": "fuse-rules", "selected": "select"}


def results(config: DemoConfig) -> dict[str, Any]:
    """Everything that the demo measured."""
    arms = {arm: _arm(config, arm) for arm in config.arms}
    found: dict[str, Any] = {"arms": arms}
    if {"alt", "quality", "oracle"} <= arms.keys():
        found["recovered"] = {name: recovered(arms, name) for name in ("miou", "rmse")}
    return found | {
        "captions": caption_quality(config),
        "seconds": spent_seconds(config.out / "steps.jsonl"),
        "settings": as_dict(config),
        "results": [
            as_dict(row) for arm in config.arms for row in _rows(config.out / "arms" / arm)
        ],
    }


def spent_seconds(log: Path) -> float:
    """Seconds of all finished steps, those of earlier, killed runs included."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    spent: list[float] = [json.loads(line)["seconds"] for line in lines]
    return round(sum(spent), 1)


def recovered(arms: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """(quality - alt) / (oracle - alt); None where the oracle gains nothing over alt text."""
    alt, quality, oracle = (float(arms[arm][metric]) for arm in ("alt", "quality", "oracle"))
    gained = oracle - alt if metric == "miou" else alt - oracle
    if gained <= 0:
        return None
    return (quality - alt) / (oracle - alt)


def caption_quality(config: DemoConfig) -> dict[str, dict[str, float]]:
    """Precision and recall of the named objects, by source, over the captioned pictures."""
    index = load_index(config.work)
    truth = [truth_of(data) for data in read_members(index, "boxes.json")]
    lexicon = set().union(*truth)
    captions = {"alt": captions_of(index, None)}
    for name, stage in STAGES.items():
        captions[name] = captions_of(index, stage_folder(config.work, stage))
    return {
        name: as_dict(precision_recall(texts, truth, lexicon)) for name, texts in captions.items()
    }


def write_report_data(config: DemoConfig) -> None:
    """Write OUT/report_data, which the report reads."""
    folder = config.out / "report_data"
    folder.mkdir(exist_ok=True)
    for arm in config.arms:
        for split in SPLITS:
            shutil.copyfile(
                config.out / "arms" / arm / f"predictions_{split}.npz",
                folder / f"predictions_{split}_{arm}.npz",
            )
    names = class_names(load_index(config.out / "work" / "seen"))
    write_json(folder / "classes.json", {"classes": list(names)})
    selected = read_sidecars(stage_folder(config.work, "select")).to_pylist()
    write_json(folder / "reasons.json", _decisions(selected))
    write_json(folder / "scores.json", _histograms(selected))
    _write_examples(config, folder, selected)


def _arm(config: DemoConfig, arm: str) -> dict[str, Any]:
    folder = config.out / "arms" / arm
    dense = rows.read_results(folder / "dense.json")
    found: dict[str, Any] = dict(headline(dense, HEADLINE))
    found |= _intervals(dense)
    finetuned = headline(dense, "finetuned")
    found |= {f"{name}_finetuned": value for name, value in finetuned.items()}
    ranks = rows.read_results(folder / "retrieval.json")[0].metrics
    found["retrieval_r1"] = ranks["image_retrieval_recall@1"]
    found["zeroshot_acc1"] = rows.read_results(folder / "classification.json")[0].metrics["acc1"]
    summary = folder / "summary.json"
    ran = read_json(summary) if summary.exists() else {"samples_seen": 0, "seconds": 0.0}
    return found | {name: ran[name] for name in ("samples_seen", "seconds")}


def _intervals(dense: Sequence[rows.Result]) -> dict[str, list[float]]:
    """95% intervals over the probe's seeds of the headline's metrics."""
    found: dict[str, list[float]] = {}
    for row in rows.summarise(dense):
        if row["options"]["mode"] != HEADLINE:
            continue
        suffix = "_unseen" if row["options"]["split"] == "unseen" else ""
        for name in ("miou", "rmse", "absrel_objects"):
            half = row["interval95"].get(name)
            if half is not None:
                mean = row["metrics"][name]
                found[f"{name}{suffix}_interval"] = [mean - half, mean + half]
    return found


def _rows(folder: Path) -> list[rows.Result]:
    files = ("dense.json", "retrieval.json", "classification.json")
    return [row for file in files for row in rows.read_results(folder / file)]


def _decisions(selected: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often each reason was the decision on a picture: the first row of its candidates."""
    first = {row["key"]: row["reason"] for row in reversed(selected)}
    return dict(Counter(first.values()).most_common())


def _histograms(selected: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Counts of scores in equal bins from 0 to 1, by the candidate's source and for what is
    kept.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for row in selected:
        if row["score"] is not None:
            scores[row["prompt"]].append(row["score"])
            if row["keep"]:
                scores["select"].append(row["score"])
    edges = np.linspace(0, 1, BINS + 1)
    counted = {name: np.histogram(values, edges)[0].tolist() for name, values in scores.items()}
    return {"bins": edges.tolist()} | counted


def _write_examples(
    config: DemoConfig, folder: Path, selected: Sequence[Mapping[str, Any]]
) -> None:
    """The first pictures of each kind of decision, with every caption they had."""
    index = load_index(config.work)
    by_key: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in selected:
        by_key[row["key"]].append(row)
    oracle = captions_of(index, config.out / "scenes" / "train" / "oracle")
    chosen = _varied([by_key.get(key, []) for key in index["key"].to_pylist()])
    (folder / "captions").mkdir(exist_ok=True)
    lines = []
    with ByteReader() as reader:
        for number in chosen:
            one = index.slice(number, 1)
            picture, row = reader.read(*places(one)[0]), one.to_pylist()[0]
            name = f"captions/{Path(row['key']).name}.jpg"
            (folder / name).write_bytes(picture)
            lines.append(_example(row, by_key[row["key"]], oracle[number]) | {"image": name})
    with atomic_path(folder / "captions.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _varied(decisions: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
    """Pictures in turn from each reason, the commonest reason first."""
    by_reason: dict[str, list[int]] = defaultdict(list)
    for number, candidates in enumerate(decisions):
        reason = next((row["reason"] for row in candidates if row["reason"]), "")
        by_reason[reason].append(number)
    groups = sorted(by_reason.values(), key=len, reverse=True)
    turns = [group[turn] for turn in range(EXAMPLES) for group in groups if turn < len(group)]
    return turns[:EXAMPLES]


def _example(
    row: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], oracle: Sequence[str]
) -> dict[str, Any]:
    of_source: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for candidate in candidates:
        of_source[candidate["prompt"]].append(candidate)
    kept = [candidate for candidate in candidates if candidate["keep"]]
    best = {source: max(c["score"] or 0.0 for c in found) for source, found in of_source.items()}
    return {
        "key": row["key"],
        "alt": row["text"],
        "described": [c["text"] for c in of_source.get("describe-small", [])],
        "fused": next((c["text"] for c in of_source.get("fuse-rules", [])), ""),
        "selected": [c["text"] for c in kept],
        "reason": next((c["reason"] for c in candidates if c["reason"]), ""),
        "scores": best | ({"select": max(c["score"] or 0.0 for c in kept)} if kept else {}),
        "oracle": oracle[0] if oracle else "",
    }
