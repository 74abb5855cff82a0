"""Any photos and any words → a label at every pixel, with pictures to look at.

Reads photos and a checkpoint (`models/towers.py`). Writes for each photo OUT/NAME.png (the labels,
8 bits with a palette, class numbers from 0 in the order of the words), OUT/NAME_overlay.png and
OUT/NAME.json (the share of pixels and the mean score of each class). Run:
`capwright segment PHOTO... --classes "dog, green grass, sky" --out OUT`.

Shapes: H and W of a photo, C classes, Q names, E joint space.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.core.progress import Progress
from capwright.corpus.pictures import UNREADABLE
from capwright.dense.training_free import find_method
from capwright.dense.training_free.segmenter import (
    Inference,
    class_scores,
    inference_for,
    labels,
    name_logits,
    resized,
)
from capwright.dense.vit import open_up
from capwright.dense.words import Vocabulary, parse_classes, text_vectors
from capwright.models import towers

DEFAULT_MODEL = "ViT-B-16/openai"  # MIT licence
TEXT_BATCH, MOST_CLASSES, OPACITY = 200, 255, 0.55
ENDINGS = (".png", "_overlay.png", ".json")  # of the labels, the overlay and the summary


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Which photos, which words, by what."""

    photos: tuple[Path, ...]
    classes: str  # commas between classes, bars between names of one class
    out: Path
    model: str = DEFAULT_MODEL
    method: str = "contrast"
    changes: Mapping[str, Any] = field(default_factory=dict)  # of `inference_for` the tower

    def __post_init__(self) -> None:
        find_method(self.method)
        originals = {photo.resolve() for photo in self.photos}
        written: set[Path] = set()
        for path in (path for photo in self.photos for path in self.outputs(photo)):
            if path in written:
                raise CapwrightError(
                    f"two results would be one file, {path}: segment these photos one after the "
                    "other, each with an --out of its own"
                )
            if path.resolve() in originals:
                raise CapwrightError(
                    f"{path} is one of the photos and would be overwritten: give another --out"
                )
            written.add(path)

    def outputs(self, photo: Path) -> list[Path]:
        """Where the labels, the overlay and the JSON of a photo go."""
        return [self.out / f"{photo.stem}{ending}" for ending in ENDINGS]


@dataclass(frozen=True, kw_only=True)
class SegmentSummary:
    """What was found in each photo: the shares of the classes' pixels."""

    shares: dict[str, dict[str, float]]
    out: Path


def run(config: SegmentConfig) -> SegmentSummary:
    """Segment every photo and write the files."""
    vocabulary = parse_classes(config.classes)
    if len(vocabulary.classes) > MOST_CLASSES:
        raise CapwrightError(
            f"{len(vocabulary.classes)} classes do not fit in a label picture of 8 bits: "
            f"give at most {MOST_CLASSES}"
        )
    pictures = {photo: _open(photo) for photo in config.photos}  # before the model, which is slow
    model, tokenizer = _load(config.model)
    words = [names[0] for names in vocabulary.classes]
    texts_QE = text_vectors(lambda texts: embed_texts(model, tokenizer, texts), vocabulary)
    shares = {}
    with Progress("segment", len(pictures), "photos") as progress:
        for photo, picture in pictures.items():
            labels_HW, scores_CHW = segment_photo(model, picture, vocabulary, texts_QE, config)
            found = [float((labels_HW == number).mean()) for number in range(len(words))]
            shares[str(photo)] = dict(zip(words, found, strict=True))
            _write(config, photo, picture, labels_HW, scores_CHW, vocabulary)
            progress.advance(1)
    return SegmentSummary(shares=shares, out=config.out)


