"""Whether a sweep's intervals, p-values and promised power are true: sweeps are invented whose truth is known.

    python analysis/sweep_simulation.py               500 sweeps a setting, a table in Markdown (about 10 minutes)
    python analysis/sweep_simulation.py --sweeps 50   quicker and coarser

Every sweep has a base, a baseline and 8 variants, S trainings each, heard on the same texts. Of a text of n words, said
by one training, Binomial(n, p) are wrong, with

    logit p = a + text_t + loss_v + seed_vs + (text, loss)_tv + utterance,

all but ``loss`` normal, the text's part shared by all trainings and the base, so that variants go up and down together
with the text. Durations are the base's times (1 + drift) with the same kinds of luck. The true WER of a variant is the
mean of p over texts and training seeds, by quadrature.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import optimize

from talker_rl.evaluation.nested import Estimate, Statistic, holm, interval, measure, pooled, spreads
from talker_rl.evaluation.power import Components, power, smallest

BASE_WER = 0.22
WORDS = (5, 16)
TEXT, TEXT_LOSS, UTTERANCE = 0.8, 0.35, 0.5
"""Standard deviations on the scale of logits: half-widths and spreads are then those of the micro model's sweeps."""
SECONDS_TEXT_LOSS, SECONDS_UTTERANCE, SECONDS_SEED = 0.03, 0.08, 0.01
POINT = 6.5
"""Logits to a rate of 1 near the base's WER: a seed's standard deviation of a point is 0.065 logits."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
KINDS = ("WER - base", "WER - baseline", "duration / base")


@dataclass(frozen=True)
class World:
    """What is true."""

    texts: int = 200
    speakers: int = 1
    """Who speak each text: as many utterances of it, under one hardness."""
    seeds: int = 3
    seed_sd: tuple[float, ...] = (0.0,)
    """Between training seeds, WER as a rate: of the baseline and the variants in turn."""
    differences: tuple[float, ...] = field(default=(0.0,) * 8)
    """True WER of each variant minus the baseline's, whose WER is the base's."""
    drifts: tuple[float, ...] = field(default=(0.0, 0.01, -0.02, 0.05, 0.0, 0.10, 0.02, -0.05))


@dataclass(frozen=True)
class Heard:
    """A sweep: sums of each utterance. First axis: the baseline, then the variants."""

    words: np.ndarray
    """(T, K) alike for all."""
    base_errors: np.ndarray
    """(T, K)"""
    errors: np.ndarray
    """(1 + V, S, T, K)"""
    base_seconds: np.ndarray
    seconds: np.ndarray


def true_rate(center: float, sd: float) -> float:
    """The mean of logistic(N(center, sd^2))."""
    return float((_WEIGHTS / (1 + np.exp(-(center + sd * _NODES)))).sum() / _WEIGHTS.sum())


def center_of(rate: float, sd: float) -> float:
    """The center that has this mean rate."""
    return float(optimize.brentq(lambda center: true_rate(center, sd) - rate, -12, 12))


def hear(world: World, rng: np.random.Generator) -> Heard:
    """Invent a sweep."""
    t, k, s = world.texts, world.speakers, world.seeds
    wers = BASE_WER + np.array((0.0, *world.differences))
    v = len(wers)
    seed_sd = POINT * np.array([world.seed_sd[i % len(world.seed_sd)] for i in range(v)])
    centers = np.array([center_of(wer, (TEXT**2 + TEXT_LOSS**2 + UTTERANCE**2 + sd**2)**0.5)
                        for wer, sd in zip(wers, seed_sd, strict=True)])
    words = np.repeat(rng.integers(*WORDS, (t, 1)), k, axis=1)
    text = TEXT * rng.standard_normal((t, 1))
    logits = (centers[:, None, None, None] + text + seed_sd[:, None, None, None] * rng.standard_normal((v, s, 1, 1))
              + TEXT_LOSS * rng.standard_normal((v, 1, t, 1)) + UTTERANCE * rng.standard_normal((v, s, t, k)))
    base = center_of(BASE_WER, (TEXT**2 + UTTERANCE**2)**0.5) + text + UTTERANCE * rng.standard_normal((t, k))
    seconds = rng.lognormal(1.0, 0.3, (t, 1))
    ratio = 1 + np.array((0.0, *world.drifts))[:, None, None, None]
    luck = ((1 + SECONDS_SEED * rng.standard_normal((v, s, 1, 1)) * (seed_sd > 0)[:, None, None, None])
            * (1 + SECONDS_TEXT_LOSS * rng.standard_normal((v, 1, t, 1)))
            * (1 + SECONDS_UTTERANCE * rng.standard_normal((v, s, t, k))))
    return Heard(words.astype(float), rng.binomial(words, 1 / (1 + np.exp(-base))).astype(float),
                 rng.binomial(words, 1 / (1 + np.exp(-logits))).astype(float),
                 seconds * (1 + SECONDS_UTTERANCE * rng.standard_normal((t, k))), seconds * ratio * luck)


def truth(world: World) -> dict[str, np.ndarray]:
    """The means that a sweep of endless texts and seeds would find, by kind: (V,) each."""
    differences = np.array(world.differences)
    return {"WER - base": differences, "WER - baseline": differences, "duration / base": 1 + np.array(world.drifts)}


def analyse(heard: Heard, resamples: int) -> dict[str, list[Estimate]]:
    """As the table of a sweep does: clusters are texts, all training seeds in one estimate, spreads steadied."""
    by_text = Heard(*(x.sum(-1) for x in vars(heard).values()))
    t = by_text.words.shape[0]
    words, base, base_seconds = (x[:, None] for x in (by_text.words, by_text.base_errors, by_text.base_seconds))
    trained = by_text.errors.transpose(0, 2, 1)
    return _estimates(words, base, base_seconds, trained, by_text.seconds.transpose(0, 2, 1), t, resamples)


def analyse_naively(heard: Heard, resamples: int) -> dict[str, list[Estimate]]:
    """As it must not be done: training seeds are pooled into one, and every utterance is a text of its own."""
    t = heard.words.size
    words, base, base_seconds = (x.reshape(t, 1) for x in (heard.words, heard.base_errors, heard.base_seconds))
    v, s = heard.errors.shape[:2]
    trained, seconds = (x.sum(1).reshape(v, t, 1) for x in (heard.errors, heard.seconds))
    return _estimates(s * words, s * base, s * base_seconds, trained, seconds, t, resamples)


def _estimates(
    words: np.ndarray, base: np.ndarray, base_seconds: np.ndarray, errors: np.ndarray, seconds: np.ndarray, texts: int,
    resamples: int,
) -> dict[str, list[Estimate]]:
    def minus(other: np.ndarray, mine: np.ndarray) -> Statistic:
        return lambda counts: pooled(counts, mine, words) - pooled(counts, other, words)

    def ratio(mine: np.ndarray) -> Statistic:
        return lambda counts: pooled(counts, mine, base_seconds)

    kinds: dict[str, list[Statistic]] = {
        "WER - base": [minus(base, mine) for mine in errors[1:]],
        "WER - baseline": [minus(errors[0], mine) for mine in errors[1:]],
        "duration / base": [ratio(mine) for mine in seconds[1:]],
    }
    out = {}
    for kind, statistics in kinds.items():
        found = [measure(statistic, texts, resamples=resamples) for statistic in statistics]
        null = 1.0 if kind == "duration / base" else 0.0
        out[kind] = [interval(one, spread, null=null) for one, spread in zip(found, spreads(found), strict=True)]
    return out


Analysis = Callable[[Heard, int], dict[str, list[Estimate]]]


def sweeps(world: World, number: int, resamples: int, seed: int, how: Analysis = analyse) -> Iterator[
        dict[str, list[Estimate]]]:
    """Estimates of so many invented sweeps."""
    for i in range(number):
        yield how(hear(world, np.random.default_rng((seed, i))), resamples)


def coverage(found: list[dict[str, list[Estimate]]], world: World) -> dict[str, float]:
    """The share of intervals that hold the truth, by kind."""
    def holds(e: Estimate, true: float) -> bool:
        return e.ci95 is not None and e.ci95[0] <= true <= e.ci95[1]

    return {kind: float(np.mean([holds(*pair) for sweep in found for pair in zip(sweep[kind], values, strict=True)]))
            for kind, values in truth(world).items()}


def family_error(found: list[dict[str, list[Estimate]]], kind: str, null: np.ndarray) -> float:
    """The share of sweeps in which Holm's correction leaves a variant of no difference below 0.05."""
    wrong = 0
    for sweep in found:
        adjusted = holm([e.p for e in sweep[kind]])
        wrong += any(p is not None and p < 0.05 for p, is_null in zip(adjusted, null, strict=True) if is_null)
    return wrong / len(found)


