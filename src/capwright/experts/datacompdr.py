"""DataCompDR's published reinforcements, joined to an indexed corpus.

Reads: the index, and WebDataset tars whose samples have the members `syn.json` {syn_text:
captions}, `paug.json` {param_aug: augmentations}, the embeddings {image_emb [A, D], text_emb
[T, D]} as `npz` or as `pth.gz` (torch, bfloat16), and `json` {uid, sha256}; `url.txt` is not read.
Rows of text_emb are the real captions and then the synthetic ones. (Vasu et al., arXiv 2311.17049;
the data cards of apple/DataCompDR-12M, -12M-bf16 and -1B.)
Writes: WORK/reinforced/datacompdr/ (where each sample lies in the tars),
WORK/captions/reinforce as `reinforce.py` does, and WORK/captions/datacompdr, the synthetic captions
as a source to train on. Run: `capwright reinforce CORPUS --work WORK --from-datacompdr TARS`.

A sample joins by the uid in its json, or without one by its key. What is missing or does not fit
its picture is a failed picture with the reason. Nothing is unpickled: npz without objects, torch
with weights_only.

Shapes: A augmentations, T captions, D the embeddings of all teachers side by side.
"""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from capwright.captions.runner import (
    FAILED,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    preview,
    run_stage,
    stage_folder,
)
from capwright.captions.subset import uids_of
from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.core.run_folder import only_one
from capwright.corpus.addresses import TAR_SUFFIXES, files_at, size_of, stem_of
from capwright.corpus.places import ByteReader
from capwright.experts.reinforce import STAGE, picture_row, readable
from capwright.pretrain.reinforcement import FIELDS, pack
from capwright.pretrain.replay import ReplayError, check_inside, parse

SOURCE = "datacompdr"
WIDTHS = (768, 768)  # of the two ViT-L/14 teachers of all published versions
MEMBERS = ("syn.json", "paug.json", "npz", "pth.gz")
MAX_UNZIPPED = 1 << 26  # bytes of a sample's embeddings; 30 augmentations take 110 KB
CATALOGUE = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("sha256", pa.string()),
        ("tar", pa.string()),
        *((name, pa.list_(pa.int64(), 2)) for name in MEMBERS),  # offset and size
    ]
)


class UnfitError(Exception):
    """A sample that cannot be used; the message is a short reason to count."""


@dataclass(frozen=True, kw_only=True)
class DataCompDRConfig:
    """Which reinforcements."""

    work: Path
    """The work folder, which holds the index."""
    tars: str
    """Address of the tars: a folder, file or pattern, as a corpus."""
    widths: tuple[int, ...] = WIDTHS
    """Width of each teacher's embedding, in their order."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise CapwrightError(
                f"widths is {list(self.widths)}: give the width of each teacher's embedding, "
                "768 and 768 in DataCompDR"
            )


def run(config: DataCompDRConfig, running: Running | None = None) -> tuple[StageSummary, ...]:
    """Write what is missing: the reinforcements, and the synthetic captions."""
    folder = build_catalogue(config)
    plan = {"datacompdr": config.tars, "widths": config.widths}
    summaries = []
    for stage, worker, extra in ((STAGE, Joined, FIELDS), (SOURCE, SyntheticCaptions, ())):
        make = partial(worker, config, folder)
        summaries.append(
            run_stage(config.work, stage_folder(config.work, stage), plan, make, running, extra)
        )
    return tuple(summaries)


def dry_run(config: DataCompDRConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be given; writes the catalogue alone."""
    make = partial(Joined, config, build_catalogue(config))
    return readable(preview(config.work, make, pictures))


def build_catalogue(config: DataCompDRConfig) -> Path:
    """Note where each sample of each tar lies, once; returns the folder."""
    tars = files_at(config.tars, TAR_SUFFIXES)
    folder = config.work / "reinforced" / SOURCE / digest([[tar, size_of(tar)] for tar in tars])
    names = {tar: folder / f"{stem_of(tar)}.{digest(tar)}.parquet" for tar in tars}
    todo = {tar: path for tar, path in names.items() if not path.exists()}
    if todo:
        with only_one(folder), Progress("look through DataCompDR", len(todo), "tars") as progress:
            for tar, path in todo.items():
                table = pa.Table.from_pylist(_samples(tar), schema=CATALOGUE)
                with atomic_path(path) as temporary:
                    pq.write_table(table, temporary)
                progress.advance()
    return folder


