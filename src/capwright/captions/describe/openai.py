"""Captions by any OpenAI-compatible server with vision: vLLM, SGLang, llama.cpp, hosted ones.

Reads: pictures, prompts (`captions/prompts/`), the key in an environment variable. Asks the server
of the configuration (`captions/server/`).
Run: `capwright describe CORPUS --work WORK --with openai --set base_url=URL --model NAME`.

Pictures are sent as JPEGs of at most `picture_side` pixels, each on its own, and the next ones are
made smaller while the first are under way. Several captions of a picture are several requests that
differ in their seed. For regions the model is asked for JSON with boxes (`regions.py`).
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from capwright.captions.describe.answers import caption_of, refused
from capwright.captions.describe.protocol import Caption, Describer
from capwright.captions.describe.regions import parse_regions
from capwright.captions.prompts import Prompt, load_prompt
from capwright.captions.server import Reply, Request, Server, ServerConfig
from capwright.core.config import digest
from capwright.core.errors import CapwrightError

REGIONS_SCHEMA = {
    "type": "object",
    "properties": {
        "regions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "box": {"type": "array", "items": {"type": "number"}},
                    "caption": {"type": "string"},
                },
                "required": ["box", "caption"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["regions"],
    "additionalProperties": False,
}
ANSWER_TOKENS = {"short": 96, "long": 400, "regions": 1024}
LARGEST_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Config(ServerConfig):
    """A server, and what it is asked about each picture."""

    prompt: str = "auto"
    """Name of a prompt, or path of a .txt; "auto" is the style's: describe-short and so on."""
    picture_side: int = 768
    """Pixels on the longer side of the pictures that are sent, at most; `--max-side` before it."""
    jpeg_quality: int = 90
    """Of the pictures that are sent, 1 to 95."""
    captions: int = 1
    """Captions of a picture; more than one needs a temperature above 0. Regions have one each."""
    answer_tokens: int | None = None
    """Tokens that an answer has at most; null is 96 for short, 400 for long, 1024 for regions."""
    max_regions: int = 10
    """Regions of a picture at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("picture_side", "captions", "answer_tokens", "max_regions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CapwrightError(f"{name} is {value}, but must be at least 1")
        if not 1 <= self.jpeg_quality <= 95:
            raise CapwrightError(
                f"jpeg_quality is {self.jpeg_quality}, but must be 1 to 95: try 90"
            )
        if self.captions > 1 and self.temperature == 0:
            raise CapwrightError(
                f"captions is {self.captions}, but with temperature 0 they would all be the same: "
                "set temperature to 0.7, or captions to 1"
            )

    def caption_plan(self, style: str) -> dict[str, Any]:
        """What the captions depend on, the prompt's text included."""
        prompt = self.prompt_of(style)
        names = ("picture_side", "jpeg_quality", "captions", "answer_tokens", "max_regions")
        return {
            **self.plan(),
            **{name: getattr(self, name) for name in names},
            "prompt": [prompt.label, digest(prompt.text)],
        }

    def prompt_of(self, style: str) -> Prompt:
        """What the server is asked in this style."""
        return load_prompt(f"describe-{style}" if self.prompt == "auto" else self.prompt)


def build(config: Config, style: str) -> Describer:
    """A captioner by the server, in a style: "short", "long" or "regions"."""
    return OpenAiDescriber(config, style)


class OpenAiDescriber:
    """A `Describer`: what the server is asked, and how its answers are read."""

    overlap = 3  # batches, so that the server has work while pictures are encoded

    def __init__(self, config: Config, style: str) -> None:
        self.config, self.style = config, style
        self.prompt = config.prompt_of(style)
        self.captions = 1 if style == "regions" else config.captions
        self.server = Server(config)

    @property
    def name(self) -> str:
        return self.server.model

    @property
    def revision(self) -> str:
        """The model's name as the server reports it with its answers."""
        return self.server.revision

    @property
    def batch_size(self) -> int:
        """So many that two batches keep the server busy while a third comes to its end."""
        requests = -(-self.config.max_concurrency // (self.overlap - 1))
        return min(LARGEST_BATCH, -(-requests // self.captions))

    @property
    def cost(self) -> float:
        """Money spent so far, by the configuration's prices."""
        return self.server.cost

    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        """Captions of RGB pictures."""
        replies = self.server.ask(self._requests(images))
        n = self.captions
        read = self._regions if self.style == "regions" else self._captions
        return [read(image, replies[at * n : (at + 1) * n]) for at, image in enumerate(images)]

    def close(self) -> None:
        """Give up what is under way."""
        self.server.close()

    def _requests(self, images: Sequence[Image.Image]) -> Iterator[Request]:
        text = self.prompt.fill(max_regions=self.config.max_regions)
        for image in images:
            jpeg = _jpeg(image, self.config.picture_side, self.config.jpeg_quality)
            for number in range(self.captions):
                yield Request(
                    user=text,
                    picture=jpeg,
                    answer_tokens=self.config.answer_tokens or ANSWER_TOKENS[self.style],
                    schema=REGIONS_SCHEMA if self.style == "regions" else None,
                    seed=self._seed(number),
                )

    def _seed(self, number: int) -> int | None:
        return None if self.config.seed is None else self.config.seed + number

    def _captions(self, image: Image.Image, replies: Sequence[Reply]) -> list[Caption]:
        return [self._caption(reply, number) for number, reply in enumerate(replies)]

    def _caption(self, reply: Reply, number: int) -> Caption:
        text, reason = caption_of(reply.text), reply.reason
        if not reason and refused(reply.text):
            reason = "failed: server: refused"
        elif not reason and not text:
            reason = "failed: server: empty"
        return Caption(
            text="" if reason else text,
            prompt=self.prompt.label,
            tokens=reply.output_tokens,
            seed=self._seed(number) or 0,
            reason=reason,
        )

    def _regions(self, image: Image.Image, replies: Sequence[Reply]) -> list[Caption]:
        (reply,) = replies
        found = parse_regions(reply.text, self.config.max_regions, image.size)
        if not found:
            failed = self._caption(reply, 0)
            reason = failed.reason or "failed: server: malformed answer"
            return [Caption(text="", prompt=failed.prompt, tokens=failed.tokens, reason=reason)]
        counts = [reply.output_tokens, *[0] * (len(found) - 1)]  # they are of one answer
        return [
            Caption(
                text=text,
                prompt=self.prompt.label,
                box=box,
                tokens=count,
                seed=self._seed(0) or 0,
            )
            for (box, text), count in zip(found, counts, strict=True)
        ]


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
