"""The small expert: light heads on the packaged ImageNet trunk, trained on the few pictures of the
corpus that people have labelled.

Reads: the index, the pictures, and the members `seg.png`, `depth.npy` and `boxes.json` of a share
of them that the seed chooses (the other pictures' labels are not looked at). Writes:
WORK/models/small-expert (`weights/expert.json`, `weights/expert.safetensors`), which another corpus
uses as `local:FOLDER`.

Algorithm: both maps of EfficientNet-Lite0 (frozen), the deep one enlarged to the middle one's size,
for a few mirrored and shifted views of each labelled picture; on those the heads of
`dense/heads.py` learn classes by cross-entropy and log metres by SiLog. Minutes on a CPU.

Shapes: N labelled pictures, B batch, V = N x views, S side of the pictures, L of the labels,
C = 432 channels, K classes, h and w cells at stride 16.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.core.progress import Progress
from capwright.core.run_folder import claim
from capwright.corpus.index import corpus_digest, load_index
from capwright.datasets.labelled import LabelledScenes, load_dense, nearest
from capwright.dense.heads import DenseHeads, mean_log
from capwright.evaluate.dense_training import DenseLoss, ProbeRecipe
from capwright.evaluate.views import random_views
from capwright.models import trunk as lite0
from capwright.pretrain.draws import Draws

MODEL = "small-expert"
CHANNELS = lite0.MIDDLE_CHANNELS + lite0.DEEP_CHANNELS
DESCRIPTION, WEIGHTS = "expert.json", "expert.safetensors"
LABELLED = ("seg.png", "depth.npy")


@dataclass(frozen=True, kw_only=True)
class SmallExpertConfig:
    """How the small expert is trained."""

    labelled: float = 0.04
    """Share of the corpus whose labels may be used."""
    max_pictures: int = 4000
    """Pictures at most, whatever the share."""
    picture_size: int = 192
    """Side in pixels at which the trunk sees pictures; a multiple of 32."""
    loss_size: int = 64
    """Side at which labels are learned."""
    hidden: int = 64
    """Channels of the heads."""
    views: int = 4
    """Views of each picture that features are computed for."""
    samples: int = 12_000
    """Views seen."""
    batch_size: int = 50
    """Views a step."""
    learning_rate: float = 3e-3
    """Of AdamW; warm-up over a tenth, then a cosine to zero."""
    weight_decay: float = 0.05
    """Of AdamW."""

    def __post_init__(self) -> None:
        if not 0 < self.labelled <= 1:
            raise CapwrightError(
                f"small.labelled is {self.labelled}, but must be a share above 0 and at most 1: "
                "try 0.04"
            )
        if self.picture_size < 64 or self.picture_size % lite0.DEEP_STRIDE:
            raise CapwrightError(
                f"small.picture_size is {self.picture_size}, but the trunk needs a multiple of 32 "
                "from 64 up: try 192"
            )
        for name in ("max_pictures", "loss_size", "hidden", "views"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"small.{name} is {getattr(self, name)}: it must be 1 or more")
        if self.batch_size < 2 or self.samples < self.batch_size:
            raise CapwrightError(
                f"small.samples is {self.samples} in batches of {self.batch_size}: batches need at "
                "least 2 views, and training one batch"
            )


def weights_folder(work: Path) -> Path:
    """Where the expert that was trained on the corpus of `work` lies."""
    return work / "models" / MODEL / "weights"


def prepare(work: Path, config: SmallExpertConfig, seed: int) -> None:
    """Train the expert where it is missing."""
    folder = weights_folder(work)
    plan = {**as_dict(config), "seed": seed, "trunk": lite0.revision()}
    claim(folder.parent, {**plan, "corpus": corpus_digest(work)})
    if folder.exists():
        return
    scenes = load_dense(labelled_rows(load_index(work), config, seed), config.picture_size)
    heads = train(scenes, config, seed)
    described = {
        "classes": list(scenes.classes),
        "picture_size": config.picture_size,
        "hidden": config.hidden,
        "trunk": lite0.revision(),
        "pictures": len(scenes),
        "seed": seed,
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / DESCRIPTION).write_text(json.dumps(described, indent=1), encoding="utf-8")
        save_file(heads.state_dict(), temporary / WEIGHTS)


def labelled_rows(index: pa.Table, config: SmallExpertConfig, seed: int) -> pa.Table:
    """The rows whose labels are used: those with the smallest numbers drawn for them.

    Raises CapwrightError where no picture has labels.
    """
    members = index["members"].to_pylist()
    there = [{member["suffix"] for member in found or ()} for found in members]
    has = np.array([set(LABELLED) <= suffixes for suffixes in there], np.bool_)
    row_R = np.flatnonzero(has)
    if not len(row_R):
        raise CapwrightError(
            f"none of the {index.num_rows} pictures has .seg.png and .depth.npy, as those of "
            "`capwright scenes` do: give --with a model of transformers or local:CHECKPOINT"
        )
    count = min(max(1, round(config.labelled * index.num_rows)), config.max_pictures, len(row_R))
    draw_R = Draws(seed, row_R, np.zeros_like(row_R)).uniform("small-expert", 1)[:, 0]
    return index.take(np.sort(row_R[np.argsort(draw_R)[:count]]))


def train(scenes: LabelledScenes, config: SmallExpertConfig, seed: int) -> DenseHeads:
    """Heads that have learned the scenes' labels; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        feats_VChw, seg_VLL, depth_VLL = _views(scenes, config, rng)
        heads = DenseHeads(
            CHANNELS,
            len(scenes.classes),
            hidden=config.hidden,
            mean_log_depth=mean_log(torch.from_numpy(scenes.depth_NSS)),
        )
        loss_of = DenseLoss(scenes, ProbeRecipe())
        steps = config.samples // config.batch_size
        optimizer = torch.optim.AdamW(
            heads.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        warmup = max(1, steps // 10)
        cosine = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
        )
        size = (config.loss_size, config.loss_size)
        with Progress(MODEL, steps * config.batch_size, "views") as progress:
            for _ in range(steps):
                # more than one, for the heads' batch norms, however few there are
                chosen = torch.from_numpy(rng.integers(len(feats_VChw), size=config.batch_size))
                predicted = heads(feats_VChw[chosen].float(), size)
                loss = loss_of(predicted, seg_VLL[chosen], depth_VLL[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                cosine.step()
                progress.advance(config.batch_size, note=f"loss {loss.item():.3f}")
    return heads.eval()


def _views(
    scenes: LabelledScenes, config: SmallExpertConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (float16) and labels of some views of every picture."""
    trunk = lite0.load_trunk()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with Progress("features", len(scenes) * config.views, "views") as progress:
        for _ in range(config.views):
            for start in range(0, len(scenes), config.batch_size):
                part = slice(start, start + config.batch_size)
                seg, depth = (
                    torch.from_numpy(
                        np.stack([nearest(label, config.loss_size) for label in stack])
                    )
                    for stack in (scenes.seg_NSS[part], scenes.depth_NSS[part])
                )
                pixels_BSS3 = np.ascontiguousarray(scenes.images_NSS3[part])
                viewed = random_views(lite0.normalise(pixels_BSS3), seg, depth, rng=rng)
                found.append((features(trunk, viewed[0]).half(), viewed[1], viewed[2]))
                progress.advance(len(seg))
    feats, segs, depths = zip(*found, strict=True)
    return torch.cat(feats), torch.cat(segs), torch.cat(depths)


@torch.no_grad()
def features(trunk: Any, images_B3SS: Tensor) -> Tensor:
    """Both maps of the trunk as one, [B, C, h, w]."""
    middle, deep = lite0.feature_maps(trunk, images_B3SS)
    deep = F.interpolate(deep, size=middle.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([middle, deep], dim=1)


def describe(folder: Path) -> dict[str, Any]:
    """expert.json of a trained expert; raises CapwrightError where there is none."""
    if not (folder / DESCRIPTION).is_file() or not (folder / WEIGHTS).is_file():
        raise CapwrightError(
            f"there is no small expert at {str(folder)!r}: give local:WORK/models/{MODEL}/weights "
            "of a corpus that was labelled --with segmentation=scenes or depth=scenes"
        )
    described: dict[str, Any] = read_json(folder / DESCRIPTION)
    return described


class SmallExpert:
    """An `Expert` for segmentation and for depth in metres."""

    def __init__(self, folder: Path) -> None:
        described = describe(folder)
        self.picture_size = int(described["picture_size"])
        self.trunk = lite0.load_trunk()
        self.heads = DenseHeads(CHANNELS, len(described["classes"]), hidden=described["hidden"])
        self.heads.load_state_dict(load_file(folder / WEIGHTS))
        self.heads.eval()

    @torch.no_grad()
    def label(
        self, pixels_BSS3: NDArray[np.uint8], size: int, tasks: Sequence[str]
    ) -> Mapping[str, NDArray[Any]]:
        """See `Expert`."""
        feats_BChw = features(self.trunk, lite0.normalise(pixels_BSS3))
        found: dict[str, NDArray[Any]] = {}
        if "segmentation" in tasks:
            logits_BKLL = self.heads.segmentation(feats_BChw, (size, size))
            found["segmentation"] = logits_BKLL.argmax(dim=1).to(torch.uint8).numpy()
        if "depth" in tasks:
            found["depth"] = self.heads.depth(feats_BChw, (size, size))[:, 0].exp().numpy()
        return found
