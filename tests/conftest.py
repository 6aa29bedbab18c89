"""Settings of all tests: no network, no telemetry, one thread per process; and what makes them cheap."""

from __future__ import annotations

import functools
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # nobody uses them
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.fsync = lambda fd: None  # type: ignore[assignment]  # what a killed process wrote outlives it: no power is cut here

HEAVY = (
    "test_online", "test_train_processes", "test_ray_pool", "test_engines", "test_job_scripts", "test_sweep",
    "test_stages", "test_diagnose", "test_sweep_tuned", "test_damaged_runs", "test_export", "test_train_launch",
    "test_chaining", "test_sequence_parallel", "test_benchmarks_gpu", "test_service", "test_service_faults",
    "test_train_trainer", "test_dashboards_browser", "test_strip_browser",
)
"""Modules whose tests or fixtures take longest."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two workers begin with a half each and then take each other's rest: what takes long comes first in both halves,
    so that the rest is small change and no module's fixtures are made twice."""
    place = {name: i for i, name in enumerate(HEAVY)}
    of = {id(item): place.get(item.path.stem, len(place)) for item in items}
    halves: tuple[list[pytest.Item], list[pytest.Item]] = [], []
    for item in items:
        if of[id(item)] < len(place):
            halves[of[id(item)] % 2].append(item)
    for half in halves:
        half.sort(key=lambda item: of[id(item)])
    light = [item for item in items if of[id(item)] == len(place)]
    split = max(0, len(items) // 2 - len(halves[0]))
    items[:] = [*halves[0], *light[:split], *halves[1], *light[split:]]


def pytest_collection_finish() -> None:
    """All that was imported stays: collections, which every training begins with, need not go through it. And of the
    state of the repository one answer is enough."""
    from talker_rl.store import run_dir

    run_dir.code_state = functools.cache(run_dir.code_state)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def service_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of `service`."""
    from service_helpers import service_world

    return service_world(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="session")
def service(service_config: Path) -> Iterator[Any]:
    """A running reward service (`service_helpers.Service`), one a session: its workers take seconds to start."""
    from service_helpers import Service, spec_of

    with Service(spec_of(service_config)) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser; without one the test is skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e .[dev]")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--mute-audio"])
        yield found
        found.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """``opened(path, width=1280, scheme="light")`` is a page; afterwards: nothing was requested, nothing went wrong."""
    trouble: list[str] = []
    contexts = []

    def request(asked: Any) -> None:
        if not asked.url.startswith(("file:", "data:", "blob:")):
            trouble.append(f"request: {asked.url}")

    def open_(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", request)
        page.on("console", lambda said: said.type in ("error", "warning") and trouble.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not trouble