def components(world: World, number: int, resamples: int) -> Components:
    """The true ones of WER minus the baseline's, as the mean of estimates that are right on average."""
    pilot = replace(world, differences=(0.0,) * len(world.differences))
    squares = []
    for sweep in sweeps(pilot, number, resamples, seed=99):
        for e in sweep["WER - baseline"]:
            squares.append([(x or 0.0)**2 for x in (e.sd_text, e.sd_seed, e.sd_rest)])
    text, _, rest = np.sqrt(np.mean(squares, axis=0))
    pairs = [(world.seed_sd[0]**2 + world.seed_sd[i % len(world.seed_sd)]**2) for i in range(1, 9)]
    return Components(float(text), float(np.mean(pairs))**0.5, float(rest))


def found_share(found: list[dict[str, list[Estimate]]], which: slice, level: float) -> float:
    """The share of these variants' differences with p below the level."""
    return float(np.mean([e.p is not None and e.p < level for sweep in found for e in sweep["WER - baseline"][which]]))


SETTINGS = {
    "3 seeds, sd 0": World(),
    "3 seeds, sd 0.7 points": World(seed_sd=(0.007,)),
    "3 seeds, sd 2.5 points": World(seed_sd=(0.025,)),
    "3 seeds, sd 0.3, 1 or 3 points": World(seed_sd=(0.01, 0.003, 0.03)),
    "3 seeds, 67 texts x 3 speakers, sd 0.7": World(texts=67, speakers=3, seed_sd=(0.007,)),
    "2 seeds, sd 0.7 points": World(seeds=2, seed_sd=(0.007,)),
    "2 seeds, sd 2.5 points": World(seeds=2, seed_sd=(0.025,)),
    "5 seeds, sd 0.7 points": World(seeds=5, seed_sd=(0.007,)),
    "5 seeds, sd 2.5 points": World(seeds=5, seed_sd=(0.025,)),
    "1 seed, sd 0": World(seeds=1),
}
NULL = np.array([False] * 4 + [True] * 4)


