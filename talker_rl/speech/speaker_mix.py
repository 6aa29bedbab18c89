"""``--cond-from A:0.7 B:0.3``: a new speaker as a mix of old ones, for every family."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from talker_rl.base.errors import ConfigError


def mix_of(speakers: Collection[str], parts: Sequence[str]) -> dict[str, float]:
    """Speaker -> share; shares add up to 1.

    Args:
        speakers: those there are.
        parts: ``NAME`` or ``NAME:WEIGHT``; a name given twice has both weights.

    Raises:
        ConfigError: one is neither, or the weights add up to nothing.
    """
    weights: dict[str, float] = {}
    for part in parts:
        name, _, text = (part, "", "1") if part in speakers or ":" not in part else part.rpartition(":")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if name not in speakers or not math.isfinite(weight):
            raise ConfigError(f"{part!r} is no speaker and no NAME:WEIGHT", where="--cond-from",
                              fix=f"this checkpoint has: {', '.join(sorted(speakers))}")
        weights[name] = weights.get(name, 0.0) + weight
    total = sum(weights.values())
    if abs(total) < 1e-6:
        raise ConfigError("The weights add up to 0", where="--cond-from", fix="write e.g. --cond-from A:0.7 B:0.3")
    return {name: weight / total for name, weight in weights.items()}
