"""Where the gain of `train_step` comes from: one step, changed bit by bit, in turns in one process.

One thread and its CPU seconds, which other processes disturb least. Every variant does a whole
step (forward, backward, clipping, AdamW) on the same batch. Then the plain and our step train two
equal models on the same batches, to compare their losses exactly.
"""

import copy
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from capwright.corpus.index import IndexConfig, load_index, run
from capwright.corpus.pictures import decode_rgb
from capwright.corpus.places import ByteReader, places
from capwright.models import towers
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE
from capwright.pretrain.optimizer import build_optimizer
from capwright.pretrain.prepare import Prepared, claim_inputs, prepare
from capwright.pretrain.step import Stepper, scaler_for

from .web_corpus import write_tars

MODEL, SIZE, BATCH, ROUNDS, SAME_STEPS = "ViT-S-32", 224, 32, 3, 8
RATE, DECAY, BETAS, EPSILON, CLIP = 1e-4, 0.1, (0.9, 0.98), 1e-6, 1.0


def plain_loss(model: Any, images: Tensor, tokens: Tensor, text: Callable[..., Tensor]) -> Tensor:
    """open_clip's loss of its towers."""
    image = model.encode_image(images, normalize=True)
    embedded = nn.functional.normalize(text(model, tokens), dim=-1)
    loss: Tensor = ClipLoss()(image, embedded, model.logit_scale.exp())
    return loss


def all_positions(model: Any, tokens: Tensor) -> Tensor:
    """The text tower as it is."""
    embedded: Tensor = model.encode_text(tokens)
    return embedded


def to_the_longest(model: Any, tokens: Tensor) -> Tensor:
    """The text tower on positions up to the end of the batch's longest text."""
    tower, length = model.text, int(tokens.argmax(1).max()) + 1
    mask = tower.attn_mask
    tower.attn_mask = mask[:length, :length]
    try:
        embedded: Tensor = model.encode_text(tokens[:, :length])
    finally:
        tower.attn_mask = mask
    return embedded


class Plain:
    """A step as open_clip's loop does it, with a text tower and an optimiser of choice."""

    def __init__(self, model: Any, text: Callable[..., Tensor], *, fused: bool) -> None:
        self.model, self.text = model.train(), text
        vectors = [p for p in model.parameters() if p.ndim < 2]
        others = [p for p in model.parameters() if p.ndim >= 2]
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": others}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=fused or None
        )

    def __call__(self, batch: Any) -> float:
        self.optimizer.zero_grad()
        tokens = batch.tokens_UL[batch.pair_text_P]
        loss = plain_loss(self.model, batch.images_BV3HH[:, 0], tokens, self.text)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()


class Ours:
    """A step of the engine."""

    def __init__(self, prepared: Prepared) -> None:
        task, config = prepared.task.train(), prepared.config
        optimizer = build_optimizer(task, config)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        self.stepper = Stepper(
            task=task,
            optimizer=optimizer,
            parameters=[p for p in task.parameters() if p.requires_grad],
            group=ALONE,
            device=prepared.device,
            precision="fp32",
            parts=1,
            grad_clip=CLIP,
            seed=0,
            scaler=scaler_for("fp32", prepared.device),
        )

    def __call__(self, batch: Any) -> float:
        loss = float(self.stepper.backward(batch)["loss"])
        self.stepper.update()
        return loss


def prepared_run(folder: Path) -> Prepared:
    """Corpus, index, model and batches."""
    write_tars(folder / "tars", range(SAME_STEPS * BATCH), SAME_STEPS * BATCH)
    run(IndexConfig(corpus=str(folder / "tars"), work=folder / "work"))
    config = PretrainConfig(
        out=folder / "out",
        work=folder / "work",
        model=MODEL,
        tokenizer="open_clip",
        image_size=SIZE,
        batch_size=BATCH,
        samples=SAME_STEPS * BATCH,
        warmup_samples=0,
        weight_decay=DECAY,
        betas=BETAS,
        patch_dropout=0,
        precision="fp32",
        cache_pixels=False,
    )
    return prepare(config, *claim_inputs(config, ALONE), ALONE)


def decoding(folder: Path) -> dict[str, float]:
    """CPU seconds of a batch's pictures: Pillow and torchvision as open_clip does, and ours."""
    index = load_index(folder / "work").slice(0, BATCH)
    with ByteReader() as reader:
        files = [reader.read(*place) for place in places(index)]
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, (0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
        ]
    )
    seconds = {}
    for name, decode in (
        ("open_clip", lambda data: crop(Image.open(io.BytesIO(data)).convert("RGB"))),
        ("ours", lambda data: decode_rgb(data, size=SIZE)),
    ):
        began = time.process_time()
        for data in files:
            decode(data)
        seconds[name] = round(time.process_time() - began, 3)
    return seconds


def report() -> dict[str, Any]:
    """CPU seconds of a step by variant, and how far the losses are apart on the same batches."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepared_run(folder)
        model = towers.build(prepared.model_config)
        model.load_state_dict(prepared.task.model.state_dict())
        towers_of_ours = copy.deepcopy(prepared.task.model)  # with its attention
        batches = [prepared.batches[step] for step in range(SAME_STEPS)]
        variants: dict[str, Callable[[Any], float]] = {
            "open_clip": Plain(copy.deepcopy(model), all_positions, fused=False),
            "+ text to the longest": Plain(copy.deepcopy(model), to_the_longest, fused=False),
            "+ text in groups": Plain(copy.deepcopy(model), towers.encode_text, fused=False),
            "+ fused AdamW": Plain(copy.deepcopy(model), towers.encode_text, fused=True),
            "+ attention": Plain(towers_of_ours, towers.encode_text, fused=True),
            "the engine": Ours(prepared),
        }
        one, other = variants["open_clip"], variants["the engine"]
        losses = np.array([(one(batch), other(batch)) for batch in batches])
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, step in variants.items():
                began = time.process_time()
                step(batches[0])
                seconds[name].append(time.process_time() - began)
        decode = decoding(folder)
    best = {name: round(min(times), 2) for name, times in seconds.items()}
    ratio = round(best["open_clip"] / best["the engine"], 2)
    apart = float(np.abs(losses[:, 0] - losses[:, 1]).max())
    return {
        "name": "train_step --parts",
        "cpu_seconds": best,
        "decode_cpu_seconds": decode,
        "loss_first_last": [round(float(value), 4) for value in losses[[0, -1], 1]],
        "loss_apart_on_the_same_batches": round(apart, 6),
        "ratio": ratio,
        "target": 1.8,
        "ok": ratio >= 1.8 and apart < 0.01,
    }
