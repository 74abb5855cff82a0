"""Reads img2dataset-style WebDataset tars: one pass over a shard gives a row per sample with byte
offsets.

A sample is a run of members that share a key, which is the path up to the first dot of the base
name: `00000/000000017.seg.png` has the key `00000/000000017` and the suffix `seg.png`.
Uncompressed tars only, since a compressed one has no byte offsets to come back to.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec
from PIL import Image, UnidentifiedImageError

from capwright.core.failures import Failures

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass
class _Sample:
    key: str
    members: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)


def read_shard(path: str, failures: Failures) -> Iterator[dict[str, Any]]:
    """Yield the index columns of every sample with a readable picture in the tar at `path`, in
    order.

    A sample without a picture or with a broken one is counted in `failures` and left out; a tar
    that ends in the middle gives the samples before the break and counts one failure.
    """
    with fsspec.open(path, "rb") as stream:
        try:
            for sample in _samples(stream):
                row = _row(sample, failures)
                if row is not None:
                    yield row
        except (tarfile.TarError, EOFError) as error:
            failures.add(f"broken tar: {error}")


def _samples(stream: BinaryIO) -> Iterator[_Sample]:
    sample: _Sample | None = None
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
                {"suffix": suffix, "offset": member.offset_data, "size": member.size}
            )
            if suffix in PICTURE_SUFFIXES or suffix in ("txt", "json"):
                content = tar.extractfile(member)
                data = content.read() if content else b""
                if len(data) < member.size:
                    # the break is inside this sample, so what came before it is whole
                    raise tarfile.ReadError(f"{member.name} is cut off")
                sample.contents[suffix] = data
    if sample is not None:
        yield sample


def _row(sample: _Sample, failures: Failures) -> dict[str, Any] | None:
    suffix = next((s for s in PICTURE_SUFFIXES if s in sample.contents), None)
    if suffix is None:
        failures.add("no picture in the sample")
        return None
    picture = sample.contents[suffix]
    try:
        with Image.open(io.BytesIO(picture)) as image:
            width, height = image.size
            image.load()  # opening reads the header alone, so a cut file would pass for whole
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        failures.add(f"unreadable picture: {type(error).__name__}")
        return None
    failures.ok()
    member = next(m for m in sample.members if m["suffix"] == suffix)
    return {
        "key": sample.key,
        "text": sample.contents.get("txt", b"").decode("utf-8", "replace").strip(),
        "json": _json_text(sample.contents.get("json", b"")),
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(picture).hexdigest(),
        "image_offset": member["offset"],
        "image_size": member["size"],
        "members": sample.members,
    }


def _json_text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
        json.loads(text)
    except ValueError:
        return ""
    return text
