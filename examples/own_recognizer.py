"""A recognizer of one's own: two that must agree. A word that only one of them hears is <unk>, an error.

    PYTHONPATH=examples talker-rl score -c demo reward.recognizer.type=own_recognizer:build
    python examples/own_recognizer.py    (hears two candidates of the micro model)

A recognizer has `transcribe(audios, lang) -> list[Transcript | Failure]`, in order, and `fingerprint()`, which must
change whenever results may: scores are kept by it. `GuardedRecognizer` refuses what models crash or hallucinate on
before `_recognize` sees it, and hears the items of a failing batch one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from talker_rl import RecognizerConfig
from talker_rl.base.text.alignment import align
from talker_rl.reward.asr.base import UNKNOWN, Failure, GuardedRecognizer, Transcript
from talker_rl.reward.asr.registry import build_recognizer
from talker_rl.reward.recognizer_config import RecognizerSettings


class Agreement(GuardedRecognizer):
    """What the first hears, where the second hears the same."""

    def __init__(self, config: RecognizerSettings, paths: Sequence[str] = ("micro:reward", "micro:eval")) -> None:
        super().__init__(config)
        self.both = [build_recognizer(RecognizerConfig(path=path, device=config.device)) for path in paths]

    def fingerprint(self) -> str:
        return "agreement-1-" + "-".join(one.fingerprint() for one in self.both)

    def _recognize(self, audios: list[np.ndarray], lang: str) -> Sequence[Transcript | Failure]:
        first, second = (one.transcribe(audios, lang) for one in self.both)
        return [self._agreed(a, b) for a, b in zip(first, second, strict=True)]

    def _agreed(self, a: Transcript | Failure, b: Transcript | Failure) -> Transcript | Failure:
        if isinstance(a, Failure) or isinstance(b, Failure):
            return a if isinstance(a, Failure) else b
        heard = align(a.tokens, b.tokens).hits
        tokens = [token if hit is not None else UNKNOWN for token, hit in zip(a.tokens, heard, strict=True)]
        return Transcript(tokens, a.spans, a.spans_fault)


def build(config: RecognizerSettings) -> Agreement:
    """What `reward.recognizer.type` names."""
    return Agreement(config)


if __name__ == "__main__":
    from quickstart import items

    from talker_rl.base.sound import resample

    heard = build(RecognizerConfig()).transcribe([resample(i.audio, i.sample_rate, 16_000) for i in items], "en")
    for item, one in zip(items, heard, strict=True):
        print(item.id[-1], item.text, "->", one.code if isinstance(one, Failure) else " ".join(one.tokens))
