"""The captioner of CoCa (arXiv 2205.01917), any weights that open_clip loads, written in batches.

Run: `capwright describe CORPUS --work WORK --with coca`. The first caption of a picture takes the
likeliest word at each place, the further ones are drawn by top-p sampling (see `sampling.py`), all
cut at the first full stop, as the captions of DataCompDR are (arXiv 2311.17049).

Algorithm: a picture is encoded once for all of its captions. Words are written one at a time with
the keys and values of the words before them kept (`open_clip` computes all words again for each),
and those of the picture are computed once and shared by its captions. Pictures whose captions have
all ended leave the batch. The words are those of open_clip's `model.generate` with the same
`seq_len` (max_tokens + 2) and `min_seq_len` (min_tokens + 1), top-k 1.

Shapes: P pictures, C captions of one, B = P·C, T words of a caption, S tokens of a picture,
D width, H heads, V vocabulary.
"""

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from capwright.captions.describe.local_models import (
    Precision,
    folder_revision,
    not_too_narrow,
    out_of_memory,
    pick_dtype,
)
from capwright.captions.describe.protocol import Caption, Describer
from capwright.captions.describe.regions import CropConfig, CropDescriber
from capwright.captions.describe.sampling import (
    draw_top_p,
    first_sentence,
    likeliest,
    picture_draws,
    tidy,
)
from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.models.devices import pick_device


