"""NYU Depth v2: indoors, up to 10 m; 654 pictures to test, 795 to train, Eigen's crop.

Reads one of
- nyu_depth_v2_labeled.mat with splits.mat: `depths` in metres (kinect, filled in), needs h5py;
- official_splits/{test,train}/SCENE/rgb_00045.jpg with sync_depth_00045.png, in millimetres;
- nyu2_test/00000_colors.png with 00000_depth.png, in millimetres (test alone).
Depth 0 is unknown. The camera is that of the set's toolbox (its camera_params.m, colour camera; it
counts pixels from 1), so that normals follow from the depths (surfaces.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.depth_pictures import DepthReader, Entry, check_depths, unit_problem
from capwright.datasets.sets import Camera, DepthItem, DepthSet

SPLITS = ("test", "train")
MAT, SPLITS_MAT = "nyu_depth_v2_labeled.mat", "splits.mat"
MILLIMETRES = 1000.0
LEAST_M, MOST_M = 1e-3, 10.0
PLAUSIBLE_M = (0.7, 7.0)
CAMERA = Camera(
    fx=518.8579, fy=519.4696, cx=325.5824 - 0.5, cy=253.7362 - 0.5, height=480, width=640
)


@dataclass(frozen=True, kw_only=True)
class _MatReader:
    path: Path
    rows: tuple[int, ...]

    def __call__(self, index: int) -> DepthItem:
        row = self.rows[index]
        with _open_mat(self.path) as content:  # MATLAB's axes come reversed: [C, W, H], [W, H]
            pixels_HW3 = np.ascontiguousarray(content["images"][row].transpose(2, 1, 0))
            depth_HW = np.ascontiguousarray(content["depths"][row].T, np.float32)
        return DepthItem(key=f"{row + 1:04d}", image=Image.fromarray(pixels_HW3), depth_HW=depth_HW)


def load(folder: Path, split: str) -> DepthSet:
    """The set, from the .mat where it is there."""
    read: _MatReader | DepthReader
    if (folder / MAT).is_file():
        rows = _rows(folder, split)
        keys = tuple(f"{row + 1:04d}" for row in rows)
        read = _MatReader(path=folder / MAT, rows=rows)
    else:
        entries = _entries(folder, split)
        keys = tuple(key for key, _, _ in entries)
        read = DepthReader(entries=entries, scale=MILLIMETRES)
    return DepthSet(
        name="nyuv2",
        keys=keys,
        read=read,
        least_m=LEAST_M,
        most_m=MOST_M,
        crops=("eigen", "none"),
        camera=CAMERA,
    )


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems of one split, or of `test`."""
    split = split or SPLITS[0]
    try:
        if not (folder / MAT).is_file():
            entries = _entries(folder, split)
            return check_depths("nyuv2", entries, MILLIMETRES, PLAUSIBLE_M)
        rows = _rows(folder, split)
        with _open_mat(folder / MAT) as content:
            some = rows[:: max(1, len(rows) // 20)]
            medians = [float(np.median(content["depths"][row])) for row in some]
    except CapwrightError as error:
        return [str(error)]
    return unit_problem("nyuv2", medians, 1, PLAUSIBLE_M)


def _open_mat(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise CapwrightError(
            f"{path} is an HDF5 file, which needs h5py, which is not installed: pip install h5py"
        ) from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise CapwrightError(f"{path} is not a readable HDF5 file ({error})") from None


def _rows(folder: Path, split: str) -> tuple[int, ...]:
    """Rows of the .mat, from 0, that belong to the split."""
    from scipy.io import loadmat

    path = folder / SPLITS_MAT
    if not path.is_file():
        raise CapwrightError(
            f"{path} is missing: it says which 654 pictures of {MAT} are for testing; it comes "
            "from the authors of Indoor Segmentation and Support Inference (splits.mat)"
        )
    rows = tuple(int(number) - 1 for number in loadmat(path)[f"{split}Ndxs"].ravel())
    with _open_mat(folder / MAT) as content:
        count, depths = len(content["images"]), len(content["depths"])
    if count != depths or max(rows) >= count:
        raise CapwrightError(
            f"{folder / MAT} has {count} pictures and {depths} depths, but {SPLITS_MAT} names "
            f"number {max(rows) + 1}: fetch the file again"
        )
    return rows


def _entries(folder: Path, split: str) -> tuple[Entry, ...]:
    official = next(
        (f / split for f in (folder / "official_splits", folder) if (f / split).is_dir()), None
    )
    if official is not None:
        return _paired(official, "**/rgb_*", "rgb_", "sync_depth_", ".png")
    if split == "test" and (folder / "nyu2_test").is_dir():
        return _paired(folder / "nyu2_test", "*_colors.png", "_colors", "_depth", ".png")
    raise CapwrightError(
        f"{folder} has neither {MAT} nor official_splits/{split}/ nor nyu2_test/: "
        "docs/reference/datasets.md shows the layouts"
    )


def _paired(root: Path, pattern: str, image: str, depth: str, suffix: str) -> tuple[Entry, ...]:
    paths = sorted(path for path in root.glob(pattern) if path.suffix in (".jpg", ".png"))
    if not paths:
        raise CapwrightError(f"{root} has no {pattern} pictures")
    return tuple(
        (
            path.relative_to(root).with_suffix("").as_posix(),
            path,
            path.with_name(path.stem.replace(image, depth) + suffix),
        )
        for path in paths
    )
