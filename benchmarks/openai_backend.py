"""Pictures per second through the `openai` backend, against what a server's concurrency allows.

The server is a stub in a process of its own that answers each request after 50 ms, so 16 requests
at a time allow 320 pictures a second. The whole stage runs (read, decode, encode, ask, write
sidecars) on a corpus of JPEGs; start-up is left out, as the first shard ends before the time
begins. The stub says how long it really took and how many requests it had at most.

Run: python benchmarks/openai_backend.py. The last line is JSON with `ratio`, `target` and `ok`.
"""

import io
import json
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image

CONCURRENCY, LATENCY_S = 16, 0.05
WARM, PICTURES, SIDE = 320, 3200, 128
TARGET = 0.95
ANSWER = {
    "model": "stub",
    "choices": [
        {"finish_reason": "stop", "message": {"role": "assistant", "content": "A green field."}}
    ],
    "usage": {"prompt_tokens": 300, "completion_tokens": 4},
}


class Stub:
    """Answers every POST after the latency; a GET is told how it went since the last one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.late = 0.001  # seconds by which a sleep is too long here
        self.now = self.most = self.answers = 0
        self.seconds = 0.0

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        got = bytearray()
        while True:
            while (head := got.find(b"\r\n\r\n")) < 0:
                if not (data := connection.recv(1 << 18)):
                    return
                got += data
            lines = bytes(got[:head]).lower()
            size = int(lines.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            while len(got) < head + 4 + size:
                got += connection.recv(1 << 18)
            del got[: head + 4 + size]
            connection.sendall(_http(self.tell() if lines.startswith(b"get") else self.answer()))

    def answer(self) -> dict[str, object]:
        """The answer, when its time has come."""
        began = time.perf_counter()
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(LATENCY_S - self.late)
        took = time.perf_counter() - began
        with self.lock:
            self.late += 0.02 * (took - LATENCY_S)
            self.now -= 1
            self.answers += 1
            self.seconds += took
        return ANSWER

    def tell(self) -> dict[str, object]:
        """How many answers, in how long each, how many at once."""
        with self.lock:
            mean = self.seconds / max(1, self.answers)
            told: dict[str, object] = {"answers": self.answers, "mean_s": mean, "most": self.most}
            self.answers, self.seconds = 0, 0.0
        return told


def _http(value: dict[str, object]) -> bytes:
    data = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def serve() -> None:
    """The stub's process: prints its port and answers until it is ended."""
    stub = Stub()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=stub.serve, args=(connection,), daemon=True).start()


def write_corpus(folder: Path) -> None:
    """A small shard to warm up with and a large one, of smooth noise as JPEGs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard, count in enumerate((WARM, PICTURES)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(count):
                noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
                jpeg = io.BytesIO()
                noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(jpeg, "JPEG")
                info = tarfile.TarInfo(f"{shard}{number:06d}.jpg")
                info.size = jpeg.tell()
                tar.addfile(info, io.BytesIO(jpeg.getvalue()))


def measure(folder: Path, port: int) -> dict[str, object]:
    """Describe the corpus; the ratio is that of the large shard."""
    from capwright.captions.describe.openai import Config
    from capwright.captions.describe.stage import DescribeConfig, Worker
    from capwright.captions.runner import ShardProgress
    from capwright.corpus import index

    work = folder / "work"
    index.run(index.IndexConfig(corpus=str(folder / "corpus"), work=work))
    url = f"http://127.0.0.1:{port}/v1"
    options = Config(base_url=url, model="stub", max_concurrency=CONCURRENCY)
    worker = Worker(DescribeConfig(work=work, backend="openai", options=options))
    small, large = (index.load_shard(work, name) for name in index.shard_sizes(work))
    worker(small, ShardProgress())
    urlopen(f"{url}/stats").read()
    began = time.perf_counter()
    rows = worker(large, ShardProgress())
    seconds = time.perf_counter() - began
    told = json.loads(urlopen(f"{url}/stats").read())
    assert sum(row["keep"] for row in rows) == told["answers"] == PICTURES
    assert told["most"] <= CONCURRENCY
    rate, allowed = PICTURES / seconds, CONCURRENCY / LATENCY_S
    return {
        "name": "openai_backend",
        "pictures_per_second": round(rate, 1),
        "allowed": allowed,
        "server_ms": round(1000 * told["mean_s"], 2),
        "ratio": round(rate / allowed, 3),
        "target": TARGET,
        "ok": rate / allowed >= TARGET,
    }


def main() -> None:
    """Start the stub, measure, print."""
    command = [sys.executable, __file__, "--serve"]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stub,
    ):
        try:
            assert stub.stdout is not None
            port = int(stub.stdout.readline())
            write_corpus(Path(name) / "corpus")
            print(json.dumps(measure(Path(name), port)))
        finally:
            stub.kill()


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
