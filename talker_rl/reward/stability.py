"""Stability columns: numbers that show speech falling apart, each by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from talker_rl.records.codec import Codec
from talker_rl.reward.config import StabilityConfig
from talker_rl.reward.silences import Silences

_VOWELS = re.compile(r"[aeiouyàáâãäåæèéêëìíîïòóôõöøùúûüýÿœ]+")


def speaking_units(tokens: Sequence[str]) -> int:
    """About how many syllables a text has: one per Han or kana character, vowel group of a word, or digit.

    A rough count is enough: it normalizes the rate across texts and never compares two of them.
    """
    total = 0
    for token in tokens:
        if token[0].isdigit():
            total += sum(c.isdigit() for c in token)
        elif len(token) == 1:
            total += 1
        else:
            groups = len(_VOWELS.findall(token))
            silent_e = groups > 1 and token.endswith("e") and token[-2] not in "aeiouyl"
            total += max(1, groups - silent_e)
    return total


def longest_run(codes: Sequence[int]) -> int:
    """Length of the longest run of one code."""
    return max((sum(1 for _ in run) for _, run in groupby(codes)), default=0)


def repeated_ngrams(codes: Sequence[int], n: int) -> float:
    """Share of n-grams that occurred before, in [0, 1]; 0 for sequences shorter than n + 1."""
    grams = [tuple(codes[i : i + n]) for i in range(len(codes) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def stability_components(
    audio: np.ndarray,
    sample_rate: int,
    silences: Silences,
    tokens: Sequence[str],
    codes: Sequence[int] | None,
    codec: Codec,
    end_reason: str | None,
    reference_seconds: float | None,
    config: StabilityConfig,
) -> dict[str, float | None]:
    """All stability columns of one utterance; None where a column does not apply (no codes, no reference).

    ``rate`` is syllables of the text per second of speech, ends without silence; ``duration`` is that of the codes.
    """
    duration = codec.seconds(codes) if codes is not None else len(audio) / sample_rate
    first = (codes or ())[:: codec.groups]  # of several codebooks the first says what is said
    finite = np.isfinite(audio)
    spoken = silences.duration - silences.lead - silences.tail
    return {
        "duration": duration,
        "duration_ratio": duration / reference_seconds if reference_seconds else None,
        "rate": speaking_units(tokens) / spoken if spoken > 0 else None,
        "lead_silence": silences.lead,
        "tail_silence": silences.tail,
        "max_inner_silence": silences.longest_inner,
        "repeated_run": float(longest_run(first)) if codes is not None else None,
        "repeated_ngram": repeated_ngrams(first, config.ngram) if codes is not None else None,
        "cap_hit": float(end_reason == "max_tokens") if end_reason is not None else None,
        "clipping": float(np.mean(np.abs(audio[finite]) >= config.clip_level)) if finite.any() else 0.0,
        "non_finite": float(np.mean(~finite)) if len(audio) else 0.0,
    }
