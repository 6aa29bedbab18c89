"""How far policies have moved from the reference, from the rows of :mod:`talker_rl.stages.drift`; and what has become
of stopping, where the *base* stopped.

P(stop) where a policy's own samples stopped is conditional on having stopped, and stays high however rare stopping has
become: sampled stops stand where they were likely. What the base said does not depend on the policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from talker_rl.diagnostics.fits import Row
from talker_rl.diagnostics.stability import LAST

CONDITIONS = {
    "kl_per_code": "tokens that the policy sampled itself",
    "kl_per_utterance": "utterances that the policy sampled itself",
    "k1_per_code": "tokens that the policy sampled itself; sampled log-ratio in place of the exact sum",
    "kl_per_code_on_base": "tokens that the start sampled",
    "p_stop_at_base_stops": "where the start stopped, after what it said",
    "p_stop_before_base_stops": "anywhere before the start stopped, after what it said",
    "hazard": "the last tokens of what the start said, its stop last",
}
"""Figure -> what it is conditional on; the start is the policy that training began with: in a first round the base."""


def moved(rows: Sequence[Row]) -> dict[int, Row]:
    """Step -> figures, by the names of :data:`CONDITIONS`; None where nothing was measured, nats.

    ``hazard`` has P(stop) at each of the last 10 tokens. KL per utterance is the mean of the sums of exact KLs along
    what the policy sampled: an unbiased estimate of the KL of the distributions of whole utterances where sampling was
    not processed, without the noise of the sampled log-ratios (k1), whose mean it shares.
    """
    found: dict[int, Row] = {}
    for step in sorted({row["step"] for row in rows}):
        mine = [row for row in rows if row["step"] == step]
        own, base = ([row for row in mine if row["of"] == of] for of in ("own", "base"))
        if step == 0:
            base = own  # what it said itself is what the base said
        ends = [row for row in base if row["ended"] and len(row["p_stop_last"]) > 0]
        found[step] = {
            "kl_per_code": _ratio(own, "kl"),
            "kl_per_utterance": _mean([row["kl"] for row in own if row["kl"] is not None]),
            "k1_per_code": _per_code([row["policy_logp"] - row["ref_logp"] for row in own], own),
            "kl_per_code_on_base": _ratio(base, "kl"),
            "p_stop_at_base_stops": _mean([row["p_stop_last"][-1] for row in ends]),
            "p_stop_before_base_stops": _mean([row["p_stop_before"] for row in ends]),
            "hazard": [_mean([row["p_stop_last"][-back] for row in ends if len(row["p_stop_last"]) >= back])
                       for back in range(LAST, 0, -1)],
        }
    return found


def _ratio(rows: Sequence[Row], key: str) -> float | None:
    known = [row for row in rows if row[key] is not None]
    return _per_code([row[key] for row in known], known)


def _per_code(sums: Sequence[float], rows: Sequence[Row]) -> float | None:
    return math.fsum(sums) / sum(row["tokens"] for row in rows) if rows else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
