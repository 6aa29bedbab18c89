"""What the service refuses before any worker sees it: strangers, large bodies, open addresses; and its small parts."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from talker_rl import cli
from talker_rl.base.errors import ConfigError
from talker_rl.reward.config import RewardConfig, ServiceConfig
from talker_rl.reward.service import frames, guard
from talker_rl.reward.service.app import create_app
from talker_rl.reward.service.engine import Engine, ServiceSpec
from talker_rl.reward.service.protocol import Item
from talker_rl.reward.service.queues import Job, JobQueue
from talker_rl.reward.service.server import bind, is_loopback, read_token
from talker_rl.speech.config import ModelConfig, Token2WavConfig

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-of-sixteen-or-more"


def ask(method: str, path: str, token: str | None = TOKEN, **request: Any) -> httpx.Response:
    """One request to an application whose workers were never started."""

    async def run() -> httpx.Response:
        service = ServiceConfig(max_body_mib=0.01)
        engine = Engine(ServiceSpec(ModelConfig(), Token2WavConfig(), RewardConfig(), service))
        transport = httpx.ASGITransport(create_app(engine, token))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def item(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "text": "Go.", "speaker": "Ann", "seed": 0, "codes": [1, 2]} | changes


@pytest.mark.parametrize("path", ["/v1/score", "/get_reward", "/metrics", "/docs", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x",
                                    f"Bearer {TOKEN[:-1]}", "Bearer \xff"])
def test_all_but_the_probes_need_the_token(path: str, header: str | None) -> None:
    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
    answer = ask("POST" if path in ("/v1/score", "/get_reward") else "GET", path, headers=headers)
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized" and TOKEN not in answer.text


def test_the_token_opens_and_probes_need_none() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert ask("GET", "/docs", headers=headers).status_code == 200
    assert ask("GET", "/healthz").status_code == 200
    ready = ask("GET", "/readyz")
    assert ready.status_code == 503 and ready.json()["ready"] is False and "loading" in ready.json()["reason"]
    answer = ask("POST", "/v1/score", headers=headers, json={"items": [item()]})
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"{", 422), (b"[]", 422), (b"\xff\xfe", 422), (b"[" * 9000, 400), (b'{"items": []}', 422),
        (json.dumps({"items": [item(), item()]}).encode(), 422),
        (json.dumps({"items": [item(extra=1)]}).encode(), 422),
        (json.dumps({"items": [item(path="/etc/passwd")]}).encode(), 422),
        (json.dumps({"items": [item(audio="AAAA")]}).encode(), 422),
        (json.dumps({"items": [item(codes=None, audio="no base64!")]}).encode(), 422),
        (json.dumps({"items": [item(codes=None)]}).encode(), 422),
        (json.dumps({"items": [item(codes=[1.5])]}).encode(), 422),
        (json.dumps({"items": [item(codes=["1e999"])]}).encode(), 422),
        (json.dumps({"items": [item(seed=-1)]}).encode(), 422),
        (json.dumps({"items": [item(text="\ud800")]}).encode(), 422),
        (json.dumps({"items": [item(reference_seconds=float("nan"))]}).encode(), 422),
        (json.dumps({"items": [item()], "timeout_seconds": float("inf")}).encode(), 422),
        (b'{"items": [{"id": "a", "text": "Go.", "speaker": "Ann", "seed": 1' + b"0" * 5000 + b"}]}", 400),
        (b"x" * 20_000, 413),
    ],
)  # fmt: skip
def test_wrong_bodies_are_refused_in_one_form(body: bytes, status: int) -> None:
    answer = ask("POST", "/v1/score", None, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].keys() == {"code", "message", "retryable"}


def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    assert ask("POST", "/v1/score", None, content=endless(), headers=headers).status_code == 413


def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(3600)

    headers = {"Content-Type": "application/json"}
    answer = ask("POST", "/v1/score", None, content=slow(), headers=headers)
    assert answer.status_code == 408 and answer.json()["error"]["retryable"]


def test_log_lines_are_json_and_carry_no_token_and_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(guard.JsonLines())
    logger = logging.getLogger("talker_rl.service")
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.DEBUG)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    ask("POST", "/v1/score?token=" + TOKEN, headers=headers, json={"items": [item(text="a secret text")]})
    ask("GET", "/" + TOKEN, headers=headers)
    rows = [json.loads(line) for line in sink.getvalue().splitlines()]
    requests = [(r["method"], r["path"], r["status"]) for r in rows if r["event"] == "request"]
    assert requests == [("POST", "/v1/score", 503), ("GET", "other", 404)]
    assert TOKEN not in sink.getvalue() and "secret" not in sink.getvalue()


# -- address and token ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.org", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_only_loopback_needs_no_token(host: str, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TALKER_RL_TOKEN", raising=False)
    assert is_loopback(host) == local
    if local:
        assert read_token(ServiceConfig(host=host)) is None
    else:
        with pytest.raises(ConfigError, match="there is no token"):
            read_token(ServiceConfig(host=host))
    monkeypatch.setenv("TALKER_RL_TOKEN", TOKEN)
    assert read_token(ServiceConfig(host=host)) == TOKEN


def test_the_token_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKER_RL_TOKEN", TOKEN)
    file = tmp_path / "token"
    file.write_text("another-token-of-sixteen\n")
    assert read_token(ServiceConfig(token_file=str(file))) == "another-token-of-sixteen"
    for wrong in ("short", "", "sixteen-or-more-\u00e4\u00f6\u00fc"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="16 ASCII"):
            read_token(ServiceConfig(token_file=str(file)))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(ServiceConfig(token_file=str(tmp_path / "none")))


def test_serve_tells_a_users_mistake_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TALKER_RL_TOKEN", raising=False)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "manifest.json").write_text('{"stages": {}}')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, told in (
            (["--host", "0.0.0.0"], "service.token_file"),
            (["--port", port], "Cannot listen"),
            (["--workers", "0"], "decoders"),
            (["service.max_seconds=999"], "takes no item of max_seconds"),
            (["--canary", str(tmp_path)], "There is no run in this folder"),
            (["--canary", str(begun)], "is not finished"),
        ):
            assert cli.main(["serve", *arguments]) in (1, 2)
            err = capsys.readouterr().err
            assert err.startswith("error: ") and told in err and "Traceback" not in err, err
    listener = bind(ServiceConfig(port=0))
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


def test_a_service_that_cannot_load_its_model_ends_with_the_reason(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "talker_rl.cli", "serve", "--port", "0", f"model.path={tmp_path / 'none'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and "error: no such model folder" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_listening_needs_no_torch() -> None:
    code = ("import sys, talker_rl.reward.service.server, talker_rl.reward.client\n"
            "assert not {'torch', 'transformers', 'funasr', 'soundfile'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# -- queue and frames -----------------------------------------------------------------------------------------------


def job(seconds: float) -> Job:
    future = asyncio.get_running_loop().create_future()
    return Job(str(seconds), Item.model_validate(item()), seconds, future)


def test_batches_hold_the_oldest_job_and_those_nearest_in_length() -> None:
    async def run() -> None:
        queue = JobQueue(max_items=3, max_seconds=20, max_wait=0)
        for seconds in (5.0, 1.0, 9.0, 5.1, 4.8, 30.0, 1.1):
            queue.put(job(seconds))
        batches = [[j.seconds for j in await queue.get()] for _ in range(3)]
        assert batches == [[5.0, 5.1, 4.8], [1.0, 1.1, 9.0], [30.0]] and len(queue) == 0

    asyncio.run(run())


def test_a_batch_waits_for_company_only_so_long_and_a_retried_job_goes_alone() -> None:
    async def run() -> None:
        queue = JobQueue(max_items=2, max_seconds=100, max_wait=3600)
        queue.put(job(1.0))
        asyncio.get_running_loop().call_later(0.03, queue.put, job(2.0))
        assert len(await queue.get()) == 2  # at once: nobody waits for an hour
        queue.max_wait = 0.15
        queue.put(job(1.0))
        start = time.monotonic()
        assert len(await queue.get()) == 1 and time.monotonic() - start > 0.1
        queue.put(job(3.0))
        retried = job(4.0)
        retried.attempts = 1
        queue.put(retried, first=True)
        assert await queue.get() == [retried]
        assert [j.seconds for j in await queue.get()] == [3.0]

    asyncio.run(run())


def test_frames_round_trip_and_refuse_what_is_none() -> None:
    raw = frames.pack({"a": "\ud800 é"}, [b"", b"xyz"])
    assert frames.read(io.BytesIO(raw)) == ({"a": "\ud800 é"}, [b"", b"xyz"])
    assert frames.read(io.BytesIO(b"")) is None
    with pytest.raises(ValueError):
        frames.pack({"reward": float("nan")})

    async def read(data: bytes) -> Any:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        return await frames.read_async(stream)

    assert asyncio.run(read(raw)) == frames.read(io.BytesIO(raw))
    for wrong in (raw[:-1], raw[:3], b"\xff" * 16, frames.pack({})[:8] + b"[]          ", b""):
        with pytest.raises(frames.FrameError):
            asyncio.run(read(wrong))
