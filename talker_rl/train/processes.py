"""One training in several processes: who writes, who waits, and how what one found out becomes known to all.

All processes see the same folders. What is written is written by the main one; what only the main one may find out is
sent to all, an error too, so that none waits for one that has raised.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

R = TypeVar("R")


def count() -> int:
    """Processes of this training."""
    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this is; the main one is 0."""
    return int(dist.get_rank()) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes."""
    return index() == 0


def part(n: int, of: int, which: int) -> slice:
    """The ``which``-th of ``of`` even contiguous parts of n things."""
    return slice(n * which // of, n * (which + 1) // of)


def on_main(function: Callable[[], R]) -> R:
    """What the function returns or raises in the main process, in all of them."""
    if count() == 1:
        return function()
    box: list[Any] = [None]
    if is_main():
        try:
            box = [(function(), None)]
        except Exception as error:
            box = [(None, _sendable(error))]
    dist.broadcast_object_list(box, src=0)
    result, raised = box[0]
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]


def gather(value: R) -> list[R]:
    """Every process's value, in their order, in all of them."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        dist.barrier()


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some library's own kind
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
