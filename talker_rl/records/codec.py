"""Codecs."""

from __future__ import annotations

CODE_RATE_HZ = 50
"""Codec tokens per second: one code is 2 mel frames of 240 samples at 24 kHz."""

NUM_CODES = 8194
"""Rows of the DiT's code table; any sampled id at or above it (a stop id aside) is invalid."""
