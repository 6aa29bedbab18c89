"""The reward service: equal to scoring in this process, one answer an item, and never a number for a failure."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from service_helpers import (
    RAISES,
    RATE,
    Service,
    code_items,
    constant,
    noise,
    sound_file,
    sound_item,
    spec_of,
)

from talker_rl.reward.service.protocol import ScoreResponse

FAILED_FIELDS = {"id", "status", "error"}


def in_process(config: Path, items: list[dict[str, Any]]) -> list[Any]:
    """What the scorer says to the same codes in this process, in one batch each of decoder and recognizer."""
    from talker_rl.reward.scorer import ScoreItem, Scorer
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.token2wav import decode

    spec = spec_of(config)
    omni = load_omni(spec.model, parts=("token2wav",))
    sounds = decode(omni.token2wav, [i["codes"] for i in items], [omni.speaker(i["speaker"]) for i in items],
                    [i["seed"] for i in items], spec.token2wav)
    wanted = [
        ScoreItem(id=i["id"], text=i["text"], audio=s, codes=i["codes"], end_reason=i["end_reason"],
                  speaker=i["speaker"], prompt_id=i["prompt_id"])
        for i, s in zip(items, sounds, strict=True)
    ]
    return list(Scorer(spec.reward).score(wanted))


def test_concurrent_requests_score_as_this_process_does(service: Service, service_config: Path) -> None:
    items = code_items(24)
    with ThreadPoolExecutor(6) as threads:
        parts = list(threads.map(service.score, [items[i : i + 4] for i in range(0, 24, 4)]))
    found = [row for part in parts for row in part]
    assert service.metric("batch_items_count", kind="decode") < 24, "nothing was batched"
    for item, row, right in zip(items, found, in_process(service_config, items), strict=True):
        assert row["id"] == item["id"] == right.id
        assert row["transcript"] == right.transcript and row["alignment"] == json.loads(right.errors)
        assert row["components"].keys() == right.components.keys()
        assert row["reward"] == pytest.approx(right.value, abs=1e-5)
        for name, value in right.components.items():
            assert row["components"][name] == pytest.approx(value, abs=1e-5), name
    assert len({row["reward"] for row in found}) > 3, "the test would not notice swapped answers"


def test_every_answer_carries_protocol_fingerprint_and_timings(service: Service) -> None:
    answer = service.http.post("/v1/score", json={"items": code_items(1, prefix="t")})
    parsed = ScoreResponse.model_validate_json(answer.content)
    ready = service.http.get("/readyz").json()
    assert parsed.protocol == 1 and parsed.fingerprint == ready["fingerprint"]
    assert {"reward", "token2wav", "code", "model", "recognizer"} <= ready["parts"].keys()
    assert ready["speakers"] == ["Ann", "Bob"]
    assert {"wait_decode", "decode", "wait_score", "score"} == parsed.items[0].timings.keys()


# -- named after the field's bugs -----------------------------------------------------------------------------------


def test_failure_as_zero_a_failed_item_has_no_number(service: Service) -> None:
    before, bad, after = service.score([
        sound_item("a", noise(1.0)), sound_item("b", constant(RAISES)), sound_item("c", noise(1.0, 1))
    ])
    assert bad.keys() == FAILED_FIELDS | {"timings"}
    assert (bad["status"], bad["error"]["code"], bad["error"]["retryable"]) == ("failed", "recognizer_error", True)
    assert before["status"] == after["status"] == "ok"


def test_random_speaker_per_candidate_the_speaker_is_the_requests(service: Service) -> None:
    base = code_items(1, low=60)[0] | {"speaker": "Ann", "seed": 5}
    same, other, seed, stranger = service.score([
        base | {"id": "same"}, base | {"id": "other", "speaker": "Bob"}, base | {"id": "seed", "seed": 6},
        base | {"id": "stranger", "speaker": "Eve"},
    ])
    again = service.score([base | {"id": "again"}])[0]
    for row in (same, again):
        assert row["transcript"] == same["transcript"] and row["reward"] == same["reward"]
    assert other["transcript"] != same["transcript"] and seed["transcript"] != same["transcript"]
    assert stranger["error"]["code"] == "unknown_speaker" and "Ann, Bob" in stranger["error"]["message"]
    for missing in ("speaker", "seed"):
        request = {k: v for k, v in base.items() if k != missing}
        assert service.http.post("/v1/score", json={"items": [request]}).status_code == 422


def test_empty_candidate_reusing_its_neighbors_result(service: Service) -> None:
    full = code_items(3, seed=9, prefix="n")
    items = [full[0], full[1] | {"codes": [], "end_reason": "empty"}, full[2],
             full[1] | {"id": "cut", "end_reason": "invalid_code"}]
    rows = service.score(items)
    assert [r["status"] for r in rows] == ["ok", "failed", "ok", "failed"]
    assert [r["error"]["code"] for r in rows if r["status"] == "failed"] == ["empty", "invalid_code"]
    assert service.score([full[2] | {"id": "alone"}])[0]["transcript"] == rows[2]["transcript"]


# -- cache, deadlines, limits ---------------------------------------------------------------------------------------


def test_the_same_item_is_worked_on_once(service: Service) -> None:
    item = code_items(1, seed=77, prefix="twice")[0]
    before = service.metric("batch_items_sum", kind="decode"), service.metric("cache_hits_total")
    with ThreadPoolExecutor(4) as threads:
        rows = list(threads.map(lambda _: service.score([item])[0], range(4)))
    assert all(row == rows[0] for row in rows)
    assert service.metric("batch_items_sum", kind="decode") == before[0] + 1
    assert service.metric("cache_hits_total") == before[1] + 3
    changed = service.score([item | {"text": "Six."}])[0]
    assert changed["components"]["ref_words"] == 1.0, "the same id with other content is another item"


def test_a_deadline_is_a_failure_and_ends_the_work(service: Service) -> None:
    rows = service.score(code_items(6, seed=3, prefix="late"), timeout_seconds=1e-4)
    assert {r["error"]["code"] for r in rows} == {"deadline"} and all(r["error"]["retryable"] for r in rows)
    assert service.metric("queued_seconds") == 0.0
    assert all(r["status"] == "ok" for r in service.score(code_items(6, seed=3, prefix="late")))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"codes": [8194] * 20}, "invalid_code"),
        ({"codes": [-1] * 20}, "invalid_code"),
        ({"codes": [10**30]}, "invalid_code"),
        ({"codes": [1] * 1001}, "too_long"),
        ({"codes": [8193] * 20}, None),
        ({"text": "..."}, "empty_reference"),
        ({"lang": "xx"}, "bad_language"),
    ],
)
def test_items_that_cannot_be_scored_say_why(service: Service, change: dict[str, Any], code: str | None) -> None:
    [row] = service.score([code_items(1)[0] | change])
    assert row.get("error", {}).get("code") == code


SOUNDS = {
    "garbage": (None, "bad_audio"),
    "empty": (np.zeros(0, np.float32), "too_short"),
    "one_sample": (np.ones(1, np.float32), "too_short"),
    "nan": (np.full(RATE, np.nan, np.float32), "non_finite"),
    "fifty_channels": (np.zeros((RATE // 10, 50), np.float32), "bad_audio"),
    "too_long": (np.zeros(RATE * 21, np.float32), "too_long"),
    "silent": (np.zeros(RATE, np.float32), None),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_that_cannot_be_heard_say_why(service: Service, name: str) -> None:
    samples, code = SOUNDS[name]
    item = {"id": name, "text": "Go.", "audio": "AAAA"}
    if samples is not None:
        subtype = "FLOAT" if name in ("nan", "one_sample") else None
        item["audio"] = sound_file(samples, subtype=subtype)
    pids = service.pids("score")
    [row] = service.score([item])
    assert row.get("error", {}).get("code") == code, row
    assert service.pids("score") == pids


@pytest.mark.parametrize(
    ("rate", "kind", "subtype"),
    [(8_000, "WAV", "PCM_U8"), (192_000, "WAV", "PCM_24"), (24_000, "FLAC", "PCM_16"), (48_000, "OGG", "OPUS")],
)
def test_sound_formats(service: Service, rate: int, kind: str, subtype: str) -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, rate).astype(np.float32)
    [row] = service.score([{"id": f"{kind}{rate}", "text": "Go.", "audio": sound_file(samples, rate, kind, subtype)}])
    assert row["status"] == "ok" and row["components"]["duration"] == pytest.approx(1.0, abs=0.02)


def test_openrlhf_gets_rewards_or_an_error_but_no_invented_number(service: Service) -> None:
    items = code_items(3, prefix="rl")
    wanted = [row["reward"] for row in service.score(items)]
    labels = [json.dumps({k: v for k, v in item.items() if k != "codes"}) for item in items]
    body = {"query": [json.dumps(item["codes"]) for item in items], "prompts": ["", "", ""], "labels": labels}
    answer = service.http.post("/get_reward", json=body)
    assert answer.json() == {"rewards": wanted, "scores": wanted, "extra_logs": {}}
    assert service.http.post("/get_reward", json={"query": [json.dumps(i) for i in items]}).json()["rewards"] == wanted
    body["query"][1] = "[]"
    answer = service.http.post("/get_reward", json=body)
    assert answer.status_code == 422 and "rewards" not in answer.json()
    assert "empty" in answer.json()["error"]["message"]
    poisoned = {"query": [json.dumps(sound_item("p", constant(RAISES)))]}
    assert service.http.post("/get_reward", json=poisoned).status_code == 503
    for query in ("no json", "[" * 5000, '{"id": 3}', "null"):
        assert service.http.post("/get_reward", json={"query": [query]}).status_code == 422


# -- overload -------------------------------------------------------------------------------------------------------


def test_overload_is_refused_with_retry_after_and_every_request_has_one_answer(service: Service) -> None:
    requests = [code_items(8, seed=i, prefix=f"o{i}-", low=100, high=150) for i in range(12)]  # 12 x 20 s, 60 fit
    start = threading.Barrier(12)

    def send(items: list[dict[str, Any]]) -> httpx.Response:
        start.wait()
        return service.http.post("/v1/score", json={"items": items})

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(send, requests))
    assert {a.status_code for a in answers} == {200, 429}
    for answer, items in zip(answers, requests, strict=True):
        if answer.status_code == 200:
            assert [row["id"] for row in answer.json()["items"]] == [i["id"] for i in items]
        else:
            assert 1 <= int(answer.headers["Retry-After"]) <= 30
    assert service.metric("queued_seconds") == 0.0
    assert service.score(code_items(2, seed=50, prefix="then"))[0]["status"] == "ok"


def test_a_request_that_would_never_fit_is_refused_for_good(service: Service) -> None:
    answer = service.http.post("/v1/score", json={"items": code_items(30, prefix="big", low=140, high=150)})
    assert answer.status_code == 413 and "60 s at once" in answer.json()["error"]["message"]


def test_metrics_are_prometheus_text(service: Service) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    service.http.get("/never/heard/of")
    text = service.http.get("/metrics").text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert {s.value for s in found["talker_rl_workers_ready"].samples} == {1.0}
    paths = {s.labels["path"] for s in found["talker_rl_requests"].samples}
    assert {"/v1/score", "/readyz", "other"} <= paths and not any("never" in p for p in paths)
