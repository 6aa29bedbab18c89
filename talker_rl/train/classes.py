"""Whether pairs tell what a loss with ``token_weights`` asks of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.losses.config import LossConfig, MixLossConfig, PairLossConfig, parts_of
from talker_rl.records.pair import Completion, Pair
from talker_rl.records.token_classes import CLASSES
from talker_rl.train import processes

_STOP = CLASSES.index("stop")


def check_classes(loss: LossConfig, sets: Sequence[Sequence[Pair | Completion]]) -> None:
    """Refuse pairs that do not tell what their tokens say, where the loss weighs them by it; warn of those in which
    nothing counts.

    Args:
        sets: to train on, and others that the loss is asked of.

    Raises:
        StageError: there are such pairs; or no token of any of the first set counts.
    """
    parts = [part for part in parts_of(loss) if not isinstance(part, MixLossConfig)]
    weighted = [part for part in parts if isinstance(part, PairLossConfig) and part.token_weights]
    if not weighted:
        return
    without, all_ = sum(any(side is None for side in _sides(p)) for pairs in sets for p in pairs), sum(map(len, sets))
    if without:
        raise StageError(
            "the loss weighs tokens by what they say (token_weights), and "
            f"{count(without, f'pair of {all_} does', f'pairs of {all_} do')} not tell",
            fix="make them for this loss: talker-rl pair or run with --force-stage pairs; or leave token_weights out")
    if len(weighted) < len(parts):
        return
    tables = [[weight * (kind != _STOP or part.stop != "drop") for kind, weight in enumerate(part.weights() or ())]
              for part in weighted]
    pairs = sets[0]
    silent = sum(not any(table[kind] for table in tables for side in _sides(pair) for kind in side or ())
                 for pair in pairs)
    if silent == len(pairs):
        raise StageError("no token of any pair counts: token_weights are 0 for all that is in them",
                         where="train.loss.token_weights", fix="give a class of theirs a weight, or `others`")
    if silent and processes.is_main():
        of = len(pairs)
        warnings.warn(f"{count(silent, f'pair of {of} teaches', f'pairs of {of} teach')} nothing: token_weights are 0 "
                      "for all that is said in it", stacklevel=2)


def _sides(pair: Pair | Completion) -> Iterator[list[int] | None]:
    if isinstance(pair, Pair):
        yield pair.chosen_classes
        yield pair.rejected_classes
