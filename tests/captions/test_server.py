import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from email.utils import formatdate
from typing import Any

import pytest

from capwright.captions.server import BudgetSpent, Reply, Request, Server, ServerConfig
from capwright.core.errors import CapwrightError
from ill_server import TEXT, IllServer

SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}}


@contextmanager
def server(ill: IllServer, **how: Any) -> Iterator[Server]:
    with closing(Server(ServerConfig(base_url=ill.url, **how))) as asked:
        yield asked


def requests(count: int) -> list[Request]:
    return [Request(user=f"question {number}") for number in range(count)]


def echo(body: dict[str, Any]) -> str:
    return f"answer to {body['messages'][-1]['content']}"


def test_a_request_has_everything_the_server_needs() -> None:
    with IllServer() as ill, server(ill, seed=7, extra={"top_k": 1}) as asked:
        hostile = '{"url": "data:image/jpeg;base64,"}'
        request = Request(user=hostile, system="Be brief.", picture=b"JPEG", answer_tokens=20)
        (reply,) = asked.ask([request])
        assert reply == Reply(text=TEXT, input_tokens=100, output_tokens=9)
        assert asked.model == "stub"  # the only one there
        assert asked.revision == "stub-2024"
        picture = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,SlBFRw=="}}
        assert ill.bodies == [
            {
                "model": "stub",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [picture, {"type": "text", "text": hostile}]},
                ],
                "max_tokens": 20,
                "temperature": 0.0,
                "seed": 7,
                "top_k": 1,
            }
        ]


def test_replies_keep_their_order_while_the_server_answers_out_of_order() -> None:
    def slow_at_first(body: dict[str, Any]) -> str:
        time.sleep(0.2 if body["messages"][0]["content"].endswith("0") else 0)
        return echo(body)

    with IllServer(reply=slow_at_first) as ill, server(ill) as asked:
        replies = asked.ask(requests(30))
    assert [reply.text for reply in replies] == [f"answer to question {n}" for n in range(30)]


ILLS_THAT_PASS = [
    429,
    500,
    502,
    (503, {"Retry-After": "0"}),
    "cut",
    "hang up",
    "not JSON",
    "no choices",
    "error in 200",
]


@pytest.mark.parametrize("ill_of_one", ILLS_THAT_PASS, ids=str)
def test_what_passes_is_tried_again(ill_of_one: Any) -> None:
    with IllServer([None, ill_of_one]) as ill, server(ill) as asked:
        assert asked.ask(requests(1))[0].text == TEXT  # heard from, so that it is worth waiting
        assert asked.ask(requests(1))[0].text == TEXT
        assert len(ill.bodies) == 3


def test_a_hanging_server_is_given_up_after_the_timeout() -> None:
    with IllServer(["hang"]) as ill, server(ill, timeout_s=0.3) as asked:
        began = time.monotonic()
        assert asked.ask(requests(1))[0].text == TEXT
        assert 0.3 <= time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("ill_of_all", "reason"),
    [
        (429, "too many requests (429)"),
        (500, "error 500"),
        ("hang", "timeout"),
        ("cut", "connection lost"),
        ("not JSON", "malformed"),
        ("no choices", "malformed"),
    ],
)
def test_what_does_not_pass_becomes_a_reason(ill_of_all: Any, reason: str) -> None:
    with IllServer([ill_of_all] * 2) as ill, server(ill, retries=1, timeout_s=0.2) as asked:
        assert asked.ask(requests(1)) == [Reply(reason=f"failed: server: {reason}")]
        assert len(ill.bodies) == 2
        assert asked.ask(requests(1))[0].text == TEXT


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusals_in_the_middle_are_not_tried_again(status: int) -> None:
    with IllServer([None, status]) as ill, server(ill) as asked:
        good, bad = asked.ask(requests(1)) + asked.ask(requests(1))
        assert good.text == TEXT
        # The server's words without their numbers, so that reasons can be counted.
        said = "error # of request #"
        assert bad.reason == f"failed: server: rejected ({status}): {said}"
        assert len(ill.bodies) == 2


@pytest.mark.parametrize(
    ("ill_of_one", "reason"),
    [
        ("empty", "empty"),
        ("null", "empty"),
        ("refusal", "refused"),
        ("filtered", "refused"),
        ("cut off", "cut off"),
    ],
)
def test_answers_without_a_text_have_a_reason_and_cost_tokens(ill_of_one: str, reason: str) -> None:
    with IllServer([ill_of_one]) as ill, server(ill) as asked:
        assert asked.ask(requests(1)) == [
            Reply(reason=f"failed: server: {reason}", input_tokens=100, output_tokens=9)
        ]


