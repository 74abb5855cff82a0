"""One vector a picture from a frozen encoder, computed once for all fractions, seeds and probes.

Pictures are resized with the shorter side to S pixels (bicubic) and their centre is cut out. Kinds:
- penultimate: what the tower's last projection gets, as CLIP's linear probe takes it; the vector
  itself where there is no projection (a bare timm model) or it is one with the pooling (a ResNet);
- embedding: what is compared with texts;
- patches: the mean of the last map.

Writes FOLDER/PLAN/vectors.npy and labels.npy (-1: not there yet), PLAN a digest of everything that
the vectors depend on. A run that is cut off goes on with what is missing.

Shapes: N pictures of the set, M asked for, B batch, S side, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from capwright.core import run_folder
from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.core.reading import in_order
from capwright.datasets.sets import ClassificationItem, ClassificationSet
from capwright.dense.backbone import Backbone
from capwright.evaluate.encoder import batched
from capwright.models import towers
from capwright.models.image_sizes import at_size
from capwright.pretrain.precision import Precision, arithmetic

Kind = Literal["penultimate", "embedding", "patches"]
KINDS: tuple[Kind, ...] = ("penultimate", "embedding", "patches")
ABSENT = -1
SAVED = 64  # batches between two writes to the disk


@dataclass(frozen=True, kw_only=True)
class VectorPlan:
    """What a picture's vector depends on, beside the picture."""

    kind: Kind = "penultimate"
    image_size: int = 0  # S; 0: the encoder's own
    crop_share: float = 1.0  # the centre cut out is this share of the shorter side
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.image_size < 0 or not 0 < self.crop_share <= 1:
            raise CapwrightError(
                f"vectors of kind {self.kind!r} from {self.crop_share} of a picture at "
                f"{self.image_size} pixels: kinds are {', '.join(KINDS)}, the share is above 0 and "
                "at most 1, the size at least 0 (the encoder's own)"
            )

    def side(self, backbone: Backbone) -> int:
        """S for this encoder."""
        return self.image_size or backbone.image_size


