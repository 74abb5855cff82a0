"""A contrastive step of the demo's model against the same step done plainly, in one run.

Plain: every position of the text tower, every patch, fused attention, float32. Ours: text trimmed
to the longest caption, half of the patches, attention as plain products, bf16 where the processor
multiplies it. Both take the same pictures and captions in turn; their medians are compared.

Run: python benchmarks/train_step.py. The last line is JSON with `ratio`, `target` and `ok`.
"""

import json
import statistics
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from capwright.models import towers
from capwright.models.kept_tokens import kept_tokens
from capwright.pretrain.objectives.contrastive import contrastive_loss
from capwright.pretrain.precision import arithmetic

BATCH, TOKENS, CONTEXT, VOCABULARY = 256, 18, 32, 300
ROUNDS, TARGET = 7, 1.8


def step(model: torch.nn.Module, images: torch.Tensor, tokens: torch.Tensor, ours: bool) -> float:
    """Seconds of one forward and backward pass."""
    kept = torch.rand(BATCH, 64).argsort(1)[:, :32] if ours else None
    began = time.perf_counter()
    with arithmetic("auto", images.device) if ours else nullcontext():
        with kept_tokens(model, kept):
            image = model.encode_image(images)
        text = towers.encode_text(model, tokens) if ours else model.encode_text(tokens)
    scale = model.logit_scale.exp()
    unit = [F.normalize(x.float(), dim=-1) for x in (image, text)]
    contrastive_loss(*unit, scale).backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    """Time both and print the ratio."""
    torch.manual_seed(0)
    config = towers.model_config("nano")
    config["text_cfg"] |= {"vocab_size": VOCABULARY, "context_length": CONTEXT}
    models = {ours: towers.build(config).train() for ours in (False, True)}
    towers.use_plain_attention(models[True])
    images = torch.randn(BATCH, 3, 64, 64)
    tokens = torch.zeros(BATCH, CONTEXT, dtype=torch.long)
    tokens[:, :TOKENS] = torch.randint(1, VOCABULARY - 1, (BATCH, TOKENS))
    tokens[:, TOKENS - 1] = VOCABULARY - 1  # the end of the text is the largest number
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for ours, model in models.items():
            seconds[ours].append(step(model, images, tokens, ours))
    plain, fast = (statistics.median(seconds[ours][1:]) for ours in (False, True))
    ratio = round(plain / fast, 2)
    report = {"name": "train_step", "samples_per_second": round(BATCH / fast, 1), "ratio": ratio}
    print(json.dumps({**report, "target": TARGET, "ok": ratio >= TARGET}))


if __name__ == "__main__":
    main()