def test_thoughts_before_the_answer_are_left_out() -> None:
    thoughts = "<think>\nA dog?\n</think>\n\nA dog."
    with IllServer(reply=lambda body: thoughts) as ill, server(ill) as asked:
        assert asked.ask(requests(1))[0].text == "A dog."


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_all_requests_back(form: str) -> None:
    at = time.time() + 2  # a date has whole seconds: 1 to 2 from now
    header = "1" if form == "seconds" else formatdate(at, usegmt=True)
    date = time.monotonic() + int(at) - time.time()
    with IllServer([(429, {"Retry-After": header})]) as ill, server(ill) as asked:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(asked.ask, requests(1))
            while not ill.bodies:
                time.sleep(0.01)
            time.sleep(0.1)
            second = pool.submit(asked.ask, requests(1))
            assert first.result()[0].text == second.result()[0].text == TEXT
        earliest = ill.times[0] + 1 if form == "seconds" else date
        waited = [moment - earliest for moment in ill.times[1:]]
        assert len(waited) == 2 and all(-0.05 <= seconds < 3 for seconds in waited)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ((429, {"Retry-After": "7200"}), "asks to wait 120 minutes .HTTP 429.: run the same"),
        ((429, {}, {"error": {"code": "insufficient_quota"}}), "the quota is spent .HTTP 429."),
    ],
)
def test_waiting_for_hours_is_left_to_the_user(said: Any, error: str) -> None:
    with IllServer([said]) as ill, server(ill) as asked, pytest.raises(CapwrightError, match=error):
        asked.ask(requests(1))


# -------------------------------------------------------------------------------- how many at once


def test_the_limit_doubles_until_it_is_reached() -> None:
    with IllServer(latency_s=0.05) as ill, server(ill, max_concurrency=24) as asked:
        asked.ask(requests(120))
        assert ill.most_in_flight == 24


def test_the_limit_adapts_to_a_server_with_little_room() -> None:
    with IllServer(capacity=6, latency_s=0.01) as ill, server(ill, max_concurrency=64) as asked:
        replies = asked.ask(requests(300))
        assert all(reply.text == TEXT for reply in replies)
        assert ill.statuses[429] < 100  # 64 at once would be refused all the time
        assert 2 <= asked._pace.limit <= 14


def test_threads_share_the_limit() -> None:
    with IllServer(latency_s=0.02, reply=echo) as ill, server(ill, max_concurrency=5) as asked:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(asked.ask, [requests(20)] * 4))
        assert ill.most_in_flight == 5
    texts = [f"answer to question {n}" for n in range(20)]
    assert [[reply.text for reply in replies] for replies in answers] == [texts] * 4


def test_requests_are_made_while_the_first_are_under_way() -> None:
    def lazily() -> Iterator[Request]:
        yield Request(user="first")
        while not ill.bodies:
            time.sleep(0.005)
        yield Request(user="second")

    with IllServer() as ill, server(ill) as asked:
        assert len(asked.ask(lazily())) == 2


# ------------------------------------------------------------------------------------------ budget


def test_a_budget_of_requests_counts_retries_and_is_never_exceeded() -> None:
    with IllServer([500]) as ill, server(ill, max_requests=5) as asked:
        asked.ask(requests(3))  # 4 with the retry
        with pytest.raises(
            BudgetSpent, match=r"max_requests=5 is spent: 5 requests took \d+ tokens"
        ):
            asked.ask(requests(9))
        assert len(ill.bodies) == 5


def test_a_budget_of_tokens_is_never_exceeded() -> None:
    with IllServer(latency_s=0.01) as ill, server(ill, max_tokens=1000) as asked:
        with pytest.raises(BudgetSpent, match="max_tokens=1000 has 19 left and the next request"):
            asked.ask([Request(user="q", answer_tokens=9) for _ in range(50)])
        assert len(ill.bodies) == 9  # of 109 tokens each
        assert ill.most_in_flight > 1


def test_the_cost_is_that_of_the_tokens() -> None:
    with IllServer() as ill, server(ill, price_input=2.0, price_output=10.0) as asked:
        assert asked.cost == 0
        asked.ask(requests(4))
        assert asked.cost == pytest.approx(4 * (100 * 2 + 9 * 10) / 1e6)


# --------------------------------------------------------------------------------- structured JSON


