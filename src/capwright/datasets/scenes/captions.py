"""What people would write beside a scene: alt text as the web's, and a full description.

Reads a `Scene`, writes nothing.

Alt text is bad in the web's proportions: a third is junk (file names, shop phrases), a quarter
belongs to another picture, and the rest names one thing of several, wrapped in clutter.

The full description says what is where, what stands before what, and on what ground, in the words
of the cut-outs' own captions. It starts with what fills most of the picture.
"""

from collections.abc import Callable, Sequence

import numpy as np

from capwright.datasets.scenes.compose import Scene, Thing
from capwright.datasets.scenes.words import head_name, is_plural

JUNK_SHARE = 1 / 3
OTHER_SHARE = 1 / 4
NEARER = 1.12  # times: depths closer than this count as side by side
MUCH_NEARER = 1.8
MAX_WORDS = 39
GROUND_SHARE = 0.2  # of the descriptions name the ground,
BACKDROP_SHARE = 0.12  # and the backdrop: people mostly write about the things

_SITES = ["PicHaven", "Wallpaperly", "StockBarn", "dailyshots.net", "imgpile", "PhotoNook"]
_SITES += ["freepix.example", "Snaplist", "gallery24"]
_ADJECTIVES = ["beautiful", "cute", "amazing", "lovely", "stunning", "funny", "best", "cool"]
_JUNK_WORDS = [
    "free shipping buy now best price",
    "click to enlarge",
    "image may contain: outdoor",
    "no description available",
    "thumbnail",
    "photo gallery page {small}",
    "stock photo {large}",
    "royalty free image #{large}",
    "sale up to {percent}% off this week only",
    "image {small} of {medium}",
    "untitled-{small}",
    "related posts",
    "banner_{medium}x{small}",
    "loading...",
    "share on facebook",
    "copyright all rights reserved",
    "buy 2 get 1 free",
    "img alt text",
    "wallpaper 1920x1080 free download",
    "photo by user{large}",
]
_FILE_NAMES = [
    "IMG_{camera}.jpg", "DSC0{camera}", "DSC_{camera}.JPG", "P10{camera}", "Screenshot {large}.png",
    "image{small}.jpeg", "{large}_o.jpg", "photo-{large}-{medium}.jpg", "DCIM/100/{camera}.jpg",
]  # fmt: skip
_NAMING = [
    "{bare} - {site}",
    "photo of {caption}",
    "{adjective} {bare}",
    "{caption} | {site}",
    "{bare} HD wallpaper",
    "{bare} stock photo {large}",
    "{adjective} {bare} picture, {size}",
    "{bare} ${price}.99",
    "Image of {bare} ({site})",
    "{bare} for sale, free shipping",
    "{caption}, {year}",
    "{caption}",
    "my {adjective} {bare}!!",
    "{bare}_{small}.jpg",
    "{bare} - Wikipedia",
    "{caption} by {site} on {size}",
]

# What a thing does where it is, by class; things of other classes just are there.
_VERBS = {
    "aquatic": "lie", "birds": "stand", "bovines": "stand", "fish": "lie", "flowers": "lie",
    "fruit": "lie", "insects": "sit", "mammals": "stand", "rodents": "sit", "tools": "lie",
    "trees": "stand", "vegetables": "lie", "vehicles": "stand",
}  # fmt: skip


def alt_text(
    rng: np.random.Generator, present: Sequence[str], draw_other: Callable[[], str]
) -> str:
    """Alt text for a picture that shows the things captioned `present`.

    `draw_other` gives the caption of a thing from some other picture.
    """
    kind = rng.random()
    if kind < JUNK_SHARE:
        return _fill(rng, _pick(rng, _FILE_NAMES if rng.random() < 0.4 else _JUNK_WORDS))
    if kind < JUNK_SHARE + OTHER_SHARE:
        names = {head_name(caption) for caption in present}
        caption = draw_other()
        for _ in range(20):  # a class with one name alone cannot give another
            if head_name(caption) not in names:
                break
            caption = draw_other()
        return _named(rng, caption)
    return _named(rng, present[int(rng.integers(len(present)))])


