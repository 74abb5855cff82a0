"""CLIP on mask crops, batched over pictures, against one crop at a time.

The reference is the plain loop: for every query of every picture cut the box of its mask, fill,
resize, and one pass of the whole tower. Masks without a pixel are skipped on both sides, so `ratio`
is what batches alone buy. `ratio_with_empty` has a reference that passes a blank for them, a third
of the masks here (a choice of this benchmark; trained proposals differ). Unit vectors have to agree
within 1e-4. The small tower with fresh weights, 64 pixels, two threads; all in turns, the median of
several.

Run: python benchmarks/zsseg.py [--model ViT-B-16]. The last line is JSON with `ratio`,
`ratio_with_empty`, `target` and `ok`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.adapt.zsseg.crops import Regions, masked_crop, region_features
from capwright.evaluate.encoder import Encoder, load_encoder

TARGET, APART, TURNS, THREADS = 3.0, 1e-4, 5, 2
PICTURES, MASKS, SIZES = 8, 30, ((128, 128), (96, 150), (131, 97))


def pictures(encoder: Encoder) -> tuple[list[Tensor], list[Tensor]]:
    """Normalised pictures and masks of boxes, every third empty."""
    draws = torch.Generator().manual_seed(0)
    images, masks = [], []
    for number in range(PICTURES):
        height, width = SIZES[number % len(SIZES)]
        pixels = torch.randint(0, 256, (1, height, width, 3), generator=draws)
        images.append(encoder.normalised(pixels)[0])
        masks_QHW = torch.zeros(MASKS, height, width, dtype=torch.bool)
        for query in range(MASKS):
            if query % 3:
                top, left = (
                    int(torch.randint(0, s // 2, (), generator=draws)) for s in (height, width)
                )
                tall, wide = (
                    int(torch.randint(8, s // 2, (), generator=draws)) for s in (height, width)
                )
                masks_QHW[query, top : top + tall, left : left + wide] = True
        masks.append(masks_QHW)
    return images, masks


@torch.no_grad()
def one_at_a_time(
    encoder: Encoder, images: Sequence[Tensor], masks: Sequence[Tensor], *, skip: bool
) -> list[Tensor]:
    """Unit vectors [Q, E] of each picture; an empty mask costs a pass of a blank, or nothing."""
    side, found = encoder.image_size, []
    for image_3HW, masks_QHW in zip(images, masks, strict=True):
        rows = []
        for mask_HW in masks_QHW:
            crop = masked_crop(image_3HW, mask_HW, side)
            if crop is None and skip:
                rows.append(None)
                continue
            crop = image_3HW.new_zeros(3, side, side) if crop is None else crop
            rows.append(F.normalize(encoder.model.encode_image(crop[None])[0], dim=-1))
        width = next(row.shape[0] for row in rows if row is not None)
        found.append(torch.stack([torch.zeros(width) if row is None else row for row in rows]))
    return found


def timed(work: Callable[[], list[Tensor] | list[Regions]]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Run both in turns and print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nano")
    model = parser.parse_args().model
    torch.set_num_threads(THREADS)
    encoder = load_encoder(None, model=model)
    encoder.model.eval()
    images, masks = pictures(encoder)
    ours = region_features(encoder, images, masks)
    theirs = one_at_a_time(encoder, images, masks, skip=True)
    apart = max(
        float((one.features_QE - other).abs().max())
        for one, other in zip(ours, theirs, strict=True)
    )
    turns = [
        (
            timed(lambda: region_features(encoder, images, masks)),
            timed(lambda: one_at_a_time(encoder, images, masks, skip=True)),
            timed(lambda: one_at_a_time(encoder, images, masks, skip=False)),
        )
        for _ in range(TURNS)
    ]
    seconds, skipping, with_empty = (
        statistics.median(column) for column in zip(*turns, strict=True)
    )
    report = {
        "name": "zsseg",
        "model": model,
        "crops": int(sum(regions.filled_Q.sum() for regions in ours)),
        "seconds": round(seconds, 3),
        "peer_seconds": round(skipping, 3),
        "largest_difference": apart,
        "ratio_with_empty": round(with_empty / seconds, 2),
        "ratio": round(skipping / seconds, 2),
        "target": TARGET,
        "ok": skipping / seconds >= TARGET and apart < APART,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
