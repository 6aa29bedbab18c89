"""Qwen2.5-Omni's codec: one codebook; a code is two mel frames of 240 samples at 24 kHz."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from talker_rl.records.codec import Codec

CODEC = Codec(
    name="qwen2_5_omni", groups=1, sizes=(8194,), stops=(8294, 8292), frame_rate=Fraction(50), sample_rate=24_000,
    noisy=True,
)
"""8194 rows of the DiT's code table; the Talker stops by codec-eos (8294) or codec-pad (8292)."""


def codec_of(config: Mapping[str, Any]) -> Codec:
    """The codec of a checkpoint, by its config.json: all have the same."""
    return CODEC
