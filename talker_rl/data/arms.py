"""What ablations plant in pairs on purpose, or take out of them: lengths in balance, labels that are wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from talker_rl.base.ids import derive_seed
from talker_rl.records.pair import Pair, pair_id_of


class Balance:
    """Keeps as many pairs whose chosen is longer as pairs whose chosen is shorter by as much, the widest margins of
    each. So length says nothing of who is chosen, at any difference.

    Args:
        codes: width of the bins in which differences count as equal. Pairs of equal length stay, all of them.
    """

    def __init__(self, codes: int) -> None:
        self._codes = codes
        self._bins: dict[int, dict[bool, list[_Width]]] = defaultdict(lambda: {True: [], False: []})
        self._equal: list[_Width] = []

    def add(self, pairs: Iterable[Pair]) -> None:
        """Take in some of the pairs."""
        for pair in pairs:
            longer = pair.chosen.frames - pair.rejected.frames
            width = -pair.margin, pair.pair_id, pair.prompt_id
            (self._bins[(abs(longer) - 1) // self._codes][longer > 0] if longer else self._equal).append(width)

    @cached_property
    def _kept(self) -> list[_Width]:
        found = list(self._equal)
        for sides in self._bins.values():
            count = min(map(len, sides.values()))
            for side in sides.values():
                found += sorted(side)[:count]
        return found

    @cached_property
    def kept(self) -> set[str]:
        """Ids of the pairs that stay, of all that were added; after this none may be."""
        return {pair_id for _, pair_id, _ in self._kept}

    @cached_property
    def prompts(self) -> set[str]:
        """Ids of the prompts that they are of."""
        return {prompt_id for _, _, prompt_id in self._kept}


_Width = tuple[float, str, str]
"""Minus the margin, pair id, prompt id."""


def mislabel(pairs: Iterable[Pair], share: float, seed: int) -> list[Pair]:
    """Chosen and rejected exchanged in a share of the pairs, drawn pair by pair: who is drawn hangs on nobody else.

    A pair whose rejected was cut stays as it is: exchanged, it would teach not to stop, which is another fault.
    """
    def drawn(pair: Pair) -> bool:
        return pair.rejected.stopped and derive_seed(seed, "mislabel", pair.pair_id) / 2**31 < share

    return [_exchanged(pair) if drawn(pair) else pair for pair in pairs]


def _exchanged(pair: Pair) -> Pair:
    return replace(
        pair, pair_id=pair_id_of(pair.prompt_id, pair.rejected.ids, pair.chosen.ids), chosen_id=pair.rejected_id,
        rejected_id=pair.chosen_id, chosen=pair.rejected, rejected=pair.chosen, chosen_reward=pair.rejected_reward,
        rejected_reward=pair.chosen_reward, margin=-pair.margin, chosen_classes=pair.rejected_classes,
        rejected_classes=pair.chosen_classes)
