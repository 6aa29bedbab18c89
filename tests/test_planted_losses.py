"""Wrong implementations that must not pass: each is planted, and the hand-derived values of test_losses must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_losses
import torch
from torch import Tensor

from talker_rl.losses import dpo, ipo, ld_dpo, ops, r_dpo, sampo, simpo

USERS = (dpo, ipo, ld_dpo, r_dpo, sampo, simpo, ops)
"""Modules that import what is planted by name."""


def before_the_last(mask_BT: Tensor) -> Tensor:
    """The stop's index off by one."""
    return mask_BT & (ops.token_index(mask_BT) == (ops.lengths(mask_BT) - 1).clamp(min=1)[:, None])


def on_the_common_part(mask_BT: Tensor, common_B: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """LD-DPO's alpha before the common length in place of past it."""
    return torch.where(ops.token_index(mask_BT) <= common_B[:, None], alpha, 1.0).to(dtype)


def swapped_classes(counted: Any) -> Any:
    """Each side weighed by the other's classes, as far as they go."""
    def wrong(batch: Any, config: Any) -> Any:
        if batch.chosen_classes is None:
            return counted(batch, config)
        width, other = batch.chosen_classes.shape[1], batch.rejected_classes.shape[1]
        return counted(replace(
            batch, chosen_classes=batch.rejected_classes[:, :width],
            rejected_classes=torch.nn.functional.pad(batch.chosen_classes, (0, other - width))), config)

    return wrong


def stop_of_one_side(stops: Any) -> Any:
    """Only the chosen's stop is kept or dropped: what makes LD-DPO lengthen speech."""
    def wrong(batch: Any) -> tuple[Tensor, Tensor]:
        chosen, rejected = stops(batch)
        return chosen, torch.zeros_like(rejected)

    return wrong


def weighed_twice(counted: Any) -> Any:
    return lambda batch, config: counted(counted(batch, config), config)


FAULTS: dict[str, tuple[str, Any, list[Callable[[], None]]]] = {
    "the stop's index off by one": (
        "last_tokens", before_the_last, [test_losses.test_stop_dropped, test_losses.test_stop_kept]),
    "alpha before the common length": ("ld_weights", on_the_common_part, [test_losses.test_stop_kept]),
    "classes of the other side": (
        "counted", swapped_classes(ops.counted), [test_losses.test_tokens_weigh_by_what_they_say]),
    "weighed twice": ("counted", weighed_twice(ops.counted), [test_losses.test_tokens_weigh_by_what_they_say]),
    "one side's stop": ("stops", stop_of_one_side(ops.stops), [test_losses.test_stop_dropped,
                                                               test_losses.test_stop_kept]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, tests = FAULTS[fault]
    for test in tests:
        test()  # without it they pass
    for module in USERS:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)
    for test in tests:
        with pytest.raises(AssertionError):
            test()
