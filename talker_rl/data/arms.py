"""What ablations plant in pairs on purpose, or take out of them: lengths in balance, labels that are wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from talker_rl.base.ids import derive_seed
from talker_rl.records.pair import Pair, pair_id_of


def balance_lengths(pairs: Sequence[Pair], codes: int) -> list[Pair]:
    """As many pairs whose chosen is longer as pairs whose chosen is shorter by as much, the widest margins of each; in
    the order that they were given in. So length says nothing of who is chosen, at any difference.

    Args:
        codes: width of the bins in which differences count as equal. Pairs of equal length stay, all of them.
    """
    bins: dict[int, dict[bool, list[Pair]]] = defaultdict(lambda: {True: [], False: []})
    kept: set[str] = set()
    for pair in pairs:
        longer = pair.chosen.frames - pair.rejected.frames
        if longer:
            bins[(abs(longer) - 1) // codes][longer > 0].append(pair)
        else:
            kept.add(pair.pair_id)
    for sides in bins.values():
        count = min(map(len, sides.values()))
        for side in sides.values():
            kept |= {pair.pair_id for pair in sorted(side, key=lambda p: (-p.margin, p.pair_id))[:count]}
    return [pair for pair in pairs if pair.pair_id in kept]


def mislabel(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
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
        rejected_reward=pair.chosen_reward, margin=-pair.margin)
