"""Figures of an evaluation: one variant by itself, and trained against base, paired by prompt and seed.

Intervals are over texts: what several speakers or several seeds say of one text is resampled together, for a hard text
is hard for all of them.

Rows are dictionaries, one per utterance: ``prompt_id, seed, text, lang, status`` and, where status is ``ok``, the
scorer's component columns (``wer, substitutions, deletions, insertions, ref_words, pause_error, pause_error_scorable,
pause_scorable_share, duration, cap_hit``), ``reward_errors`` (word errors by the training recognizer),
``reference_seconds`` (None where no clean rendering is known), ``speaker_similarity, f0_mean, f0_spread``.
A failed row is counted and never becomes a number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from talker_rl.base.errors import DataError
from talker_rl.evaluation.bootstrap import bootstrap_ci, diff_of_ratios, ratio_of_sums
from talker_rl.records.evaluation import EvalRow

HEARD = 0.9
"""Of the base's utterances, the share that must have been scored of what is compared with it: figures are of what was
scored, and what fails (endless, silent, broken codes) is not just any."""


def _ok(rows: Iterable[EvalRow]) -> list[EvalRow]:
    return [r for r in rows if r["status"] == "ok"]


def word_errors(row: EvalRow) -> float:
    """Substitutions, deletions and insertions."""
    return row["substitutions"] + row["deletions"] + row["insertions"]


def corpus_wer(rows: Sequence[EvalRow]) -> float:
    """All word errors over all words; 0 where there is no word."""
    return sum(map(word_errors, rows)) / max(1, sum(row["ref_words"] for row in rows))


def _mean(rows: Sequence[EvalRow], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.mean(values)) if values else None


def variant_summary(rows: Sequence[EvalRow], *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Figures of one variant.

    Args:
        resamples: of the bootstrap; 0: no interval is made.
        seed: of the bootstrap.

    Returns:
        ``wer`` is corpus-level (all errors over all reference words) with ``wer_ci95`` over texts, of which there are
        ``prompts`` different ones; ``wer_mean, wer_median, wer_p95, share_above_50`` describe utterances;
        ``duration_ratio`` is total duration over total duration of the clean renderings (None where unknown).

    Raises:
        DataError: no row was scored.
    """
    ok = _ok(rows)
    if not ok:
        raise DataError("No utterance of this variant was scored", fix="look at error_code in the evaluation rows")
    wers = np.array([r["wer"] for r in ok])
    sums = per_text(ok, lambda r: (word_errors(r), r["ref_words"]))
    errors, words = np.array(list(sums.values()), dtype=float).T
    timed = [r for r in ok if r.get("reference_seconds")]
    reward = [r for r in ok if r.get("reward_errors") is not None]
    return {
        "n": len(ok),
        "prompts": len(sums),
        "failed": len(rows) - len(ok),
        "wer": float(ratio_of_sums(errors, words)),
        "wer_ci95": bootstrap_ci((errors, words), ratio_of_sums, resamples=resamples, seed=seed) if resamples else None,
        "wer_mean": float(wers.mean()),
        "wer_median": float(np.median(wers)),
        "wer_p95": float(np.percentile(wers, 95)),
        "share_above_50": float((wers > 0.5).mean()),
        "substitution_rate": sum(r["substitutions"] for r in ok) / max(1, words.sum()),
        "deletion_rate": sum(r["deletions"] for r in ok) / max(1, words.sum()),
        "insertion_rate": sum(r["insertions"] for r in ok) / max(1, words.sum()),
        "reward_wer": (
            sum(r["reward_errors"] for r in reward) / max(1, sum(r["ref_words"] for r in reward)) if reward else None
        ),
        "pause_error": _mean(ok, "pause_error"),
        "pause_error_scorable": _mean(ok, "pause_error_scorable"),
        "pause_scorable_share": _mean(ok, "pause_scorable_share"),
        "duration_mean": _mean(ok, "duration"),
        "duration_p50": float(np.percentile([r["duration"] for r in ok], 50)),
        "duration_p95": float(np.percentile([r["duration"] for r in ok], 95)),
        "duration_ratio": (
            sum(r["duration"] for r in timed) / sum(r["reference_seconds"] for r in timed) if timed else None
        ),
        "cap_hit_rate": float(np.mean([bool(r["cap_hit"]) for r in ok])),
        "speaker_similarity": _mean(ok, "speaker_similarity"),
        "f0_mean": _mean(ok, "f0_mean"),
        "f0_spread": _mean(ok, "f0_spread"),
    }


