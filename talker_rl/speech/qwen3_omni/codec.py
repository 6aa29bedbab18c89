"""Qwen3-Omni's codec: sixteen codebooks of 2048 codes; a frame is 80 ms (1920 samples at 24 kHz).

A small model of the family may have fewer and smaller books: its codec is a variant, and is called so in records
(``qwen3_omni-8x256``). Ids of the Talker's own vocabulary that are no codes lie behind the codes, at the same distance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from talker_rl.records.codec import Codec

NAME, GROUPS, SIZE = "qwen3_omni", 16, 2048
STOP, PAD, BOS = 102, 100, 101
"""Of the published ids, how far they lie behind the last code: codec-eos is 2150."""


def of_size(groups: int, size: int) -> Codec:
    """The codec of so many books of so many codes: the Talker says the first code of a frame, its code predictor the
    others; it stops by codec-eos."""
    name = NAME if (groups, size) == (GROUPS, SIZE) else f"{NAME}-{groups}x{size}"
    return Codec(name=name, groups=groups, sizes=(size,) * groups, stops=(size + STOP,), frame_rate=Fraction(25, 2),
                 sample_rate=24_000, noisy=False)


def variant(text: str) -> Codec:
    """The codec that a name's second part says.

    Raises:
        ValueError: it says none.
    """
    found = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,5})", text)
    if found is None:
        raise ValueError(text)
    return of_size(int(found[1]), int(found[2]))


def codec_of(config: Mapping[str, Any]) -> Codec:
    """The codec of a checkpoint, by its config.json; the published one where the file does not say."""
    talker = config.get("talker_config") or {}
    predictor = talker.get("code_predictor_config") or {}
    return of_size(int(talker.get("num_code_groups") or GROUPS), int(predictor.get("vocab_size") or SIZE))


CODEC = of_size(GROUPS, SIZE)