@torch.no_grad()
def segment_photo(
    model: Any,
    picture: Image.Image,
    vocabulary: Vocabulary,
    texts_QE: Tensor,
    config: SegmentConfig,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels [H, W] and scores [C, H, W] of one photo."""
    side = _side(model)
    inference = _inference(side, config.changes)
    images_13HW = torch.from_numpy(np.array(picture))[None].permute(0, 3, 1, 2).float() / 255
    small = resized(images_13HW, inference.short_side, side // towers.grid(model, side)[0])
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (towers.image_mean(model), towers.image_std(model))
    )
    vit = open_up(model)
    shape: Any = {"size": (picture.height, picture.width), "background": vocabulary.background}
    methods = (config.method,)
    logits = name_logits(vit, (small - mean) / std, texts_QE, methods, inference, **shape)
    scores = class_scores(logits[config.method], vocabulary, inference)
    labels_HW = labels(scores, inference, images_13HW)[0]
    return labels_HW.to(torch.uint8).numpy(), scores[0].numpy()


@torch.no_grad()
def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit vectors [T, E]."""
    parts = [list(texts[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]
    return torch.cat(
        [F.normalize(towers.encode_text(model, tokenizer(part)), dim=-1) for part in parts]
    )


def palette(classes: int) -> NDArray[np.uint8]:
    """Colours that are far apart, [C, 3]; neighbours in number differ in hue and brightness."""
    golden = 0.61803398875
    colours = [
        colorsys.hsv_to_rgb(number * golden % 1, (0.9, 0.6)[number % 2], (0.9, 1, 0.7)[number % 3])
        for number in range(classes)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8)


def _inference(side: int, changes: Mapping[str, Any]) -> Inference:
    """That of a tower with changes; windows of another size overlap by a half as well."""
    if "window" in changes:
        changes = {"stride": max(1, changes["window"] // 2), **changes}
    return replace(inference_for(side), **changes)


def _side(model: Any) -> int:
    size = model.visual.image_size
    return size if isinstance(size, int) else int(size[0])


def _open(photo: Path) -> Image.Image:
    try:
        with Image.open(photo) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UNREADABLE as error:
        raise CapwrightError(
            f"{photo} is no picture that can be read ({error}): give JPEG, PNG or WebP files"
        ) from error


def _load(name: str) -> tuple[Any, Any]:
    try:
        model, _, tokenizer = towers.load(name)
    except CapwrightError:
        raise
    except Exception as error:  # hubs raise many kinds
        raise CapwrightError(
            f"the model {name} could not be loaded ({error}): it is fetched once and then kept, so "
            "try again with a network, or point --model to a checkpoint folder of open_clip or of "
            "`capwright pretrain`"
        ) from error
    return model, tokenizer


def _write(
    config: SegmentConfig,
    photo: Path,
    picture: Image.Image,
    labels_HW: NDArray[np.uint8],
    scores_CHW: NDArray[np.float32],
    vocabulary: Vocabulary,
) -> None:
    words = [names[0] for names in vocabulary.classes]
    colours_C3 = palette(len(words))
    as_labels = Image.fromarray(labels_HW, "P")
    as_labels.putpalette(colours_C3.flatten().tolist())
    painted_HW3 = colours_C3[labels_HW]
    if vocabulary.background:  # stays as it is
        painted_HW3 = np.where(labels_HW[..., None] == 0, np.asarray(picture), painted_HW3)
    overlay = Image.blend(picture, Image.fromarray(painted_HW3), OPACITY)
    labels_path, overlay_path, summary_path = config.outputs(photo)
    for path, image in ((labels_path, as_labels), (overlay_path, overlay)):
        with atomic_path(path) as temporary:
            image.save(temporary, "PNG")
    found = []
    for number, word in enumerate(words):
        own_HW = labels_HW == number
        score = float(scores_CHW[number][own_HW].mean()) if own_HW.any() else None
        colour = "#" + "".join(f"{value:02x}" for value in colours_C3[number])
        found.append(
            {"class": word, "share": float(own_HW.mean()), "score": score, "colour": colour}
        )
    written = {"photo": str(photo), "model": config.model, "method": config.method}
    write_json(summary_path, {**written, "classes": found})