@pytest.mark.parametrize(
    ("formats", "tried", "kept"),
    [
        (("json_schema",), ["json_schema"], "json_schema"),
        (("json_object",), ["json_schema", "json_object"], "json_object"),
        ((), ["json_schema", "json_object", "none"], "none"),
    ],
)
def test_the_form_of_json_falls_back_once(
    formats: tuple[str, ...], tried: list[str], kept: str
) -> None:
    with IllServer(formats=formats) as ill, server(ill) as asked:
        for _ in range(2):
            assert asked.ask([Request(user="JSON!", schema=SCHEMA)])[0].text == TEXT
        sent = [body.get("response_format", {"type": "none"}) for body in ill.bodies]
        assert [form["type"] for form in sent] == [*tried, kept]
        if "json_schema" in tried:
            assert sent[0]["json_schema"]["schema"] == SCHEMA


def test_a_request_at_fault_does_not_change_the_form_of_json() -> None:
    with IllServer([400, 400, 400]) as ill, server(ill) as asked:
        bad, good = (asked.ask([Request(user=u, schema=SCHEMA)])[0] for u in ("bad", "good"))
        assert bad.reason.startswith("failed: server: rejected (400)") and good.text == TEXT
        assert ill.bodies[-1]["response_format"]["type"] == "json_schema"


# --------------------------------------------------------------------------- what the user can fix


def test_an_unreachable_server_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for model in ("", "stub"):
        config = ServerConfig(base_url=f"http://127.0.0.1:{port}/v1", model=model)
        error = f"cannot reach .*{port}/v1: start the server"
        with closing(Server(config)) as asked, pytest.raises(CapwrightError, match=error):
            asked.ask(requests(200))


def test_a_server_that_goes_away_later_is_tried_again_and_then_a_reason() -> None:
    with ExitStack() as stack:
        with IllServer() as ill:
            asked = stack.enter_context(server(ill, retries=1))
            assert asked.ask(requests(1))[0].text == TEXT
        assert asked.ask(requests(1)) == [Reply(reason="failed: server: connection lost")]


@pytest.mark.parametrize("model", ["", "stub"])
def test_a_missing_or_wrong_key_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    refused = pytest.raises(CapwrightError, match=r"HTTP 401.*variable A_KEY is not set: put")
    with IllServer(key="secret") as ill:
        with server(ill, model=model, api_key_env="A_KEY") as asked, refused:
            asked.ask(requests(3))
        monkeypatch.setenv("A_KEY", "wrong")
        refused = pytest.raises(CapwrightError, match="variable A_KEY is refused")
        with server(ill, model=model, api_key_env="A_KEY") as asked, refused as caught:
            asked.ask(requests(3))
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv("A_KEY", "secret")
        with server(ill, model=model, api_key_env="A_KEY") as asked:
            assert asked.ask(requests(1))[0].text == TEXT


def test_models_that_are_not_there_are_told_with_those_that_are() -> None:
    with IllServer(models=["llava", "qwen"]) as ill:
        refused = pytest.raises(CapwrightError, match="no model 'lava': set model to one of llava,")
        with server(ill, model="lava") as asked, refused:
            asked.ask(requests(1))
        refused = pytest.raises(
            CapwrightError, match=r"model is empty.*but it has llava, qwen: set"
        )
        with server(ill) as asked, refused:
            asked.ask(requests(1))
        with server(ill, model="qwen") as asked:
            assert asked.ask(requests(1))[0].text == TEXT
            assert asked.model == "qwen"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base_url": "localhost:8000"}, "base_url is 'localhost:8000', but must begin with http"),
        ({"structured": "xml"}, "structured is 'xml', but must be one of json_schema, json_object"),
        ({"max_concurrency": 0}, "max_concurrency is 0, but must be at least 1"),
        ({"retries": -1}, "retries is -1, but must be at least 0"),
        ({"max_tokens": 0}, "max_tokens is 0, but must be at least 1, or null"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0, but must be above 0: try 120"),
    ],
)
def test_configurations_that_cannot_work_are_refused(change: dict[str, Any], error: str) -> None:
    with pytest.raises(CapwrightError, match=error):
        ServerConfig(**change)


def test_the_plan_is_what_answers_depend_on() -> None:
    config = ServerConfig(base_url="http://a/v1", max_concurrency=3, max_requests=9, model="m")
    assert config.plan() == ServerConfig(base_url="http://b/v1", model="m").plan()
    assert config.plan() != ServerConfig(model="m", temperature=0.5).plan()


def test_nothing_is_left_running() -> None:
    before = threading.active_count()
    with IllServer(["hang"] * 3) as ill:
        asked = Server(ServerConfig(base_url=ill.url))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(asked.ask, requests(3))
            while len(ill.bodies) < 3:
                time.sleep(0.01)
            asked.close()
            assert waiting.exception(2) is not None or waiting.cancelled()
    assert threading.active_count() == before
