"""Likelihood of held-out codes: what supervised training improves before anything is spoken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from talker_rl.base.errors import DataError
from talker_rl.evaluation.summary import diff_ci


def compare_likelihood(
    rows: Sequence[dict[str, Any]], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Negative log-likelihood in nats per code (the stop is one), before and after, over the same codes.

    Args:
        rows: one a completion: ``prompt_id, text, tokens``, and ``base_logp, trained_logp`` (sums, natural log).

    Returns:
        ``base``, ``trained``: all nats over all codes; ``diff_ci95``: paired-bootstrap 95 % interval over texts of
        trained minus base (below 0 is better; None with one text); ``completions``, ``prompts``, ``codes``.

    Raises:
        DataError: there is no row.
    """
    codes = sum(row["tokens"] for row in rows)
    if not codes:
        raise DataError("There are no held-out codes", fix="raise checkpoint.held_out_share, or train on more prompts")
    sides = {side: [{"prompt_id": row["prompt_id"], "text": row.get("text"), "nats": -row[f"{side}_logp"],
                     "tokens": row["tokens"]} for row in rows] for side in ("base", "trained")}
    return {
        **{side: math.fsum(row["nats"] for row in mine) / codes for side, mine in sides.items()},
        "diff_ci95": diff_ci(sides["base"], sides["trained"], lambda r: r["nats"], lambda r: r["tokens"], resamples,
                             seed),
        "completions": len(rows), "prompts": len({row["prompt_id"] for row in rows}), "codes": codes,
    }
