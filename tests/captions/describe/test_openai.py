"""The server backend: prompts, regions, refusals, counts; on an ill stub and on a real server."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from PIL import Image

import tiny_captioners
from capwright.captions.describe import stage
from capwright.captions.describe.openai import Config, build
from capwright.captions.runner import Running, stage_folder
from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import read_sidecars
from ill_server import IllServer

REGIONS = {"regions": [{"box": [0, 0, 500, 1000], "caption": "a cow"}]}


def picture(width: int = 64, red: int = 200) -> Image.Image:
    return Image.new("RGB", (width, 48), (red, 30, 30))


def config(server: IllServer, **options: object) -> Config:
    return Config(base_url=server.url, model="stub", retries=1, **options)  # type: ignore[arg-type]


def test_a_caption_with_its_prompt_and_its_tokens() -> None:
    with IllServer(reply=lambda body: 'Sure! Here is a caption: "A dog runs."') as server:
        describer = build(config(server), "short")
        (captions,) = describer.describe([picture(2000)])
        sent = server.bodies[0]["messages"][-1]["content"]
    (caption,) = captions
    assert (caption.text, caption.reason, caption.tokens) == ("A dog runs.", "", 9)
    assert caption.prompt == "describe-short/1"
    assert (describer.name, describer.revision) == ("stub", "stub-2024")
    url = next(part["image_url"]["url"] for part in sent if part["type"] == "image_url")
    import base64

    jpeg = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(jpeg)).size == (768, 18)


def test_regions_have_boxes_and_ask_for_json() -> None:
    with IllServer(reply=lambda body: f"```json\n{json.dumps(REGIONS)}\n```") as server:
        (captions,) = build(config(server), "regions").describe([picture()])
        assert server.bodies[0]["response_format"]["type"] == "json_schema"
    assert [(c.text, c.box) for c in captions] == [("a cow", (0.0, 0.0, 0.5, 1.0))]
    with IllServer(reply=lambda body: "I see a cow.") as server:
        (captions,) = build(config(server), "regions").describe([picture()])
    assert captions[0].reason == "failed: server: malformed answer"


def test_what_goes_wrong_is_the_pictures_reason() -> None:
    with IllServer(ills=["empty", "refusal", "cut off"]) as server:
        describer = build(config(server, max_concurrency=1), "short")
        reasons = [captions[0].reason for captions in describer.describe([picture()] * 4)]
    assert reasons == [f"failed: server: {r}" for r in ("empty", "refused", "cut off")] + [""]
    with IllServer(reply=lambda body: "I'm sorry, I can't describe this picture.") as server:
        ((caption,),) = build(config(server), "short").describe([picture()])
    assert (caption.text, caption.reason) == ("", "failed: server: refused")


def test_several_captions_have_seeds_of_their_own() -> None:
    with IllServer() as server:
        options = config(server, captions=3, temperature=0.7, seed=5)
        ((captions),) = build(options, "short").describe([picture()])
        assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7]
    assert [caption.seed for caption in captions] == [5, 6, 7]
    with pytest.raises(CapwrightError, match="with temperature 0 they would all be the same"):
        Config(captions=2, temperature=0)


def test_the_stage_resumes_wherever_the_server_is_now(work: Path) -> None:
    with IllServer() as server:
        described = stage.DescribeConfig(work=work, backend="openai", options=config(server))
        assert stage.run(described, Running(limit=1)).shards_left == 1
    with IllServer() as server:
        options = config(server, max_concurrency=3)
        again = stage.DescribeConfig(work=work, backend="openai", options=options)
        assert stage.run(again).captions == 48
        assert len(server.bodies) == 24
    with IllServer() as server:
        options = config(server, picture_side=32)
        other = stage.DescribeConfig(work=work, backend="openai", options=options)
        with pytest.raises(CapwrightError, match=r"another plan .*picture_side 768 -> 32"):
            stage.run(other)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """`transformers serve` with a tiny LLaVA: (base_url, model)."""
    model = tiny_captioners.save(tiny_captioners.llava, tmp_path / "llava")
    ends = json.loads((model / "generation_config.json").read_text())
    ends["eos_token_id"] = [2, *range(6, 60, 4)]  # else random weights rarely come to an end
    (model / "generation_config.json").write_text(json.dumps(ends))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, OSError):
                assert server.poll() is None and time.monotonic() < deadline, "no server"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_real_server_describes_a_corpus(served: tuple[str, str], work: Path) -> None:
    base_url, model = served
    options = Config(
        base_url=base_url, model=model, temperature=1.0, answer_tokens=200, max_concurrency=2
    )
    described = stage.DescribeConfig(work=work, backend="openai", options=options)
    summary = stage.run(described, Running(limit=1, max_failure_rate=0.6))
    rows = read_sidecars(stage_folder(work, "describe-openai")).to_pylist()
    assert len(rows) == summary.pictures == 24
    kept = [row for row in rows if row["keep"]]
    assert len(kept) >= 10 and all(row["text"] and row["tokens"] > 0 for row in kept)
    assert {row["reason"] for row in rows if not row["keep"]} <= {
        "failed: server: cut off", "failed: server: empty",
    }  # fmt: skip
    assert {row["model"] for row in rows} == {model}
