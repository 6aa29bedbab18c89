"""What the report shows of an online training: plain data, and the figures in it that are computed from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from talker_rl.base.figures import count
from talker_rl.evaluation.bootstrap import bootstrap_ci, ratio_of_sums
from talker_rl.evaluation.summary import per_text, word_errors

Rows = list[dict[str, Any]]
Text = tuple[str, str]
"""A text and its language, as :func:`talker_rl.evaluation.summary.text_of` has it: what a bootstrap resamples."""

PARTS = {"online/sampling_seconds": "sampling", "online/waiting_seconds": "waiting for the judge",
         "online/training_seconds": "training"}
"""Key of the log -> part of the time."""
CREDIT = {
    "sequence": "Credit is the sequence's advantage, on all of its steps.",
    "what_differs": "Credit is the sequence's advantage, on what went wrong here, or went right here and wrong in "
                    "others of the group.",
    "words": "Credit is each word's own, right or wrong against the others of the group; the advantage beside a reward "
             "is the sequence's, which lies on all steps only by train.online.advantages.sequence_share.",
    "": "The loss learns from pairs or the best of these, and gives no step an advantage."}
"""What the credit is, by ``Online.credit``, as a sentence."""
DIFFERENCE = "sampling/logp_difference/max"
WINDOWS = 20
"""So many windows of samplings a whole training has at least: a longer training is smoothed more."""


@dataclass(frozen=True)
class Sampling:
    """What was sampled at once, judged, and then trained on."""

    before: int
    """Decodes that the policy it is of had been trained on."""
    decodes: int
    """Candidates so far, these included: what the policy has been trained on after it."""
    metrics: Mapping[str, float]
    """:func:`talker_rl.train.live_metrics.sampling_metrics`."""
    rows: Rows
    """A row a candidate: ``prompt_id, text, lang``, ``reward`` (after the rules), and where it was scored ``errors``
    and ``words`` by the reward's recognizer, else 0 and 0."""


@dataclass(frozen=True)
class Point:
    """A figure of the policy after so many decodes, with its 95 % interval over texts."""

    x: int
    value: float
    interval: tuple[float, float] | None
    """None where fewer than two texts stand behind it."""


@dataclass(frozen=True)
class Alarm:
    """A guard that rang (:mod:`talker_rl.train.guards`)."""

    name: str
    what: str
    """How far it has drifted, in words."""
    x: int
    """Decodes after which it rang."""


@dataclass
class Online:
    """An online training, as the page shows it."""

    samplings: list[Sampling]
    window: int = 1
    """Samplings that a point of ``reward`` and ``wer`` pools."""
    reward: list[Point] = field(default_factory=list)
    wer: list[Point] = field(default_factory=list)
    """By the reward's recognizer, on the samples."""
    held_out: list[Point] = field(default_factory=list)
    """WER by the second recognizer, on dev prompts."""
    kl: list[tuple[int, float]] = field(default_factory=list)
    """(decodes trained on, KL to the start in nats a step)."""
    times: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(decodes, seconds by the values of ``PARTS``) of the samplings that the log tells of."""
    differences: list[float] = field(default_factory=list)
    """``DIFFERENCE`` of the rows of the log that have it."""
    alarms: list[Alarm] = field(default_factory=list)
    guarded: int = 1
    """Samplings from which on a drift can ring."""
    overlap: bool = False
    credit: str = "sequence"
    """``train.online.advantages.credit``; empty where the loss is given no advantages: one of pairs, or that imitates.
    """


def window_of(samplings: int) -> int:
    """Samplings that are pooled for a point of a training of so many."""
    return max(1, samplings // WINDOWS)


def curve(samplings: Sequence[Sampling], top: str, bottom: str | None, window: int, resamples: int) -> list[Point]:
    """At each sampling the sum of a column over that of another, over it and the ``window - 1`` before it.

    The interval is a percentile bootstrap over the texts of these samplings: what candidates of one text earned is
    resampled together, also where it was sampled twice.

    Args:
        top, bottom: columns of ``Sampling.rows``; without a bottom the figure is a mean over candidates.
        resamples: of the bootstrap.
    """
    found = []
    for i, sampling in enumerate(samplings):
        rows = [row for one in samplings[max(0, i + 1 - window) : i + 1] for row in one.rows]
        found += _point(sampling.before, rows, lambda row: (row[top], row[bottom] if bottom else 1), resamples)
    return found


def check_ups(rows: Mapping[int, Rows], resamples: int) -> list[Point]:
    """Corpus WER of each check-up, with its interval over texts.

    Args:
        rows: decodes that the policy had been trained on -> flat evaluation rows by the second recognizer; those that
            were not scored are left out.
    """
    return [point for x, mine in rows.items()
            for point in _point(x, [row for row in mine if row["status"] == "ok"],
                                lambda row: (word_errors(row), row["ref_words"]), resamples)]


def _point(x: int, rows: Rows, value: Any, resamples: int) -> list[Point]:
    """None where there is nothing to divide by."""
    sums = per_text(rows, value)
    if not sums:
        return []
    top, bottom = np.array(list(sums.values()), dtype=float).T
    told = bottom > 0  # a text of which nothing was scored says nothing
    if not told.any():
        return []
    data = top[told], bottom[told]
    return [Point(x, float(ratio_of_sums(*data)), bootstrap_ci(data, ratio_of_sums, resamples=resamples))]


def kl_by_decodes(log: Rows, decodes: Sequence[int], steps: int) -> list[tuple[int, float]]:
    """The log's ``kl``, against the decodes that were trained on by then.

    Args:
        decodes: after each sampling.
        steps: optimizer steps on each.
    """
    return [(decodes[at], row["kl"]) for row in log
            if "kl" in row and (at := (row["step"] - 1) // steps) < len(decodes)]


def times_by_decodes(log: Rows, offset: int = 0) -> list[tuple[int, dict[str, float]]]:
    """Seconds by part of each sampling that the log tells of; several steps on one sampling tell the same.

    Args:
        offset: decodes of rounds before.
    """
    found = {offset + int(row["online/decodes"]): {part: row[key] for key, part in PARTS.items() if key in row}
             for row in log if "online/decodes" in row}
    return [(x, parts) for x, parts in found.items() if parts]


def told_alarms(online: Online) -> list[str]:
    """The alarms as sentences, or that there was none, and whether one could have rung."""
    if online.alarms:
        return [f"Alarm after {count(alarm.x, 'decode')} ({alarm.name}): {alarm.what}." for alarm in online.alarms]
    if len(online.samplings) < online.guarded:
        return [f"No alarm rang. With fewer than {count(online.guarded, 'sampling')} none of drift can: there are "
                f"{len(online.samplings)}."]
    return ["No alarm rang."]


def told_difference(online: Online) -> str:
    """How far log-probs of sampling and of training were apart on one policy, as a sentence."""
    if not online.differences:
        return ("The log does not say how far the log-probs of sampling and training are apart: no logged step was the "
                "first one after its sampling.")
    return (f"Between sampling and training, on the policy that was sampled from (staleness 0), the log-prob of a step "
            f"differed by {max(online.differences):.1e} nats at most, over {count(len(online.differences), 'row')} of "
            "the log.")


def shares_of_time(online: Online) -> dict[str, float]:
    """Each part's share of the seconds of all parts; empty where the log has no times."""
    sums = {part: sum(parts.get(part, 0.0) for _, parts in online.times) for part in PARTS.values()}
    total = sum(sums.values())
    return {part: seconds / total for part, seconds in sums.items()} if total else {}
