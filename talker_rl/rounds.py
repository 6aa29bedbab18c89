"""Rounds, and the folders of their stages. A name is made from round and variant here, and never taken apart: what a
name says is looked up among those that a run can have (:func:`stage_kinds`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from talker_rl.base.lazy import picked

if TYPE_CHECKING:
    from talker_rl.config import RunConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """One on-policy round of one variant; the first round's samples serve all variants."""

    index: int
    """1-based."""
    variant: str | None = None
    """None in round 1."""

    @property
    def prefix(self) -> str:
        """Folder prefix inside the run."""
        return "" if self.index == 1 else f"round{self.index}/{self.variant}/"

    def __str__(self) -> str:
        return f"round {self.index}" + (f", {self.variant}" if self.variant else "")

    def stage(self, name: str) -> str:
        """Name of a stage of this round."""
        return f"{self.prefix}{name}"

    def data_stage(self, data: str | None) -> str:
        """Name of the stage whose records a variant with this ``data`` is trained on."""
        return self.stage("pairs" if data is None else f"completions/{data}")

    def variants(self, config: RunConfig) -> list[str]:
        """Names of the variants that this round trains."""
        return [self.variant] if self.variant else list(config.variants)

    def samples(self, config: RunConfig) -> bool:
        """Whether candidates are sampled before its variants are trained: some learn from pairs, or from the best."""
        return bool({None, "best_of_n"} & set(self.data(config)))

    def data(self, config: RunConfig) -> list[str | None]:
        """What its variants learn from (``data``), each once; those that sample for themselves need no stage for it."""
        learned = (config.variants[variant].data for variant in self.variants(config))
        return list(dict.fromkeys(data for data in learned if data != "online"))


def rounds_of(variants: Iterable[str], index: int) -> list[Round]:
    """The rounds that run at this index: one for all variants first, one per variant then."""
    return [Round(1)] if index == 1 else [Round(index, variant) for variant in variants]


def train_stage(variant: str, index: int) -> str:
    """Name of the training stage of a variant's round."""
    return f"round{index}/train/{variant}"


def choice_stage(variant: str, index: int) -> str:
    """Name of the stage that chooses among that training's checkpoints."""
    return f"round{index}/choice/{variant}"


def stage_kinds(variants: Sequence[str], iterations: int) -> Iterator[tuple[str, str]]:
    """Every stage that belongs to a round: its name, and the word that says of what kind it is."""
    for index in range(1, iterations + 1):
        for round_ in rounds_of(variants, index):
            yield from ((round_.stage(kind), kind) for kind in ("rollouts", "scores", "pairs"))
            yield from ((round_.data_stage(data), "completions") for data in ("best_of_n", "file"))
        for variant in variants:
            yield from ((train_stage(variant, index), "train"), (choice_stage(variant, index), "choice"))


def some(items: Sequence[T], count: int, index: int) -> Sequence[T]:
    """``count`` items from ``(index - 1) * count`` on, going round at the end."""
    if count >= len(items):
        return items
    start = (index - 1) * count % len(items)
    return picked(items, [(start + i) % len(items) for i in range(count)])
