"""What a corpus address means: a folder, a file, patterns, several joined by `::`, on any fsspec
file system.

    data/cc12m                          a folder
    s3://bucket/{00000..01242}.tar      braces: a range or a,b,c
    data/*.parquet::more/*.parquet      several, one corpus
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

import fsspec

from capwright.core.errors import CapwrightError

JOIN = "::"
TAR_SUFFIXES = (".tar",)
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
TABLE_SUFFIXES = (".parquet",)
DELIMITED_SUFFIXES = (".csv", ".tsv")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
HUGGING_FACE_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")
BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_EXPANDED = 10_000_000


def split_corpus(corpus: str) -> list[str]:
    """The parts of an address, braces expanded; raises CapwrightError for an empty part."""
    parts = [part.strip() for part in corpus.split(JOIN)]
    if not all(parts):
        raise CapwrightError(
            f"the corpus address {corpus!r} has an empty part: write FIRST::SECOND, or one address"
        )
    return [address for part in parts for address in _braces(part)]


def files_at(corpus: str, suffixes: Sequence[str]) -> list[str]:
    """Addresses of the files with one of the suffixes that a corpus address names, sorted.

    A folder gives the files right in it. Raises CapwrightError where a part names nothing.
    """
    found: list[str] = []
    for part in _listed(split_corpus(corpus)):
        filesystem, path = _filesystem(part)
        if filesystem.isdir(path):
            names = filesystem.ls(path, detail=False)
        elif _has_magic(path):
            names = filesystem.glob(path)
        else:
            names = [path] if filesystem.exists(path) else []
        chosen = [name for name in names if _suffix_of(name, suffixes)]
        if not chosen:
            raise CapwrightError(
                f"no shards in {part!r}: expected a folder, file or pattern of "
                f"{', '.join(suffixes)} files"
            )
        found += [address_of(filesystem, name) for name in chosen]
    return sorted(dict.fromkeys(found))


def files_below(folder: str, suffixes: Sequence[str]) -> list[str]:
    """Addresses of the files with one of the suffixes anywhere below a folder, sorted; files and
    folders whose name begins with "." or "_" are left out.
    """
    filesystem, path = _filesystem(folder)
    found = []
    for name in filesystem.find(path):
        inside = PurePosixPath(name[len(path.rstrip("/")) :]).parts
        hidden = any(part.startswith((".", "_")) for part in inside if part != "/")
        if not hidden and _suffix_of(name, suffixes):
            found.append(address_of(filesystem, name))
    return sorted(found)


def address_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """The address that opens `path` again; local ones are plain paths."""
    address: str = filesystem.unstrip_protocol(path)
    return address.removeprefix("file://").removeprefix("local://")


def size_of(address: str) -> int:
    """Bytes of the file at an address."""
    filesystem, path = _filesystem(address)
    return int(filesystem.size(path))


def stem_of(address: str) -> str:
    """The file's name without folders and its last suffix."""
    return PurePosixPath(address).stem


def detect(corpus: str) -> str:
    """The format of a corpus, by the names of its files: one of `index.FORMATS`.

    Raises CapwrightError where nothing that can be read lies there.
    """
    kinds = {part: _detect(part) for part in _listed(split_corpus(corpus))}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{part} is {kind}" for part, kind in kinds.items())
        raise CapwrightError(
            f"a corpus has one format, but here {listed}: index them into separate work folders"
        )
    return next(iter(kinds.values()))


def _detect(part: str) -> str:
    filesystem, path = _filesystem(part)
    if filesystem.isdir(path):
        names = [str(name) for name in filesystem.ls(path, detail=False)]
        if {PurePosixPath(name).name for name in names} & set(HUGGING_FACE_FILES):
            return "huggingface"
    else:
        found = filesystem.glob(path) if _has_magic(path) else [path]
        names = [str(name) for name in found if filesystem.exists(name)]
    # tars first: img2dataset leaves a parquet file of the metadata beside each
    by_suffix = {
        "webdataset": TAR_SUFFIXES,
        "tables": TABLE_SUFFIXES,
        "delimited": DELIMITED_SUFFIXES,
        "huggingface": (".arrow",),
    }
    for kind, suffixes in by_suffix.items():
        if any(_suffix_of(name, suffixes) for name in names):
            return kind
    compressed = next((name for name in names if _suffix_of(name, COMPRESSED_TARS)), "")
    if compressed:
        raise CapwrightError(
            f"{compressed} is a compressed tar, which has no byte offsets to come back to: "
            "decompress the shards first, for example with gunzip (pictures are compressed anyway)"
        )
    if filesystem.isdir(path) and files_below(part, PICTURE_SUFFIXES):
        return "folder"
    raise CapwrightError(
        f"no shards in {part!r}: expected .tar, .parquet, .csv or .tsv files, "
        "a `datasets` folder, or a folder of pictures"
    )


def _listed(parts: list[str]) -> list[str]:
    """The parts, after each folder with several of them was listed: a file system that remembers
    listings, as those of buckets do, then needs no request for each shard.
    """
    folders = Counter(part.rpartition("/")[0] for part in parts)
    for folder in [folder for folder, count in folders.items() if count > 1]:
        filesystem, path = _filesystem(folder)
        with suppress(OSError):
            filesystem.ls(path, detail=True)
    return parts


def _filesystem(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise CapwrightError(
            f"{address!r} cannot be opened ({error}): install what reads it, "
            "for example pip install 'capwright[s3]', or give a local path"
        ) from error
    return filesystem, path


def _has_magic(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _suffix_of(name: str, suffixes: Sequence[str]) -> str:
    lowered = str(name).lower()
    return next((suffix for suffix in suffixes if lowered.endswith(suffix)), "")


def _braces(text: str) -> Iterator[str]:
    found = BRACES.search(text)
    if not found:
        yield text
        return
    for choice in _choices(found.group(1), text):
        yield from _braces(text[: found.start()] + choice + text[found.end() :])


def _choices(inner: str, text: str) -> list[str]:
    span = RANGE.fullmatch(inner)
    if not span:
        return inner.split(",")
    first, last = (int(number) for number in span.groups())
    if last < first or last - first > MAX_EXPANDED:
        raise CapwrightError(
            f"the range {{{inner}}} in {text!r} names no shards: write it as {{00000..00099}}"
        )
    width = len(span.group(1)) if span.group(1).startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]
