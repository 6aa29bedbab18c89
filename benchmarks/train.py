"""LoRA training: pairs per second against TRL's DPOTrainer with its defaults, which run the reference in every step.

Both sides train the same pairs in the same order from the same start, in float32 and without gradient checkpointing;
ours computes its reference log-probs in the time that is measured. The largest difference is of the losses by step.
Geometries other than mid: against a plain padded loop that does the same, the real one in bfloat16; a second row tells
the memory with gradient checkpointing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from . import _training
from ._measure import Row
from ._training import Sizes, add_arguments

__all__ = ["add_arguments", "rows"]

SIZES = {"mid": Sizes(), "quick": Sizes(pairs=8, layers=2, codes=(50, 100)), "real": Sizes(pairs=128, layers=None)}


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """One row; of the real geometry two."""
    return _training.rows("train", args, SIZES, aim=2)