def _samples(tar: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    try:
        with fsspec.open(tar, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
            for member in opened:
                head, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isfile() or suffix not in (*MEMBERS, "json"):
                    continue
                key = head + slash + stem
                row = found.setdefault(key, {"key": key, "uid": "", "sha256": "", "tar": tar})
                if suffix == "json":
                    content = opened.extractfile(member)
                    row |= _identity(content.read() if content else b"")
                else:
                    row[suffix] = [member.offset_data, member.size]
    except (tarfile.TarError, EOFError) as error:
        raise CapwrightError(
            f"{tar} is not a whole, uncompressed tar ({error}): fetch it again"
        ) from error
    return list(found.values())


def _identity(data: bytes) -> dict[str, str]:
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    return {"uid": str(fields.get("uid", "")).lower(), "sha256": str(fields.get("sha256", ""))}


class Catalogue:
    """Finds the samples that belong to rows of the index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, table: pa.Table) -> list[dict[str, Any]]:
        """The catalogue's row of each row of a shard, or `{"reason": why there is none}`.

        The tars with the shard's name are looked into first, the others for what is not there.
        """
        if not table.num_rows:
            return []
        uids = uids_of(table["json"].to_pylist())
        wanted = [uid or key for uid, key in zip(uids, table["key"].to_pylist(), strict=True)]
        columns = ["uid" if uid else "key" for uid in uids]
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        stem = table["shard"][0].as_py()
        files = sorted(self.folder.glob("*.parquet"))
        for same_name in (True, False):
            missing = {pair for pair in zip(columns, wanted, strict=True) if pair not in found}
            for file in files if missing else ():
                if (file.name.rpartition(".")[0].rpartition(".")[0] == stem) is same_name:
                    _look(file, missing, found)
        return [_one(found.get(pair, [])) for pair in zip(columns, wanted, strict=True)]


def _look(
    file: Path, missing: set[tuple[str, str]], found: dict[tuple[str, str], list[dict[str, Any]]]
) -> None:
    names = pq.read_table(file, columns=["uid", "key"])
    hits = {
        column: pc.is_in(names[column], value_set=pa.array([v for c, v in missing if c == column]))
        if any(c == column for c, _ in missing)
        else pa.array([False] * names.num_rows)
        for column in ("uid", "key")
    }
    mask = pc.or_(hits["uid"], hits["key"])
    if not pc.any(mask).as_py():
        return
    for row in pq.read_table(file).filter(mask).to_pylist():
        for column in ("uid", "key"):
            if (column, row[column]) in missing:
                found.setdefault((column, row[column]), []).append(row)


def _one(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(rows) == 1:
        return rows[0]
    if rows:
        return {"reason": "several reinforcements with the sample's uid or key"}
    return {"reason": "no reinforcement with the sample's uid or key"}


class Joined:
    """Makes the rows of a shard from DataCompDR's samples."""

    def __init__(self, config: DataCompDRConfig, folder: Path) -> None:
        self.config, self.catalogue, self._reader = config, Catalogue(folder), ByteReader()

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """For each picture the row of its augmentations and one for each caption."""
        rows: Rows = []
        for sample, found in zip(table.to_pylist(), self.catalogue.find(table), strict=True):
            base = {"key": sample["key"], "model": SOURCE}
            try:
                rows += self._rows(base, sample, found)
            except (UnfitError, ReplayError) as error:
                rows.append(_failed(base, STAGE, str(error)))
                progress.failed(str(error))
            progress.advance(pictures=1)
        return rows

    def _rows(self, base: dict[str, Any], sample: dict[str, Any], found: dict[str, Any]) -> Rows:
        _check_found(sample, found)
        synthetic = _synthetic(self._reader, found)
        augmentations = parse(_parameters(self._reader, found))
        check_inside(augmentations, sample["width"], sample["height"])
        image_AD, text_TD = self._embeddings(found)
        if len(image_AD) != len(augmentations) or not augmentations:
            raise UnfitError("another number of image embeddings than of augmentations")
        real = len(text_TD) - len(synthetic)
        if real < 1:
            raise UnfitError("fewer text embeddings than captions")
        alt = [text for text in (sample["text"], *(sample["more_texts"] or ())) if text][:real]
        rows = [picture_row(base, augmentations, pack(image_AD), self.config.widths)]
        texts = [*zip(alt, text_TD, strict=False), *zip(synthetic, text_TD[real:], strict=True)]
        for i, (text, text_D) in enumerate(texts):
            source = "alt" if i < len(alt) else SOURCE
            rows.append(base | {"source": source, "text": text, "text_embedding": pack(text_D)})
        return rows

    def _embeddings(self, found: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if found["npz"] is None and found["pth.gz"] is None:
            raise UnfitError("no npz or pth.gz in the sample")
        npz = found["npz"] is not None
        data = self._reader.read(found["tar"], *found["npz" if npz else "pth.gz"])
        try:
            stored = _from_npz(data) if npz else _from_torch(data)
            image_AD, text_TD = stored["image_emb"], stored["text_emb"]
        except (OSError, ValueError, EOFError, KeyError, RuntimeError,
                zipfile.BadZipFile, pickle.UnpicklingError) as error:  # fmt: skip
            raise UnfitError(f"unreadable embeddings: {type(error).__name__}") from error
        for values in (image_AD, text_TD):
            if values.ndim != 2 or values.shape[1] != sum(self.config.widths):
                raise CapwrightError(
                    f"an embedding in {found['tar']} has the shape {list(values.shape)}, but the "
                    f"widths {list(self.config.widths)} add up to {sum(self.config.widths)}: "
                    "give the width of each teacher's, such as --set widths=[768,768]"
                )
        return image_AD, text_TD


class SyntheticCaptions:
    """Makes the rows of a shard's synthetic captions."""

    def __init__(self, config: DataCompDRConfig, folder: Path) -> None:
        self.catalogue, self._reader = Catalogue(folder), ByteReader()

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """A row for each caption, or for each picture without one."""
        rows: Rows = []
        for sample, found in zip(table.to_pylist(), self.catalogue.find(table), strict=True):
            base = {"key": sample["key"], "model": SOURCE}
            try:
                _check_found(sample, found)
                texts = _synthetic(self._reader, found)
                rows += [base | {"source": SOURCE, "text": text} for text in texts if text]
                progress.advance(captions=len(texts))
            except UnfitError as error:
                rows.append(_failed(base, SOURCE, str(error)))
                progress.failed(str(error))
            progress.advance(pictures=1)
        return rows


def _failed(base: dict[str, Any], source: str, reason: str) -> dict[str, Any]:
    return base | {"source": source, "text": "", "keep": False, "reason": FAILED + reason}


def _check_found(sample: dict[str, Any], found: dict[str, Any]) -> None:
    if "reason" in found:
        raise UnfitError(found["reason"])
    fields = json.loads(sample["json"]) if '"sha256"' in sample["json"] else {}
    hashes = {fields.get("sha256") if isinstance(fields, dict) else None, found["sha256"]}
    if len(hashes - {None, ""}) > 1:
        raise UnfitError("another picture: the sha256 in the two samples' json differs")


def _synthetic(reader: ByteReader, found: dict[str, Any]) -> list[str]:
    texts = _field(reader, found, "syn.json", "syn_text")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnfitError("syn_text of syn.json is no list of captions")
    return texts


def _parameters(reader: ByteReader, found: dict[str, Any]) -> str:
    value = _field(reader, found, "paug.json", "param_aug")
    return value if isinstance(value, str) else json.dumps(value)


def _field(reader: ByteReader, found: dict[str, Any], member: str, name: str) -> Any:
    if found[member] is None:
        raise UnfitError(f"no {member} in the sample")
    try:
        return json.loads(reader.read(found["tar"], *found[member]))[name]
    except (ValueError, KeyError, TypeError) as error:
        raise UnfitError(f"no {name} in {member}") from error


def _from_npz(data: bytes) -> dict[str, Tensor]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in ("image_emb", "text_emb")}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in found.items()}


def _from_torch(data: bytes) -> dict[str, Tensor]:
    with gzip.open(io.BytesIO(data)) as stream:
        unzipped = stream.read(MAX_UNZIPPED + 1)
    if len(unzipped) > MAX_UNZIPPED:
        raise ValueError("too large")
    stored = torch.load(io.BytesIO(unzipped), map_location="cpu", weights_only=True)
    return {name: torch.as_tensor(stored[name]) for name in ("image_emb", "text_emb")}