def full_caption(rng: np.random.Generator, scene: Scene, class_names: Sequence[str]) -> str:
    """A person's description of the whole picture: at most three things in under 40 words."""
    things = sorted(scene.things, key=_area, reverse=True)[:3]
    named = rng.random(2) < (GROUND_SHARE, BACKDROP_SHARE)
    setting = f" {scene.ground or 'on the ground'}" if named[0] else ""
    first, rest = things[0], things[1:]
    style = int(rng.integers(3))
    size = scene.camera.size_px
    place = _side(first, size)
    if style == 0:
        verb = _verb(first, class_names)
        text = f"{first.cutout.caption} {verb}{setting} {place}{_distance(first, things)}"
    elif style == 1 and setting:
        verb = "are" if is_plural(first.cutout.caption) else "is"
        text = f"{place.removeprefix('in ')}, {first.cutout.caption} {verb}{setting}"
        text = text if place.startswith("on") else f"in {text}"
    else:
        text = f"{first.cutout.caption} {place}{_distance(first, things)}{setting}"
    parts = [text]
    for number, thing in enumerate(rest):
        parts.append(_further(thing, things[: number + 1], size))
    if scene.backdrop and named[1]:
        parts[0] += f" {scene.backdrop}"
    while len(" ".join(parts).split()) > MAX_WORDS and len(parts) > 1:
        parts.pop()
    joined = ("; " if style < 2 and rng.random() < 0.5 else ", ").join(parts)
    return joined[0].upper() + joined[1:] + "."


def _further(thing: Thing, earlier: Sequence[Thing], size: int) -> str:
    """A clause on one more thing: where it is and how it lies to what it overlaps."""
    same = any(head_name(one.cutout.caption) == thing.cutout.name for one in earlier)
    caption = f"another {thing.cutout.name}" if same else thing.cutout.caption
    place = _side(thing, size)
    for one in earlier:
        ratio = one.stand.depth_m / thing.stand.depth_m
        if _overlap(thing, one) and not 1 / NEARER < ratio < NEARER:
            relation = "in front of" if ratio > 1 else "behind"
            return f"{caption} {place} {relation} the {one.cutout.name}"
    near = _distance(thing, [*earlier, thing])
    return f"{caption} {place}{near}"


def _distance(thing: Thing, things: Sequence[Thing]) -> str:
    """ " close to the camera" or " farther away" where that tells it from the others."""
    others = [one.stand.depth_m for one in things if one is not thing]
    if not others:
        return ""
    if thing.stand.depth_m * MUCH_NEARER < max(others) and thing.stand.depth_m <= min(others):
        return " close to the camera"
    if thing.stand.depth_m > MUCH_NEARER * min(others) and thing.stand.depth_m >= max(others):
        return " farther away"
    return ""


def _side(thing: Thing, size: int) -> str:
    centre = (thing.box[0] + thing.box[2]) / (2 * size)
    if centre < 0.38:
        return "on the left"
    return "on the right" if centre > 0.62 else "in the middle"


def _overlap(one: Thing, other: Thing) -> bool:
    """Whether the boxes share columns and rows."""
    columns = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    rows = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return columns > 0 and rows > 0


def _area(thing: Thing) -> int:
    return (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])


def _verb(thing: Thing, class_names: Sequence[str]) -> str:
    plural = is_plural(thing.cutout.caption)
    verb = _VERBS.get(class_names[thing.cutout.class_id])
    if verb is None:
        return "are" if plural else "is"
    return verb if plural else verb + "s"


def _named(rng: np.random.Generator, caption: str) -> str:
    first, _, rest = caption.partition(" ")
    bare = rest if first in ("a", "an", "the", "some") else caption
    return _fill(rng, _pick(rng, _NAMING), caption=caption, bare=bare)


def _fill(rng: np.random.Generator, template: str, **words: str) -> str:
    """Fill in numbers, sites and adjectives; all are drawn, so that the order never changes."""
    return template.format(
        site=_pick(rng, _SITES),
        adjective=_pick(rng, _ADJECTIVES),
        size=_pick(rng, ["1024x768", "800x600", "640 x 480", "4K", "large"]),
        price=int(rng.integers(2, 100)),
        year=int(rng.integers(2004, 2024)),
        percent=5 * int(rng.integers(2, 16)),
        small=int(rng.integers(1, 40)),
        medium=int(rng.integers(40, 1000)),
        camera=int(rng.integers(1000, 10000)),
        large=int(rng.integers(10000, 10000000)),
        **words,
    )


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
