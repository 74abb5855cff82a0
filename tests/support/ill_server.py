"""An OpenAI-compatible server with any illness, on loopback: too busy, hanging, cutting off, lying.

`IllServer(ills=[...])` has one ill for each request in the order of arrival and is well afterwards.
It records what it was sent and how many requests it had at once.
"""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = "A dog runs over a green field."
USAGE = {"prompt_tokens": 100, "completion_tokens": 9, "total_tokens": 109}


def answer(text: str | None, **choice: Any) -> dict[str, Any]:
    """A chat completion, with other fields of its choice or message."""
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub-2024",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, **choice}],
        "usage": USAGE,
    }


BODIES: dict[str, Any] = {
    "no choices": {"id": "1", "choices": []},
    "error in 200": {"error": {"message": "overloaded"}},
    "empty": answer(""),
    "null": answer(None),
    "refusal": answer(None, message={"refusal": "I can't help with that."}),
    "filtered": answer("", finish_reason="content_filter"),
    "cut off": answer("A dog runs over", finish_reason="length"),
}


class IllServer:
    """A context manager; `url` is what clients call base_url."""

    def __init__(
        self,
        ills: Sequence[Any] = (),
        *,
        models: Sequence[str] = ("stub",),
        key: str = "",
        capacity: int | None = None,
        latency_s: float = 0.0,
        formats: Sequence[str] = ("json_schema", "json_object"),
        reply: Any = lambda body: TEXT,
    ) -> None:
        self.ills, self.models, self.key = list(ills), list(models), key
        self.capacity, self.latency_s, self.formats = capacity, latency_s, formats
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.well = threading.Event()  # ends every hang
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.ill = self
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> "IllServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.well.set()
        self._http.shutdown()
        for connection in self._http.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._http.server_close()

    def take(self, body: dict[str, Any]) -> Any:
        """Record a request; gives its ill, or None."""
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            if self.capacity is not None and self.in_flight > self.capacity:
                return 429
            return self.ills.pop(0) if self.ills else None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    ill: IllServer

    def __init__(self, *arguments: Any) -> None:
        self.connections: list[Any] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        ill = self.server.ill
        if ill.key and self.headers["Authorization"] != f"Bearer {ill.key}":
            return self._send(401, {"error": {"message": "bad key"}})
        return self._send(200, {"object": "list", "data": [{"id": name} for name in ill.models]})

    def do_POST(self) -> None:
        ill = self.server.ill
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = ill.take(body)
        try:
            self._answer(ill, body, what)
        except (BrokenPipeError, ConnectionResetError):  # the client has given up
            self.close_connection = True
        finally:
            with ill.lock:
                ill.in_flight -= 1

    def _answer(self, ill: IllServer, body: dict[str, Any], what: Any) -> None:
        form = body.get("response_format", {}).get("type", "none")
        if ill.key and self.headers["Authorization"] != f"Bearer {ill.key}":
            self._free(401, {"error": {"message": "bad key"}})
        elif body["model"] not in ill.models:
            self._free(404, {"error": {"message": f"no model {body['model']}"}})
        elif form not in (*ill.formats, "none"):
            self._free(400, {"error": {"message": f"unknown response_format {form}"}})
        elif isinstance(what, int):
            self._free(what, {"error": {"message": f"error {what} of request 12345"}})
        elif isinstance(what, tuple):
            status, headers, *said = what
            self._free(status, said[0] if said else {"error": {"message": "ill"}}, headers)
        elif what == "hang":
            ill.well.wait(20)
            self.close_connection = True
        elif what == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{")
            self.close_connection = True
        elif what == "hang up":
            self.close_connection = True
        elif what == "not JSON":
            self._free(200, b"<html>502</html>")
        else:
            time.sleep(ill.latency_s)
            self._free(200, BODIES[what] if what else answer(ill.reply(body)))

    def _free(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        with self.server.ill.lock:
            self.server.ill.statuses[status] += 1
        self._send(status, value, headers)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = [f"HTTP/1.1 {status} Ill", "Content-Type: application/json"]
        head += [f"{name}: {text}" for name, text in (headers or {}).items()]
        head += [f"Content-Length: {len(data)}", "", ""]
        self.wfile.write("\r\n".join(head).encode() + data)

    def log_message(self, *_: object) -> None:
        pass
