"""The reward service against scoring in one process, and under ten times its capacity. Loopback only; ends by itself.

    python -m benchmarks service --json service.json

1. Candidates are sampled from the model, scored in this process, then through `talker-rl serve` by concurrent requests:
   transcripts and error counts must be identical, floats within 1e-5, and the wall time at most 10 % longer.
2. Clients offer ten times what the service was measured to do: every request must get exactly one answer, each 429 a
   Retry-After, memory must stay within 1.2 times its level before, and normal service return within 5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from talker_rl import cli
from talker_rl.base.ids import derive_seed
from talker_rl.base.places import check_writable_file
from talker_rl.config import RunConfig, load_config
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.reward.client import ScoreClient
from talker_rl.reward.service.protocol import Item
from talker_rl.stages import worker
from talker_rl.stages.remote import item_of, row_of
from talker_rl.store.shards import ShardFolder

FLOATS = 1e-5
OVERHEAD = 0.10
MEMORY = 1.2
RECOVERY = 5.0


def main(argv: Sequence[str]) -> int:
    """Measure, print, write; 1 where a line is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks service", description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--config", "-c", action="append", help="configuration files (default smoke)")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16, help="concurrent requests of the first part")
    parser.add_argument("--overload-clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the overload")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    if args.json:
        check_writable_file(args.json)
    config = load_config(args.config or ["smoke"], args.overrides)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        file = work / "config.yaml"
        file.write_text(_sized(config, args.candidates).to_yaml())
        candidates, prompts = sample(file, work / "run", args.candidates)
        here = in_process(load_config([file]), candidates, prompts)
        with service(file) as (url, process):
            items = [item_of(prompts[c.prompt_id], c, derive_seed(config.seed, "token2wav", c.prompt_id))
                     for c in candidates]
            there = through_service(url, process, items, args.clients)
            figures = {"equal": compare(candidates, prompts, here, there)}
            pace = sum(len(c.codes) for c in candidates) / 50 / there["seconds"]
            figures["overload"] = asyncio.run(
                overload(url, process, items, pace, args.overload_clients, args.seconds, config.service.queue_seconds)
            )
    figures["lines"] = lines(figures)
    print(json.dumps(figures, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(figures["lines"].values()) else 1


def lines(figures: dict[str, Any]) -> dict[str, bool]:
    """The lines to meet."""
    equal, load = figures["equal"], figures["overload"]
    return {
        "scores are those of one process": equal["different"] == 0,
        f"wall time at most {OVERHEAD:.0%} longer": equal["overhead"] <= OVERHEAD,
        "every request has one answer": load["lost"] == load["duplicated"] == 0 and load["sent"] == load["answered"],
        "every 429 carries Retry-After": load["without_retry_after"] == 0 and load["refused"] > 0,
        f"memory within {MEMORY} of before": load["memory_ratio"] <= MEMORY,
        "latency within the queue's bound": load["latency_p99"] <= load["latency_bound"],
        f"normal service within {RECOVERY:g} s": load["recovery"] <= RECOVERY,
    }


def _sized(config: RunConfig, candidates: int) -> RunConfig:
    """The configuration with as many candidates, 5 per prompt, and a sampling that the micro model speaks well with."""
    data = config.resolved()
    data["rollouts"] |= {"num_candidates": 5, "shard_size": 16}
    data["prompts"]["limit"] = {"train": -(-candidates // 5), "dev": 1, "eval": 1}
    return RunConfig.model_validate(data)


def sample(file: Path, run: Path, count: int) -> tuple[list[Candidate], dict[str, Prompt]]:
    """Candidates to score, from the model itself."""
    for verb in ("prompts", "condition", "rollout"):
        if cli.main([verb, "-c", str(file), "--run-dir", str(run)]):
            raise SystemExit(f"talker-rl {verb} failed")
    prompts = {p.prompt_id: p for p in ShardFolder(run / "prompts").read(0, Prompt)}
    return ShardFolder(run / "rollouts").read_all(Candidate)[:count], prompts


def in_process(config: RunConfig, candidates: list[Candidate], prompts: dict[str, Prompt]) -> dict[str, Any]:
    """Rows and time of the scoring stage's own function, models loaded beforehand."""

    judging = worker.Judging(config.token2wav, config.reward, list(prompts.values()), config.seed)

    def task(part: list[Candidate]) -> worker.Task:
        return worker.Task(config.model, judging=judging, candidates=part)

    worker.work(task(candidates[:1]))
    start, cpu = time.monotonic(), time.process_time()
    rows = [row for at in range(0, len(candidates), 80) for row in worker.work(task(candidates[at : at + 80])).scores]
    took = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
    return {"rows": rows, **took}


@contextlib.contextmanager
def service(file: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A running service on a free port of the loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "talker_rl.cli", "serve", "-c", str(file), "--port", str(port)],
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        with ScoreClient([f"http://127.0.0.1:{port}"]) as client:
            client.connect()
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _memory(process: psutil.Process) -> float:
    """Mebibytes of the service and its workers."""
    total = 0
    for each in _tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total / 2**20


def _cpu(process: psutil.Process) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in _tree(process))


def through_service(url: str, process: psutil.Process, items: list[Item], clients: int) -> dict[str, Any]:
    """Results and time of concurrent requests."""
    with ScoreClient([url], concurrency=clients) as client:
        client.connect()
        start, cpu = time.monotonic(), _cpu(process)
        results = client.score(items)
        return {"results": results, "seconds": time.monotonic() - start, "cpu_seconds": _cpu(process) - cpu}


def compare(
    candidates: list[Candidate], prompts: dict[str, Prompt], here: dict[str, Any], there: dict[str, Any]
) -> dict[str, Any]:
    """How many rows differ, by how much, and what the way through the service cost."""
    different, largest = 0, 0.0
    for candidate, mine, result in zip(candidates, here["rows"], there["results"], strict=True):
        theirs = row_of(prompts[candidate.prompt_id], candidate, result)
        same = all(
            getattr(mine, name) == getattr(theirs, name)
            for name in ("candidate_id", "status", "transcript", "errors", "error_code", "error_message")
        )
        if same and mine.status == "ok":
            numbers = [(mine.reward, theirs.reward), *((v, theirs.components[k]) for k, v in mine.components.items())]
            same = all((a is None) == (b is None) for a, b in numbers)
            gap = max(abs(a - b) for a, b in numbers if a is not None and b is not None)
            largest = max(largest, gap)
            same = same and gap <= FLOATS
        different += not same
    return {
        "candidates": len(candidates),
        "failed": sum(row.status == "failed" for row in here["rows"]),
        "different": different,
        "largest_difference": largest,
        "speech_seconds": sum(len(c.codes) for c in candidates) / 50,
        "in_process_seconds": here["seconds"],
        "in_process_cpu_seconds": here["cpu_seconds"],
        "service_seconds": there["seconds"],
        "service_cpu_seconds": there["cpu_seconds"],
        "overhead": there["seconds"] / here["seconds"] - 1,
    }


async def overload(
    url: str, process: psutil.Process, items: list[Item], pace: float, clients: int, seconds: float, bound: float
) -> dict[str, Any]:
    """Open-loop clients that together offer ten times `pace` seconds of speech per second."""
    share = 4
    length = float(np.mean([len(i.codes or ()) for i in items])) / 50 * share
    interval = clients * length / (10 * pace)
    before, peak = _memory(process), 0.0
    counts = dict.fromkeys(("sent", "answered", "accepted", "refused", "other", "lost", "duplicated",
                            "without_retry_after"), 0)
    latencies: list[float] = []
    seen: set[str] = set()
    stop = time.monotonic() + seconds

    async def request(http: httpx.AsyncClient, name: str, number: int) -> None:
        chosen = [items[(number * share + k) % len(items)] for k in range(share)]
        body = {"items": [i.model_copy(update={"id": f"{name}-{k}"}).model_dump(exclude_none=True, mode="json")
                          for k, i in enumerate(chosen)]}
        counts["sent"] += 1
        start = time.monotonic()
        try:
            answer = await http.post(f"{url}/v1/score", json=body)
        except httpx.HTTPError:
            counts["lost"] += 1
            return
        counts["answered"] += 1
        if answer.status_code == 200:
            counts["accepted"] += 1
            latencies.append(time.monotonic() - start)
            ids = [row["id"] for row in answer.json()["items"]]
            counts["duplicated"] += len(seen & set(ids))
            counts["lost"] += ids != [f"{name}-{k}" for k in range(share)]
            seen.update(ids)
        elif answer.status_code == 429:
            counts["refused"] += 1
            counts["without_retry_after"] += "retry-after" not in answer.headers
        else:
            counts["other"] += 1

    async def client(which: int) -> None:
        await asyncio.sleep(interval * which / clients)
        number = 0
        async with httpx.AsyncClient(timeout=600, trust_env=False) as http:
            while time.monotonic() < stop:
                due = time.monotonic() + interval
                await request(http, f"{which}-{number}", which * 1009 + number)
                number += 1
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _memory(process))
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*map(client, range(clients)))
    watcher.cancel()
    end = time.monotonic()
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        accepted = counts["accepted"]
        while counts["accepted"] == accepted and time.monotonic() < end + 60:
            await request(http, f"after-{counts['sent']}", counts["sent"])
    return counts | {
        "clients": clients,
        "seconds": seconds,
        "offered_speech_a_second": clients * length / interval,
        "measured_speech_a_second": pace,
        "latency_p50": float(np.percentile(latencies, 50)),
        "latency_p99": float(np.percentile(latencies, 99)),
        "latency_bound": 1.5 * bound / pace + 5.0,
        "memory_before_mib": before,
        "memory_peak_mib": peak,
        "memory_ratio": peak / before,
        "recovery": time.monotonic() - end,
    }
