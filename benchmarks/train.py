"""LoRA training: pairs a second against TRL's DPOTrainer with its defaults, which run the reference in every step.

Both sides train the same pairs in the same order from the same start, in float32 and without gradient checkpointing;
ours computes its reference log-probs in the time that is measured. The largest difference is of the losses by step.
"""

from __future__ import annotations

import argparse

from . import _training
from ._measure import Row
from ._training import Sizes, add_arguments

__all__ = ["add_arguments", "rows"]

SIZES, QUICK = Sizes(), Sizes(pairs=16, layers=2, codes=(50, 100))


def rows(args: argparse.Namespace) -> list[Row]:
    """One row."""
    return _training.rows("train", args, SIZES, QUICK, "against TRL's defaults")
