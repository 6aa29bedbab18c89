"""Credit, as a page shows it: a lane below the waveform, and a number at each word of the transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from talker_rl.base.figures import written
from talker_rl.report.strip import Mark


@dataclass(frozen=True)
class Credit:
    """The advantages of a candidate's steps, on the time axis of its strip."""

    stretches: list[tuple[float, float, float]]
    """(start, end, advantage), seconds: neighbouring steps of one advantage together. The stop has no length."""
    full: float
    """The size of an advantage that fills the lane's height."""
    marks: list[float | None]
    """Mean advantage of the steps of each mark of the strip."""

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"stretches": self.stretches, "full": self.full, "marks": self.marks, "about": self.about}

    @property
    def about(self) -> str:
        """The lane in words."""
        up, down = ([s for s in self.stretches if s[2] * sign > 0] for sign in (1, -1))
        seconds = [sum(end - start for start, end, _ in side) for side in (up, down)]
        stop = [advantage for start, end, advantage in self.stretches if start == end]
        return (f"credit: {seconds[0]:.2f} s made likelier, {seconds[1]:.2f} s made less likely"
                + (f", the stop {written(stop[-1], '{:+.2f}')}" if stop else ""))


def credit_of(steps: Sequence[float], frames: int, rate: float, marks: Sequence[Mark], full: float) -> Credit:
    """The lane of a candidate.

    Args:
        steps: advantage of each step, the stop last where it was said.
        frames: steps that are sound.
        rate: frames per second.
        marks: of its strip.
        full: size of an advantage that fills the height, the largest of the candidates that are compared.
    """
    values = np.asarray(steps, dtype=float)
    stretches, at = [], 0
    for advantage, run in groupby(values[:frames]):
        behind = at + sum(1 for _ in run)
        stretches.append((round(at / rate, 3), round(behind / rate, 3), round(float(advantage), 4)))
        at = behind
    if len(values) > frames:
        end = round(frames / rate, 3)
        stretches.append((end, end, round(float(values[frames]), 4)))
    return Credit(stretches, full, [_mean(values[:frames], rate, start, end) for start, end, *_ in marks])


def _mean(values: np.ndarray, rate: float, start: float, end: float) -> float | None:
    """Mean over the frames whose middle lies in [start, end), or of the frame at ``start`` where there is none."""
    middles = (np.arange(len(values)) + 0.5) / rate
    inside = values[(middles >= start) & (middles < end)]
    if not len(inside):
        inside = values[int(start * rate) :][:1]
    return round(float(inside.mean()), 4) if len(inside) else None


def by_token(
    alignment: Sequence[tuple[str, str, str]], marks: Sequence[Mark], means: Sequence[float | None]
) -> list[float | None]:
    """The mean advantage at each token of the alignment: of its own time, or for one that was left out of the place
    where it is missing, which neighbours that were left out share.

    Args:
        alignment: (op, reference, heard) of each token.
        marks, means: of the strip, and :attr:`Credit.marks`; empty where there are no times.
    """
    places = [mean for mark, mean in zip(marks, means, strict=True) if mark[2] in ("right", "S", "I", "D")]
    if not places:
        return [None] * len(alignment)
    found, at = [], -1
    for i, (op, _, _) in enumerate(alignment):
        if not (op == "D" and i and alignment[i - 1][0] == "D"):
            at += 1
        found.append(places[at])
    return found
