"""Qwen3-Omni's codec: sixteen codebooks of 2048 codes; a frame is 80 ms (1920 samples at 24 kHz)."""

from __future__ import annotations

from fractions import Fraction

from talker_rl.records.codec import Codec

CODEC = Codec(
    name="qwen3_omni", groups=16, sizes=(2048,) * 16, stops=(2150,), frame_rate=Fraction(25, 2), sample_rate=24_000,
    noisy=False,
)
"""The Talker says the first code of a frame, its code predictor the other fifteen; it stops by codec-eos (2150)."""
