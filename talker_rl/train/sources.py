"""Where the sequences of the steps come from."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.base.lazy import Lazy
from talker_rl.records.pair import Completion, Pair
from talker_rl.speech.protocol import Policy, TalkerSequence
from talker_rl.train.collate import Example, Examples
from talker_rl.train.reference import reference_logps

Record = Pair | Completion


class Source(Protocol):
    """What a trainer asks for examples."""

    train: torch.utils.data.Dataset[Any]
    """By index; or an iterable one, which is asked for the next ones as the steps come."""
    held_out: torch.utils.data.Dataset[Any] | None
    """Never trained on; None: nothing is."""

    def facts(self) -> dict[str, Any]:
        """Counts, for the result and the card."""
        ...


class Stored:
    """Pairs or completions that are there before training begins.

    Args:
        records, held_out: to train on, and for ``select`` and early stopping.
        conditionings: of every prompt of both, by prompt id or as a list.
        max_length: steps of a completion, the stop included; see :func:`fit_length`.

    Raises:
        StageError: no record is left, or a prompt of one has no conditioning.
    """

    train: torch.utils.data.Dataset[Any]
    held_out: torch.utils.data.Dataset[Any] | None

    def __init__(
        self, records: Sequence[Record], held_out: Sequence[Record], conditionings: Mapping[str, Any] | Iterable[Any],
        max_length: int | None = None,
    ) -> None:
        self.records, self.left_out = fit_length(records, max_length)
        self.held_out_records, _ = fit_length(held_out, max_length)
        n = len(self.records)
        self._all: Sequence[Record] = Lazy(n + len(self.held_out_records), lambda i: (
            self.records[i] if i < n else self.held_out_records[i - n]))
        if not self.records:
            raise StageError(
                "there is no pair to train on" + (f" (left out: {self.left_out})" if records else ""),
                fix="lower the margin, sample more candidates, or raise max_length",
            )
        self._conditionings = by_prompt(conditionings, self._all)

    def refer(
        self, policy: Policy, cache_dir: str | Path, *, bf16: bool = False, batch_size: int = 16,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, int]:
        """Get the reference's log-probs of everything; returns the cache's counts."""
        found, counts = reference_logps(policy, self._all, self._conditionings, cache_dir, bf16=bf16,
                                        batch_size=batch_size, on_progress=on_progress)

        def example(i: int) -> Example:
            record = self._all[i]
            conditioning = self._conditionings[record.prompt_id]
            return Example(record.pair_id, [TalkerSequence(conditioning, side) for side in record.sides],
                           list(found[i]), classes=_classes(record))

        n, examples = len(self.records), Lazy(len(self._all), example)
        self.train, self.held_out = Examples(examples[:n]), Examples(examples[n:]) if examples[n:] else None
        return counts

    def some(self, count: int) -> list[TalkerSequence]:
        """At most ``count`` sequences to train on, from all over them, chosen and rejected alike."""
        records: Sequence[Record] = self.records[:: max(1, -(-len(self.records) * len(self.records[0].sides) // count))]
        return [TalkerSequence(self._conditionings[r.prompt_id], side) for r in records for side in r.sides][:count]

    def facts(self) -> dict[str, Any]:
        """Counts and mean durations, for the result and the card."""
        seconds: list[array[float]] = [array("d") for _ in self.records[0].sides]
        prompts = set()
        for r in self.records:
            prompts.add(r.prompt_id)
            for of_side, speech in zip(seconds, r.sides, strict=True):
                of_side.append(speech.seconds)
        chosen, *rejected = seconds
        return {
            "pairs": len(self.records),
            "prompts": len(prompts),
            "eval_pairs": len(self.held_out_records),
            "chosen_seconds": statistics.fmean(chosen),
            "rejected_seconds": statistics.fmean(rejected[0]) if rejected else None,
            "length_limit": self.left_out,
        }


def fit_length(records: Sequence[Record], max_length: int | None) -> tuple[Sequence[Record], dict[str, int]]:
    """Records within `max_length` steps (the stop included), and what was done to the others.

    A longer rejected is cut (`rejected_cut`); a record with a longer chosen is left out (`chosen_too_long`): a chosen
    that was cut would teach the Talker not to stop.
    """
    counts = {"chosen_too_long": 0, "rejected_cut": 0}
    if max_length is None:
        return records, counts
    kept: list[int] = []
    for i, record in enumerate(records):
        if record.sides[0].steps > max_length:
            counts["chosen_too_long"] += 1
            continue
        counts["rejected_cut"] += isinstance(record, Pair) and record.rejected.steps > max_length
        kept.append(i)
    return Lazy(len(kept), lambda i: _cut(records[kept[i]], max_length)), counts


def _cut(record: Record, max_length: int) -> Record:
    if not isinstance(record, Pair) or record.rejected.steps <= max_length:
        return record
    kinds = record.rejected_classes
    return replace(record, rejected=record.rejected.cut(max_length),
                   rejected_classes=None if kinds is None else kinds[:max_length])


def _classes(record: Record) -> list[torch.Tensor] | None:
    """What each step of a pair's sides says; None where the pair was made without."""
    if not isinstance(record, Pair) or record.chosen_classes is None or record.rejected_classes is None:
        return None
    return [torch.tensor(record.chosen_classes), torch.tensor(record.rejected_classes)]


def by_prompt(conditionings: Mapping[str, Any] | Iterable[Any], records: Iterable[Record]) -> Mapping[str, Any]:
    """Conditioning by prompt id, for every prompt of the records.

    Raises:
        StageError: a prompt of the records has no conditioning.
    """
    listed: Iterable[Any] = () if isinstance(conditionings, Mapping) else conditionings
    found: Mapping[str, Any] = (conditionings if isinstance(conditionings, Mapping)
                                else {one.prompt_id: one for one in listed})
    missing = sorted({record.prompt_id for record in records} - found.keys())
    if missing:
        raise StageError(
            f"no conditioning for {count(len(missing), 'prompt')} of the pairs, the first is {missing[0]}",
            where="conditioning",
            fix="run the conditioning stage on the prompts of these pairs",
        )
    return found
