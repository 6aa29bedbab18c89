"""All figures of one trained variant from its records: what ``summary.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from talker_rl.base.figures import count, written
from talker_rl.diagnostics.fits import Notes, Row
from talker_rl.diagnostics.length_bias import heatmap, implicit_reward, margin_curves, within_pairs
from talker_rl.diagnostics.moved import CONDITIONS
from talker_rl.diagnostics.said import loops, words_over_time
from talker_rl.diagnostics.stability import drift, limits, runaway
from talker_rl.diagnostics.win_rate import preferences, win_rate


def summarize(
    *,
    variant: str,
    beta: float | None,
    step: int,
    pairs: Sequence[Row],
    samples: Sequence[Row],
    rows: Sequence[Row],
    base_rows: Sequence[Row],
    base_lengths: Sequence[Row],
    dev_rows: Sequence[Row],
    moved: Mapping[int, Row],
    max_seconds: Mapping[str, float],
    noise: Row | None,
    pushes: Row,
    more_notes: Sequence[str] = (),
) -> Row:
    """The summary.

    Args:
        beta: of the loss; None where it has none (log-ratios are then reported as they are).
        step: the checkpoint that was chosen: figures of one step are its.
        pairs, samples: rows of ``pairs.parquet`` (all steps) and ``samples.parquet``.
        rows, base_rows: evaluation rows of the variant and of the base.
        base_lengths: ``prompt_id, seconds, units`` of the base's utterances.
        dev_rows, moved: see :func:`drift`.
        max_seconds: limit by prompt id, of prompts that state one.
        noise: what :func:`talker_rl.diagnostics.noise.reward_noise` found.
        pushes: step, as text -> :class:`talker_rl.diagnostics.anatomy.Anatomy` of the loss there.
        more_notes: notes of whoever made the records.
    """
    notes: Notes = []
    if beta is None:
        notes.append("beta: the loss has none, so implicit rewards are log-ratios (beta 1)")
    chosen = [row for row in pairs if row["step"] == step]
    summary: Row = {
        "variant": variant,
        "step": step,
        "beta": 1.0 if beta is None else beta,
        "n_pairs": len(chosen),
        "n_samples": len(samples),
        "implicit_reward": implicit_reward(chosen, samples, 1.0 if beta is None else beta, notes),
        "within_pairs": within_pairs(chosen, notes),
        "heatmap": heatmap(chosen, notes),
        "margin_curves": margin_curves(pairs, notes),
        "win_rate": win_rate(*preferences(base_rows, rows), notes),
        "drift": drift(dev_rows, moved, notes),
        "runaway": runaway(samples, rows, base_lengths, notes),
        "limits": limits(samples, max_seconds, notes),
        "said": saying(rows, base_rows, notes),
        "conditions": CONDITIONS,
        "anatomy": pushes,
        "reward_noise": noise,
    }
    return summary | {"notes": [*notes, *more_notes]}


def saying(rows: Sequence[Row], base_rows: Sequence[Row], notes: Notes) -> Row:
    """Said against demanded words over time, and loops, of the variant and of the base."""
    until = 1.5 * max((row["duration"] for row in base_rows if row["status"] == "ok"), default=0.0)
    found = {name: {"words_over_time": words_over_time(side, until), "loops": loops(side)}
             for name, side in (("trained", rows), ("base", base_rows))}
    if found["trained"]["words_over_time"] is None:
        notes.append("said.words_over_time: no utterance has a time for each word that was heard")
    return found


def text_lines(summary: Row) -> list[str]:
    """The figures one looks at first, as lines of text."""
    fits = [f"{name} {_number(fit['slope_per_second'], '+.3f')} per second (R2 {_number(fit['r2'], '.2f')})"
            for name, fit in summary["implicit_reward"].items() if fit]
    pairs = summary["within_pairs"]["held_out"] or summary["within_pairs"]["train"] or {}
    last: Row = next((row for row in summary["drift"] if row["step"] == summary["step"]), {})
    start: Row = next((row for row in summary["drift"] if row["step"] == 0), {})
    wins, ends, noise = summary["win_rate"] or {}, summary["runaway"], summary["reward_noise"]
    lines = [
        f"{summary['variant']}, step {summary['step']}: {count(summary['n_pairs'], 'pair')}, "
        f"{count(summary['n_samples'], 'sample')}",
        f"  implicit reward   {', '.join(fits) or '-'}",
        f"  pair accuracy     {_number(pairs.get('accuracy'), '.0%')}; chosen longer "
        f"{_number(pairs.get('accuracy_chosen_longer'), '.0%')}, shorter "
        f"{_number(pairs.get('accuracy_chosen_shorter'), '.0%')}; picking the longer "
        f"{_number(pairs.get('pick_longer_accuracy'), '.0%')}",
        f"  win rate          {_number(wins.get('raw'), '.1%')}, at equal length "
        f"{_number(wins.get('length_controlled'), '.1%')}",
        f"  dev duration      {_number(last.get('ratio_to_reference'), '.3f')} x the reference, KL per code "
        f"{_number(last.get('kl_per_code'), '.4f')}",
        f"  stopping          {_number(ends['cap_hit_rate'], '.1%')} cut at the limit, "
        f"{_number(ends['early_eos_rate'], '.1%')} stopped early; P(stop) where the base stopped "
        f"{_number(start.get('p_stop_at_base_stops'), '.2f')} -> {_number(last.get('p_stop_at_base_stops'), '.2f')}",
    ]
    if noise:
        lines.append(f"  reward noise      ICC {_number(noise['icc'], '.2f')}, sd {noise['sd_within']:.3f}; "
                     f"suggested pairs.margin {noise['suggested_margin']:.3f}")
    return [*lines, *(f"  note: {note}" for note in summary["notes"])]


def _number(value: float | None, form: str) -> str:
    return written(value, f"{{:{form}}}", none="-")
