"""The speech of candidates: which can be decoded, and with which noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from talker_rl.base.ids import derive_seed
from talker_rl.records.candidate import Candidate
from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.protocol import Utterance

if TYPE_CHECKING:
    from talker_rl.speech.protocol import Generator


def decode_candidates(
    generator: Generator, candidates: Sequence[Candidate], settings: Token2WavConfig, seed: int
) -> dict[str, np.ndarray]:
    """Speech (samples,) float32 by candidate id; candidates that cannot be decoded have none.

    Args:
        seed: root of the decoder's seeds: one per prompt, so that a prompt's candidates differ in their codes only.
    """
    able = [c for c in candidates if c.codes and c.end_reason != "invalid_code"]
    for candidate in able:
        generator.codec.refuse_other(candidate.codec, f"candidate {candidate.candidate_id}")
    noisy = generator.codec.noisy
    sounds = generator.decode([
        Utterance(c.codes, c.speaker, derive_seed(seed, "token2wav", c.prompt_id) if noisy else None) for c in able
    ], settings)
    return {c.candidate_id: np.asarray(s, dtype=np.float32) for c, s in zip(able, sounds, strict=True)}
