"""From a plan to what the engine runs on: data, tokenizer, model, task.

Reads WORK/index and caption sidecars. Writes OUT/manifest.json, OUT/tokenizer/ and WORK/pixels/.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import torch
from open_clip.tokenizer import HFTokenizer
from timm.layers import convert_sync_batchnorm

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.core.run_folder import claim
from capwright.corpus.index import corpus_digest, load_index
from capwright.corpus.pictures import PictureError, load_pixels
from capwright.models import init, text, towers
from capwright.pretrain import distributed, schedule
from capwright.pretrain.batches import Batches, Pixels, PixelsFromTars, pixels_of
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group
from capwright.pretrain.objective import Extra, ViewMaker
from capwright.pretrain.objectives.self_distillation import Locals
from capwright.pretrain.task import Task, find_objective, reads_text

COLUMNS = (
    "key", "shard", "file", "text", "more_texts", "image_offset", "image_size", "image_column",
)  # fmt: skip
VOCABULARY_KEYS = ("vocab_size", "hf_tokenizer_name", "pool_type", "pad_id", "eos_id")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that the loop needs besides the optimiser."""

    config: PretrainConfig
    task: Task
    batches: Batches
    model_config: dict[str, Any]  # open_clip's, as written into checkpoints
    preprocess: dict[str, Any]  # open_clip's, likewise
    tokenizer_folder: Path | None  # files that go beside the weights
    index: pa.Table
    device: torch.device

    def keys(self, rows: Sequence[int]) -> list[str]:
        """Keys of samples, for messages."""
        return [str(key) for key in self.index["key"].take(pa.array(rows, pa.int64())).to_pylist()]

    @property
    def all_parameters_used(self) -> bool:
        """Whether every step uses every parameter: no objective begins later or ends earlier, and
        the embeddings, for which the towers have their last layers, are asked for.
        """
        weights = self.config.weights
        values = [value for weight in weights.values() for _, value in schedule.points(weight)]
        needs = {need for name in weights for need in find_objective(name).needs}
        return all(values) and {"image", "text"} <= needs


def claim_inputs(config: PretrainConfig, group: Group) -> tuple[pa.Table, CaptionSampler]:
    """Read index and captions and bind the run folder to the plan made with them.

    Raises CapwrightError for a folder with another plan, no captions at all, or batch norms that
    the processes cannot share.
    """
    if config.sync_batchnorm and group.world > 1 and _device().type == "cpu":
        raise CapwrightError(
            f"sync_batchnorm is True, which {group.world} processes on a CPU cannot do: "
            "set sync_batchnorm=False, or train on GPUs or in one process"
        )
    # pictures that are decoded once are known by their hashes
    columns = (*COLUMNS, "sha256") if config.cache_pixels else COLUMNS
    index = load_index(config.work, columns)
    sampler = CaptionSampler(index, config.captions, config.sampling, required=reads_text(config))
    if group.leads:
        inputs = {"index": corpus_digest(config.work), "captions": sampler.digest()}
        claim(config.out, {**config.plan(), "inputs": inputs | _stages(config)})
    return index, sampler


def _stages(config: PretrainConfig) -> dict[str, str]:
    """Digests of the plans of the stages that objectives read (labels, teachers' embeddings)."""
    settings: dict[str, Any] = {name: getattr(config, name, None) for name in config.weights}
    folders = {
        name: config.work / "captions" / found.stage
        for name, found in settings.items()
        if hasattr(found, "stage")
    }
    return {name: read_json(f / "manifest.json")["digest"] for name, f in folders.items()}


