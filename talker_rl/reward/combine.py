"""From components to one reward: weighted terms, gates, clip; and the removal of length, done over a whole set.

    reward = clip(prod(gates) * sum(w_k * term_k) / sum(w_k))

and the lower end of clip where nothing was recognized; or no word of the text, where WER counts and CER does not.

Every term lies within [0, 1] and so does the reward:

    wer    1 - tanh(k * WER)             pause  right * (1 - pause_error)
    cer    1 - tanh(k * CER)             rate   right * (1 - tanh(excess / scale)), excess >= 0: how far, in natural
                                                log, speech is slower or faster than the free range
                                         own    its value
right is the share of the text's words that were recognized. What is said of words that nobody heard is no evidence: a
silent or noisy candidate has no false pause and no wrong rate, and must not be paid for it. A component of one's own
judges by evidence of its own, and says null where it has none (docs/REWARD.md).

A term of non-zero weight whose component is null makes the score a Failure: leaving it out would make that candidate's
reward a different quantity from its neighbors'.
"""

from __future__ import annotations

import importlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from talker_rl.base.errors import ConfigError
from talker_rl.records.score import nothing_recognized, nothing_right, right_words
from talker_rl.reward.config import ComponentConfig, RewardConfig

Components = dict[str, float | None]

BUILT_IN_COMPONENTS = (
    "wer cer substitutions deletions insertions ref_words "
    "pause_error pause_error_scorable pause_precision pause_recall pause_f1 pause_scorable_share "
    "pause_marks pause_hits pause_misses pause_false pause_out_of_bounds "
    "duration duration_ratio rate lead_silence tail_silence max_inner_silence repeated_run repeated_ngram "
    "cap_hit clipping non_finite gate unwritten reward_written"
).split()


_AFTER_THE_REWARD = ("gate", "unwritten", "reward_written")


class ComponentError(Exception):
    """A component that cannot enter the reward; the scorer turns it into a Failure with this code."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def load_function(import_path: str, where: str = "reward.components") -> Callable[..., Any]:
    """The function named by ``module:function``; ``where``: the setting that names it.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    module_name, _, attribute = import_path.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:  # whatever a module does as it is imported
        raise ConfigError(
            f"{import_path!r} cannot be imported: {type(error).__name__}: {error}",
            where=where,
            fix="write `module:function` of a module on the Python path",
        ) from error
    if not callable(target):
        raise ConfigError(f"{import_path!r} is not a function", where=where, fix="name a function of that module")
    return target


@dataclass(frozen=True)
class Combined:
    """The reward and what made it."""

    value: float
    terms: dict[str, float]
    gate: float
    """Product of the gates' factors."""


