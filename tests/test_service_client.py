"""The client against a server that answers as it is told: what is tried again, what stops the run, what is refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from talker_rl.reward import client as client_module
from talker_rl.reward.client import ScoreClient, ServiceError
from talker_rl.reward.service.protocol import Item

LIMITS = {"max_items": 64, "max_seconds": 60, "queue_seconds": 600, "max_body_bytes": 2**20}
Answer = tuple[int, Any, dict[str, str]]
"""Status, body (JSON data, bytes, or None to cut the connection), headers."""


def scored(body: dict[str, Any], fingerprint: str = "f1", **changes: Any) -> Answer:
    rows = [{"id": i["id"], "status": "ok", "reward": len(i["codes"]) / 100, "components": {"wer": 0.0}} | changes
            for i in body["items"]]
    return 200, {"protocol": 1, "fingerprint": fingerprint, "items": rows}, {}


def problem(status: int, **headers: str) -> Answer:
    error = {"code": "x", "message": f"told to say {status}", "retryable": False}
    return status, {"error": error}, {k.replace("_", "-"): v for k, v in headers.items()}


class Scripted:
    """A real HTTP server; ``script`` maps (number of the request, its body) to an answer."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Answer], parts: dict[str, str] | None = None,
                 fingerprint: str = "f1") -> None:
        self.script, self.bodies, self.headers = script, [], []
        self.parts, self.fingerprint = parts or {}, fingerprint
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._send(200, {"ready": True, "fingerprint": outer.fingerprint, "parts": outer.parts,
                                 "limits": LIMITS}, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                self._send(*outer.script(number, body))

            def _send(self, status: int, data: Any, headers: dict[str, str]) -> None:
                if data is None:
                    self.close_connection = True
                    return
                raw = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*args: Any, **kwargs: Any) -> Scripted:
        made.append(Scripted(*args, **kwargs))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.005)
    monkeypatch.setattr(client_module, "_LONGEST_PAUSE", 0.05)


def items(count: int) -> list[Item]:
    return [Item(id=f"i{k}", text="go", speaker="Ann", seed=0, codes=[1] * (k + 1)) for k in range(count)]


def test_results_come_in_order_with_progress_and_the_token(scripted: Any) -> None:
    server = scripted(lambda n, body: (time.sleep(0.02 * (n == 0)), scored(body))[1])
    seen: list[tuple[int, int]] = []
    with ScoreClient([server.url + "/"], token="secret", request_items=3) as client:
        results = client.score(items(10), lambda done, total: seen.append((done, total)))
    assert [r.reward for r in results] == [(k + 1) / 100 for k in range(10)]
    assert seen[-1] == (10, 10) and [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}
    # Requests are under way together: which of them the server sees first is not told.
    assert sorted(len(b["items"]) for b in server.bodies) == [1, 3, 3, 3]


@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, "cut", "html"])
def test_what_may_pass_is_tried_again(scripted: Any, fault: Any) -> None:
    faults = {"cut": (0, None, {}), "html": (200, b"<html>a proxy</html>", {})}
    server = scripted(lambda n, body: (faults.get(fault) or problem(fault)) if n < 3 else scored(body))
    with ScoreClient([server.url]) as client:
        assert [r.id for r in client.score(items(2))] == ["i0", "i1"]
    assert len(server.bodies) == 4 and all(b == server.bodies[0] for b in server.bodies)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_tried_again(scripted: Any, status: int) -> None:
    server = scripted(lambda n, body: problem(status))
    with ScoreClient([server.url]) as client, pytest.raises(ServiceError, match=f"told to say {status}") as caught:
        client.score(items(2))
    assert len(server.bodies) == 1
    assert ("TALKER_RL_TOKEN" in str(caught.value)) == (status in (401, 403))


