"""Sets of depths and of surface normals, made when they are read."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from capwright.datasets.sets import DepthItem, DepthSet, NormalsItem, NormalsSet


def picture(number: int, height: int, width: int) -> Image.Image:
    """Noise in blocks of 16 pixels."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width])


def depth_of(image: Image.Image) -> np.ndarray:
    """Dark pixels are near: 1 to 9 m; the first row is unknown."""
    depth_HW = 1 + 8 * np.asarray(image, np.float32).mean(axis=2) / 255
    depth_HW[0] = 0
    return depth_HW


def normals_of(image: Image.Image) -> np.ndarray:
    """Red turns them to the right, green down; the first row is unknown."""
    colours = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    normals_3HW = np.stack([colours[0] - 0.5, colours[1] - 0.5, -np.ones_like(colours[0])])
    normals_3HW /= np.linalg.norm(normals_3HW, axis=0)
    normals_3HW[:, 0] = 0
    return normals_3HW


def depth_set(sizes: Sequence[tuple[int, int]], *, crops: tuple[str, ...] = ("none",)) -> DepthSet:
    def read(index: int) -> DepthItem:
        image = picture(index, *sizes[index])
        return DepthItem(key=f"{index:03d}", image=image, depth_HW=depth_of(image))

    keys = tuple(f"{index:03d}" for index in range(len(sizes)))
    return DepthSet(name="toys", keys=keys, read=read, least_m=0.1, most_m=10.0, crops=crops)


def normals_set(sizes: Sequence[tuple[int, int]]) -> NormalsSet:
    def read(index: int) -> NormalsItem:
        image = picture(index, *sizes[index])
        return NormalsItem(key=f"{index:03d}", image=image, normals_3HW=normals_of(image))

    keys = tuple(f"{index:03d}" for index in range(len(sizes)))
    return NormalsSet(name="toys", keys=keys, read=read)
