"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of text as aligned lines; the first ``left`` columns lean left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(w) if i < left else text.rjust(w)
                      for i, (text, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
