"""Hostile input: no answer is a 500, no worker's death goes unrecovered, nothing is left behind."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
import soundfile
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from service_helpers import Service, code_items, noise, sound_item

ALLOWED = {200, 400, 413, 422}


def left_behind(service: Service) -> tuple[int, ...]:
    """What may not grow: jobs, queued seconds, open files of this process."""
    waiting = sum(len(pool.queue) for pool in service.engine.pools.values())
    return len(service.engine._live), waiting, round(service.metric("queued_seconds")), len(os.listdir("/proc/self/fd"))


# -- bodies ---------------------------------------------------------------------------------------------------------


def mutate(rng: random.Random, body: bytes) -> bytes:
    """Damage of one kind: bytes flipped, cut, doubled, inserted; or a JSON value replaced by another."""
    kind = rng.randrange(6)
    at = rng.randrange(len(body))
    if kind == 0:
        return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
    if kind == 1:
        return body[:at]
    if kind == 2:
        return body[:at] + body[at : at + rng.randrange(200)] * 2 + body[at:]
    if kind == 3:
        piece = rng.choice([b"\x00", b"NaN", b"1e999", b"\\ud800", b"]", b"{", b"\xf0\x9f", b"-0"])
        return body[:at] + piece + body[at:]
    strange: list[Any] = [None, True, -1, 2**70, 1e308, "", "\x00", "x" * 5000, [], {}, [[]], "NaN", [None], 10**400]
    data = json.loads(body)
    target = rng.choice([data, *data["items"]])
    target[rng.choice(list(target))] = rng.choice(strange)
    if kind == 5 and isinstance(data.get("items"), list) and data["items"]:
        data["items"].append(rng.choice(data["items"]))
    return json.dumps(data).encode()


def fuzz_bodies(service: Service, count: int) -> None:
    rng = random.Random(count)
    service.score(code_items(1, prefix="warm"))
    before, pids = left_behind(service), (service.pids("decode"), service.pids("score"))
    seen = set()
    for i in range(count):
        items: list[dict[str, Any]] = code_items(2, seed=i % 5, prefix="f", low=10, high=14)
        if i % 3 == 0:
            items.append(sound_item("s", noise(0.12, i % 5)))
        body = json.dumps({"items": items, "timeout_seconds": 20}).encode()
        answer = service.http.post("/v1/score", content=mutate(rng, body), headers={"Content-Type": "application/json"})
        assert answer.status_code in ALLOWED, (i, answer.status_code, answer.text)
        seen.add(answer.status_code)
        if answer.status_code == 200:
            for row in answer.json()["items"]:
                assert ("reward" in row) == (row["status"] == "ok") != ("error" in row), row
        else:
            assert answer.json()["error"].keys() == {"code", "message", "retryable"}
    assert {200, 422} <= seen
    assert left_behind(service) <= (0, 0, 0, before[3] + 3)
    assert (service.pids("decode"), service.pids("score")) == pids, "a worker died"


def test_mutated_bodies(service: Service) -> None:
    fuzz_bodies(service, 150)


@pytest.mark.slow
def test_ten_thousand_mutated_bodies(service: Service) -> None:
    fuzz_bodies(service, 10_000)


# -- sounds ---------------------------------------------------------------------------------------------------------


def malformed_sound(rng: random.Random) -> tuple[str, bytes]:
    """(kind, file) of a sound file that is wrong or strange."""
    kind = rng.choice(["truncated", "huge_header", "zero_samples", "nan", "one_sample", "8_bit", "192_khz",
                       "50_channels", "flipped", "other_format", "noise"])
    rate, channels = 24_000, 1
    form, subtype = rng.choice([("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
    if kind == "nan":
        form, subtype = "WAV", "FLOAT"
    if kind == "8_bit":
        form, subtype = "WAV", "PCM_U8"
    if kind == "192_khz":
        rate, form, subtype = 192_000, "WAV", "PCM_16"
    if kind == "50_channels":
        channels, form, subtype = 50, "WAV", "PCM_16"
    if kind == "other_format":
        form, subtype = rng.choice([("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
    length = rng.randrange(rate // 8, rate // 2)
    if kind in ("zero_samples", "one_sample"):
        length = int(kind == "one_sample")
    samples = np.random.default_rng(rng.randrange(2**31)).normal(0, 0.1, (length, channels)).astype(np.float32)
    if kind == "nan":
        samples[rng.randrange(length)] = rng.choice([np.nan, np.inf, -np.inf])
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=form, subtype=subtype)
    data = bytearray(sink.getvalue())
    if kind == "truncated":
        data = data[: rng.randrange(1, len(data))]
    if kind == "huge_header" and form == "WAV":
        at = data.index(b"data") + 4
        data[at : at + 4] = struct.pack("<I", rng.choice([0xFFFFFFFF, 0x7FFFFFF0, 10**9]))
        data[4:8] = struct.pack("<I", 0xFFFFFFFF)
    if kind == "flipped":
        for _ in range(20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if kind == "noise":
        data = bytearray(rng.randbytes(rng.randrange(1, 5_000)))
    return kind, bytes(data)


def fuzz_sounds(service: Service, count: int) -> None:
    rng = random.Random(count)
    service.score(code_items(1, prefix="warm"))
    deaths = service.metric("worker_deaths_total", kind="score")
    before = left_behind(service)
    for i in range(count):
        kind, data = malformed_sound(rng)
        sound = {"id": f"{count}-{i}", "text": "Go.", "audio": base64.b64encode(data).decode()}
        [row] = service.score([sound])
        if kind in ("nan", "zero_samples", "one_sample", "50_channels", "other_format", "noise"):
            assert row["status"] == "failed" and not row["error"]["retryable"], (kind, row)
        elif kind in ("8_bit", "192_khz"):
            assert row["status"] == "ok", (kind, row)
        else:  # what is left of the sound is scored, or refused
            assert row["status"] == "ok" or row["error"]["code"] in (
                "bad_audio", "too_short", "non_finite", "too_long", "worker_died"), (kind, row)
    service.wait_ready()
    assert service.metric("worker_deaths_total", kind="score") <= deaths + 2 * count // 100
    assert left_behind(service) <= (0, 0, 0, before[3] + 3)


def test_malformed_sounds(service: Service) -> None:
    fuzz_sounds(service, 60)


@pytest.mark.slow
def test_five_hundred_malformed_sounds(service: Service) -> None:
    fuzz_sounds(service, 500)


def test_a_huge_header_takes_no_memory(service: Service) -> None:
    data = bytearray(base64.b64decode(sound_item("x", noise(0.2))["audio"]))
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\x7f"  # two gigabytes of samples, it says
    [pid] = service.pids("score")

    def peak() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

    before = peak()
    service.score([{"id": "huge", "text": "Go.", "audio": base64.b64encode(bytes(data)).decode()}])
    assert peak() - before < 50_000, "kilobytes"


# -- the schema -----------------------------------------------------------------------------------------------------


def test_the_service_keeps_its_own_schema(service: Service) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    wanted = (checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
              checks.response_schema_conformance)
    bounded = settings(max_examples=15, deadline=None, derandomize=True, database=None,
                       suppress_health_check=list(HealthCheck))
    seen = set()
    for operation in (result.ok() for result in schema.get_all_operations()):
        seen.add(operation.path)

        @bounded
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(timeout=60, checks=wanted)

        check()
    assert seen == {"/v1/score", "/get_reward", "/healthz", "/readyz", "/metrics"}
