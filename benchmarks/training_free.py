"""Training-free segmentation against the plain way: a window, a method and a prompt at a time.

The reference goes through the pictures as the methods' demos do: the prompts of each picture one
after the other through the text tower, each window alone through the whole tower, once for every
method. Ours embeds the words once, runs windows in batches and shares the blocks between methods.
Both give cosines of every pixel and name, which have to agree within 1e-4. ViT-S/32 with fresh
weights, one thread; ours and the reference in turns.

Run: python benchmarks/training_free.py. The last line is JSON with `ratio`, `ratio_pictures` (the
words left out on both sides), `target` and `ok`.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.dense.training_free.layers import Layers
from capwright.dense.training_free.photos import embed_texts
from capwright.dense.training_free.segmenter import Inference, name_logits, starts, window_logits
from capwright.dense.vit import open_up
from capwright.dense.words import TEMPLATES, Vocabulary, text_vectors
from capwright.models import towers

MODEL, METHODS, TARGET, APART = "ViT-S-32", ("sclip", "naclip"), 4.0, 1e-4
WORDS = Vocabulary(classes=(("sky",), ("dog", "puppy")))
SIZES = ((336, 448), (336, 512), (400, 336))  # of pictures, short side 336
INFERENCE = Inference()


def plain_words(model: Any, tokenizer: Any) -> Tensor:
    """Each prompt alone through the text tower as it is, [Q, E]."""
    rows = []
    for name in WORDS.names:
        prompts = [tokenizer([template.format(name)]) for template in TEMPLATES]
        vectors = [F.normalize(model.encode_text(prompt), dim=-1) for prompt in prompts]
        rows.append(F.normalize(torch.cat(vectors).mean(dim=0), dim=-1))
    return torch.stack(rows)


def plain_pictures(model: Any, image_13HW: Tensor, texts_QE: Tensor) -> dict[str, Tensor]:
    """A window and a method at a time, [1, Q, H, W] by method."""
    height, width = image_13HW.shape[-2:]
    side, found = INFERENCE.window, {}
    for method in METHODS:
        total = torch.zeros(1, len(texts_QE), height, width)
        count = torch.zeros(height, width)
        for y in starts(height, side, INFERENCE.stride):
            for x in starts(width, side, INFERENCE.stride):
                crop = image_13HW[..., y : y + side, x : x + side]
                logits = window_logits(Layers(open_up(model), crop), texts_QE, method)
                part = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
                total[..., y : y + side, x : x + side] += part
                count[y : y + side, x : x + side] += 1
        found[method] = total / count
    return found


def plain(model: Any, tokenizer: Any, images: Sequence[Tensor]) -> tuple[list[Any], float, float]:
    """The reference's maps, and its seconds for words and for pictures."""
    maps, words, pictures = [], 0.0, 0.0
    for image in images:
        began = time.perf_counter()
        texts_QE = plain_words(model, tokenizer)
        words += time.perf_counter() - began
        began = time.perf_counter()
        maps.append(plain_pictures(model, image, texts_QE))
        pictures += time.perf_counter() - began
    return maps, words, pictures


def ours(model: Any, tokenizer: Any, images: Sequence[Tensor]) -> tuple[list[Any], float, float]:
    """The same by the package."""
    began = time.perf_counter()
    texts_QE = text_vectors(lambda texts: embed_texts(model, tokenizer, texts), WORDS)
    words = time.perf_counter() - began
    began = time.perf_counter()
    vit = open_up(model)
    maps = [name_logits(vit, image, texts_QE, METHODS, INFERENCE) for image in images]
    return maps, words, time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    """Run both in turns and print the ratio."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokenizer = towers.build(MODEL).eval(), open_clip.get_tokenizer(MODEL)
    images = [torch.randn(1, 3, *size) for size in SIZES]
    ours(model, tokenizer, images[:1])  # warm
    found, our_words, our_pictures = ours(model, tokenizer, images)
    expected, their_words, their_pictures = plain(model, tokenizer, images)
    apart = max(
        float((one[method] - other[method]).abs().max())
        for one, other in zip(found, expected, strict=True)
        for method in METHODS
    )
    ratio = (their_words + their_pictures) / (our_words + our_pictures)
    report = {
        "name": "training_free",
        "seconds": [round(our_words, 2), round(our_pictures, 2)],
        "peer_seconds": [round(their_words, 2), round(their_pictures, 2)],
        "largest_difference": apart,
        "ratio_pictures": round(their_pictures / our_pictures, 2),
        "ratio": round(ratio, 2),
        "target": TARGET,
        "ok": ratio >= TARGET and apart < APART,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
