"""The canary: one utterance that every worker must get right before it may work, whenever it is started."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from pydantic import Field

from talker_rl.base.settings import Settings
from talker_rl.records.codec import Codec
from talker_rl.reward.service.protocol import Item

SOUND_TOLERANCE = 1e-3
REWARD_TOLERANCE = 1e-5


class CanarySpec(Settings):
    """An utterance and its score, where that is known."""

    item: Item
    transcript: list[str] | None = Field(default=None, description="null: what the first worker hears counts as right.")
    reward: float | None = None


def default_canary(speaker: str, codec: Codec) -> CanarySpec:
    """Two seconds of fixed codes: whatever they sound like, it must stay the same."""
    rng, frames = np.random.default_rng(0), round(2 * codec.rate)
    books = [rng.integers(0, min(512, size), frames).tolist() for size in codec.sizes]
    codes = [code for frame in zip(*books, strict=True) for code in frame]
    return CanarySpec(item=Item(id="canary", text="One, two.", speaker=speaker, seed=0, codes=codes, codec=codec.name))


class Canary:
    """Remembers what is right.

    Without an expected score the first worker's result is taken for right: then a wrong model is not noticed, a drift
    is.
    """

    def __init__(self, spec: CanarySpec | None) -> None:
        self.spec = spec
        self.decoded = asyncio.Event()
        self.sound = b""
        self._result: dict[str, Any] | None = None

    def check_sound(self, header: dict[str, Any], blobs: list[bytes]) -> str | None:
        """What is wrong with a decoder's answer to the canary, or None."""
        fault = header["results"][0]
        if fault:
            return f"the decoder failed: {fault['message']}"
        if self.decoded.is_set():
            before, now = (np.frombuffer(b, np.float32) for b in (self.sound, blobs[0]))
            if before.shape != now.shape or not np.allclose(before, now, atol=SOUND_TOLERANCE, rtol=0):
                return "the decoder makes another sound than before"
            return None
        if not np.isfinite(np.frombuffer(blobs[0], np.float32)).all():
            return "the decoder makes NaN"
        self.sound = blobs[0]
        self.decoded.set()
        return None

    def check_score(self, header: dict[str, Any]) -> str | None:
        """What is wrong with a recognizer's answer to the canary, or None."""
        found = header["results"][0]
        if self._result is None:
            assert self.spec is not None
            if self.spec.transcript is not None and found["status"] != "ok":
                return f"it has no score: {found['error']['message']}"
            expected = {"transcript": self.spec.transcript, "reward": self.spec.reward}
            known = {name: value for name, value in expected.items() if value is not None}
            self._result = found | known
            fault = _difference(self._result, found)
            if fault:
                self._result = None  # nothing was right yet
            return fault
        return _difference(self._result, found)


def _difference(right: dict[str, Any], found: dict[str, Any]) -> str | None:
    if right["status"] != found["status"]:
        return f"its status is {found['status']} instead of {right['status']}"
    if right["status"] == "failed":
        was, now = right["error"]["code"], found["error"]["code"]
        return None if was == now else f"it fails as {now} instead of {was}"
    if right["transcript"] != found["transcript"]:
        return f"the transcript is {' '.join(found['transcript'])!r} instead of {' '.join(right['transcript'])!r}"
    if abs(right["reward"] - found["reward"]) > REWARD_TOLERANCE:
        return f"the reward is {found['reward']} instead of {right['reward']}"
    return None
