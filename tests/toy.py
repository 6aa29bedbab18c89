"""A recognizer and a reward component of one's own, named by import path in the tests' configuration.

They answer from the sound alone, so that the pipeline's mechanics can be tested in seconds on a random tiny model;
what the real recognizers hear is tested elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from omni_factory import WORDS

from talker_rl.reward.asr.base import GuardedRecognizer, Transcript


class ToyRecognizer(GuardedRecognizer):
    """Hears one word for every 50 ms, chosen by the level there."""

    def _recognize(self, audios: list[np.ndarray], lang: str) -> list[Transcript]:
        return [self._hear(audio) for audio in audios]

    def _hear(self, audio: np.ndarray) -> Transcript:
        count = max(1, len(audio) // 800)
        levels = [float(np.abs(part).mean()) for part in np.array_split(audio, count)]
        tokens = [WORDS[int(level * 1e5) % len(WORDS)] for level in levels]
        return Transcript(tokens, [(i * 0.05, i * 0.05 + 0.04) for i in range(count)])

    def fingerprint(self) -> str:
        return "toy-1"


def recognizer(config: Any) -> ToyRecognizer:
    """Factory that ``reward.recognizer.type: toy:recognizer`` names."""
    return ToyRecognizer(config)


def variety(item: Any, components: dict[str, Any]) -> float:
    """Share of different codes, in [0, 1]: what the toy reward prefers."""
    return len(set(item.codes)) / max(1, len(item.codes))


def count_calls(item: Any, components: dict[str, Any], file: str = "") -> float:
    """As ``variety``; leaves one line per call in a file, which tells a test that scoring has begun."""
    with Path(file).open("a") as log:
        log.write(f"{item.id}\n")
    return variety(item, components)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
