"""Captions in Karpathy's json (`dataset_flickr30k.json`, `dataset_coco.json`).

The json lists `images`, each with `filename`, `split` (train, restval, val, test), for COCO
`filepath` (val2014, train2014), and `sentences` with `raw` text. Every caption is kept; retrieval
protocols that want exactly five take the first five.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.datasets.label_pictures import first_folder, open_rgb
from capwright.datasets.sets import CaptionItem, CaptionSet

SPLITS = ("test", "val", "train")
_PARTS = {"train": ("train", "restval")}  # COCO trains on what val2014 has left


@dataclass(frozen=True, kw_only=True)
class _Reader:
    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]

    def __call__(self, index: int) -> CaptionItem:
        path = self.paths[index]
        return CaptionItem(key=path.stem, image=open_rgb(path), captions=self.captions[index])


@dataclass(frozen=True, kw_only=True)
class KarpathySet:
    """One json and the folders its pictures may be in; its module gives `load`, `check` away."""

    name: str
    json_name: str
    picture_folders: tuple[str, ...]

    def load(self, folder: Path, split: str) -> CaptionSet:
        """The set of one split."""
        entries = self._entries(folder, split)
        root = self._pictures(folder, entries)
        paths = tuple(self._path(root, entry) for entry in entries)
        return CaptionSet(
            name=self.name,
            keys=tuple(path.stem for path in paths),
            read=_Reader(paths=paths, captions=tuple(_captions(entry) for entry in entries)),
        )

    def check(self, folder: Path, split: str | None = None) -> list[str]:
        """Problems of one split, or of `test`."""
        try:
            entries = self._entries(folder, split or SPLITS[0])
            root = self._pictures(folder, entries)
        except CapwrightError as error:
            return [str(error)]
        problems = []
        paths = [self._path(root, entry) for entry in entries]
        lost = [path for path in paths if not path.is_file()]
        if lost:
            problems.append(f"{len(lost)} of {len(paths)} pictures are missing, first {lost[0]}")
        bare = [entry["filename"] for entry in entries if not any(_captions(entry))]
        if bare:
            problems.append(f"{len(bare)} pictures have no captions, first {bare[0]}")
        few = [entry["filename"] for entry in entries if 0 < len(_captions(entry)) < 5]
        if few:
            problems.append(
                f"{len(few)} pictures have fewer than five captions, first {few[0]}: the json is "
                "not Karpathy's, take it from caption_datasets.zip"
            )
        return problems

    def _entries(self, folder: Path, split: str) -> list[Mapping[str, Any]]:
        path = folder / self.json_name
        if not path.is_file():
            raise CapwrightError(
                f"{path} is missing: it comes in caption_datasets.zip of Karpathy's deepimagesent"
            )
        parts = _PARTS.get(split, (split,))
        entries = [entry for entry in read_json(path)["images"] if entry["split"] in parts]
        if not entries:
            raise CapwrightError(f"{path} has no pictures of the split {split}")
        return entries

    def _pictures(self, folder: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
        """The folder below which the first picture is; COCO's are in a folder a split."""
        for name in self.picture_folders:
            if self._path(folder / name, entries[0]).is_file():
                return folder / name
        return first_folder(folder, *self.picture_folders)

    def _path(self, root: Path, entry: Mapping[str, Any]) -> Path:
        path: Path = root / entry.get("filepath", "") / entry["filename"]
        return path


def _captions(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sentence["raw"].strip() for sentence in entry["sentences"])
