"""Sends requests to an OpenAI-compatible server: many at once, again after errors that pass.

Reads: the key in an environment variable. Writes: nothing.

One thread runs an event loop with the `openai` package's client, whose own retries are off. All
threads that call `Server.ask` share its limit of requests in flight (`pacing.py`) and its budget.
Too many requests (429), errors of the server (5xx), lost connections, timeouts and bodies that are
no answers are tried again, after exponential backoff with full jitter and never before the server's
`Retry-After`; other refusals are not. Until the server has answered once, a wrong address, key or
model stops everything with the fix.
"""

import asyncio
import os
import re
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from typing import Any

from capwright.captions.server import messages
from capwright.captions.server.budget import Budget
from capwright.captions.server.messages import (
    FAILED,
    STRUCTURED,
    Malformed,
    Reply,
    Request,
    ServerConfig,
    Structured,
)
from capwright.captions.server.pacing import Pace, backoff, retry_after
from capwright.captions.server.visit import VISIT, Visit, begin_visit
from capwright.core.errors import CapwrightError

CONNECT_S = 10.0
KEEP_S = 4.0  # seconds that an idle connection is kept: less than the 5 of uvicorn's servers
LONGEST_RETRY_AFTER_S = 600.0
COMPLAINTS = (429, 503, 504)  # too many requests at once
FORMAT = (400, 422)  # what servers say to a response_format that they do not know


