"""As `train`, against TRL's defaults, with a prefix of 1,000 positions: a long prompt, or speech in it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from . import _training
from ._measure import Row
from ._training import Sizes, add_arguments

__all__ = ["add_arguments", "rows"]

LONG = Sizes(pairs=16, batch=4, prefix=(1000, 1000))
SIZES = {"mid": LONG, "quick": replace(LONG, pairs=4, batch=2, layers=2), "real": replace(LONG, pairs=48, layers=None)}


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """One row."""
    return _training.rows("train_long_context", args, SIZES)
