"""Tuning of a sweep's variants: the same small grid for each, at equal budget, chosen on dev and judged on eval.

    tuning:
      grid: {args.learning_rate: [1.0e-4, 3.0e-4, 1.0e-3]}     tried of every variant
      own: {r_dpo: {loss.alpha: [0.03, 0.1, 0.3]}, dpo: {loss.beta: [0.05, 0.1, 0.2]}}     and of each its own

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from talker_rl.base.settings import Settings

TUNED = "_tuned"
"""Behind the name of a variant: with the settings that tuning chose."""


class TuningConfig(Settings):
    """What is tried of each variant before the sweep's trainings; with it, a sweep has every variant twice."""

    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="Key of a variant -> values that are tried, of every variant, e.g. "
        "{args.learning_rate: [1.0e-4, 3.0e-4]}; with several keys every combination."
    )
    own: dict[str, dict[str, list[Any]]] = Field(
        default_factory=dict, description="Variant -> what is tried of it besides, e.g. {r_dpo: {loss.alpha: [0.03, "
        "0.1]}, mixed: {loss.terms.1.weight: [1, 5]}}. All variants have as many combinations: a loss that is tuned "
        "more is better for it."
    )
    seed: int = Field(0, ge=0, description="Training seed of the tries; the chosen settings are trained with the "
                      "sweep's seeds.")
    metric: Literal["reward", "wer"] = Field("reward", description="What decides, of the last step's speech on the dev "
                                             "texts, by the reward recognizer.")

    @field_validator("grid", "own")
    @classmethod
    def _values(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, tried in value.items():
            lists = tried if isinstance(tried, dict) else {name: tried}
            for key, values in lists.items():
                if not values:
                    raise ValueError(f"{key}: at least one value is needed")
                if any(one in values[:i] for i, one in enumerate(values)):
                    raise ValueError(f"{key}: a value stands there twice")
        return value

    def settings(self, variant: str) -> list[dict[str, Any]]:
        """Every combination that is tried of a variant: key -> value."""
        grid = self.grid | self.own.get(variant, {})
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def check(self, variants: Iterable[str], trained: Iterable[str], fixed: Iterable[str]) -> None:
        """Raise where a variant is not one, where budgets differ, or where what is alike in all would be tuned.

        Args:
            variants: names of all.
            trained: of those that an arm has.
            fixed: keys that are alike in all trainings.

        Raises:
            ValueError: says what is wrong.
        """
        names = list(variants)
        for name in self.own:
            if name not in names:
                raise ValueError(f"tuning.own: there is no variant {name!r}, only {', '.join(names)}")
        for name in names:
            if name.endswith(TUNED):
                raise ValueError(f"variants.{name}: with tuning a name that ends in {TUNED} is that of a variant with "
                                 "its best settings; rename it")
        keys = {key for tried in (self.grid, *self.own.values()) for key in tried}
        if unfair := sorted(key for key in keys for one in fixed if f"{key}.".startswith(f"{one}.")
                            or f"{one}.".startswith(f"{key}.")):
            raise ValueError(f"tuning tries {unfair[0]}, and what is saved, for how long and with which seeds is "
                             "trained is alike in all variants: losses are compared at equal steps")
        counts = {name: len(self.settings(name)) for name in trained}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name}: {n}" for name, n in counts.items())
            raise ValueError(f"tuning tries more of some variants than of others ({told}): give each as many "
                             "combinations under tuning.own (dpo has loss.beta)")

    def best(self, tried: Iterable[Mapping[str, Any]]) -> int | None:
        """Which of the tries is chosen: ``reward`` and ``wer`` of each; of equal ones the first. A try of which nothing
        could be scored (None) is not; None where there is no other."""
        sign = -1.0 if self.metric == "reward" else 1.0
        known = [(sign * row[self.metric], i) for i, row in enumerate(tried) if row[self.metric] is not None]
        return min(known)[1] if known else None


def with_settings(data: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's plain data with dotted keys set; a number in a key is a place in a list.

    Raises:
        ValueError: a key leads nowhere.
    """
    out = copy.deepcopy(dict(data))
    for key, value in settings.items():
        *path, last = key.split(".")
        node: Any = out
        try:
            for part in path:
                node = node[int(part)] if isinstance(node, list) else node[part]
            if isinstance(node, list):
                node[int(last)] = value
            elif isinstance(node, dict):
                node[last] = value
            else:
                raise KeyError(last)
        except (KeyError, ValueError, IndexError):
            raise ValueError(f"tuning: {key} leads nowhere in {sorted(out)}; write e.g. args.learning_rate or "
                             "loss.alpha") from None
    return out
