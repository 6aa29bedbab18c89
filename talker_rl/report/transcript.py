"""What was said, beside what was to be said."""

from __future__ import annotations

from collections.abc import Sequence

from talker_rl.base.text.alignment import align
from talker_rl.base.text.tokens import normalize
from talker_rl.report.model import Alignment


def alignment_of(text: str, heard: list[str]) -> Alignment:
    """(op, reference, heard) of every token, ``=`` where it was said right."""
    return align(normalize(text).tokens, heard).columns


def codes_per_word(
    alignment: Alignment, spans: Sequence[Sequence[float]], code_rate: float
) -> list[int | None]:
    """Codes that each token of the alignment lasts; None for a token left out, or where no span is known.

    Args:
        spans: start and end of each heard token, seconds.
        code_rate: frames per second of the codec.
    """
    heard = iter(spans)
    lasting: list[int | None] = []
    for op, _, _ in alignment:
        span = None if op == "D" else next(heard, None)
        lasting.append(None if span is None else round((span[1] - span[0]) * code_rate))
    return lasting
