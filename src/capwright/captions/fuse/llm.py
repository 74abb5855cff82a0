"""One caption from alt text and description, by a language model whose every answer is checked.

Reads: the index, the sidecars of describe, a prompt (`captions/prompts/`), the lexicon (built when
it is missing). Writes: WORK/captions/fuse-llm/SHARD.parquet, one row a picture, and manifest.json.
Run: `capwright fuse CORPUS --work WORK --with llm --set server.model=NAME`

The way is VeCLIP's (arXiv 2310.07699) with what it lacks: the prompt is the system message, the
user message is a JSON object with both texts and nothing else, each reduced to what it can say of a
picture (`claims.py`), the answer is JSON as well, and `checks.py` compares it with both texts. What
fails is replaced by the rules' caption (`rules.py`, without a judge). Reasons:

- "llm" for what passed;
- "rules: " and the check's reason for what did not, or "rules: alt text instructs";
- "failed: " and the server's reason, with the rules' caption, for what got no answer
  (`--retry-failed` asks for those again);
- the rules' own reason where nothing was asked, since there was nothing to fuse.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from capwright.captions.fuse import rules
from capwright.captions.fuse.checks import Limits, check, clean
from capwright.captions.fuse.claims import claims, steers
from capwright.captions.lexicon import Lexicon, LexiconConfig
from capwright.captions.prompts import Prompt, load_prompt
from capwright.captions.runner import (
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    preview,
    run_stage,
    stage_folder,
)
from capwright.captions.score.junk import junk_kind
from capwright.captions.server import Reply, Request, Server, ServerConfig
from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError

SOURCE = "fuse-llm"
PASSED = "llm"
INSTRUCTS = "rules: alt text instructs"
SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string"}},
    "required": ["caption"],
    "additionalProperties": False,
}
BAD_ANSWERS = {  # the server's word for an answer that it gave; asking again would not help
    "failed: server: refused": "refusal",
    "failed: server: cut off": "too long",
    "failed: server: empty": "empty",
}
AT_ONCE = 2  # batches, so that the server has work while one is checked


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """What is asked of the server, and what an answer may be."""

    work: Path
    """The work folder, which holds the index and the descriptions."""
    describe_stage: str = "describe-small"
    """The stage whose first caption of each picture is the description."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """The server and its model."""
    prompt: str = "fuse-caption"
    """Name of a prompt of Capwright, or path of a .txt whose first line is "version: N"."""
    answer_tokens: int = 160
    """Tokens that an answer may have."""
    alt_characters: int = 400
    """Characters of the alt text that are sent and believed."""
    description_characters: int = 1200
    """Characters of the description that are sent and believed."""
    batch: int = 512
    """Pictures whose requests are handed to the server together."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    limits: Limits = field(default_factory=Limits)
    lexicon: LexiconConfig = field(default_factory=LexiconConfig)

    def __post_init__(self) -> None:
        for name in ("answer_tokens", "alt_characters", "description_characters", "batch"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")

    @property
    def without_model(self) -> rules.FuseConfig:
        """The rules that write what the model could not."""
        return rules.FuseConfig(
            work=self.work,
            describe_stage=self.describe_stage,
            judge="none",
            human_field=self.human_field,
            lexicon=self.lexicon,
        )

    def plan(self) -> dict[str, Any]:
        """What the captions depend on; how fast and how often the server is asked is no part."""
        prompt = load_prompt(self.prompt)
        plan = {k: v for k, v in as_dict(self).items() if k not in ("work", "batch", "server")}
        asked = [prompt.label, digest(prompt.text)]
        return {**plan, "prompt": asked, "server": self.server.plan()}


def run(config: FuseConfig, running: Running | None = None) -> StageSummary:
    """Fuse every shard that has no fused captions yet.

    Raises CapwrightError when the server cannot be used or too many of its answers are missing.
    """
    rules.prepare(config.without_model)
    folder = stage_folder(config.work, SOURCE)
    return run_stage(config.work, folder, config.plan(), partial(Fuser, config), running)


def dry_run(config: FuseConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be given; asks the server, writes no caption."""
    rules.prepare(config.without_model)
    return preview(config.work, partial(Fuser, config), pictures)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two texts of a picture: as they are, and as far as they can be about it."""

    key: str
    alt: str
    description: str
    said_alt: str
    said_description: str

    @property
    def worth_asking(self) -> bool:
        """Whether there are two texts to fuse."""
        return bool(self.said_alt and self.said_description) and not junk_kind(self.alt)


class Fuser:
    """Fuses the captions of a shard."""

    def __init__(self, config: FuseConfig) -> None:
        self.config = config
        self.prompt = load_prompt(config.prompt)
        self.lexicon = rules.lexicon_of(config.without_model)
        self.rules = config.without_model
        self.server = Server(config.server)

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """A row for each picture of the table, in order."""
        texts = rules.first_captions(self.config.work, self.config.describe_stage, table)
        pairs = [
            pair_of(key, alt, text, self.config)
            for key, alt, text in zip(
                table["key"].to_pylist(), table["text"].to_pylist(), texts, strict=True
            )
        ]
        rows: Rows = []
        cost = self.server.cost
        for batch, replies in self._asked(pairs):
            some = [self._row(pair, replies.get(pair.key)) for pair in batch]
            tokens = sum(r.input_tokens + r.output_tokens for r in replies.values())
            spent, cost = self.server.cost - cost, self.server.cost
            captions = sum(bool(row["text"]) for row in some)
            progress.advance(pictures=len(batch), captions=captions, tokens=tokens, cost=spent)
            for row in some:
                if row["reason"].startswith("failed: "):
                    progress.failed(row["reason"])
            rows += some
        return rows

    def _asked(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[Pair], dict[str, Reply]]]:
        """Batches with the replies of those pictures that were worth asking for."""
        step = self.config.batch
        batches = [list(pairs[at : at + step]) for at in range(0, len(pairs), step)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                yield from zip(batches, pool.map(self._ask, batches), strict=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, batch: Sequence[Pair]) -> dict[str, Reply]:
        asked = [pair for pair in batch if pair.worth_asking]
        replies = self.server.ask([request_of(p, self.prompt, self.config) for p in asked])
        return {pair.key: reply for pair, reply in zip(asked, replies, strict=True)}

    def _row(self, pair: Pair, reply: Reply | None) -> dict[str, Any]:
        row = {"key": pair.key, "source": SOURCE, "seed": self.config.server.seed or 0}
        reason = ""
        if reply and reply.reason:
            bad = BAD_ANSWERS.get(reply.reason)
            reason = f"rules: {bad}" if bad else f"{reply.reason}, rules instead"
        elif reply:
            text = clean(reply.text)
            wrong = verdict(text, pair, self.lexicon, self.config.limits, self.prompt)
            if not wrong:
                model = {"model": self.server.model, "revision": self.server.revision}
                row |= {**model, "prompt": self.prompt.label}
                return {**row, "text": text, "keep": True, "reason": PASSED}
            reason = f"rules: {wrong}"
        elif pair.description and not pair.said_alt and not junk_kind(pair.alt):
            reason = INSTRUCTS if steers(pair.alt) else ""
        fused = rules.fuse_unjudged(pair.alt, pair.description, self.lexicon, self.rules)
        row |= {"text": fused.text, "keep": bool(fused.text), "model": "rules"}
        return {**row, "reason": reason or fused.reason}


def pair_of(key: str, alt: str, description: str, config: FuseConfig) -> Pair:
    """The texts of a picture, with what is sent of them."""
    return Pair(
        key=key,
        alt=alt,
        description=description,
        said_alt=claims(alt, config.alt_characters),
        said_description=claims(description, config.description_characters),
    )


def request_of(pair: Pair, prompt: Prompt, config: FuseConfig) -> Request:
    """The prompt as the system's message, the texts as data in a JSON object."""
    data = {"description": pair.said_description, "alt_text": pair.said_alt}
    return Request(
        system=prompt.text,
        user=json.dumps(data, ensure_ascii=False),
        answer_tokens=config.answer_tokens,
        schema=SCHEMA,
    )


def verdict(text: str, pair: Pair, lexicon: Lexicon, limits: Limits, prompt: Prompt) -> str:
    """Why the text is no caption of the picture, or ""."""
    return check(text, pair.said_alt, pair.said_description, lexicon, limits, prompt.text)
