"""What a worker of the service has to get right before it works, and how long a dead service rests."""

from __future__ import annotations

import time

import numpy as np
import pytest

from talker_rl.records.codec import FIRST, codec_named
from talker_rl.reward.client import _Endpoint
from talker_rl.reward.service.canary import default_canary


@pytest.mark.parametrize("name", [FIRST, "qwen3_omni"])
def test_the_default_canary_is_two_seconds_of_any_codec(name: str) -> None:
    codec = codec_named(name)
    item = default_canary("Ann", codec).item
    assert item.codec == name and item.codes is not None
    assert codec.seconds(item.codes) == 2.0 and codec.invalid(item.codes) is None


def test_that_of_the_first_codec_is_what_it_was() -> None:
    before = np.random.default_rng(0).integers(0, 512, 100).tolist()
    assert default_canary("Ann", codec_named(FIRST)).item.codes == before


def test_a_service_that_is_dead_for_hours_rests_no_longer_than_others() -> None:
    endpoint = _Endpoint("http://127.0.0.1:1", failures=5000)
    endpoint.rest()
    assert 0 < endpoint.rests_until - time.monotonic() <= 20.0
