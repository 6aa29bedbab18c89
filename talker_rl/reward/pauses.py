"""The pause score: are there pauses where the text has marks, and none where it has not?

Recognizer times only say where a boundary is (Paraformer caps a token's end and loses short gaps); the pause there is
measured on the sound. See `PauseConfig` for every threshold.

    pause_error = (FN + FP + 0.5 * out_of_bounds) / (marks + FP)

FN: marked boundaries without a pause, among them those that cannot be scored; FP: pauses at unmarked boundaries;
out_of_bounds: hits whose duration does not suit their mark. `pause_error_scorable` leaves unscorable marks out. Where
marks + FP = 0 the error is 0 if a word of the text was recognized, and 1 if none was: silence has no false pause, and
is not perfect for it. A pause where the text has a bracket, a quote or the like (`NormalizedText.free`) is neither a
hit nor false, unless it is longer than any mark allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from talker_rl.base.text.marks import Mark
from talker_rl.records.token_classes import timestamp_fault
from talker_rl.reward.config import PauseConfig
from talker_rl.reward.silences import Silences

_EPS = 1e-9  # 0.15 s of samples is 0.15 s, whatever the division left


@dataclass(frozen=True)
class Boundary:
    """One boundary between reference tokens ``index`` and ``index + 1``."""

    index: int
    mark: Mark
    pause: float | None
    """Seconds of silence there; None where the boundary cannot be scored."""


@dataclass(frozen=True)
class PauseScore:
    """Counts, ratios and both errors; everything but ``marks`` is None where ``reason`` says why."""

    marks: int
    scorable_marks: int | None = None
    hits: int | None = None
    false_pauses: int | None = None
    out_of_bounds: int | None = None
    pause_error: float | None = None
    pause_error_scorable: float | None = None
    boundaries: list[Boundary] = field(default_factory=list)
    reason: str | None = None

    @property
    def misses(self) -> int | None:
        return None if self.hits is None else self.marks - self.hits

    @property
    def scorable_share(self) -> float | None:
        """Share of the marks that could be scored; None without marks."""
        return self.scorable_marks / self.marks if self.scorable_marks is not None and self.marks else None

    @property
    def precision(self) -> float | None:
        """Hits among the pauses found; None where none was found."""
        if self.hits is None or self.false_pauses is None or self.hits + self.false_pauses == 0:
            return None
        return self.hits / (self.hits + self.false_pauses)

    @property
    def recall(self) -> float | None:
        """Hits among the marks; None without marks."""
        return self.hits / self.marks if self.hits is not None and self.marks else None

    @property
    def f1(self) -> float | None:
        if self.hits is None or self.false_pauses is None or self.marks + self.false_pauses == 0:
            return None
        return 2 * self.hits / (self.hits + self.false_pauses + self.marks)


def score_pauses(
    marks: Sequence[Mark],
    hits: Sequence[int | None],
    spans: Sequence[tuple[float, float]],
    silences: Silences,
    config: PauseConfig,
    transcript_tokens: int,
    spans_fault: str | None = None,
    reference_spans: Sequence[tuple[float, float]] | None = None,
    free: Sequence[bool] = (),
) -> PauseScore:
    """The pause score of one utterance.

    Args:
        marks: the mark after each reference token (`normalize`); the last one is not a boundary.
        hits: transcript position of each reference token, None where it was not recognized (`wer.align`).
        spans: (start, end) in seconds of each transcript token.
        silences: silent runs of the audio (`audio.find_silences`).
        transcript_tokens: length of the transcript.
        spans_fault: what is wrong with the times, if anything, by those who gave them.
        reference_spans: (start, end) of each reference token by an aligner, used instead of `spans`; which boundaries
            can be scored is still the recognizer's word.
        free: whether a pause after each reference token is allowed without a mark (`normalize`); () is nowhere.
    """
    total = sum(m != "none" for m in marks[:-1])
    given, tokens = (spans, transcript_tokens) if reference_spans is None else (reference_spans, len(marks))
    fault = spans_fault or timestamp_fault(given, tokens, silences.duration, config.time_tolerance)
    if fault is not None and transcript_tokens:  # (an empty transcript needs no times: nothing was said in place)
        return PauseScore(marks=total, reason=f"timestamps unusable: {fault}")

    boundaries = [_boundary(i, marks[i], hits, spans, silences, reference_spans) for i in range(len(marks) - 1)]
    scorable = found = spurious = out = 0
    heard = any(hit is not None for hit in hits)
    judged = any(b.pause is not None for b in boundaries) or (len(hits) == 1 and heard)
    for b in boundaries:
        if b.pause is None:
            continue
        if b.mark == "none":
            limit = config.strong_bounds[1] if b.index < len(free) and free[b.index] else config.spurious_seconds
            spurious += b.pause >= limit - _EPS
            continue
        scorable += 1
        if b.pause >= config.hit_seconds - _EPS:
            found += 1
            low, high = config.weak_bounds if b.mark == "weak" else config.strong_bounds
            out += not (low - _EPS <= b.pause <= high + _EPS)

    def error(marked: int) -> float:
        cost = (marked - found) + spurious + config.out_of_bounds_cost * out
        return cost / (marked + spurious) if marked + spurious else 0.0 if heard else 1.0

    return PauseScore(total, scorable, found, spurious, out, error(total), error(scorable) if judged else None,
                      boundaries)


def _boundary(
    i: int, mark: Mark, hits: Sequence[int | None], spans: Sequence[tuple[float, float]], silences: Silences,
    reference_spans: Sequence[tuple[float, float]] | None,
) -> Boundary:
    before, after = hits[i], hits[i + 1]
    if before is None or after is None or after != before + 1:
        return Boundary(i, mark, None)
    # From the middle of one token to the middle of the next: an onset may be off by half a token. Leading and trailing
    # silence are no pauses, even where the time of the last token reaches into the tail.
    left, right = (spans[before], spans[after]) if reference_spans is None else reference_spans[i : i + 2]
    start, end = sum(left) / 2, sum(right) / 2
    return Boundary(i, mark, max([0.0, *(min(e, end) - max(s, start) for s, e in silences.inner)]))