@dataclass(frozen=True, kw_only=True)
class Config:
    """CoCa and how it writes."""

    model: str = "coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k"
    """open_clip's MODEL/TAG, hf-hub:ORG/REPOSITORY, or a checkpoint or run folder."""
    captions: int = 1
    """Captions of a picture: the likeliest words first, then sampled ones."""
    top_p: float = 0.9
    """Sampled words come from the likeliest ones that make up this probability."""
    min_tokens: int = 4
    """Tokens that a caption has at least."""
    max_tokens: int = 28
    """Tokens that a caption has at most."""
    first_sentence: bool = True
    """Cut captions at the first full stop."""
    batch_size: int = 64
    """Pictures that are described at once."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""
    precision: Precision = "auto"
    """Of the weights: "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, fp32 elsewhere."""
    seed: int = 0
    """Seeds the sampled captions, together with the picture."""
    crops: CropConfig = field(default_factory=CropConfig)
    """The crops of --style regions."""

    def __post_init__(self) -> None:
        for name in ("captions", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 < self.top_p <= 1:
            raise CapwrightError(
                f"top_p is {self.top_p}, but must be above 0 and at most 1: try 0.9"
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise CapwrightError(
                f"min_tokens is {self.min_tokens}, but must be from 0 to max_tokens "
                f"({self.max_tokens}): try 4"
            )


def build(config: Config, style: str) -> Describer:
    """A CoCa that is ready to write in a style: "short", "long" or "regions"."""
    if style == "long" and config.first_sentence:
        raise CapwrightError(
            "coca writes one sentence and has no long captions: set first_sentence=false and a "
            "larger max_tokens to let it go on, or describe --with transformers or openai"
        )
    if style == "regions":
        return CropDescriber(Coca(dataclasses.replace(config, captions=1)), config.crops)
    return Coca(config)


class Coca:
    """A `Describer`: an open_clip CoCa with its preprocessing and tokenizer."""

    overlap = 2  # one call prepares pictures while another writes

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.model, self.preprocess, tokenizer = _load(config.model)
        self.model.to(self.device, pick_dtype(config.precision, self.device)).requires_grad_(False)
        self.dtype = self.model.text_decoder.text_projection.dtype
        self.start, self.end = tokenizer("")[0][:2].tolist()
        self.decode = getattr(tokenizer, "tokenizer", tokenizer).decode
        specials = getattr(tokenizer, "tokenizer", tokenizer).all_special_ids
        self.silent = {*specials, self.start, self.end, self.model.pad_id}
        self.stops = [self.end, self.model.pad_id]
        stop = tokenizer(".")[0][1:3].tolist()  # one token and the end
        if config.first_sentence and stop[1] == self.end:
            self.stops.append(stop[0])
        longest = min(self.model.text.context_length, self.model.text_decoder.context_length)
        if config.max_tokens > longest:
            raise CapwrightError(
                f"max_tokens is {config.max_tokens}, but {config.model} has {longest} positions: "
                f"set max_tokens to {longest} or less"
            )
        self._writing = threading.Lock()

    @property
    def name(self) -> str:
        return Path(self.config.model).name if _folder(self.config.model) else self.config.model

    @property
    def revision(self) -> str:
        folder = _folder(self.config.model)
        return folder_revision(folder) if folder else ""

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        """Captions of RGB pictures."""
        if not images:
            return []
        how = self.config
        draws = [picture_draws(i, how.seed, how.captions, how.max_tokens) for i in images]
        pixels = torch.stack([self.preprocess(not_too_narrow(image)) for image in images])
        with self._writing:
            try:
                words_PCT = self.write(pixels, torch.from_numpy(np.stack(draws)))
            except torch.OutOfMemoryError as error:
                raise out_of_memory(how.batch_size, error) from error
        return [
            [self._caption(words, number) for number, words in enumerate(captions)]
            for captions in words_PCT.tolist()
        ]

    @torch.inference_mode()
    def write(self, images_P3HW: Tensor, draws_PCT: Tensor) -> Tensor:
        """Token ids [P, C, T]; after an end there is padding."""
        images_P3HW = images_P3HW.to(self.device, self.dtype)
        words = _Words(self.model, self.model(images_P3HW)["image_embs"], draws_PCT.shape[1])
        draws_PCT = draws_PCT.to(self.device)
        stops, pad = torch.tensor(self.stops, device=self.device), self.model.pad_id
        out_PCT = torch.full(draws_PCT.shape, pad, device=self.device)
        pictures = torch.arange(len(out_PCT), device=self.device)  # those that are being written
        last_PC = torch.full(draws_PCT.shape[:2], self.start, device=self.device)
        ended_PC = torch.zeros_like(last_PC, dtype=torch.bool)
        for t in range(draws_PCT.shape[2]):
            logits_PCV = words.next(last_PC)
            if t < self.config.min_tokens:
                logits_PCV[..., self.end] = -torch.inf
            last_PC = likeliest(logits_PCV[:, :1])
            if draws_PCT.shape[1] > 1:
                draws = draws_PCT[pictures, 1:, t]
                drawn = draw_top_p(logits_PCV[:, 1:], draws, self.config.top_p)
                last_PC = torch.cat([last_PC, drawn], dim=1)
            last_PC = last_PC.masked_fill(ended_PC, pad)
            out_PCT[pictures, :, t] = last_PC
            ended_PC |= torch.isin(last_PC, stops)
            open_P = ~ended_PC.all(1)
            left = int(open_P.sum())
            if not left:
                break
            if left <= len(pictures) // 2:
                words.keep(open_P)
                pictures, last_PC, ended_PC = pictures[open_P], last_PC[open_P], ended_PC[open_P]
        return out_PCT.cpu()

    def _caption(self, ids: Sequence[int], number: int) -> Caption:
        end = next((place for place, word in enumerate(ids) if word in self.stops[:2]), len(ids))
        text = tidy(self.decode([word for word in ids[:end] if word not in self.silent]))
        if self.config.first_sentence:
            text = first_sentence(text)
        return Caption(
            text=text,
            prompt=f"top-p {self.config.top_p:g}" if number else "greedy",
            tokens=min(end + 1, len(ids)),
            seed=self.config.seed if number else 0,
            reason="" if text else "failed: empty caption",
        )


def _folder(model: str) -> Path | None:
    folder = Path(model.removeprefix("local-dir:"))
    for candidate in (folder, folder / "checkpoints" / "last"):
        if (candidate / towers.CONFIG_FILE).is_file():
            return candidate
    return None


def _load(name: str) -> tuple[Any, Any, Any]:
    try:
        model, preprocess, tokenizer = towers.load(name)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CapwrightError(
            f"model {name!r} could not be loaded ({type(error).__name__}: {reason}): check the "
            "name and the connection, or give the folder of a checkpoint that is on this machine"
        ) from error
    if not hasattr(model, "text_decoder"):
        raise CapwrightError(
            f"model {name!r} is a {type(model).__name__}, which embeds and does not write: "
            "give a CoCa, such as coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k"
        )
    return model, preprocess, tokenizer


class _Words:
    """The logits of the next word, one word at a time, for all captions of a batch."""

    def __init__(self, model: Any, patches_PSD: Tensor, captions: int) -> None:
        self.model, self.captions, self.patches_PSD = model, captions, patches_PSD
        tower, self.decoder = model.text, model.text_decoder
        kept = isinstance(tower, TextTransformer) and tower.attn_mask is not None
        self.tower_blocks = list(tower.transformer.resblocks) if kept else []
        self.keeps = kept and all(type(b) is ResidualAttentionBlock for b in self.tower_blocks)
        self.before: dict[
            Any, tuple[Tensor, Tensor]
        ] = {}  # keys and values of a block, [B, H, t, d]
        self.ids_BT = patches_PSD.new_zeros(len(patches_PSD) * captions, 0, dtype=torch.long)
        self.of_picture: list[tuple[Tensor, Tensor]] = []
        for block in self.decoder.cross_attn if self.keeps else ():
            _, *weights = block.attn.in_proj_weight.chunk(3)
            _, *biases = block.attn.in_proj_bias.chunk(3)
            context = block.ln_1_kv(patches_PSD)
            key, value = (F.linear(context, w, b) for w, b in zip(weights, biases, strict=True))
            self.of_picture.append((_heads(key, block), _heads(value, block)))

    def next(self, words_PC: Tensor) -> Tensor:
        """Take the word that was written last and give the logits of the next, [P, C, V]."""
        self.ids_BT = torch.cat([self.ids_BT, words_PC.view(-1, 1)], dim=1)
        logits_BV = self._next_kept() if self.keeps else self._next_anew()
        return logits_BV.view(*words_PC.shape, -1).float()

    def keep(self, pictures_P: Tensor) -> None:
        """Go on with some of the pictures."""
        rows_B = pictures_P.repeat_interleave(self.captions)
        self.ids_BT, self.patches_PSD = self.ids_BT[rows_B], self.patches_PSD[pictures_P]
        self.before = {b: (k[rows_B], v[rows_B]) for b, (k, v) in self.before.items()}
        self.of_picture = [(k[pictures_P], v[pictures_P]) for k, v in self.of_picture]

    def _next_anew(self) -> Tensor:  # for text towers in a form of their own
        length, room = self.ids_BT.shape[1], self.model.text.context_length
        texts_BT = F.pad(self.ids_BT, (0, room - length), value=self.model.pad_id)
        _, texts = self.model.text(texts_BT)
        patches = self.patches_PSD.repeat_interleave(self.captions, dim=0)
        logits: Tensor = self.decoder(patches, texts)[:, length - 1]
        return logits

    def _next_kept(self) -> Tensor:
        tower, place = self.model.text, self.ids_BT.shape[1] - 1
        x_B1D = tower.token_embedding(self.ids_BT[:, -1:])
        x_B1D = x_B1D + tower.positional_embedding[place].to(x_B1D.dtype)
        for block in self.tower_blocks:
            x_B1D = self._attend_words(block, x_B1D)
        if tower.cls_emb is None:
            x_B1D = tower.ln_final(x_B1D)
        blocks = zip(self.decoder.resblocks, self.decoder.cross_attn, self.of_picture, strict=True)
        for block, cross, picture in blocks:
            x_B1D = self._attend_picture(cross, self._attend_words(block, x_B1D), *picture)
        logits_B1V: Tensor = self.decoder.ln_final(x_B1D) @ self.decoder.text_projection
        return logits_B1V[:, 0]

    def _attend_words(self, block: Any, x_B1D: Tensor) -> Tensor:
        projected = F.linear(block.ln_1(x_B1D), block.attn.in_proj_weight, block.attn.in_proj_bias)
        query, key, value = (_heads(part, block) for part in projected.chunk(3, dim=-1))
        if block in self.before:
            keys, values = self.before[block]
            key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        self.before[block] = key, value
        return _add(block, x_B1D, F.scaled_dot_product_attention(query, key, value))

    def _attend_picture(self, block: Any, x_B1D: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        width = x_B1D.shape[-1]
        query_B1D = F.linear(block.ln_1(x_B1D), weight[:width], bias[:width])
        query_PHCd = _heads(query_B1D.view(-1, self.captions, width), block)
        seen_PHCd = F.scaled_dot_product_attention(query_PHCd, key, value)
        return _add(block, x_B1D, seen_PHCd)


def _heads(x_BLD: Tensor, block: Any) -> Tensor:
    x_BLHd: Tensor = x_BLD.unflatten(-1, (block.attn.num_heads, -1))
    return x_BLHd.transpose(1, 2)


def _add(block: Any, x_B1D: Tensor, seen: Tensor) -> Tensor:
    seen_B1D = seen.transpose(1, 2).reshape(x_B1D.shape)
    x_B1D = x_B1D + block.ls_1(block.attn.out_proj(seen_B1D))
    out: Tensor = x_B1D + block.ls_2(block.mlp(block.ln_2(x_B1D)))
    return out
