"""Composes one scene: cut-outs on perspective ground before a backdrop, with exact labels.

Reads cut-outs and backgrounds that are already in memory; writes nothing.

Every scene has its own random generator, seeded with (seed, index), so that scene 7 is the same
whoever makes it. The painter's algorithm draws from far to near. A thing's pixels (alpha of at
least one half) carry its class and its one depth; the other pixels carry the ground's or the
backdrop's depth. A further thing that would hide another to less than `MIN_VISIBLE` of itself, or
be hidden, is moved sideways a few times and then left out.

Legend: H = W = the picture's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capwright.datasets.scenes import geometry
from capwright.datasets.scenes.backgrounds import (
    Backgrounds,
    Texture,
    draw_backdrop,
    draw_ground,
)
from capwright.datasets.scenes.cutouts import Cutout, ObjectClass

MIN_VISIBLE = 0.3
MIN_VISIBLE_PX = 12  # pixels; thinner things would leave no label
SIDE_TRIES = 5
MIN_INSIDE = 0.7  # of a further thing's height: the rest may reach over the upper edge
INSIDE = 0.85  # of a thing's width that is always within the picture
SHADOW = 0.5

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One visible thing of a scene."""

    cutout: Cutout
    stand: geometry.Stand
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of its visible pixels, end exclusive
    visible: float  # share of its pixels within the picture that nothing hides


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture with its exact labels."""

    image: Pixels  # [H, W, 3]
    seg: Pixels  # [H, W], 0 is the background, class_id + 1 elsewhere
    depth_m: NDArray[np.float16]  # [H, W]
    things: tuple[Thing, ...]  # nearest last
    anchor: Thing
    camera: geometry.Camera
    ground: str  # "on grass", or "" where there is no word for it
    backdrop: str


@dataclass
class _Placed:
    cutout: Cutout
    stand: geometry.Stand
    picture: NDArray[np.float32]  # [h, w, 4] premultiplied, cut to the picture's frame
    left: int
    top: int
    mask: NDArray[np.bool_]  # [h, w]
    inside: float  # share of its rows within the picture


@dataclass
class Composer:
    """Draws scenes from a set of cut-outs; shrunken copies of each are kept between scenes."""

    classes: Sequence[ObjectClass]
    cutouts: Sequence[Cutout]
    backgrounds: Backgrounds
    size_px: int
    max_objects: int
    _of_class: list[list[Cutout]] = field(init=False)
    _levels: dict[str, list[Image.Image]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._of_class = [
            [cutout for cutout in self.cutouts if cutout.class_id == i]
            for i in range(len(self.classes))
        ]

    def compose(self, rng: np.random.Generator) -> Scene:
        """Draw one scene; the same generator state gives the same scene."""
        wanted = int(rng.integers(1, self.max_objects + 1))
        class_id = int(rng.integers(len(self.classes)))
        height_m = self.classes[class_id].height_m
        camera, stand = geometry.draw_anchor(rng, size_px=self.size_px, height_m=height_m)
        anchor = self._place(rng, self._draw_cutout(rng, class_id), stand)
        placed = [anchor]
        heights_m = [one.height_m for one in self.classes]
        for _ in range(wanted - 1):
            further = geometry.draw_further(rng, camera, heights_m)
            if further is not None:
                self._add(rng, placed, self._draw_cutout(rng, further[0]), further[1])
        return self._paint(rng, camera, placed, anchor)

    def draw_anchor_cutout(self, rng: np.random.Generator) -> Cutout:
        """What the anchor of some other scene would be."""
        return self._draw_cutout(rng, int(rng.integers(len(self.classes))))

    def _draw_cutout(self, rng: np.random.Generator, class_id: int) -> Cutout:
        candidates = self._of_class[class_id]
        return candidates[int(rng.integers(len(candidates)))]

    def _add(
        self,
        rng: np.random.Generator,
        placed: list[_Placed],
        cutout: Cutout,
        stand: geometry.Stand,
    ) -> None:
        """Put one more thing among `placed` (kept far to near) if everything stays visible."""
        for _ in range(SIDE_TRIES):
            further = self._place(rng, cutout, stand)
            if further.inside < MIN_INSIDE:
                return
            together = [*placed, further]
            together.sort(key=lambda one: -one.stand.depth_m)
            if self._all_visible(together):
                placed[:] = together
                return

    def _all_visible(self, placed: list[_Placed]) -> bool:
        owner = np.zeros((self.size_px, self.size_px), np.uint8)
        for number, one in enumerate(placed, start=1):
            height, width = one.mask.shape
            owner[one.top : one.top + height, one.left : one.left + width][one.mask] = number
        counts = np.bincount(owner.ravel(), minlength=len(placed) + 1)[1:]
        return all(
            count >= max(MIN_VISIBLE * one.mask.sum(), MIN_VISIBLE_PX)
            for one, count in zip(placed, counts, strict=True)
        )

    def _place(self, rng: np.random.Generator, cutout: Cutout, stand: geometry.Stand) -> _Placed:
        """Resize, flip, tint and put sideways; what reaches out of the picture is cut off."""
        size = self.size_px
        rows, columns = cutout.rgba.shape[:2]
        scale = stand.extent_px / max(rows, columns)
        height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
        picture = np.asarray(self._resized(cutout, width, height))
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        picture = _tinted(rng, picture)
        slack = (1 - INSIDE) * width
        left = round(rng.uniform(-slack, size - width + slack)) if width < size else 0
        top = round(stand.contact_px) - height
        y0, x0 = max(0, -top), max(0, -left)
        picture = picture[y0 : size - top, x0 : size - left]
        return _Placed(
            cutout=cutout,
            stand=stand,
            picture=picture,
            left=max(left, 0),
            top=max(top, 0),
            inside=picture.shape[0] / height,
            mask=picture[..., 3] >= min(128, max(1, picture[..., 3].max() // 2)),
        )

    def _resized(self, cutout: Cutout, width: int, height: int) -> Image.Image:
        """From the smallest stored copy that is still larger than asked for."""
        levels = self._levels.get(cutout.path)
        if levels is None:
            levels = self._levels[cutout.path] = _shrunken(cutout.rgba, 2 * self.size_px)
        source = next((one for one in levels if one.width >= width), levels[-1])
        return source.resize((width, height), Image.Resampling.BICUBIC)

    def _paint(
        self,
        rng: np.random.Generator,
        camera: geometry.Camera,
        placed: list[_Placed],
        anchor: _Placed,
    ) -> Scene:
        size = self.size_px
        farthest_m = max(one.stand.depth_m for one in placed)
        backdrop_m = geometry.draw_backdrop_m(rng, farthest_m)
        row_depths = geometry.row_depths_m(camera, backdrop_m)
        bottom = int((row_depths >= backdrop_m).sum())  # first row of the ground
        ground, backdrop = self._draw_textures(rng)
        image = np.empty((size, size, 3), np.float32)
        image[:bottom] = draw_backdrop(rng, backdrop, size, bottom)
        image[bottom:] = draw_ground(rng, ground, camera, bottom)
        _light(rng, image, bottom)
        depth = np.repeat(row_depths.astype(np.float16)[:, None], size, axis=1)
        owner = np.zeros((size, size), np.uint8)
        for number, one in enumerate(placed, start=1):
            _cast_shadow(image, owner, one, bottom)
            height, width = one.mask.shape
            frame = np.s_[one.top : one.top + height, one.left : one.left + width]
            cover = one.picture[..., 3:].astype(np.float32) * np.float32(1 / 255)
            image[frame] = image[frame] * (1 - cover) + one.picture[..., :3]
            owner[frame][one.mask] = number
            depth[frame][one.mask] = one.stand.depth_m
        class_of = np.array([0, *(one.cutout.class_id + 1 for one in placed)], np.uint8)
        things = [_thing(one, owner == number) for number, one in enumerate(placed, start=1)]
        return Scene(
            image=np.clip(image + 0.5, 0, 255).astype(np.uint8),
            seg=class_of[owner],
            depth_m=depth,
            things=tuple(things),
            anchor=things[placed.index(anchor)],
            camera=camera,
            ground=ground.phrase,
            backdrop=backdrop.phrase,
        )

    def _draw_textures(self, rng: np.random.Generator) -> tuple[Texture, Texture]:
        grounds, backdrops = self.backgrounds.grounds, self.backgrounds.backdrops
        ground = grounds[int(rng.integers(len(grounds)))]
        return ground, backdrops[int(rng.integers(len(backdrops)))]


def _shrunken(rgba: Pixels, largest_px: int) -> list[Image.Image]:
    """Premultiplied copies, each half of the next, smallest first: resizing then stays cheap."""
    picture = Image.fromarray(rgba).convert("RGBa")
    picture.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    levels = [picture]
    while min(levels[0].size) >= 16:
        levels.insert(0, levels[0].reduce(2))
    return levels


def _tinted(rng: np.random.Generator, picture: Pixels) -> NDArray[np.float32]:
    """[h, w, 4] premultiplied with its brightness, contrast and colours slightly changed."""
    contrast, brightness = rng.uniform(0.85, 1.15), rng.uniform(-14, 14)
    gain = (contrast * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
    alpha = picture[..., 3:].astype(np.float32)
    shift = np.float32((brightness + 110 * (1 - contrast)) / 255)
    colours = np.clip(picture[..., :3] * gain + shift * alpha, 0, alpha)
    return np.concatenate([colours, alpha], axis=-1)


def _light(rng: np.random.Generator, image: NDArray[np.float32], bottom: int) -> None:
    """One exposure for the whole background, and ground that darkens towards the viewer."""
    image *= (rng.uniform(0.85, 1.08) * rng.uniform(0.97, 1.03, 3)).astype(np.float32)
    rows = image.shape[0] - bottom
    ramp = np.linspace(rng.uniform(0.98, 1.08), rng.uniform(0.8, 0.98), rows, dtype=np.float32)
    image[bottom:] *= ramp[:, None, None]


def _cast_shadow(image: NDArray[np.float32], owner: Pixels, one: _Placed, bottom: int) -> None:
    """Darken the ground around the points where the thing touches it."""
    size = image.shape[0]
    height, width = one.mask.shape
    near_foot = one.mask[-max(2, height // 6) :].mean(0, dtype=np.float32)
    reach = max(2, width // 8)
    columns = np.zeros(size, np.float32)
    columns[one.left : one.left + width] = np.minimum(1, 2.5 * near_foot)
    kernel = np.hanning(2 * reach + 1).astype(np.float32)
    columns = np.convolve(columns, kernel / kernel.sum(), mode="same")[:size]
    spread = max(1.5, 0.07 * min(width, height) + 0.01 * size)
    rows = np.arange(bottom, size, dtype=np.float32) + 0.5 - one.stand.contact_px
    profile = np.exp(-0.5 * (rows / spread) ** 2)
    free = (owner[bottom:] == 0).astype(np.float32)
    image[bottom:] *= (1 - SHADOW * free * profile[:, None] * columns[None, :])[..., None]


def _thing(one: _Placed, visible: NDArray[np.bool_]) -> Thing:
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return Thing(
        cutout=one.cutout,
        stand=one.stand,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        visible=float(visible.sum() / one.mask.sum()),
    )
