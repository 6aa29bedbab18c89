"""A reward service in seconds: real worker processes, the random tiny model, a recognizer that obeys its input."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import uvicorn
from pipeline_helpers import write_world
from toy import ToyRecognizer

from talker_rl.config import load_config
from talker_rl.reward.asr.base import Transcript
from talker_rl.reward.service.app import create_app
from talker_rl.reward.service.engine import Engine, ServiceSpec

ROOT = Path(__file__).resolve().parents[1]
RATE = 24_000
RAISES, DIES, HANGS = 0.5, 0.7, 0.9
"""Levels of a constant sound that make `Touchy` raise, die of a segmentation fault, or hang."""


class Touchy(ToyRecognizer):
    """Hears like the toy; its ``path`` is a JSON file: how slowly, what it refuses, its fingerprint."""

    def _hear(self, audio: np.ndarray) -> Transcript:
        level = float(np.median(audio))
        if abs(level - RAISES) < 0.02:
            raise RuntimeError("poisoned")
        if abs(level - DIES) < 0.02:
            os.kill(os.getpid(), signal.SIGSEGV)
        if abs(level - HANGS) < 0.02:
            time.sleep(3600)
        settings = self._settings()
        if len(audio) > settings["raises_above"] * 16_000:
            raise RuntimeError("told to raise")
        time.sleep(settings["pace"] * len(audio) / 16_000)
        return super()._hear(audio)

    def fingerprint(self) -> str:
        return str(self._settings()["fingerprint"])

    def _settings(self) -> dict[str, Any]:
        return json.loads(Path(self.config.path).read_text())


def touchy(config: Any) -> Touchy:
    """Factory that ``reward.recognizer.type: service_helpers:touchy`` names."""
    return Touchy(config)


def service_world(folder: Path, pace: float = 0.0, **service: Any) -> Path:
    """`write_world` with the touchy recognizer, a reward made of WER, and small limits; returns the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    set_touchy(folder, pace=pace)
    recognizer = {"type": "service_helpers:touchy", "path": str(folder / "touchy.json"), "batch_size": 4}
    limits = {"port": 0, "queue_seconds": 60.0, "max_seconds": 20.0, "max_body_mib": 4.0, "batch_items": 4}
    return write_world(
        folder,
        reward={"recognizer": recognizer, "weights": {"wer": 1.0, "pause": 0.0}, "components": [],
                "max_failure_rate": 0.3, "wer_scale": 0.1},
        service=limits | service,
    )


def set_touchy(
    folder: Path, pace: float = 0.0, fingerprint: str = "touchy-1", raises_above: float = 1e9
) -> None:
    """The touchy recognizer's settings, heeded at once: seconds per second of sound; longer than this it raises."""
    settings = {"pace": pace, "fingerprint": fingerprint, "raises_above": raises_above}
    temporary = folder / "touchy.tmp"
    temporary.write_text(json.dumps(settings))
    temporary.replace(folder / "touchy.json")


def spec_of(config: Path, *overrides: str) -> ServiceSpec:
    run = load_config([config], overrides)
    return ServiceSpec(run.model, run.token2wav, run.reward, run.service)


class Service:
    """The whole service on a free loopback port, its event loop in a thread of this process."""

    def __init__(self, spec: ServiceSpec, token: str | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.engine = Engine(spec)
        self.server = uvicorn.Server(uvicorn.Config(create_app(self.engine, token), log_config=None))
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)
        self.http = httpx.Client(base_url=self.url, timeout=900, trust_env=False,
                                 headers={"Authorization": f"Bearer {token}"} if token else {})

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.listener])

    def __enter__(self) -> Service:
        self.thread.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.http.close()
        assert not self.thread.is_alive()

    def wait_ready(self, timeout: float = 900.0) -> None:
        wait_for(lambda: self.http.get("/readyz").status_code == 200, timeout, "ready")

    def pids(self, kind: str) -> list[int]:
        return list(self.engine.pools[kind].workers)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """A coroutine's result, run in the service's own loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def score(self, items: Sequence[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
        answer = self.http.post("/v1/score", json={"items": list(items), **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    def metric(self, name: str, **labels: str) -> float:
        return self.engine.metrics.registry.get_sample_value(f"talker_rl_{name}", labels) or 0.0


def wait_for(condition: Callable[[], bool], timeout: float = 60.0, what: str = "condition") -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for: {what}"
        time.sleep(0.02)


def code_items(count: int, seed: int = 0, prefix: str = "c", low: int = 10, high: int = 60) -> list[dict[str, Any]]:
    """Items of random codes, of all lengths, in both voices."""
    rng = random.Random(seed)
    return [
        {"id": f"{prefix}{i}", "text": "Stop, go left.", "speaker": rng.choice(["Ann", "Bob"]), "seed": i % 3,
         "codes": [rng.randrange(8000) for _ in range(rng.randint(low, high))], "end_reason": "eos",
         "prompt_id": f"p{i % 3}"}
        for i in range(count)
    ]


def sound_file(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> str:
    """A sound file in base64."""
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=kind, subtype=subtype)
    return base64.b64encode(sink.getvalue()).decode()


def sound_item(name: str, samples: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {"id": name, "text": "Stop, go left.", "audio": sound_file(samples), **changes}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def constant(level: float, seconds: float = 1.0) -> np.ndarray:
    """What the touchy recognizer reacts to."""
    return np.full(round(seconds * RATE), level, np.float32)