class VectorStore:
    """The vectors and labels of a set, computed when they are first asked for.

    `source` tells two splits apart whose pictures have the same keys.
    """

    def __init__(
        self,
        backbone: Backbone,
        pictures: ClassificationSet,
        folder: Path,
        plan: VectorPlan,
        *,
        source: str,
        batch: int = 64,
    ) -> None:
        self.backbone, self.pictures, self.plan, self.batch = backbone, pictures, plan, batch
        recorded = {
            "encoder": backbone.origin.name,
            "pretrained": backbone.origin.pretrained,
            "dataset": pictures.name,
            "source": source,
            "pictures": digest(pictures.keys),
            "vectors": replace(plan, image_size=plan.side(backbone)),
        }
        self.folder = folder / digest(recorded)
        run_folder.claim(self.folder, recorded)

    def __call__(self, numbers: Sequence[int], label: str = "vectors") -> tuple[Tensor, Tensor]:
        """(vectors float32 [M, D], labels [M]) of the items `numbers`."""
        vectors_ND, labels_N = self._files()
        chosen_M = np.asarray(numbers)
        missing = chosen_M[labels_N[chosen_M] == ABSENT]
        if len(missing):
            self._fill(np.unique(missing), vectors_ND, labels_N, label)
        return torch.from_numpy(vectors_ND[chosen_M]), torch.from_numpy(labels_N[chosen_M])

    def _fill(
        self,
        missing: NDArray[np.int64],
        vectors_ND: NDArray[np.float32],
        labels_N: NDArray[np.int64],
        label: str,
    ) -> None:
        with Progress(f"{label} of {self.pictures.name}", len(missing), "pictures") as progress:
            items = in_order(self._prepared, missing.tolist(), ahead=2 * self.batch)
            waiting: list[tuple[NDArray[np.int64], list[int]]] = []
            for part in batched(missing, self.batch):
                pairs = [next(items) for _ in part]
                images = torch.stack([pixels for pixels, _ in pairs])
                vectors_ND[part] = self._vectors(images)
                waiting.append((part, [found for _, found in pairs]))
                progress.advance(len(part))
                if len(waiting) == SAVED or part[-1] == missing[-1]:
                    vectors_ND.flush()  # type: ignore[attr-defined]  # a memmap
                    for rows, found in waiting:  # a row counts from its label on
                        labels_N[rows] = found
                    labels_N.flush()  # type: ignore[attr-defined]
                    waiting.clear()

    def _prepared(self, number: int) -> tuple[Tensor, int]:
        item = self.pictures[number]
        check_label(item, self.pictures)
        side = self.plan.side(self.backbone)
        return prepared(item.image, side, self.plan.crop_share), item.label

    @torch.no_grad()
    def _vectors(self, pixels_B3SS: Tensor) -> NDArray[np.float32]:
        device = next(self.backbone.parameters()).device
        images_B3SS = self.backbone.eval().normalised(pixels_B3SS.to(device))
        with arithmetic(self.plan.precision, device):
            found_BD = vectors(self.backbone, images_B3SS, self.plan.kind)
        return found_BD.float().cpu().numpy()

    def _files(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        paths = self.folder / "vectors.npy", self.folder / "labels.npy"
        count = len(self.pictures)
        if not all(path.is_file() for path in paths):
            side = self.plan.side(self.backbone)
            features = self._vectors(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
            _create(paths[0], np.dtype(np.float32), (count, features), 0)
            _create(paths[1], np.dtype(np.int64), (count,), ABSENT)
        vectors_ND, labels_N = (np.lib.format.open_memmap(path, mode="r+") for path in paths)
        return vectors_ND, labels_N


def vectors(backbone: Backbone, images_B3SS: Tensor, kind: Kind) -> Tensor:
    """[B, D] of normalised pictures; with a gradient unless the backbone is frozen."""
    if kind == "embedding":
        return backbone.pooled(images_B3SS)
    if kind == "patches":
        last_BDhw: Tensor = backbone(images_B3SS)[-1]
        return last_BDhw.mean(dim=(2, 3))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not backbone.frozen):
        return _penultimate(backbone.visual, images_B3SS.contiguous())


def _penultimate(visual: Any, images_B3SS: Tensor) -> Tensor:
    if hasattr(visual, "trunk"):  # timm's tower inside open_clip
        with at_size(visual, *images_B3SS.shape[-2:]):
            pooled: Tensor = visual.trunk(images_B3SS)
            attend = getattr(visual.head, "pool", None)
            return pooled if attend is None else attend(pooled)
    if not isinstance(visual, VisionTransformer) or visual.proj is None:
        return towers.encode_image(visual, images_B3SS)
    projection, visual.proj = visual.proj, None
    try:
        return towers.encode_image(visual, images_B3SS)
    finally:
        visual.proj = projection


def prepared(image: Image.Image, size: int, crop_share: float = 1.0) -> Tensor:
    """The centre of a picture, uint8 [3, S, S]."""
    resized = transforms.resize(
        image.convert("RGB"),
        [round(size / crop_share)],
        interpolation=transforms.InterpolationMode.BICUBIC,
    )
    pixels: Tensor = transforms.pil_to_tensor(transforms.center_crop(resized, [size, size]))
    return pixels


def check_label(item: ClassificationItem, pictures: ClassificationSet) -> None:
    """Raise CapwrightError where the item has a class that the set does not name."""
    if not 0 <= item.label < len(pictures.classes):
        raise CapwrightError(
            f"picture {item.key!r} of {pictures.name} has the label {item.label}, but there are "
            f"{len(pictures.classes)} class names: correct the list of names"
        )


def _create(path: Path, kind: np.dtype[Any], shape: tuple[int, ...], value: int) -> None:
    with atomic_path(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=kind, shape=shape)
        if value:
            array[:] = value
        array.flush()