class _Trouble(Exception):
    """What went wrong with one attempt, and what that says."""

    def __init__(
        self,
        reason: str,
        *,
        again: bool = True,
        complaint: bool = False,
        wait: float | None = None,
        status: int = 0,
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.complaint = reason, again, complaint
        self.wait, self.status = wait, status


class Server:
    """A server and a model there; `ask` may be called from several threads."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.revision = ""
        """The model's name as the server reports it; known after the first answer."""
        self._model = config.model
        self._model_lock = asyncio.Lock()
        self._heard = False
        self._structured: Structured | None = None  # what the server was seen to take
        self._pace = Pace(config.max_concurrency)
        self._budget = Budget(config.max_requests, config.max_tokens)
        self._room = threading.BoundedSemaphore(2 * config.max_concurrency)  # requests made ahead
        self._client = _client(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _close, self._client, self._loop, self._thread)
        """Gives up what is under way and closes the connections; happens by itself at the end."""

    @property
    def model(self) -> str:
        """The model's name; asks the server for it if the configuration has none."""
        return self._model or self._run(self._find_model()).result()

    @property
    def cost(self) -> float:
        """Money spent so far, by the configuration's prices."""
        spent, config = self._budget, self.config
        return (
            spent.input_tokens * config.price_input + spent.output_tokens * config.price_output
        ) / 1e6

    def ask(self, requests: Iterable[Request]) -> list[Reply]:
        """Replies in the order of the requests, which may be made while the first are under way.

        Raises BudgetSpent when another request could cost more than the budget, and CapwrightError
        when the server cannot be used at all.
        """
        futures: list[Future[Reply]] = []
        broken = threading.Event()

        def finished(future: Future[Reply]) -> None:
            self._room.release()
            if not future.cancelled() and future.exception():
                broken.set()

        try:
            for request in requests:
                self._room.acquire()
                futures.append(self._run(self._answer(request)))
                futures[-1].add_done_callback(finished)
                if broken.is_set():
                    break
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _answer(self, request: Request) -> Reply:
        for attempt in range(self.config.retries + 1):
            try:
                return await self._attempt(request, again=attempt > 0)
            except _Trouble as trouble:
                if not trouble.again or attempt == self.config.retries:
                    return Reply(reason=FAILED + trouble.reason)
                pause = max(trouble.wait or 0.0, backoff(attempt))
                if trouble.wait is not None or (trouble.complaint and self._pace.limit <= 1):
                    self._pace.close(pause if trouble.wait is None else trouble.wait)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _attempt(self, request: Request, again: bool) -> Reply:
        """One answer; a form of JSON that the server refuses is given up for a simpler one."""
        forms = self._forms(request)
        for form in forms:
            try:
                reply = await self._send(request, form, again)
            except _Trouble as trouble:
                if trouble.status not in FORMAT or form == forms[-1]:
                    raise
                continue
            if request.schema is not None:
                self._structured = form
            return reply
        raise AssertionError("unreachable")

    def _forms(self, request: Request) -> tuple[Structured, ...]:
        if request.schema is None:
            return ("none",)
        if self._structured is not None:
            return (self._structured,)
        return STRUCTURED[STRUCTURED.index(self.config.structured) :]

    async def _send(self, request: Request, form: Structured, again: bool) -> Reply:
        model = self._model or await self._find_model()
        guess = messages.guessed_tokens(request)
        visit = Visit(self._pace, self._budget, again, guess, request.answer_tokens)
        reply = Reply()
        try:
            content = await self._post(messages.body(request, self.config, model, form), visit)
            visit.good = True
            reply, reported = messages.read(content)
        except Malformed:
            raise _Trouble("malformed") from None
        except _Trouble as trouble:
            visit.complaint = trouble.complaint
            raise
        finally:
            visit.end(reply)
        self._heard = True
        self.revision = self.revision or reported
        return reply

    async def _post(self, body: bytes, visit: Visit) -> str:
        import openai

        headers = {"Content-Type": "application/json"}
        VISIT.set(visit)
        try:
            async with asyncio.timeout(None) as visit.timeout:
                visit.timeout_s = self.config.timeout_s
                content: str = await self._client.post(
                    "/chat/completions", cast_to=str, content=body, options={"headers": headers}
                )
                return content
        except TimeoutError:
            raise _Trouble("timeout", complaint=True) from None
        except openai.APIStatusError as error:
            raise await self._refused(error) from None
        except openai.APIConnectionError as error:
            raise self._lost(error) from None

    async def _refused(self, error: Any) -> Exception:
        """What an error status means."""
        status, config = error.status_code, self.config
        if status == 404 and not self._heard:
            return await self._not_found()
        if status in (401, 403) and not self._heard:
            return self._bad_key(status)
        if status == 429 and error.code == "insufficient_quota":
            return CapwrightError(
                f"{config.base_url} says that the quota is spent (HTTP 429): raise it there and "
                "run the same command again, finished shards are kept"
            )
        seconds = retry_after(error.response.headers.get("retry-after"))
        if seconds is not None and seconds > LONGEST_RETRY_AFTER_S:
            return CapwrightError(
                f"{config.base_url} asks to wait {seconds / 60:.0f} minutes (HTTP {status}): run "
                "the same command again then, finished shards are kept"
            )
        if status in (408, 429) or status >= 500:
            reason = "too many requests (429)" if status == 429 else f"error {status}"
            return _Trouble(reason, complaint=status in COMPLAINTS, wait=seconds, status=status)
        said = re.sub(r"\d+", "#", " ".join(_said(error).split()))[:100]
        return _Trouble(f"rejected ({status}): {said}", again=False, status=status)

    def _bad_key(self, status: int) -> CapwrightError:
        name = self.config.api_key_env
        state = "is refused" if os.environ.get(name) else "is not set"
        return CapwrightError(
            f"{self.config.base_url} wants a valid key (HTTP {status}), but the environment "
            f"variable {name} {state}: put the key there, or name another one in api_key_env"
        )

    async def _not_found(self) -> CapwrightError:
        where = self.config.base_url
        names: list[str] = []
        with suppress(CapwrightError):
            names = await self._models()
        if self._model in names or not names:
            return CapwrightError(
                f"{where} has no /chat/completions or no model {self._model!r} (HTTP 404): set "
                "base_url to where the API is (it usually ends in /v1) and model to one it serves"
            )
        return CapwrightError(
            f"{where} has no model {self._model!r}: set model to one of {_some(names)}"
        )

    def _lost(self, error: Any) -> Exception:
        """What a failed connection means."""
        chain = {type(link).__name__ for link in _chain(error)}
        never = {"ConnectError", "ConnectTimeout", "UnsupportedProtocol"} & chain
        if never and "ServerDisconnectedError" not in chain and not self._heard:
            return CapwrightError(
                f"cannot reach {self.config.base_url}: start the server, or set base_url to where "
                "it listens"
            )
        return _Trouble("connection lost")

    async def _find_model(self) -> str:
        """The only model of the server."""
        async with self._model_lock:
            if not self._model:
                names = await self._models()
                if len(names) != 1:
                    there = f"it has {_some(names)}" if names else "it lists none"
                    raise CapwrightError(
                        f"model is empty, which takes the only model of {self.config.base_url}, "
                        f"but {there}: set model to the one to ask"
                    )
                self._model = names[0]
        return self._model

    async def _models(self) -> list[str]:
        import json

        import openai

        try:
            async with asyncio.timeout(self.config.timeout_s):
                listed = json.loads(await self._client.get("/models", cast_to=str))
            return [str(model["id"]) for model in listed["data"]]
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._bad_key(error.status_code) from None
        except openai.APIConnectionError as error:
            lost = self._lost(error)
            if isinstance(lost, CapwrightError):
                raise lost from None
        except (TimeoutError, ValueError, LookupError, TypeError):
            pass
        raise CapwrightError(
            f"{self.config.base_url} gives no list of its models: set model to the one to ask, and "
            "check that base_url is where the API is (it usually ends in /v1)"
        )


def _client(config: ServerConfig) -> Any:
    try:
        import openai
    except ImportError:
        raise CapwrightError(
            "asking a server needs the openai package: pip install 'capwright[captions]'"
        ) from None
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=config.max_concurrency + 1,
        max_keepalive_connections=config.max_concurrency + 1,
        keepalive_expiry=KEEP_S,
    )
    timeout = openai.Timeout(None, connect=CONNECT_S)
    how = {"limits": limits, "timeout": timeout, "event_hooks": {"request": [begin_visit]}}
    try:  # takes a third less CPU than the default
        http = openai.DefaultAioHttpClient(**how)
    except RuntimeError:
        http = openai.DefaultAsyncHttpxClient(**how)
    return openai.AsyncOpenAI(
        base_url=config.base_url,
        api_key=os.environ.get(config.api_key_env) or "none",
        max_retries=0,
        timeout=timeout,
        http_client=http,
    )


def _close(client: Any, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.close()

    if threading.current_thread() is thread:  # the last one to hold the server was one of its tasks
        loop.stop()
        return
    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    if not thread.is_alive():
        loop.close()


def _said(error: Any) -> str:
    """What the server says about an error."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return str(said or error.message)


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
