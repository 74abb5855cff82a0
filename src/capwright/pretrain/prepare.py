"""From a plan to what the engine runs on: data, tokenizer, model, task, and a text that shows them.

Reads WORK/index and caption sidecars. Writes OUT/manifest.json, OUT/tokenizer/ and WORK/pixels/.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import torch
from open_clip.tokenizer import HFTokenizer

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.run_folder import claim
from capwright.corpus.index import load_index
from capwright.corpus.pictures import PictureError, load_pixels
from capwright.models import text, towers
from capwright.pretrain import distributed
from capwright.pretrain.batches import Batches, Pixels, PixelsFromTars, pixels_of
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group
from capwright.pretrain.precision import uses_bf16
from capwright.pretrain.task import Task, towers_used

COLUMNS = (
    "key", "shard", "file", "text", "more_texts", "sha256", "image_offset", "image_size",
    "image_column",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that the loop needs besides the optimiser."""

    config: PretrainConfig
    task: Task
    batches: Batches
    model_config: dict[str, Any]  # open_clip's, as written into checkpoints
    tokenizer_folder: Path | None  # files that go beside the weights
    index: pa.Table
    device: torch.device

    def keys(self, rows: Sequence[int]) -> list[str]:
        """Keys of samples, for messages."""
        return [str(key) for key in self.index["key"].take(pa.array(rows)).to_pylist()]

    def plan_text(self, samples_seen: int) -> str:
        """The plan in a few lines, for a human who is about to wait for it."""
        config, sampler = self.config, self.batches.sampler
        image, whole = (
            sum(p.numel() for p in module.parameters())
            for module in (self.task.model.visual, self.task)
        )
        arithmetic = "bf16" if uses_bf16(config.precision, self.device) else "fp32"
        lines = [
            f"pretrain {config.out}",
            f"  model      {whole:,} parameters, {image:,} in the image tower, "
            f"{arithmetic}, {self.device}",
            f"  objectives {', '.join(f'{k} x {v:g}' for k, v in config.objectives.items())}",
            f"  samples    {config.samples:,} = {config.steps:,} steps of {config.batch_size:,}, "
            f"{config.samples / len(sampler.rows):.1f} passes over {len(sampler.rows):,} pictures",
            f"  left out   {self.index.num_rows - len(sampler.rows):,} pictures without a caption"
            f" (of {sampler.without_caption:,})",
        ]
        for source, (pictures, captions) in zip(
            config.captions, sampler.counts().values(), strict=True
        ):
            lines.append(
                f"  captions   {source.name}: {captions:,} for {pictures:,} pictures, "
                f"probability {source.probability:g}"
            )
        if samples_seen:
            lines.append(f"  goes on    after {samples_seen:,} samples")
        return "\n".join(lines) + "\n"


def claim_inputs(config: PretrainConfig, group: Group) -> tuple[pa.Table, CaptionSampler]:
    """Read index and captions, and bind OUT to the plan and to them.

    Raises CapwrightError for another plan in OUT, or for a missing index or stage.
    """
    index = load_index(config.work, COLUMNS)
    sampler = CaptionSampler(index, config.captions, required="text" in towers_used(config))
    if group.leads:
        inputs = {"index": digest(index["sha256"].to_pylist()), "captions": sampler.digest()}
        claim(config.out, {**config.plan(), "inputs": inputs})
    return index, sampler


def prepare(
    config: PretrainConfig, index: pa.Table, sampler: CaptionSampler, group: Group
) -> Prepared:
    """Load the pictures and build tokenizer, model and task.

    Raises CapwrightError for a model that does not fit the plan or a picture that changed.
    """
    model_config = towers.model_config(config.model)
    model_config["vision_cfg"]["image_size"] = config.image_size
    tokenizer, folder = _tokenizer(config, sampler, model_config, group)
    device = _device()
    task = _task(config, model_config).to(device)
    if device.type == "cpu":
        towers.use_plain_attention(task)
    height, width, _ = towers.grid(task.model, config.image_size)
    batches = Batches(
        sampler=sampler,
        pixels=_pixels(config, index, group),
        tokenize=tokenizer,
        augmentation=config.augmentation,
        image_size=config.image_size,
        mean_std=(towers.image_mean(task.model), towers.image_std(task.model)),
        patches=height * width,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=group.rank,
        world=group.world,
    )
    return Prepared(
        config=config,
        task=task,
        batches=batches,
        model_config=model_config,
        tokenizer_folder=folder,
        index=index,
        device=device,
    )


def _tokenizer(
    config: PretrainConfig, sampler: CaptionSampler, model_config: dict[str, Any], group: Group
) -> tuple[Any, Path | None]:
    """The tokenizer and the folder of its files; completes `text_cfg` with what it decides."""
    text_config = model_config["text_cfg"]
    context = text_config.get("context_length", 77)
    folder = config.out / "tokenizer"
    if config.tokenizer == "corpus-words":
        if group.leads and not folder.exists():
            text.write_word_tokenizer(
                folder,
                sampler.texts(),
                vocabulary=config.vocabulary,
                min_count=config.vocabulary_min_count,
            )
        distributed.barrier(group)
        tokenizer = HFTokenizer(str(folder), context_length=context)
        text_config.update(text.word_text_config(len(tokenizer.tokenizer)))
        return tokenizer, folder
    name = text_config.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(context_length=context), None
    tokenizer = HFTokenizer(
        name,
        context_length=context,
        tokenizer_mode=text_config.get("tokenizer_mode"),
        **(text_config.get("tokenizer_kwargs") or {}),
    )
    if group.leads and not folder.exists():
        tokenizer.save_pretrained(folder)
    distributed.barrier(group)
    return tokenizer, folder


def _task(config: PretrainConfig, model_config: dict[str, Any]) -> Task:
    """Model and objectives with weights from the seed; torch's random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = towers.build(model_config)
        try:
            towers.grid(model, config.image_size)
        except (AssertionError, RuntimeError) as error:
            raise CapwrightError(
                f"the image tower does not take image_size {config.image_size} ({error}): "
                "choose the size it was made for or another tower"
            ) from error
        return Task(model, config)


def _pixels(config: PretrainConfig, index: pa.Table, group: Group) -> Pixels:
    size = config.stored_size or config.image_size
    if not config.cache_pixels:
        return PixelsFromTars(index, size)
    cache = config.work / "pixels"
    try:
        if group.leads:
            load_pixels(index, size=size, cache=cache)
        distributed.barrier(group)
        return pixels_of(load_pixels(index, size=size, cache=cache))
    except PictureError as error:
        raise CapwrightError(
            f"a picture of {config.work} cannot be decoded ({error}): "
            "its shard changed after it was indexed, so index it again"
        ) from error


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