def text_of(row: EvalRow) -> tuple[str, str]:
    """What is resampled: the text and its language, whoever speaks it; a row without a text is known by its prompt."""
    return (row["text"], row.get("lang", "")) if row.get("text") else ("", row["prompt_id"])


def per_text(rows: Iterable[EvalRow], values: Any) -> dict[tuple[str, str], np.ndarray]:
    """Sums of ``values(row)`` over speakers and seeds of each text, in the order of the texts' first prompt ids."""
    sums: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(1))
    first: dict[tuple[str, str], str] = {}
    for row in rows:
        text = text_of(row)
        sums[text] = sums[text] + np.array(values(row), dtype=float)
        first[text] = min(first.get(text, row["prompt_id"]), row["prompt_id"])
    return {text: sums[text] for text in sorted(sums, key=lambda text: first[text])}


def paired(*sides: Sequence[EvalRow]) -> list[list[EvalRow]]:
    """The rows of each side whose (prompt, seed) were scored in all of them, in the same order.

    Raises:
        DataError: there is none.
    """
    found = [{(r["prompt_id"], r["seed"]): r for r in _ok(rows)} for rows in sides]
    keys = sorted(set.intersection(*(set(rows) for rows in found)))
    if not keys:
        raise DataError(
            "No utterance was scored for both variants",
            fix="evaluate both on the same prompts and seeds",
        )
    return [[rows[k] for k in keys] for rows in found]


def diff_ci(
    base: Sequence[EvalRow], trained: Sequence[EvalRow], value: Any, weight: Any, resamples: int, seed: int
) -> tuple[float, float] | None:
    """Interval of trained's ``sum(value) / sum(weight)`` minus base's; the rows are paired already."""
    a = per_text(base, lambda r: (value(r), weight(r)))
    b = per_text(trained, lambda r: (value(r), weight(r)))
    (num_a, den_a), (num_b, den_b) = (np.array([side[text] for text in a]).T for side in (a, b))
    return bootstrap_ci((num_a, den_a, num_b, den_b), diff_of_ratios, resamples=resamples, seed=seed)


def compare(
    base: Sequence[EvalRow], trained: Sequence[EvalRow], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Trained against base on the same prompts and seeds, with paired-bootstrap 95 % intervals over texts.

    Returns:
        ``base`` and ``trained`` (:func:`variant_summary`, each of all that was scored of it); of the utterances that
        were scored in both ``wer_relative_reduction``, ``wer_diff``, ``*_diff_ci95`` (trained minus base) and ``n``;
        ``duration_ratio`` (trained over the clean renderings, or over base where none is known:
        ``duration_ratio_to`` says which).
    """
    a, b = paired(base, trained)
    left = variant_summary(base, resamples=resamples, seed=seed)
    right = variant_summary(trained, resamples=resamples, seed=seed)
    to_base = sum(r["duration"] for r in b) / max(1e-9, sum(r["duration"] for r in a))
    known = right["duration_ratio"] is not None
    wer_before, wer_after = corpus_wer(a), corpus_wer(b)

    def mean_ci(key: str) -> tuple[float, float] | None:
        both = [i for i, (x, y) in enumerate(zip(a, b, strict=True))
                if x.get(key) is not None and y.get(key) is not None]
        if not both:
            return None
        return diff_ci([a[i] for i in both], [b[i] for i in both], lambda r: r[key], lambda r: 1.0, resamples, seed)

    return {
        "base": left,
        "trained": right,
        "n": len(a),
        "prompts": len({text_of(r) for r in a}),
        "wer_diff": wer_after - wer_before,
        "wer_diff_ci95": diff_ci(a, b, word_errors, lambda r: r["ref_words"], resamples, seed),
        "wer_relative_reduction": 1 - wer_after / wer_before if wer_before > 0 else None,
        "pause_error_diff_ci95": mean_ci("pause_error"),
        "pause_error_scorable_diff_ci95": mean_ci("pause_error_scorable"),
        "speaker_similarity_diff_ci95": mean_ci("speaker_similarity"),
        "f0_spread_diff_ci95": mean_ci("f0_spread"),
        "duration_ratio": right["duration_ratio"] if known else to_base,
        "duration_ratio_to": "clean rendering" if known else "base",
        "duration_ratio_to_base": to_base,
    }
