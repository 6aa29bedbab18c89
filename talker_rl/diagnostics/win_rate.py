"""Length-controlled win rate of trained speech against base: what would be preferred if both were equally long."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from talker_rl.diagnostics.fits import Notes, Row, is_constant
from talker_rl.records.score import nothing_recognized


def preferences(base: Sequence[Row], trained: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Who wins each (prompt, seed) that both spoke, and by how much the trained one is longer.

    The lower WER of the evaluator wins, then the larger reward; a tie in both is 0.5. Speech in which nothing was
    recognized loses against any other: its WER of 1 is less than that of a text said twice over.

    Returns: preference for trained, (N,) in {0, 0.5, 1}; duration trained minus base, (N,) seconds.
    """
    before = {(row["prompt_id"], row["seed"]): row for row in base if row["status"] == "ok"}
    found = []
    for row in trained:
        other = before.get((row["prompt_id"], row["seed"]))
        if other is None or row["status"] != "ok":
            continue
        better = float(nothing_recognized(other)) - float(nothing_recognized(row))
        if better == 0:
            better = np.sign(other["wer"] - row["wer"])
        if better == 0 and row["reward"] is not None and other["reward"] is not None:
            better = np.sign(row["reward"] - other["reward"])
        found.append((0.5 + 0.5 * better, row["duration"] - other["duration"]))
    wins, longer = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return wins, longer


def win_rate(wins: np.ndarray, longer: np.ndarray, notes: Notes) -> Row | None:
    """Raw and length-controlled win rate.

    P(trained preferred) = sigma(theta + phi * tanh(delta / sd(delta))), delta the difference in length: AlpacaEval 2's
    model (Dubois et al. 2024, arXiv 2404.04475) without the term for the difficulty of an instruction. Lengths are
    scaled and not centered, so that sigma(theta) is the win rate at equal length.

    Args:
        wins: (N,) preference for the trained one in {0, 0.5, 1}.
        longer: (N,) seconds by which it is longer.

    Returns: ``raw``, ``length_controlled`` (sigma(theta)), ``theta``, ``coef_length`` (phi), ``n``; None without rows.
    """
    if not len(wins):
        notes.append("win_rate: no utterance was scored for both base and trained")
        return None
    raw = float(wins.mean())
    result: Row = {"raw": raw, "length_controlled": None, "theta": None, "coef_length": None, "n": len(wins)}
    if not longer.any():
        notes.append("win_rate.coef_length: all lengths are equal, so the raw rate is the length-controlled one")
        theta = math.log(raw / (1 - raw)) if 0 < raw < 1 else None
        return result | {"length_controlled": raw, "theta": theta}
    problem = None
    if raw in (0.0, 1.0):
        problem = "one side always wins"
    elif is_constant(longer):
        problem = "the difference in length does not vary"
    else:
        x = np.tanh(longer / longer.std())
        if _separable(x, wins):
            problem = "the difference in length alone separates wins from losses"
    if problem:
        notes.append(f"win_rate.length_controlled: {problem}")
        return result
    theta, phi = _fit(x, wins)
    return result | {"length_controlled": 1 / (1 + math.exp(-theta)), "theta": theta, "coef_length": phi}


def _separable(x: np.ndarray, wins: np.ndarray) -> bool:
    """Whether a threshold on x puts every win on one side: then no finite fit is the most likely one."""
    up, down = x[wins > 0], x[wins < 1]  # a tie is half a win and half a loss
    return bool(down.max() <= up.min() or up.max() <= down.min())


def _fit(x: np.ndarray, wins: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of a logistic regression without penalty; a tie is half a win and half a loss."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    labels = np.concatenate([np.ones(len(x)), np.zeros(len(x))])
    model.fit(np.concatenate([x, x])[:, None], labels, sample_weight=np.concatenate([wins, 1 - wins]))
    return float(model.intercept_[0]), float(model.coef_[0, 0])