def test_retry_after_is_kept(scripted: Any) -> None:
    times: list[float] = []

    def script(n: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return problem(429, Retry_After="1") if n == 0 else scored(body)

    with ScoreClient([scripted(script).url]) as client:
        client.score(items(1))
    assert 1.0 <= times[1] - times[0]


def test_tries_are_bounded_and_the_last_reason_is_told(scripted: Any) -> None:
    server = scripted(lambda n, body: problem(503))
    with ScoreClient([server.url], attempts=4) as client, pytest.raises(ServiceError, match="told to say 503"):
        client.score(items(1))
    assert len(server.bodies) == 4
    with ScoreClient([server.url], patience=0.2) as client, pytest.raises(ServiceError, match="Gave up"):
        client.score(items(1))


def test_scorer_drift_within_a_run_stops_it(scripted: Any) -> None:
    server = scripted(lambda n, body: scored(body, "f1" if n < 2 else "f2"))
    with ScoreClient([server.url], request_items=1, concurrency=1) as client:
        with pytest.raises(ServiceError, match="Another scorer .* What differs: f2; f1"):
            client.score(items(4))
    assert len(server.bodies) == 3
    with ScoreClient([server.url], fingerprint="f0") as client:
        with pytest.raises(ServiceError, match="What differs: f1; f0"):
            client.connect()


def test_a_service_that_scores_otherwise_is_refused_before_anything_is_sent(scripted: Any) -> None:
    server = scripted(lambda n, body: scored(body), parts={"reward": "r1", "token2wav": "t1"})
    with ScoreClient([server.url], expected={"reward": "r1", "token2wav": "t2"}) as client:
        with pytest.raises(ServiceError, match="What differs: token2wav, the settings under token2wav"):
            client.score(items(1))
    assert server.bodies == []
    with ScoreClient([server.url], expected={"reward": "r1"}) as client:
        client.score(items(1))


@pytest.mark.parametrize("kind", ["other_ids", "too_few", "swapped"])
def test_an_answer_to_other_items_is_refused(scripted: Any, kind: str) -> None:
    def script(n: int, body: dict[str, Any]) -> Answer:
        status, data, headers = scored(body)
        rows = data["items"]
        data["items"] = {"other_ids": [r | {"id": "x" + r["id"]} for r in rows], "too_few": rows[:1],
                         "swapped": rows[::-1]}[kind]
        return status, data, headers

    with ScoreClient([scripted(script).url]) as client, pytest.raises(ServiceError, match="other items"):
        client.score(items(2))


@pytest.mark.parametrize(
    "changes",
    [{"reward": None}, {"reward": float("nan")}, {"reward": "high"}, {"status": "failed"},
     {"error": {"code": "c", "message": "m", "retryable": False}}],
)
def test_failure_as_zero_an_answer_that_is_no_score_is_never_taken_for_one(scripted: Any, changes: Any) -> None:
    server = scripted(lambda n, body: scored(body, **changes))
    with ScoreClient([server.url], attempts=2) as client, pytest.raises(ServiceError, match="not the answer of"):
        client.score(items(1))


def test_items_that_failed_by_the_machines_fault_are_sent_again_and_others_are_not(scripted: Any) -> None:
    def script(n: int, body: dict[str, Any]) -> Answer:
        status, data, headers = scored(body)
        for row in data["items"]:
            if row["id"] in ("i1", "i2"):
                error = {"code": "worker_died", "message": "m", "retryable": row["id"] == "i1"}
                row.update(status="failed", reward=None, error=error)
        return status, data, headers

    server = scripted(script)
    with ScoreClient([server.url], item_retries=2) as client:
        results = client.score(items(3))
    assert [r.status for r in results] == ["ok", "failed", "failed"]
    assert [[i["id"] for i in b["items"]] for b in server.bodies] == [["i0", "i1", "i2"], ["i1"], ["i1"]]


def test_work_is_spread_and_goes_around_a_service_that_is_down(scripted: Any) -> None:
    def slow(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.01)
        return scored(body)

    one, two, down = scripted(slow), scripted(slow), scripted(lambda n, body: problem(500))
    with ScoreClient([one.url, two.url, down.url], request_items=1, concurrency=4) as client:
        assert len(client.score(items(40))) == 40
    assert len(one.bodies) + len(two.bodies) == 40 and min(len(one.bodies), len(two.bodies)) >= 5
    assert len(down.bodies) < 20


def test_hedging_asks_a_second_service_only_when_wanted(scripted: Any) -> None:
    for hedge in (0.05, None):
        freed, asked = threading.Event(), threading.Event()

        def stuck(n: int, body: dict[str, Any], freed: threading.Event = freed, asked: Any = asked) -> Answer:
            asked.set()
            freed.wait()
            return scored(body)

        quick = scripted(lambda n, body: scored(body))
        slow = scripted(stuck)
        with ScoreClient([slow.url, quick.url], hedge_after=hedge) as client:
            client.connect()
            client._endpoints[1].asked = 1  # the slow one is chosen first
            if hedge is None:  # long after another would have been asked
                threading.Thread(target=lambda asked=asked, freed=freed: (asked.wait(), time.sleep(0.3), freed.set()),
                                 daemon=True).start()
            client.score(items(1))
            assert asked.is_set() and freed.is_set() == (hedge is None)
        assert len(quick.bodies) == (hedge is not None)
        freed.set()


def test_a_service_that_is_not_there_is_waited_for_and_then_told() -> None:
    with ScoreClient(["http://127.0.0.1:9"], patience=0.3) as client:
        with pytest.raises(ServiceError, match="No reward service became ready.*ConnectError"):
            client.score(items(1))
    with ScoreClient(["not a url"], patience=0.1) as client, pytest.raises(ServiceError, match="not a url"):
        client.connect()
    with pytest.raises(ServiceError, match="No endpoint"):
        ScoreClient([])
