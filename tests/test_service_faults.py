"""Faults, one a test: workers killed, stopped, poisoned; clients gone; clocks jumping; the service killed under load.

No fault ever turns into a number, and no item is lost or answered twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_helpers import (
    DIES,
    HANGS,
    ROOT,
    Service,
    code_items,
    constant,
    noise,
    service_world,
    set_touchy,
    sound_item,
    spec_of,
    wait_for,
)

from talker_rl.reward.client import ScoreClient
from talker_rl.reward.service.protocol import Item


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return service_world(tmp_path_factory.mktemp("faults"), worker_timeout=120.0, recognizers=2)


@pytest.fixture(scope="module")
def service(config: Path) -> Any:
    with Service(spec_of(config)) as running:
        yield running


@pytest.fixture(autouse=True)
def pace(config: Path) -> Iterator[Callable[[float], None]]:
    """Sets how slowly the recognizer hears, seconds per second of sound; quick again afterwards."""
    yield lambda seconds: set_touchy(config.parent, pace=seconds)
    set_touchy(config.parent)


def rewards_of(service: Service, items: list[dict[str, Any]]) -> dict[str, float]:
    return {row["id"]: row["reward"] for row in service.score(items)}


def score_with_client(service: Service, items: list[dict[str, Any]], **settings: Any) -> dict[str, float | None]:
    with ScoreClient([service.url], request_items=4, **settings) as client:
        return {r.id: r.reward for r in client.score([Item.model_validate(i) for i in items])}


def busy(service: Service, kind: str) -> bool:
    """Whether a worker of this kind is at work: a job is under way that waits in no queue."""
    live = len(service.engine._live)
    waiting = sum(len(pool.queue) for pool in service.engine.pools.values())
    return live > waiting and len(service.engine.pools[kind].workers) > 0


def kill_repeatedly(service: Service, times: int, slow: Callable[[float], None]) -> None:
    items = [sound_item(f"k{times}-{i}", noise(0.3 + 0.05 * (i % 7), i)) for i in range(24)]
    right = rewards_of(service, [i | {"id": "r" + i["id"]} for i in items])
    deaths = service.metric("worker_deaths_total", kind="score")
    slow(0.4)
    done = threading.Event()

    def kill() -> None:
        for _ in range(times):
            wait_for(lambda: done.is_set() or busy(service, "score"), 300)
            if done.is_set():
                return
            os.kill(service.pids("score")[0], signal.SIGKILL)
            count = service.metric("worker_deaths_total", kind="score")
            wait_for(lambda count=count: done.is_set() or service.metric("worker_deaths_total", kind="score") > count)

    killer = threading.Thread(target=kill)
    killer.start()
    rounds = 0
    while killer.is_alive() or rounds == 0:
        rounds += 1
        named = [i | {"id": f"{rounds}-{i['id']}"} for i in items]
        found = score_with_client(service, named, item_retries=20, timeout=900.0)
        assert found == {f"{rounds}-{i['id']}": right["r" + i["id"]] for i in items}
    done.set()
    killer.join()
    assert service.metric("worker_deaths_total", kind="score") == deaths + times


def test_a_worker_that_is_killed_mid_batch_costs_nothing(service: Service, pace: Any) -> None:
    kill_repeatedly(service, 2, pace)


@pytest.mark.slow
def test_a_worker_that_is_killed_mid_batch_twenty_times_costs_nothing(service: Service, pace: Any) -> None:
    kill_repeatedly(service, 20, pace)


def test_a_poisoned_item_fails_and_takes_none_of_its_batch_along(service: Service) -> None:
    service.wait_ready()
    items = [sound_item(f"good{i}", noise(1.0, i)) for i in range(3)]
    right = rewards_of(service, items)
    named = [i | {"id": "b" + i["id"]} for i in items]
    deaths = service.metric("worker_deaths_total", kind="score")
    rows = service.score([*named[:2], sound_item("poison", constant(DIES)), named[2]])
    good, bad = [r for r in rows if r["id"] != "poison"], rows[2]
    assert (bad["error"]["code"], bad["error"]["retryable"]) == ("worker_died", True) and "reward" not in bad
    assert {r["id"][1:]: r["reward"] for r in good} == right
    assert service.metric("worker_deaths_total", kind="score") == deaths + 2
    wait_for(lambda: len(service.pids("score")) == 2, 300)


def test_a_decoder_that_is_killed_comes_back(service: Service) -> None:
    items = code_items(6, seed=1, prefix="d")
    right = rewards_of(service, items)
    [pid] = service.pids("decode")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.pids("decode") == [])
    assert service.http.get("/readyz").status_code == 503
    assert rewards_of(service, [i | {"seed": i["seed"]} for i in items]) == right  # from the cache meanwhile
    found = score_with_client(service, [i | {"id": "e" + i["id"]} for i in items])
    assert found == {"e" + name: value for name, value in right.items()}
    assert service.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_a_worker_that_stops_answering_is_replaced(service: Service, how: str) -> None:
    service.wait_ready()
    pool = service.engine.pools["score"]
    wait_for(lambda: len(pool.workers) == 2, 300)
    before, pool._timeout = pool._timeout, 3.0
    try:
        if how == "stopped":
            stopped = service.pids("score")
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            [row] = service.score([sound_item("stop", noise(0.5))])
            assert row["error"]["code"] == "worker_died" and "no answer within 3 s" in row["error"]["message"]
        else:
            stopped = []
            rows = service.score([sound_item("hang", constant(HANGS)), sound_item("by", noise(0.5, 4))])
            assert rows[0]["error"]["code"] == "worker_died" and rows[1]["status"] == "ok"
    finally:
        pool._timeout = before
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in stopped), what="the stopped ones are gone")
    assert service.score([sound_item("after", noise(0.5))])[0]["status"] == "ok"


def test_a_client_that_hangs_up_frees_the_queue(service: Service, pace: Any) -> None:
    service.wait_ready()
    pace(2.0)
    items = code_items(20, seed=2, prefix="gone", low=40, high=60)
    with contextlib.suppress(httpx.ReadTimeout), httpx.Client(trust_env=False) as other:
        other.post(f"{service.url}/v1/score", json={"items": items}, timeout=1.0)
    wait_for(lambda: service.metric("queued_seconds") == 0.0, 10, "the queue is free")
    assert not service.engine._live and all(len(p.queue) == 0 for p in service.engine.pools.values())
    pace(0.0)
    assert all(r["status"] == "ok" for r in service.score(items)), "the same items are scored anew"


def test_two_clients_want_the_same_item_and_one_hangs_up(service: Service, pace: Any) -> None:
    service.wait_ready()
    pace(2.0)
    items = [sound_item("shared", noise(1.0, 8))]
    with ThreadPoolExecutor(1) as threads:
        kept = threads.submit(service.score, items)
        wait_for(lambda: len(service.engine._live) == 1)
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(trust_env=False) as other:
            other.post(f"{service.url}/v1/score", json={"items": items}, timeout=0.3)
        assert kept.result(60)[0]["status"] == "ok"


def test_a_clock_that_jumps_changes_nothing(service: Service, monkeypatch: pytest.MonkeyPatch, pace: Any) -> None:
    service.wait_ready()
    real = time.time
    pace(0.2)
    jumps = iter([86_400.0 * 400, -86_400.0 * 4000, 0.0])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(service.score, code_items(12, seed=4, prefix="clock"), timeout_seconds=60)
        for jump in jumps:
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            time.sleep(0.1)
        assert all(r["status"] == "ok" for r in waiting.result(60))


def test_scorer_drift_within_a_run_a_worker_that_became_another_scorer_never_works(
    service: Service, config: Path
) -> None:
    service.wait_ready()
    wait_for(lambda: len(service.pids("score")) == 2, 300)
    set_touchy(config.parent, fingerprint="touchy-2")
    for pid in service.pids("score"):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "not what this service began with" in str(service.engine.pools["score"].problem), 300)
    ready = service.http.get("/readyz")
    assert ready.status_code == 503 and "recognizer" in ready.json()["reason"]
    [row] = service.score([sound_item("drift", noise(0.5, 3))], timeout_seconds=1)
    assert row["error"]["code"] == "deadline"
    set_touchy(config.parent)
    service.wait_ready()


# -- the whole service as a process ---------------------------------------------------------------------------------


class Process:
    """`talker-rl serve`, as a user starts it."""

    def __init__(self, config: Path, port: int, stderr: Any) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "talker_rl.cli", "serve", "-c", str(config), "--port", str(port)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stderr=stderr, start_new_session=True,
        )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, "the service ended"
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
            return False

        wait_for(ready, 600, "ready")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def children(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    found.append(int(stat.parent.name))
        return found


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_service_is_killed_and_restarted_under_load_and_the_client_finishes(tmp_path: Path) -> None:
    config = service_world(tmp_path, pace=0.15)
    port = free_port()
    items = [Item.model_validate(i) for i in code_items(60, seed=6, prefix="r", low=20, high=60)]
    with open("/dev/full", "w") as full:  # a disk without space for the log must not matter either
        first = Process(config, port, full)
        first.wait_ready()
        workers = first.children()
        assert len(workers) == 2
        progress: list[int] = []
        with ScoreClient([first.url], request_items=4, concurrency=4, attempts=200, patience=600) as client:
            with ThreadPoolExecutor(1) as threads:
                job = threads.submit(client.score, items, lambda done, total: progress.append(done))
                wait_for(lambda: len(progress) >= 2, 120)
                first.end(signal.SIGKILL)
                assert not job.done(), "it was killed too late to mean anything"
                wait_for(lambda: not any(os.path.exists(f"/proc/{p}") for p in workers), 30, "its workers are gone")
                second = Process(config, port, subprocess.DEVNULL)
                results = job.result(600)
    assert [r.id for r in results] == [i.id for i in items]
    assert all(r.status == "ok" and r.reward is not None for r in results)
    workers = second.children()
    with ThreadPoolExecutor(1) as threads:  # a drain: what was accepted is answered before the end
        late = threads.submit(httpx.post, f"{second.url}/v1/score", timeout=60, trust_env=False,
                              json={"items": code_items(8, seed=60, prefix="late", low=40)})
        idle = "talker_rl_queued_seconds 0.0"
        wait_for(lambda: idle not in httpx.get(f"{second.url}/metrics", trust_env=False).text)
        assert second.end(signal.SIGTERM) == 0
        assert late.result().status_code == 200
        assert all(row["status"] == "ok" for row in late.result().json()["items"])
    wait_for(lambda: not any(os.path.exists(f"/proc/{p}") for p in workers), 30, "its workers are gone")
