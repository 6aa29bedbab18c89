"""As `train`, against TRL's DPOTrainer with precompute_ref_log_probs=True: both compute the reference once."""

from __future__ import annotations

import argparse

from . import _training
from ._measure import Row
from ._training import add_arguments
from .train import QUICK, SIZES

__all__ = ["add_arguments", "rows"]


def rows(args: argparse.Namespace) -> list[Row]:
    """One row."""
    against = "against TRL's precompute_ref_log_probs"
    return _training.rows("train_precomputed", args, SIZES, QUICK, against, precompute_ref_log_probs=True)
