"""Evaluation figures against hand-worked values and known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from talker_rl.base.errors import DataError
from talker_rl.evaluation.bootstrap import bootstrap_ci, ratio_of_sums
from talker_rl.evaluation.prosody import f0_stats
from talker_rl.evaluation.summary import compare, variant_summary


def row(prompt: str, seed: int, errors: tuple[int, int, int], words: int, **extra: object) -> dict:
    s, d, i = errors
    return {
        "prompt_id": prompt, "seed": seed, "status": "ok", "substitutions": s, "deletions": d, "insertions": i,
        "ref_words": words, "wer": (s + d + i) / words, "pause_error": 0.25, "pause_error_scorable": 0.2,
        "pause_scorable_share": 0.9, "duration": 2.0, "reference_seconds": 2.5, "cap_hit": False,
        "reward_errors": s + d + i, **extra,
    }  # fmt: skip


def failed(prompt: str, seed: int) -> dict:
    return {"prompt_id": prompt, "seed": seed, "status": "failed"}


def test_variant_summary_by_hand() -> None:
    rows = [row("a", 0, (1, 0, 0), 4), row("a", 1, (0, 0, 0), 4), row("b", 0, (1, 1, 1), 2), failed("b", 1)]
    out = variant_summary(rows, resamples=200)
    assert out["wer"] == pytest.approx(4 / 10)  # errors 1 + 0 + 3 over words 4 + 4 + 2
    assert out["wer_mean"] == pytest.approx((0.25 + 0 + 1.5) / 3)
    assert out["wer_median"] == pytest.approx(0.25)
    assert out["share_above_50"] == pytest.approx(1 / 3)
    assert out["duration_ratio"] == pytest.approx(6.0 / 7.5)
    assert (out["n"], out["failed"], out["prompts"]) == (3, 1, 2)


def test_compare_pairs_by_prompt_and_seed() -> None:
    """A failure of one variant takes its partner out of the paired figures, never in as a number."""
    base = [row(f"p{i}", 0, (1, 0, 0), 4) for i in range(30)] + [failed("q", 0)]
    trained = [row(f"p{i}", 0, (0, 0, 0), 4, duration=1.5) for i in range(30)] + [row("q", 0, (4, 0, 0), 4)]
    out = compare(base, list(reversed(trained)), resamples=500)
    assert out["n"] == 30
    assert out["base"]["failed"] == 1
    assert out["wer_diff_ci95"] == pytest.approx((-0.25, -0.25))
    assert out["duration_ratio_to_base"] == pytest.approx(0.75)


def test_no_common_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="No utterance was scored for both"):
        compare([row("a", 0, (0, 0, 0), 3)], [row("a", 1, (0, 0, 0), 3)])


def test_interval_covers_the_truth() -> None:
    """95 % intervals of a pooled rate cover the true rate in about 95 of 100 repetitions."""
    rng = np.random.default_rng(0)
    covered = 0
    for rep in range(100):
        words = rng.integers(3, 11, 80).astype(float)
        errors = rng.binomial(words.astype(int), 0.15).astype(float)
        low, high = bootstrap_ci((errors, words), ratio_of_sums, resamples=400, seed=rep)  # type: ignore[misc]
        covered += low <= 0.15 <= high
    assert 86 <= covered <= 100


def test_clustered_seeds_do_not_shrink_the_interval() -> None:
    """Four identical seeds per prompt carry no more information than one."""
    one = [row(f"p{i}", 0, (i % 2, 0, 0), 4) for i in range(40)]
    four = [dict(r, seed=s) for r in one for s in range(4)]
    a, b = (variant_summary(rows, resamples=2000)["wer_ci95"] for rows in (one, four))
    assert b[1] - b[0] == pytest.approx(a[1] - a[0], rel=0.02)


def test_texts_are_resampled_and_not_prompts() -> None:
    """Where every prompt has its own text nothing moves, in any digit; three speakers of a text count as one text."""
    rng = np.random.default_rng(0)
    plain = [row(f"p{i:02d}", 0, (int(rng.integers(4)), 0, 0), 4) for i in range(40)]
    own = [dict(r, text=f"text {97 * i % 40}", lang="en") for i, r in enumerate(plain)]  # texts sort otherwise
    assert variant_summary(own, resamples=500) == variant_summary(plain, resamples=500)
    assert compare(own, own[::-1], resamples=500) == compare(plain, plain[::-1], resamples=500)
    three = [dict(r, prompt_id=f"{r['prompt_id']}-{speaker}") for r in own for speaker in "abc"]
    one, clustered = (variant_summary(rows, resamples=500) for rows in (own, three))
    assert (clustered["prompts"], clustered["n"]) == (40, 120)
    assert clustered["wer_ci95"] == pytest.approx(one["wer_ci95"])
    by_prompt = variant_summary([{k: v for k, v in r.items() if k != "text"} for r in three], resamples=500)["wer_ci95"]
    assert np.diff(by_prompt) < 0.7 * np.diff(one["wer_ci95"])
    other = variant_summary([dict(r, lang="zh" if i % 2 else "en", text="one") for i, r in enumerate(own)])
    assert other["prompts"] == 2, "the same letters in two languages are two texts"


def test_single_prompt_has_no_interval() -> None:
    assert variant_summary([row("a", 0, (1, 0, 0), 4)])["wer_ci95"] is None


def test_f0_of_a_known_tone() -> None:
    """A harmonic tone gliding 4 semitones around 200 Hz: mean and spread are those of the glide."""
    sr, seconds = 24_000, 1.5
    t = np.arange(int(sr * seconds)) / sr
    semitones = np.linspace(-2, 2, t.size)
    phase = 2 * np.pi * np.cumsum(200 * 2 ** (semitones / 12)) / sr
    audio = sum(np.sin(k * phase) / k for k in range(1, 6)).astype(np.float32) * 0.2
    stats = f0_stats(audio, sr)
    assert stats is not None
    assert stats.mean_hz == pytest.approx(200, rel=0.02)
    assert stats.spread_semitones == pytest.approx(4 / np.sqrt(12), rel=0.08)


def test_f0_of_silence_is_none() -> None:
    assert f0_stats(np.zeros(24_000, dtype=np.float32) + 1e-6, 24_000) is None