def prepare(
    config: PretrainConfig, index: pa.Table, sampler: CaptionSampler, group: Group
) -> Prepared:
    """Load the pictures and build tokenizer, model and task.

    Raises CapwrightError for a model that does not fit the plan or a picture that changed.
    """
    model_config = _model_config(config)
    tokenizer, folder = _tokenizer(config, sampler, model_config, group)
    device = _device()
    task = _task(config, model_config).to(device)
    model = task.model
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if config.sync_batchnorm and group.world > 1:
        task = convert_sync_batchnorm(task)  # torch's own drops the activation of timm's norms
    if config.compile:
        model.visual.compile()
        model.text.compile()
    height, width, _ = towers.grid(model, config.image_size)
    wanted = {name: find_objective(name) for name in config.weights}
    mean_std = (towers.image_mean(model), towers.image_std(model))
    extras = {n: extra for n, o in wanted.items() if (extra := o.extras(config, index)) is not None}
    for name, extra in extras.items():
        if isinstance(extra, Locals):
            extras[name] = replace(extra, mean_std=mean_std)
    view_maker = _view_maker(config, index, extras)
    batches = Batches(
        config,
        sampler=sampler,
        pixels=PixelsFromTars(index, 1) if view_maker else _pixels(config, index, group),
        tokenize=tokenizer,
        mean_std=mean_std,
        patches=height * width,
        views={name: objective.views(config) for name, objective in wanted.items()},
        extras=extras,
        view_maker=view_maker,
        rank=group.rank,
        world=group.world,
    )
    return Prepared(
        config=config,
        task=task,
        batches=batches,
        model_config=model_config,
        preprocess=open_clip.get_model_preprocess_cfg(model),
        tokenizer_folder=folder,
        index=index,
        device=device,
    )


def _model_config(config: PretrainConfig) -> dict[str, Any]:
    """open_clip's configuration of the towers, with what the plan changes."""
    found = towers.model_config(config.model)
    found["vision_cfg"]["image_size"] = config.image_size
    if config.context_length is not None:
        found["text_cfg"]["context_length"] = config.context_length
        if "multimodal_cfg" in found:
            found["multimodal_cfg"]["context_length"] = config.context_length
    if config.contrastive.form == "sigmoid":
        found.setdefault("init_logit_scale", math.log(config.contrastive.sigmoid_scale))
        found.setdefault("init_logit_bias", config.contrastive.sigmoid_bias)
    return found


def _tokenizer(
    config: PretrainConfig, sampler: CaptionSampler, model_config: dict[str, Any], group: Group
) -> tuple[Any, Path | None]:
    """The tokenizer and the folder of its files; completes `text_cfg` with what it decides."""
    text_config = model_config["text_cfg"]
    context = text_config.get("context_length", 77)
    folder = config.out / "tokenizer"
    initial = config.init if "text" in config.init_towers else None
    if config.tokenizer == "corpus-words" and initial is None:
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
    tokenizer = init.tokenizer_of(initial, context) if initial is not None else None
    if tokenizer is None:
        tokenizer = _named_tokenizer(text_config, context)
    elif initial is not None and (file := towers.config_file(initial)) is not None:
        known = towers.read_config(file)["text_cfg"]
        text_config.update({key: known[key] for key in VOCABULARY_KEYS if key in known})
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return tokenizer, None
    if group.leads and not folder.exists():
        tokenizer.save_pretrained(folder)
    distributed.barrier(group)
    return tokenizer, folder


def _named_tokenizer(text_config: Mapping[str, Any], context: int) -> Any:
    """The one that open_clip's configuration of the model names."""
    name = text_config.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(context_length=context)
    return HFTokenizer(
        name,
        context_length=context,
        tokenizer_mode=text_config.get("tokenizer_mode"),
        **(text_config.get("tokenizer_kwargs") or {}),
    )


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
        if config.init is not None:
            found = init.load_initial(model, config.init, only=config.init_towers)
            sys.stderr.write(f"init: {found}\n")
            if "image" in config.init_towers:
                known = towers.preprocess_config(model_config) | init.preprocessing_of(config.init)
                open_clip.set_model_preprocess_cfg(model, known)
        if config.freeze:
            init.freeze(model, config.freeze)
        return Task(model, config)


def _view_maker(
    config: PretrainConfig, index: pa.Table, extras: Mapping[str, Extra]
) -> ViewMaker | None:
    """The objective that makes the views itself, if there is one."""
    objectives = {name: find_objective(name) for name in config.weights}
    made = {name: o.view_maker(config, index) for name, o in objectives.items()}
    found = {name: maker for name, maker in made.items() if maker is not None}
    blind = [n for n, o in objectives.items() if n in extras or o.views(config) > 1]
    blind = [name for name in blind if name not in found]
    if found and blind:
        raise CapwrightError(
            f"objectives {next(iter(found))} and {blind[0]} cannot be combined: the first replays "
            "stored pictures, and the second needs crops of its own; leave one out"
        )
    return next(iter(found.values()), None)


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
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
