"""KITTI depth with Eigen's split: outdoors, up to 80 m, Garg's crop.

Reads eigen_test_files_with_gt.txt (or eigen_train_files_with_gt.txt), one line a picture:
`2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png
2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png 721.5377`, where `None`
stands for a picture without ground truth (45 of 697, which leaves 652). Pictures are below the
folder itself, raw/ or input/; depths below the folder itself, data_depth_annotated/ or gt_depth/,
there also below val/ or train/. A depth is the 16-bit value / 256 in metres, 0 = unknown.
"""

from pathlib import Path

from capwright.core.errors import CapwrightError
from capwright.datasets.depth_pictures import DepthReader, Entry, check_depths
from capwright.datasets.sets import DepthSet

SPLITS = ("test", "train")
SCALE = 256.0
LEAST_M, MOST_M = 1e-3, 80.0
PLAUSIBLE_M = (3.0, 60.0)
_PICTURES = (".", "raw", "input", "raw_data", "kitti_raw")
_DEPTHS = tuple(
    f"{root}{part}"
    for root in ("", "data_depth_annotated/", "gt_depth/")
    for part in ("", "val", "train")
)


def load(folder: Path, split: str) -> DepthSet:
    """The pictures of the list that have ground truth."""
    entries = _entries(folder, split)
    return DepthSet(
        name="kitti",
        keys=tuple(key for key, _, _ in entries),
        read=DepthReader(entries=entries, scale=SCALE),
        least_m=LEAST_M,
        most_m=MOST_M,
        crops=("garg", "kitti_eigen", "none"),
    )


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems of one split, or of `test`."""
    try:
        entries = _entries(folder, split or SPLITS[0])
    except CapwrightError as error:
        return [str(error)]
    return check_depths("kitti", entries, SCALE, PLAUSIBLE_M)


def _entries(folder: Path, split: str) -> tuple[Entry, ...]:
    path = folder / f"eigen_{split}_files_with_gt.txt"
    if not path.is_file():
        raise CapwrightError(
            f"{path}, the list of Eigen's split, is missing: BTS, AdaBins and GLPDepth publish it"
        )
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    short = next((row for row in rows if len(row) < 2), None)
    if short:
        raise CapwrightError(f"{path} has the line {' '.join(short)!r}: each names two files")
    rows = [row for row in rows if row[1] != "None"]
    if not rows:
        raise CapwrightError(f"{path} names no picture with ground truth")
    return tuple(
        (
            row[0].removesuffix(".png").removesuffix(".jpg"),
            _find(folder, _PICTURES, row[0]),
            _find(folder, _DEPTHS, row[1]),
        )
        for row in rows
    )


def _find(folder: Path, places: tuple[str, ...], name: str) -> Path:
    """The first place that has the file, else where it is missed; pictures may be JPEGs."""
    names = (name, name.replace(".png", ".jpg"))
    for place in places:
        for each in names:
            if (folder / place / each).is_file():
                return folder / place / each
    return folder / name
