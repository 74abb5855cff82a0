"""Captions by any image-to-text or image-text-to-text model that Hugging Face transformers loads.

Run: `capwright describe CORPUS --work WORK --with transformers --set model=FOLDER_OR_ID`.

What a model is asked depends on what it is. Chat models (SmolVLM, Qwen-VL, LLaVA: the processor has
a chat template) get the style's prompt file; Florence-2 gets its task ("<CAPTION>" and the like);
BLIP, BLIP-2, GIT and encoder-decoders get the picture alone; others get the prompt as plain text.
Regions come from Florence-2's dense region captions, from JSON in a chat model's answer, and from
crops (`regions.py`) elsewhere.

Algorithm: one `generate` for all captions of a batch, padded on the left. The first caption of a
picture takes the likeliest words, the further ones are drawn by top-p sampling with the picture's
own chance (`sampling.py`): a logits processor chooses each row's word and leaves `generate` nothing
else to draw. A batch that the processor refuses is halved until the picture that is at fault is
alone.

Shapes: P pictures, C captions of one, B = P·C, T words of a caption, V vocabulary.
"""

import dataclasses
import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capwright.captions.describe.answers import caption_of, refused
from capwright.captions.describe.local_models import (
    Precision,
    not_too_narrow,
    out_of_memory,
)
from capwright.captions.describe.pretrained import Loaded, load_captioner
from capwright.captions.describe.protocol import Caption, Describer
from capwright.captions.describe.regions import (
    Box,
    CropConfig,
    CropDescriber,
    parse_regions,
    pixel_box,
)
from capwright.captions.describe.sampling import draw_top_p, picture_draws, tidy
from capwright.captions.prompts import load_prompt
from capwright.core.errors import CapwrightError