class Combiner:
    """Combines components as a `RewardConfig` says; own components are imported once, here.

    Raises:
        ConfigError: an own component cannot be imported or takes a built-in name, or a gate names no component.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.own: list[tuple[ComponentConfig, Callable[..., Any]]] = []
        for component in config.components:
            if component.name in BUILT_IN_COMPONENTS:
                raise ConfigError(
                    f"component {component.name!r} has the name of a built-in one",
                    where="reward.components",
                    fix="choose another name",
                )
            self.own.append((component, load_function(component.import_path)))
        names = [*BUILT_IN_COMPONENTS, *(c.name for c in config.components)]
        for gate in config.gates:
            if gate.component in _AFTER_THE_REWARD:
                raise ConfigError(f"a gate on {gate.component!r}, which is known only after the reward",
                                  where="reward.gates", fix="gate another component, or filter the texts")
            if gate.component not in names:
                raise ConfigError(
                    f"a gate names the unknown component {gate.component!r}",
                    where="reward.gates",
                    fix=f"use one of: {', '.join(names)}",
                )

    def own_components(self, item: Any, components: Components) -> Components:
        """Values of one's own components for an item.

        Raises:
            ComponentError: a function raised, or returned something that is no finite number (None is allowed).
        """
        out: Components = {}
        for spec, function in self.own:
            try:
                value = function(item, dict(components), **spec.kwargs)
            except Exception as error:
                raise ComponentError(
                    "component_error", f"component {spec.name!r} raised {type(error).__name__}: {error}"
                ) from error
            if value is not None:
                if not isinstance(value, int | float | np.number | bool) or not math.isfinite(value):
                    raise ComponentError("component_invalid", f"component {spec.name!r} returned {value!r}")
                value = float(value)
            out[spec.name] = value
        return out

    def combine(self, components: Components) -> Combined:
        """The reward of complete components.

        Raises:
            ComponentError: a weighted component is null or lies outside [0, 1].
        """
        config = self.config
        low, high = config.clip
        by_words = config.weights.wer > 0 and config.weights.cer == 0
        if nothing_recognized(components) or (by_words and nothing_right(components)):
            return Combined(low, {}, self._gate(components))
        right = share_right(components)
        weights = {k: w for k, w in config.weights.model_dump().items() if w > 0}
        terms = {name: self._term(name, components) * (1.0 if name in WORD_TERMS else right) for name in weights}
        for spec, _ in self.own:
            if spec.weight > 0:
                value = self._required(spec.name, components)
                if not 0.0 <= value <= 1.0:
                    raise ComponentError(
                        "component_invalid", f"component {spec.name!r} is {value:g}; with a weight it must be in [0, 1]"
                    )
                weights[spec.name], terms[spec.name] = spec.weight, value
        gate = self._gate(components)
        value = gate * sum(weights[k] * terms[k] for k in weights) / sum(weights.values())
        return Combined(min(max(value, low), high), terms, gate)

    def _gate(self, components: Components) -> float:
        """Product of the factors of all gates that do not let the components pass."""
        gate = 1.0
        for g in self.config.gates:
            found = components.get(g.component)
            if found is None:
                passes = not applies(g.component, components)
            else:
                passes = (g.min is None or found >= g.min) and (g.max is None or found <= g.max)
            gate *= 1.0 if passes else g.factor
        return gate

    def _required(self, name: str, components: Components) -> float:
        value = components.get(name)
        if value is None:
            raise ComponentError("null_component", f"{name} has no value, but its weight in the reward is not zero")
        return value

    def _term(self, name: str, components: Components) -> float:
        if name in ("wer", "cer"):
            return 1.0 - math.tanh(self.config.wer_scale * self._required(name, components))
        if name == "pause":
            return 1.0 - self._required("pause_error", components)
        return 1.0 - math.tanh(self._rate_excess(components) / self.config.rate.scale)

    def _rate_excess(self, components: Components) -> float:
        """Natural-log distance outside the free range: of the duration ratio where one is known, else of the rate."""
        rate = self.config.rate
        ratio = components.get("duration_ratio")
        if ratio is not None:
            return max(0.0, abs(math.log(ratio)) - rate.tolerance) if ratio > 0 else math.inf
        spoken = components.get("rate")
        if spoken is None or spoken <= 0:
            return math.inf  # nothing was said: as far from the range as can be
        low, high = rate.units_per_second
        return max(0.0, math.log(low / spoken), math.log(spoken / high))


WORD_TERMS = ("wer", "cer")
"""Terms that judge the words themselves."""

_NEED_MORE_THAN_SOUND = ("duration_ratio", "cap_hit", "repeated_run", "repeated_ngram")
"""Null where the item came without a reference duration, an end reason or codes: like its neighbors."""
_NEED_MARKS = ("pause_precision", "pause_recall", "pause_f1", "pause_scorable_share", "pause_error_scorable")
"""Null where the text has no mark (or no pause was found) although the pauses were measured."""


def applies(component: str, components: Components) -> bool:
    """Whether a component that is null should have had a value, so that its absence is no excuse."""
    if component in _NEED_MORE_THAN_SOUND:
        return False
    if component in _NEED_MARKS:
        return components.get("pause_error") is None or bool(components.get("pause_marks"))
    return True


def share_right(components: Components) -> float:
    """Share of the text's words that were recognized, in [0, 1]. Where the components do not count words all are taken
    as right, unless the WER says that nothing can be."""
    right, words = right_words(components), components.get("ref_words")
    if right is None or not words:
        return 0.0 if (components.get("wer") or 0.0) >= 1.0 else 1.0
    return min(1.0, max(0.0, right / words))


def remove_length(
    rewards: Sequence[float | None], durations: Sequence[float], prompt_ids: Sequence[str],
    silent: Sequence[bool] | None = None,
) -> tuple[list[float | None], float]:
    """Rewards without their linear dependence on duration, and the slope that was removed (reward per second).

    One slope for the whole set, from deviations within prompts (candidates of a prompt share its text, so a long text
    being harder is no length bias); subtracted around each prompt's mean duration, so prompt means stay. A reward of
    None (a failure) stays None and is not fitted; likewise a candidate in which nothing was recognized (``silent``)
    keeps its minimum: silence says nothing of how length pays. Slope 0 where no prompt has two durations.

    This needs all candidates: call it once on a finished set, never on a batch, or a score depends on its neighbors.
    """
    fit, part = LengthSlope(), (rewards, durations, prompt_ids, silent)
    fit.look(*part)
    return fit.removed(*part), fit.slope


class LengthSlope:
    """:func:`remove_length` of a set that comes in parts, each with all candidates of its prompts: ``look`` at every
    part, then ``removed`` of every part."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def look(
        self, rewards: Sequence[float | None], durations: Sequence[float], prompt_ids: Sequence[str],
        silent: Sequence[bool] | None = None,
    ) -> None:
        """Take in a part; arguments as of :func:`remove_length`."""
        for prompt_id, members in _spoken(rewards, prompt_ids, silent).items():
            d = _centered([durations[i] for i in members])
            self._sums[prompt_id] = float(d @ _centered([rewards[i] for i in members])), float(d @ d)

    @cached_property
    def slope(self) -> float:
        """Reward per second, of all parts; after this none may be added."""
        found = [self._sums[prompt_id] for prompt_id in sorted(self._sums)]
        spread = math.fsum(square for _, square in found)
        return math.fsum(product for product, _ in found) / spread if spread > 1e-12 else 0.0

    def removed(
        self, rewards: Sequence[float | None], durations: Sequence[float], prompt_ids: Sequence[str],
        silent: Sequence[bool] | None = None,
    ) -> list[float | None]:
        """The rewards of a part without what length pays."""
        out = list(rewards)
        for members in _spoken(rewards, prompt_ids, silent).values():
            for i, off in zip(members, _centered([durations[i] for i in members]), strict=True):
                out[i] = float(out[i] - self.slope * off)  # type: ignore[operator]
        return out


def _spoken(
    rewards: Sequence[float | None], prompt_ids: Sequence[str], silent: Sequence[bool] | None
) -> dict[str, list[int]]:
    """Places of the candidates of each prompt that are fitted."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, (reward, prompt_id) in enumerate(zip(rewards, prompt_ids, strict=True)):
        if reward is not None and not (silent and silent[i]):
            groups[prompt_id].append(i)
    return groups


def _centered(values: Sequence[Any]) -> np.ndarray:
    found = np.array(values, dtype=np.float64)
    return found - found.mean()
