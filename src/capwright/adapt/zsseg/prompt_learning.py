"""Stage 1's data and loop: crops of ground-truth masks, each through CLIP once, then SGD.

Reads labelled pictures. Writes FOLDER/crops.safetensors (features and classes of the crops) and
FOLDER/state.pt while it learns; a run that was cut off goes on at the last saved step and ends with
the numbers of an unbroken one.

Shapes: N crops, E joint space, K taught classes, B crops of a step.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.adapt.learned_tokens import PrefixedTexts
from capwright.adapt.zsseg.crops import region_features
from capwright.adapt.zsseg.prompts import PromptSettings, class_vectors
from capwright.adapt.zsseg.splits import Split, taught_labels
from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.datasets.sets import LabelledSet, SegmentationItem
from capwright.dense.words import Vocabulary
from capwright.evaluate.encoder import Encoder
from capwright.evaluate.transfer.loop import STATE, State

LEAST_PIXELS = 16  # of a mask that is learned from


def seen_crops(
    encoder: Encoder,
    pictures: LabelledSet[SegmentationItem],
    numbers: Sequence[int],
    split: Split,
    settings: PromptSettings,
    *,
    folder: Path,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(unit vectors [N, E], positions in `split.seen` [N]), at most so many of each class.

    Pictures are read in random order until every class has enough. Raises CapwrightError where no
    picture shows a seen class.
    """
    path = folder / "crops.safetensors"
    if path.is_file():
        stored = safetensors.torch.load_file(path)
        return stored["features_NE"], stored["classes_N"]
    left = dict.fromkeys(range(len(split.seen)), settings.samples_per_class)
    features, classes = [], []
    order = np.random.default_rng(seed).permutation(np.asarray(numbers)).tolist()
    with Progress("crops of seen classes", sum(left.values()), "crops") as progress:
        for number in order:
            if not any(left.values()):
                break
            item = pictures[number]
            seg_HW = torch.from_numpy(taught_labels(item.seg_HW, split.seen, len(split.classes)))
            wanted = [c for c in left if left[c] and (seg_HW == c).sum() >= LEAST_PIXELS]
            if not wanted:
                continue
            image = encoder.normalised(np.array(item.image.convert("RGB"))[None])[0]
            masks_QHW = seg_HW[None] == torch.tensor(wanted)[:, None, None]
            device = next(encoder.model.parameters()).device
            found = region_features(encoder, [image.to(device)], [masks_QHW.to(device)])[0]
            features.append(found.features_QE.cpu())
            classes += wanted
            for chosen in wanted:
                left[chosen] -= 1
            progress.advance(len(wanted))
    if not features:
        raise CapwrightError(
            f"none of {len(numbers)} pictures shows a seen class on {LEAST_PIXELS} pixels or more: "
            "prompts have nothing to learn from; choose other unseen classes or more pictures"
        )
    stored = {"features_NE": torch.cat(features), "classes_N": torch.tensor(classes)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(stored, temporary)
    return stored["features_NE"], stored["classes_N"]


def learn(
    texts: PrefixedTexts,
    vocabulary: Vocabulary,
    taught: Sequence[int],
    crops: tuple[Tensor, Tensor],
    scale: float,
    settings: PromptSettings,
    *,
    folder: Path,
    seed: int,
) -> None:
    """Learn the beginning of `texts` in place; what a step sees is a function of (seed, step)."""
    device = texts.prefix_MD.device
    features_NE, classes_N = (part.to(device) for part in crops)
    words = Vocabulary(classes=tuple(vocabulary.classes[number] for number in taught))
    options: dict[str, Any] = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    optimizer = torch.optim.SGD(texts.parameters(), lr=settings.learning_rate, **options)
    state = State(folder / STATE, texts, optimizer, digest({"settings": settings, "seed": seed}))
    begin = state.read()
    with Progress("prompts", settings.steps, "steps", start=begin) as progress:
        for step in range(begin, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(settings, step)
            draws = np.random.default_rng((seed, step))
            chosen_B = torch.from_numpy(draws.integers(len(classes_N), size=settings.batch))
            texts_KE = class_vectors(texts(words.names), words)
            loss = prompt_loss(features_NE[chosen_B], classes_N[chosen_B], texts_KE, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.advance(note=f"loss {loss.item():.3f}")
            if (step + 1) % settings.save_every == 0:
                state.write(step + 1)
    state.write(settings.steps)


def prompt_loss(features_BE: Tensor, classes_B: Tensor, texts_KE: Tensor, scale: float) -> Tensor:
    """Cross-entropy of the scaled cosines, a scalar."""
    return F.cross_entropy(scale * features_BE @ texts_KE.T, classes_B)


def rate(settings: PromptSettings, step: int) -> float:
    """The learning rate of a step: constant at first, then on a cosine over all steps."""
    if step < settings.warmup_steps:
        return settings.warmup_learning_rate
    return settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
