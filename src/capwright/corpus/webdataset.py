"""Reads img2dataset-style WebDataset tars: one pass over a shard gives a row per sample with byte
offsets.

A sample is a run of members that share a key, which is the path up to the first dot of the base
name: `00000/000000017.seg.png` has the key `00000/000000017` and the suffix `seg.png`. Where that
finds no picture but each name has a picture up to its last dot (`tower.v2.jpg`, `tower.v2.txt`),
the last dot counts. The alt text is the member `txt`, or else a field of the member `json`.

Uncompressed tars only, since a compressed one has no byte offsets to come back to. The shard is
the tar, so what img2dataset leaves beside it (`.parquet`, `_stats.json`) is not read.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec

from capwright.core.failures import Failures
from capwright.corpus.addresses import TAR_SUFFIXES, files_at, size_of, stem_of
from capwright.corpus.columns import alt_texts, texts_in
from capwright.corpus.pictures import PictureError, picture_row
from capwright.corpus.reader import ReadOptions, Shard

PICTURE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
NO_PICTURE = "no picture in the sample"


@dataclass
class _Sample:
    key: str
    members: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def picture(self) -> str | None:
        """The suffix of the picture."""
        return next((s for s in PICTURE_MEMBERS if s in self.contents), None)


def find(address: str, options: ReadOptions) -> list[Shard]:
    """One shard a tar, called after it."""
    return [
        Shard(name=stem_of(tar), address=tar, size=size_of(tar))
        for tar in files_at(address, TAR_SUFFIXES)
    ]


def read(shard: Shard, options: ReadOptions, failures: Failures) -> Iterator[dict[str, Any]]:
    """Yield the index columns of every sample with a readable picture, in order.

    A sample without a picture or with a broken one is counted in `failures` and left out; a tar
    that ends in the middle gives the samples before the break and counts one failure.
    """
    with fsspec.open(shard.address, "rb") as stream:
        try:
            for run in _samples(stream, options):
                for sample in _split_at_last_dot(run):
                    row = _row(sample, options, failures)
                    if row is not None:
                        yield {**row, "file": shard.address}
        except (tarfile.TarError, EOFError) as error:
            failures.add(f"broken tar: {error}")


def _samples(stream: BinaryIO, options: ReadOptions) -> Iterator[_Sample]:
    sample: _Sample | None = None
    read_too = {"txt", "json", options.text_suffix}
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, slash, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key, suffix = folder + slash + stem, suffix.lower()
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            sample.members.append(
                {
                    "suffix": suffix,
                    "offset": member.offset_data,
                    "size": member.size,
                    "name": folder + slash + base,
                }
            )
            last = suffix.rpartition(".")[2]
            if last in PICTURE_MEMBERS or last in read_too or suffix in read_too:
                content = tar.extractfile(member)
                data = content.read() if content else b""
                if len(data) < member.size:
                    # the break is inside this sample, so what came before it is whole
                    raise tarfile.ReadError(f"{member.name} is cut off")
                sample.contents[suffix] = data
    if sample is not None:
        yield sample


def _split_at_last_dot(run: _Sample) -> list[_Sample]:
    """The run as one sample, or as several where only the last dot makes pictures of them."""
    if run.picture() is not None:
        return [run]
    parts: dict[str, _Sample] = {}
    for member in run.members:
        key, _, suffix = member["name"].rpartition(".")
        part = parts.setdefault(key, _Sample(key))
        part.members.append({**member, "suffix": suffix.lower()})
        if member["suffix"] in run.contents:
            part.contents[suffix.lower()] = run.contents[member["suffix"]]
    each_has_one = all(part.picture() is not None for part in parts.values())
    return list(parts.values()) if each_has_one else [run]


def _row(sample: _Sample, options: ReadOptions, failures: Failures) -> dict[str, Any] | None:
    suffix = sample.picture()
    if suffix is None:
        failures.add(NO_PICTURE)
        return None
    try:
        facts = picture_row(sample.contents[suffix])
    except PictureError as error:
        failures.add(str(error))
        return None
    failures.ok()
    member = next(m for m in sample.members if m["suffix"] == suffix)
    text, fields = _json(sample.contents.get("json", b""))
    texts = _texts(sample, fields, options)
    return {
        **facts,
        "key": sample.key,
        "text": texts[0] if texts else "",
        "more_texts": texts[1:],
        "json": text,
        "image_offset": member["offset"],
        "image_size": member["size"],
        "members": [{k: m[k] for k in ("suffix", "offset", "size")} for m in sample.members],
    }


def _texts(sample: _Sample, fields: dict[str, Any], options: ReadOptions) -> list[str]:
    if not options.columns.get("text") and options.text_suffix in sample.contents:
        return alt_texts(sample.contents[options.text_suffix].decode("utf-8", "replace"))
    return texts_in(fields, options.columns)


def _json(data: bytes) -> tuple[str, dict[str, Any]]:
    """The member as text, "" where it is no JSON, and its fields."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text)
    except ValueError:
        return "", {}
    return text, value if isinstance(value, dict) else {}
