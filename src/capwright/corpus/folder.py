"""Reads a folder tree of pictures, each with or without a text file beside it.

`cats/tom.jpg` has the key `cats/tom`, and its alt text is in `cats/tom.txt` (`text_suffix` names
another suffix); further values come from `cats/tom.json`. That is img2dataset's layout `files`. A
`metadata.jsonl` or `metadata.csv` in a folder, with a column `file_name`, gives texts and values
for the pictures in it, as in Hugging Face's imagefolder. Suffixes may be in upper case. Files and
folders whose names begin with "." or "_" are left out. A shard is `shard_rows` pictures of the
sorted tree, and its size that of the pictures' files.
"""

import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.corpus.addresses import PICTURE_SUFFIXES, address_of, split_corpus
from capwright.corpus.columns import alt_texts, json_text, texts_in
from capwright.corpus.picture_files import read_files, with_pictures
from capwright.corpus.reader import ReadOptions, Shard

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The files below a folder, by path in it."""

    address: str
    """The folder, as an address that does not depend on where the process runs."""
    pictures: tuple[str, ...]
    """Sorted."""
    sizes: Mapping[str, int]
    """Bytes of each picture."""
    beside: Mapping[tuple[str, str], str]
    """(path without suffix, suffix in lower case) to the path of each other file."""
    metadata: tuple[str, ...]
    """The files named in METADATA."""


def find(address: str, options: ReadOptions) -> list[Shard]:
    """Shards of `shard_rows` pictures of the folders at an address."""
    _tree.cache_clear()
    _metadata.cache_clear()
    shards = []
    for folder in split_corpus(address):
        tree = _tree(folder)
        if not tree.pictures:
            raise CapwrightError(
                f"no pictures below {folder!r}: expected {', '.join(PICTURE_SUFFIXES)} files"
            )
        name = tree.address.rpartition("/")[2] or "pictures"
        for i, start in enumerate(range(0, len(tree.pictures), options.shard_rows)):
            pictures = tree.pictures[start : start + options.shard_rows]
            shards.append(
                Shard(
                    name=f"{name}-{i:05d}",
                    address=tree.address,
                    size=sum(tree.sizes[path] for path in pictures),
                    start=start,
                    stop=start + len(pictures),
                )
            )
    return shards


def read(shard: Shard, options: ReadOptions, failures: Failures) -> Iterator[dict[str, Any]]:
    """Rows of the index of one shard, in order."""
    tree = _tree(shard.address)
    pictures = tree.pictures[shard.start : shard.stop]
    keys = [_split(path)[0] for path in pictures]
    texts = _contents(tree, keys, options.text_suffix.lower())
    jsons = _contents(tree, keys, "json")
    metadata = _metadata(shard.address)
    rows = []
    for path, key in zip(pictures, keys, strict=True):
        values = metadata.get(path, {})
        if key in jsons:
            values = {**values, **_object(jsons[key])}
        found = alt_texts(texts.get(key)) or texts_in(values, options.columns)
        rows.append(
            {
                "key": key,
                "text": found[0] if found else "",
                "more_texts": found[1:],
                "json": json_text(values),
                "members": [],
            }
        )
    yield from with_pictures(rows, [f"{tree.address}/{path}" for path in pictures], failures)


def _contents(tree: Tree, keys: list[str], suffix: str) -> dict[str, str]:
    """The text of the files with a suffix beside the pictures, by key."""
    paths = {key: tree.beside[key, suffix] for key in keys if (key, suffix) in tree.beside}
    files = read_files(f"{tree.address}/{path}" for path in paths.values())
    return {
        key: data.decode("utf-8-sig", "replace")
        for key, data in zip(paths, files, strict=True)
        if data is not None
    }


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@functools.lru_cache(maxsize=8)
def _tree(folder: str) -> Tree:
    """One listing of a folder, kept for the shards that the process reads."""
    filesystem, root = fsspec.core.url_to_fs(folder)
    root = root.rstrip("/")
    sizes, beside, metadata = {}, {}, []
    for name, entry in filesystem.find(root, detail=True).items():
        path = name[len(root) :].lstrip("/")
        if any(part.startswith((".", "_")) for part in path.split("/")):
            continue
        key, suffix = _split(path)
        if path.rpartition("/")[2] in METADATA:
            metadata.append(path)
        elif f".{suffix}" in PICTURE_SUFFIXES:
            sizes[path] = int(entry["size"])
        else:
            beside[key, suffix] = path
    return Tree(
        address=address_of(filesystem, root),
        pictures=tuple(sorted(sizes)),
        sizes=sizes,
        beside=beside,
        metadata=tuple(sorted(metadata)),
    )


@functools.lru_cache(maxsize=8)
def _metadata(folder: str) -> dict[str, dict[str, Any]]:
    """Picture's path to its values, from the metadata files of a tree."""
    found: dict[str, dict[str, Any]] = {}
    tree = _tree(folder)
    files = read_files(f"{tree.address}/{path}" for path in tree.metadata)
    for path, data in zip(tree.metadata, files, strict=True):
        text = (data or b"").decode("utf-8-sig", "replace")
        if path.endswith(".csv"):
            rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [_object(line) for line in text.splitlines() if line.strip()]
        for values in rows:
            name = str(values.pop("file_name", ""))
            found[path[: path.rfind("/") + 1] + name] = values
    return found


def _split(path: str) -> tuple[str, str]:
    """A path without its last suffix, and the suffix in lower case."""
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.rpartition(".")
    return folder + slash + (stem or suffix), suffix.lower() if stem else ""
