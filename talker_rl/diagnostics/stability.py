"""Drift of durations over training, and speech that runs away or collapses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from talker_rl.diagnostics.fits import Notes, Row, column

LAST = 10
"""Positions before the end at which P(EOS) is looked at, the stop's own included."""

EARLY = 0.5
"""A sample that stopped before this share of the base's mean duration of the same prompt stopped early."""


def drift(dev_rows: Sequence[Row], moved: Mapping[int, Row], notes: Notes) -> list[Row]:
    """Durations by training step on the dev prompts, against KL, stopping and WER.

    Args:
        dev_rows: the utterances that the choice of the checkpoint scored, with ``step``; step 0 is the reference.
        moved: step -> :func:`talker_rl.diagnostics.moved.moved`.

    Returns: a row per step: ``duration_mean, duration_p50, duration_p95`` (seconds), ``ratio_to_reference`` (of means),
        ``seconds_per_unit`` (all seconds over all words or Chinese characters), the figures of ``moved``, ``wer``,
        ``n``.
    """
    by_step: dict[int, list[Row]] = defaultdict(list)
    for row in dev_rows:
        if row["status"] == "ok":
            by_step[row["step"]].append(row)
    if not by_step:
        notes.append("drift: no dev utterance was scored")
    reference = float(column(by_step[0], "duration").mean()) if by_step.get(0) else 0.0
    if by_step and reference <= 0:
        notes.append("drift.ratio_to_reference: the reference (step 0) has no duration")
    table = []
    for step, rows in sorted(by_step.items()):
        seconds = column(rows, "duration")
        units = float(column(rows, "ref_words").sum())
        errors = sum(float(column(rows, name).sum()) for name in ("substitutions", "deletions", "insertions"))
        table.append({
            "step": step,
            "duration_mean": float(seconds.mean()),
            "duration_p50": float(np.percentile(seconds, 50)),
            "duration_p95": float(np.percentile(seconds, 95)),
            "ratio_to_reference": float(seconds.mean()) / reference if reference > 0 else None,
            "seconds_per_unit": float(seconds.sum()) / units if units else None,
            "kl_per_code": None,
            **moved.get(step, {}),
            "wer": errors / units if units else None,
            "n": len(rows),
        })
    lost = [str(row["step"]) for row in table if row["step"] not in moved]
    if lost:
        notes.append(f"drift.kl_per_code: no sampled codes are stored for step {', '.join(lost)}")
    if any(moved[row["step"]]["kl_per_code"] is None for row in table if row["step"] in moved):
        notes.append("drift.kl_per_code: full weights leave no reference to sum over the vocabulary with; k1_per_code "
                     "is of the sampled tokens alone")
    return table


def runaway(samples: Sequence[Row], rows: Sequence[Row], base: Sequence[Row], notes: Notes) -> Row:
    """Does the policy still know when to stop?

    Args:
        samples: rows of ``samples.parquet``.
        rows: evaluation rows of the same utterances (silence and repetition are columns there).
        base: ``prompt_id, seconds, units`` of the base's utterances.

    Returns:
        ``cap_hit_rate``: share cut at the token limit.
        ``p_eos_last``: mean P(EOS) at the last 10 positions of samples that stopped, the stop's own last.
        ``early_eos_rate``: share that stopped before half of the base's mean duration of the same prompt.
        ``silence_share``: mean share of an utterance that is silence before, after and in its longest inner pause.
        ``repetition``: mean share of repeated code n-grams.
        ``below_p1``, ``above_p99``: share whose seconds per text unit lie outside the base's 1st to 99th percentile;
        one percent each is what an unchanged policy has.
    """
    result: Row = {"cap_hit_rate": _mean([row["end_reason"] == "max_tokens" for row in samples])}
    ends = [row["p_eos_last"] for row in samples if row["end_reason"] == "eos" and row["p_eos_last"]]
    result["p_eos_last"] = [_mean([end[-back] for end in ends if len(end) >= back]) for back in range(LAST, 0, -1)]
    seconds_of: dict[str, list[float]] = defaultdict(list)
    for row in base:
        seconds_of[row["prompt_id"]].append(row["seconds"])
    known = [row for row in samples if seconds_of.get(row["prompt_id"])]
    result["early_eos_rate"] = _mean([
        row["end_reason"] in ("eos", "empty") and row["seconds"] < EARLY * np.mean(seconds_of[row["prompt_id"]])
        for row in known
    ])
    heard = [row for row in rows if row["status"] == "ok" and row["duration"] > 0]
    result["silence_share"] = _mean([
        min(1.0, (row["lead_silence"] + row["tail_silence"] + row["max_inner_silence"]) / row["duration"])
        for row in heard
    ])
    result["repetition"] = _mean([row["repeated_ngram"] for row in heard])
    rates, usual = (np.array([row["seconds"] / row["units"] for row in found if row["units"]])
                    for found in (samples, base))
    if len(usual) >= 2 and len(rates):
        low, high = np.percentile(usual, [1, 99])
        result |= {"below_p1": float((rates < low).mean()), "above_p99": float((rates > high).mean())}
    else:
        result |= {"below_p1": None, "above_p99": None}
    result["n"] = len(samples)
    empty = [name for name, value in result.items() if value is None or value == [None] * LAST]
    if empty:
        notes.append(f"runaway: nothing to measure {', '.join(empty)} on")
    return result


def limits(samples: Sequence[Row], max_seconds: Mapping[str, float], notes: Notes) -> Row | None:
    """How many samples of prompts with a stated limit are longer than it (``max_seconds`` by prompt id)."""
    limited = [row for row in samples if row["prompt_id"] in max_seconds]
    if not limited:
        notes.append("limits: no prompt states a limit (max_seconds)")
        return None
    over = sum(row["seconds"] > max_seconds[row["prompt_id"]] for row in limited)
    return {"n": len(limited), "violations": over, "rate": over / len(limited)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
