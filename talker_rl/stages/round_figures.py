"""Rounds: WER, pauses and duration of a variant round by round, on the dev prompts, from what the choices heard."""

from __future__ import annotations

from typing import Any

from talker_rl.base.disk import read_json
from talker_rl.evaluation.summary import compare, variant_summary
from talker_rl.rounds import Round, choice_stage, train_stage
from talker_rl.stages.choice import dev_rows
from talker_rl.stages.context import Context

FIGURES = ("wer", "pause_error", "duration_mean", "duration_ratio", "cap_hit_rate", "deletion_rate", "insertion_rate")


def table(ctx: Context, variant: str) -> list[dict[str, Any]]:
    """A row per round, the first (round 0) being the policy as the run began.

    Returns: ``round, step`` (kept; 0: the round was undone), ``pairs`` (or completions) that the round made,
        ``reward`` (mean), ``FIGURES``, and against round 0 on the same prompts and seeds ``wer_diff, wer_diff_ci95,
        pause_error_diff_ci95, duration_ratio_to_start``. Checkpoints were chosen on these prompts: the figures flatter
        a little, those of ``eval/`` do not.
    """
    resamples = ctx.config.eval.bootstrap_samples
    found: list[dict[str, Any]] = []
    start: list[dict[str, Any]] = []
    for index in range(1, ctx.config.iterations + 1):
        rows = dev_rows(ctx, variant, index)
        if index == 1:
            start = [row for row in rows if row["step"] == 0]
            found.append({"round": 0, "step": 0, **_figures(start)})
        step = read_json(ctx.run.path / choice_stage(variant, index) / "choice.json")["step"]
        kept = [row for row in rows if row["step"] == step]
        against = compare(start, kept, resamples=resamples)
        round_ = Round(index, None if index == 1 else variant)
        learned = ctx.config.variants[variant].data
        source = train_stage(variant, index) if learned == "online" else round_.data_stage(learned)
        counts = ctx.run.stages[source]["counts"]
        found.append({
            "round": index, "step": step, "pairs": counts.get("pairs", counts.get("completions")), **_figures(kept),
            "wer_diff": against["wer_diff"], "wer_diff_ci95": against["wer_diff_ci95"],
            "pause_error_diff_ci95": against["pause_error_diff_ci95"],
            "duration_ratio_to_start": against["duration_ratio_to_base"],
        })
    return found


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary = variant_summary(rows, resamples=100)
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    return {"reward": sum(rewards) / len(rewards) if rewards else None, **{name: summary[name] for name in FIGURES}}