FLORENCE = "florence2"
TASKS = {
    "short": "<CAPTION>",
    "long": "<MORE_DETAILED_CAPTION>",
    "regions": "<DENSE_REGION_CAPTION>",
}
WITHOUT_PROMPT = ("blip", "blip-2", "git", "vision-encoder-decoder")
MARK_PICTURES = ("blip", "blip-2", "git", "instructblip", "kosmos-2", "paligemma", FLORENCE)
"""Models whose processor puts the picture's place into the prompt by itself."""
MAX_TOKENS = {"short": 64, "long": 256, "regions": 512}


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model of transformers and how it writes."""

    model: str = "florence-community/Florence-2-base"
    """A hub id or a folder with config.json, weights and the processor's files."""
    prompt: str = "auto"
    """Name or path of a prompt file; "" is none, "auto" what suits the model and the style."""
    captions: int = 1
    """Captions of a picture: the likeliest words first, then sampled ones."""
    top_p: float = 0.9
    """Sampled words come from the likeliest ones that make up this probability."""
    max_tokens: int | None = None
    """Tokens that an answer has at most; null is 64 for short, 256 for long, 512 for regions."""
    max_regions: int = 10
    """Regions of a picture at most, where the model finds them itself."""
    batch_size: int = 16
    """Pictures that are described at once."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""
    precision: Precision = "auto"
    """Of the weights: "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, fp32 elsewhere."""
    seed: int = 0
    """Seeds the sampled captions, together with the picture."""
    revision: str = "main"
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for models whose code you have read."""
    crops: CropConfig = field(default_factory=CropConfig)
    """The crops of --style regions, for models that find no regions themselves."""

    def __post_init__(self) -> None:
        for name in ("captions", "max_tokens", "max_regions", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CapwrightError(f"{name} is {value}, but must be at least 1")
        if not 0 < self.top_p <= 1:
            raise CapwrightError(
                f"top_p is {self.top_p}, but must be above 0 and at most 1: try 0.9"
            )


def build(config: Config, style: str) -> Describer:
    """A captioner that is ready to write in a style: "short", "long" or "regions"."""
    loaded = load_captioner(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        device=config.device,
        precision=config.precision,
    )
    if style == "long" and loaded.kind in WITHOUT_PROMPT:
        raise CapwrightError(
            f"model {config.model!r} is a {loaded.kind}, which has no long captions: describe with "
            "a chat model such as SmolVLM or Qwen-VL, with Florence-2, or --with openai"
        )
    if style != "regions":
        return ImageToText(loaded, config, style)
    config = dataclasses.replace(config, captions=1)
    if loaded.chats or loaded.kind == FLORENCE:
        return ImageToText(loaded, config, style)
    return CropDescriber(ImageToText(loaded, config, "short"), config.crops)


class ImageToText:
    """A `Describer`: a model, what it is asked, and how its answers are read."""

    overlap = 2  # one call prepares pictures while another writes

    def __init__(self, loaded: Loaded, config: Config, style: str) -> None:
        self.loaded, self.config, self.style = loaded, config, style
        self.max_tokens = config.max_tokens or MAX_TOKENS[style]
        question, self.label = _question(config, style, loaded)
        self.text = _prompt_text(loaded, question)
        if self.text and loaded.processor is None:
            raise CapwrightError(
                f"model {config.model!r} takes no prompt, but prompt is {config.prompt!r}: "
                "set it to an empty text"
            )
        self.takes = inspect.signature(loaded.model.forward).parameters
        self._writing = threading.Lock()

    @property
    def name(self) -> str:
        folder = Path(self.config.model)
        return folder.resolve().name if folder.is_dir() else self.config.model

    @property
    def revision(self) -> str:
        return self.loaded.revision

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        """Captions of RGB pictures."""
        if not images:
            return []
        images = [not_too_narrow(image) for image in images]
        try:
            inputs = self._inputs(images)
        except Exception as error:  # whatever the processor of some model has against a picture
            if len(images) == 1:
                reason = f"failed: {type(error).__name__} in the processor"
                return [[Caption(text="", reason=reason)]]
            half = len(images) // 2
            return self.describe(images[:half]) + self.describe(images[half:])
        how = self.config
        draws = [picture_draws(i, how.seed, how.captions, self.max_tokens) for i in images]
        with self._writing:
            try:
                words_BT = self._generate(inputs, torch.from_numpy(np.stack(draws)))
            except torch.OutOfMemoryError as error:
                raise out_of_memory(how.batch_size, error) from error
        rows = [words_BT[n * how.captions : (n + 1) * how.captions] for n in range(len(images))]
        read = self._regions if self.style == "regions" else self._captions
        return [read(image, row) for image, row in zip(images, rows, strict=True)]

    def _inputs(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        if not self.text:
            return dict(self.loaded.image_processor(images=list(images), return_tensors="pt"))
        bos = self.loaded.tokenizer.bos_token
        inputs = dict(
            self.loaded.processor(
                text=[self.text] * len(images),
                images=[[image] for image in images] if self.loaded.chats else list(images),
                add_special_tokens=not (bos and self.text.startswith(bos)),
                padding=True,
                return_tensors="pt",
            )
        )
        if "token_type_ids" not in self.takes:
            inputs.pop("token_type_ids", None)
        if self.loaded.kind == "git":  # the end of the prompt is where the caption begins
            inputs |= {name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask")}
        return inputs

    @torch.inference_mode()
    def _generate(self, inputs: dict[str, Any], draws_PCT: Tensor) -> list[list[int]]:
        model = self.loaded.model
        choice = _Choice(draws_PCT.to(model.device), self.config.top_p)
        moved = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }
        written: Tensor = model.generate(
            **moved,
            max_new_tokens=self.max_tokens,
            num_return_sequences=draws_PCT.shape[1],
            do_sample=True,
            num_beams=1,
            early_stopping=False,
            logits_processor=[choice],
        )
        words: list[list[int]] = written[:, choice.begun :].tolist()
        return words

    def _captions(self, image: Image.Image, rows: Sequence[Sequence[int]]) -> list[Caption]:
        return [self._caption(row, number) for number, row in enumerate(rows)]

    def _caption(self, words: Sequence[int], number: int) -> Caption:
        answer = self._decode(words, skip_special_tokens=True).rpartition("</think>")[2]
        text, reason = tidy(answer), ""
        if self.loaded.chats:  # these talk around their captions
            text = tidy(caption_of(answer))
            reason = "failed: refused" if refused(answer) else ""
        if not text:
            reason = "failed: empty caption"
        how = f"top-p {self.config.top_p:g}" if number else "" if self.label else "greedy"
        return Caption(
            text="" if reason else text,
            prompt=f"{self.label} {how}".strip(),
            tokens=self._length(words),
            seed=self.config.seed if number else 0,
            reason=reason,
        )

    def _regions(self, image: Image.Image, rows: Sequence[Sequence[int]]) -> list[Caption]:
        answer = self._decode(rows[0], skip_special_tokens=self.loaded.kind != FLORENCE)
        limit = self.config.max_regions
        if self.loaded.kind == FLORENCE:
            regions = self._dense_regions(answer, image.size)[:limit]
        else:
            regions = parse_regions(answer.rpartition("</think>")[2], limit, image.size)
        tokens = self._length(rows[0])
        if not regions:
            reason = "failed: no regions in the answer"
            return [Caption(text="", prompt=self.label, tokens=tokens, reason=reason)]
        counts = [tokens, *[0] * (len(regions) - 1)]  # they are of one answer
        return [
            Caption(text=text, prompt=self.label, box=box, tokens=count)
            for (box, text), count in zip(regions, counts, strict=True)
        ]

    def _dense_regions(self, answer: str, size: tuple[int, int]) -> list[tuple[Box, str]]:
        task = TASKS["regions"]
        found = self.loaded.processor.post_process_generation(answer, task=task, image_size=size)
        pairs = zip(found[task]["bboxes"], found[task]["labels"], strict=True)
        boxes = [(pixel_box(box, size), tidy(label)) for box, label in pairs]
        return [(box, label) for box, label in boxes if box is not None and label]

    def _decode(self, words: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self.loaded.tokenizer.decode(words, skip_special_tokens=skip_special_tokens)
        return text

    def _length(self, words: Sequence[int]) -> int:
        return sum(word != self.loaded.tokenizer.pad_token_id for word in words)


class _Choice:
    """A logits processor that chooses each row's word; the first row of a picture is greedy."""

    def __init__(self, draws_PCT: Tensor, top_p: float) -> None:
        self.captions, self.top_p = draws_PCT.shape[1], top_p
        self.draws_BT = draws_PCT.flatten(0, 1)
        self.begun: int | None = None  # tokens that stood before the first one that was written

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.begun is None:
            self.begun = input_ids.shape[1]
        words_B = scores.argmax(-1)
        if self.captions > 1:
            drawn_B = draw_top_p(
                scores, self.draws_BT[:, input_ids.shape[1] - self.begun], self.top_p
            )
            rows_B = torch.arange(len(words_B), device=words_B.device)
            words_B = torch.where(rows_B % self.captions == 0, words_B, drawn_B)
        return torch.full_like(scores, -torch.inf).scatter(1, words_B[:, None], 0.0)


def _question(config: Config, style: str, loaded: Loaded) -> tuple[str, str]:
    """What the model is asked and what the sidecar calls it."""
    if config.prompt == "auto" and loaded.kind == FLORENCE:
        return TASKS[style], TASKS[style]
    if config.prompt == "" or (config.prompt == "auto" and loaded.kind in WITHOUT_PROMPT):
        return "", ""
    prompt = load_prompt(f"describe-{style}" if config.prompt == "auto" else config.prompt)
    return prompt.fill(max_regions=config.max_regions), prompt.label


def _prompt_text(loaded: Loaded, question: str) -> str:
    """The question in the form that the processor takes; "" where it takes pictures alone."""
    if loaded.chats:
        content = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        source = loaded.processor if loaded.processor.chat_template else loaded.tokenizer
        text: str = source.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text
    mark = str(getattr(loaded.processor, "image_token", ""))
    if loaded.kind in MARK_PICTURES or not mark or mark in question:
        return question
    return f"{mark}\n{question}" if question else mark
