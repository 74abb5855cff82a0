"""Subsets of a corpus as DataComp writes them: a sorted numpy array of dtype "u8,u8", one entry a
sample, the two halves of the 128-bit hexadecimal `uid` in the sample's json.

Reads: uids in the index's json, OUT.npy. Writes: OUT.npy, by `capwright select --subset OUT.npy`.
DataComp's resharder and its baselines read and write the same files (arXiv 2304.14108).

A uid is held here as its 16 bytes, which sort as the numbers do.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capwright.captions.runner import check_complete, stage_folder
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.corpus.index import load_shard, shard_sizes
from capwright.corpus.sidecars import read_sidecars

Uids = npt.NDArray[np.bytes_]
HALVES = np.dtype("u8,u8")
HEX = re.compile(r"[0-9a-fA-F]{32}")


def uids_of(samples: Sequence[str]) -> list[str]:
    """The `uid` of each sample's json, in lower case; "" where it has none of 32 hex digits."""
    return [_uid(text) if '"uid"' in text else "" for text in samples]


def as_bytes(uids: Sequence[str]) -> Uids:
    """32 hex digits each, as an array of 16 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(uids)), "S16")


def is_in(uids: Sequence[str], subset: Uids) -> npt.NDArray[np.bool_]:
    """Which of `uids` ("" is none) are in the sorted `subset`."""
    known = np.array([bool(uid) for uid in uids], np.bool_)
    found = np.zeros(len(uids), np.bool_)
    if len(subset) and known.any():
        wanted = as_bytes([uid for uid in uids if uid])
        at = np.minimum(np.searchsorted(subset, wanted), len(subset) - 1)
        found[known] = subset[at] == wanted
    return found


def read_subset(path: Path) -> Uids:
    """The uids of a subset file, sorted; raises CapwrightError for another kind of file."""
    try:
        halves = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise CapwrightError(
            f"the subset {path} does not exist: give a .npy file of uids, as --subset writes it"
        ) from None
    except (ValueError, OSError, EOFError) as error:
        raise CapwrightError(f"the subset {path} is not a .npy file: {error}") from error
    if halves.dtype != HALVES or halves.ndim != 1:
        raise CapwrightError(
            f'the subset {path} holds {halves.dtype} {list(halves.shape)}, but must be "u8,u8" in '
            "one dimension: the two halves of each uid, as DataComp's subsets"
        )
    flat = halves.view(np.uint64).astype(">u8")
    return np.sort(flat.view("S16"))


def write_subset(work: Path, path: Path, stage: str = "select") -> int:
    """Write the uids of the samples that keep a caption in `stage`; returns how many.

    Raises CapwrightError where the stage is not complete or a kept sample has no uid.
    """
    check_complete(work, stage)
    parts = [as_bytes(_kept_uids(work, stage, shard)) for shard in shard_sizes(work)]
    uids = np.unique(np.concatenate(parts))
    halves = uids.view(">u8").astype(np.uint64).view(HALVES)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, halves)
    return len(halves)


def _kept_uids(work: Path, stage: str, shard: str) -> list[str]:
    rows = read_sidecars(stage_folder(work, stage), [shard], ["key", "keep"])
    keys = rows["key"].to_pylist()
    kept = {key for key, keep in zip(keys, rows["keep"].to_pylist(), strict=True) if keep}
    table = load_shard(work, shard, ["key", "json"])
    uids = uids_of(table["json"].to_pylist())
    found = [
        (key, uid) for key, uid in zip(table["key"].to_pylist(), uids, strict=True) if key in kept
    ]
    without = [key for key, uid in found if not uid]
    if without:
        raise CapwrightError(
            f"{len(without)} of {len(found)} kept samples of shard {shard} have no uid of 32 hex "
            f"digits in their json, such as {without[0]!r}: a subset names samples by uid, "
            "so it can be written for corpora like DataComp's alone"
        )
    return [uid for _, uid in found]


def _uid(text: str) -> str:
    try:
        sample: Any = json.loads(text)
    except ValueError:
        return ""
    uid = sample.get("uid") if isinstance(sample, dict) else None
    return uid.lower() if isinstance(uid, str) and HEX.fullmatch(uid) else ""
