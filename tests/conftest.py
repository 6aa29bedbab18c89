"""Settings of all tests: no network, no telemetry, one thread per process."""

from __future__ import annotations

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
