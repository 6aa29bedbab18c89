"""Settings of all tests: no network, no telemetry, one thread per process."""

from __future__ import annotations

import os
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
