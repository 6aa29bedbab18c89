"""As `train`, against TRL's DPOTrainer with precompute_ref_log_probs=True: both compute the reference once."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from . import _training
from ._measure import Row
from ._training import add_arguments
from .train import SIZES

__all__ = ["add_arguments", "rows"]


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """One row."""
    return _training.rows("train_precomputed", args, SIZES, precompute=True)