def setting(world: World, number: int, resamples: int) -> dict[str, Any]:
    """All figures of a setting: a sweep without any difference, and one in which 4 of 8 variants differ."""
    parts = components(world, max(20, number // 5), resamples)
    many = len(world.differences)
    alone = smallest(parts, world.texts, world.seeds, beside=many)
    after = smallest(parts, world.texts, world.seeds, comparisons=many, beside=many)
    d, e = min(alone, 0.12), min(after, 0.12)
    mixed = replace(world, differences=(d, -d, e, -e, 0.0, 0.0, 0.0, 0.0))
    nothing = list(sweeps(world, number, resamples, seed=1))
    half = list(sweeps(mixed, number, resamples, seed=2))
    naive = list(sweeps(mixed, number, resamples, seed=2, how=analyse_naively))
    kinds = ("WER - base", "WER - baseline")
    return {
        "coverage": coverage(half, mixed), "naive": coverage(naive, mixed),
        "error, no difference": {k: family_error(nothing, k, np.full(many, True)) for k in kinds},
        "error, 4 differ": {k: family_error(half, k, NULL) for k in kinds},
        "power": [(d, power(d, parts, world.texts, world.seeds, beside=many), found_share(half, slice(0, 2), 0.05)),
                  (e, power(e, parts, world.texts, world.seeds, comparisons=many, beside=many),
                   found_share(half, slice(2, 4), 0.05 / many))],
    }


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    def shares(values: dict[str, float]) -> str:
        return " / ".join(f"{100 * value:.1f}" for value in values.values())

    powers = "; ".join(f"{100 * d:.1f}: {100 * said:.0f} / {100 * real:.0f}" for d, said, real in found["power"])
    return (f"| {name} | {shares(found['coverage'])} | {shares(found['naive'])} | "
            f"{shares(found['error, no difference'])} | {shares(found['error, 4 differ'])} | {powers} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1_000)
    args = parser.parse_args()
    print(f"{args.sweeps} sweeps a setting, 8 variants. Coverage of 95 % intervals: {' / '.join(KINDS)}.\n")
    print("| setting | coverage, % | naive, % | family error, none differs, % | 4 of 8 differ, % | power at a "
          "difference of points, promised / found: alone; after Holm |\n|---|---|---|---|---|---|", flush=True)
    for name, world in SETTINGS.items():
        print(line(name, setting(world, args.sweeps, args.resamples)), flush=True)


if __name__ == "__main__":
    main()
