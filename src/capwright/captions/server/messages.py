"""The form of what goes to a server and comes back: `POST /chat/completions`.

A picture is a JPEG in a data URL before the text. The few fields that are sent are those that every
compatible server knows; further ones are the user's (`ServerConfig.extra`).
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError

Structured = Literal["json_schema", "json_object", "none"]
STRUCTURED: tuple[Structured, ...] = ("json_schema", "json_object", "none")

FAILED = "failed: server: "
PICTURE_TOKENS = 2000  # guess for the budget, until the server has counted some
# In JSON, quotes within a text are escaped, so that no text can look like this.
_PICTURE = '{"url": "data:image/jpeg;base64,"}'


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server, how hard it is asked and what that may cost."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Where the API is; usually ends in /v1."""
    model: str = ""
    """The model's name there; empty takes the only one."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, if the server wants one."""
    max_concurrency: int = 64
    """Requests in flight at most; how many the server takes is found out."""
    timeout_s: float = 120.0
    """Seconds after which a request is given up."""
    retries: int = 6
    """Times that a request is sent again after an error that may pass."""
    max_requests: int | None = None
    """Requests of a run at most, retries included."""
    max_tokens: int | None = None
    """Tokens of a run at most, input and output, as the server counts them."""
    price_input: float = 0.0
    """Money for a million input tokens."""
    price_output: float = 0.0
    """Money for a million output tokens."""
    temperature: float | None = 0.0
    """0 takes the likeliest words; null leaves it to the server."""
    seed: int | None = 0
    """Seeds the server's sampling; null sends none."""
    structured: Structured = "json_schema"
    """How JSON is asked for where it is needed, or what the server takes instead of it."""
    answer_limit: str = "max_tokens"
    """Field that limits an answer's tokens; some hosted models want "max_completion_tokens"."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as {"chat_template_kwargs": {...}}."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise CapwrightError(
                f"base_url is {self.base_url!r}, but must begin with http:// or https://: "
                "try http://127.0.0.1:8000/v1"
            )
        if self.structured not in STRUCTURED:
            raise CapwrightError(
                f"structured is {self.structured!r}, but must be one of {', '.join(STRUCTURED)}"
            )
        for name, least in (("max_concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise CapwrightError(
                    f"{name} is {getattr(self, name)}, but must be at least {least}"
                )
        for name in ("max_requests", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CapwrightError(f"{name} is {value}, but must be at least 1, or null")
        if not self.timeout_s > 0:
            raise CapwrightError(f"timeout_s is {self.timeout_s}, but must be above 0: try 120")

    def plan(self) -> dict[str, Any]:
        """What the answers depend on: not where the server is nor how fast it is asked."""
        names = ("model", "temperature", "seed", "structured", "extra")
        return {name: as_dict(getattr(self, name)) for name in names}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a server is asked."""

    user: str
    system: str = ""
    picture: bytes | None = None
    """A JPEG."""
    answer_tokens: int = 256
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is to have."""
    seed: int | None = None
    """Instead of the configuration's."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back: a text, or the reason why there is none."""

    text: str = ""
    reason: str = ""
    """Empty, or "failed: server: " and what happened."""
    input_tokens: int = 0
    output_tokens: int = 0


class Malformed(Exception):
    """A body that is no answer."""


def body(request: Request, config: ServerConfig, model: str, structured: Structured) -> bytes:
    """The JSON of a request; the picture is put in after the rest, as it needs no escaping."""
    content: Any = request.user
    if request.picture is not None:
        picture = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,"}}
        content = [picture, {"type": "text", "text": request.user}]
    system = [{"role": "system", "content": request.system}] if request.system else []
    seed = config.seed if request.seed is None else request.seed
    fields = {
        "model": model,
        "messages": [*system, {"role": "user", "content": content}],
        config.answer_limit: request.answer_tokens,
        **({} if config.temperature is None else {"temperature": config.temperature}),
        **({} if seed is None else {"seed": seed}),
        **_response_format(request.schema, structured),
        **config.extra,
    }
    text = json.dumps(fields)
    if request.picture is None:
        return text.encode()
    before, _, after = text.partition(_PICTURE)
    head, tail = _PICTURE[:-2], _PICTURE[-2:]
    coded = base64.b64encode(request.picture)
    return b"".join([before.encode(), head.encode(), coded, tail.encode(), after.encode()])


def guessed_tokens(request: Request) -> int:
    """Input tokens of a request, for the budget: no text has more than one for two characters in
    the usual languages."""
    text = (len(request.user) + len(request.system)) // 2
    return text + (PICTURE_TOKENS if request.picture is not None else 0)


def read(content: str) -> tuple[Reply, str]:
    """The reply in a body, and the model that the server says has written it. Raises Malformed."""
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        message = choice["message"]
        usage = answer.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        text = _text(message.get("content"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed from error
    finish = choice.get("finish_reason")
    reason = ""
    if message.get("refusal") or finish == "content_filter":
        reason = "refused"
    elif finish == "length":
        reason = "cut off"
    elif not text:
        reason = "empty"
    reply = Reply(
        text="" if reason else text,
        reason=FAILED + reason if reason else "",
        input_tokens=tokens[0],
        output_tokens=tokens[1],
    )
    return reply, str(answer.get("model") or "")


def _text(content: Any) -> str:
    """The words of a message, without the thoughts that some models write before them."""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    if content is None:
        return ""
    text: str = content.rpartition("</think>")[2]
    return text.strip()


def _response_format(
    schema: Mapping[str, Any] | None, structured: Structured
) -> dict[str, dict[str, Any]]:
    if schema is None or structured == "none":
        return {}
    if structured == "json_object":
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
