"""Speech from plain ids, as tests write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from talker_rl.records.speech import Speech
from talker_rl.speech.protocol import TalkerSequence
from talker_rl.speech.qwen2_5_omni.codec import CODEC


def said(ids: Sequence[int]) -> Speech:
    """What ids say, the stop last where there is one."""
    return CODEC.speech(ids)


def sequence(conditioning: Any, ids: Sequence[int] | Speech) -> TalkerSequence:
    """A sequence to score."""
    return TalkerSequence(conditioning, ids if isinstance(ids, Speech) else said(ids))
