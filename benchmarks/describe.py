"""A tiny CoCa through `describe` against one picture at a time through open_clip's `generate`.

Both start from the same decoded pictures, write the likeliest words with the same limits and have
to write the same captions; they take turns, and their medians are compared. Then the whole stage
runs on a corpus of JPEGs (read, decode, describe, write sidecars), and the share of its time is
taken in which no layer of the model computes; loading the weights is left out. Some 0.4 s of it are
paid once a shard, for decoding the first batch and writing the last, and a shard here has 1,024
pictures: with 256 the share came to 7 to 13%.

Run: python benchmarks/describe.py. The last line is JSON with `ratio`, `target` and `ok`.
"""

import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from open_clip import coca_model
from PIL import Image
from safetensors.torch import save_file

from capwright.captions.describe import coca, stage
from capwright.captions.describe.sampling import tidy
from capwright.corpus import index
from capwright.models import towers

PICTURES, COMPARED, SIDE, TOKENS = 1024, 64, 256, 16  # a shard; what both describe
ROUNDS, TARGET, OUTSIDE = 3, 3.0, 0.10
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4}
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 128, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16,
        "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 4},
    "custom_text": True,
}  # fmt: skip


def save_model(folder: Path) -> Path:
    """A tiny CoCa with random weights, large enough that its words differ between pictures."""
    folder.mkdir()
    torch.manual_seed(0)
    model = towers.build(MODEL)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.1)
    save_file(dict(model.state_dict()), folder / towers.WEIGHTS_FILE)
    config = {"model_cfg": MODEL, "preprocess_cfg": towers.preprocess_config(MODEL)}
    (folder / towers.CONFIG_FILE).write_text(json.dumps(config))
    return folder


def save_corpus(folder: Path) -> list[Image.Image]:
    """JPEGs of coloured noise in one tar; the pictures are returned as they decode."""
    folder.mkdir()
    pictures = []
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(PICTURES):
            noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            jpeg = io.BytesIO()
            Image.fromarray(noise).resize((SIDE, SIDE)).save(jpeg, "JPEG", quality=90)
            info = tarfile.TarInfo(f"{number:09d}.jpg")
            info.size = len(jpeg.getvalue())
            tar.addfile(info, io.BytesIO(jpeg.getvalue()))
            pictures.append(Image.open(jpeg).convert("RGB"))
    return pictures


def mend_open_clip() -> None:
    """Give `generate` back what open_clip 3.3 does not import beside transformers 5, which has no
    `BeamSearchScorer` any more; without it there would be nothing to compare with."""
    for name in (
        "LogitsProcessorList",
        "MinLengthLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "StoppingCriteriaList",
        "MaxLengthCriteria",
    ):
        setattr(coca_model, name, getattr(transformers, name))
    coca_model.GENERATION_TYPES["top_k"] = transformers.TopKLogitsWarper
    coca_model._has_transformers = True


def one_at_a_time(captioner: coca.Coca, pictures: list[Image.Image]) -> list[str]:
    """What open_clip's documentation does, for each picture."""
    texts = []
    for picture in pictures:
        image = captioner.preprocess(picture).unsqueeze(0)
        words = captioner.model.generate(
            image, generation_type="top_k", top_k=1, seq_len=TOKENS + 2, min_seq_len=5
        )
        text = captioner.decode(words[0].tolist())
        texts.append(tidy(text.split("<end_of_text>")[0].replace("<start_of_text>", "")))
    return texts


def in_batches(captioner: coca.Coca, pictures: list[Image.Image]) -> list[str]:
    """What the stage does."""
    size = captioner.batch_size
    batches = (pictures[start : start + size] for start in range(0, len(pictures), size))
    return [caption.text for batch in batches for (caption,) in captioner.describe(batch)]


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """(seconds, result)"""
    began = time.perf_counter()
    result = work(*given)
    return time.perf_counter() - began, result


def share_outside(corpus: Path, work: Path, options: coca.Config) -> float:
    """Share of the stage's time in which no layer of the model computes."""
    index.run(index.IndexConfig(corpus=str(corpus), work=work))
    spent = {"model": 0.0, "loading": 0.0}

    def clocked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[name] += time.perf_counter() - began

        return run

    coca.Coca.__init__ = clocked(coca.Coca.__init__, "loading")  # type: ignore[method-assign]
    coca_model.CoCa.forward = clocked(coca_model.CoCa.forward, "model")  # encodes pictures
    for method in ("__init__", "next"):  # the decoder's keys of a picture, and its next word
        setattr(coca._Words, method, clocked(getattr(coca._Words, method), "model"))
    wall, _ = timed(stage.run, stage.DescribeConfig(work=work, backend="coca", options=options))
    return 1 - spent["model"] / (wall - spent["loading"])


def main() -> None:
    """Time both and print the ratio."""
    torch.set_num_threads(1)
    mend_open_clip()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures = save_corpus(root / "corpus")
        options = coca.Config(
            model=str(save_model(root / "model")),
            max_tokens=TOKENS,
            first_sentence=False,
            device="cpu",
        )
        captioner = coca.Coca(options)
        seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(ROUNDS):
            spent, theirs = timed(one_at_a_time, captioner, pictures[:COMPARED])
            seconds["theirs"].append(spent)
            spent, ours = timed(in_batches, captioner, pictures[:COMPARED])
            seconds["ours"].append(spent)
        assert ours == theirs, "the captions differ"
        outside = share_outside(root / "corpus", root / "work", options)
    plain, fast = (statistics.median(seconds[who]) for who in ("theirs", "ours"))
    ratio = round(plain / fast, 2)
    report = {
        "name": "describe",
        "pictures_per_second": round(COMPARED / fast, 1),
        "one_at_a_time_per_second": round(COMPARED / plain, 1),
        "different_captions": len(set(ours)),
        "share_outside_model": round(outside, 3),
        "share_allowed": OUTSIDE,
        "ratio": ratio,
        "target": TARGET,
    }
    print(json.dumps({**report, "ok": ratio >= TARGET and outside < OUTSIDE}))


if __name__ == "__main__":
    main()
