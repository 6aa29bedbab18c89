"""Training steps of the micro model in a worker process that keeps the memory it frees, as a run's workers do on
Linux, against one with the C library's own thresholds: the same work by turns, in processes that stay.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from talker_rl.base.processes import worker_environment

from ._measure import Row, _status, compare

UTTERANCES, STEPS = 32, 8
"""In a batch (16 pairs), and steps a timed call."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """One row."""
    steps = 2 if args.quick else STEPS
    wanted = worker_environment()
    sides = [_Side(wanted), _Side({name: value for name, value in wanted.items() if name != "GLIBC_TUNABLES"})]
    try:
        row = compare("freed_memory", f"micro, {steps} steps of {UTTERANCES} utterances; against glibc's thresholds",
                      lambda: sides[0].train(steps), lambda: sides[1].train(steps),
                      lambda a, b: float((a - b).abs().max()), repeats=args.repeats)
        yield replace(row, ours_peak_mib=sides[0].peak(), theirs_peak_mib=sides[1].peak())
    finally:
        for side in sides:
            side.executor.submit(_take_off).result()  # at the interpreter's end it would wait for itself
            side.executor.shutdown()


class _Side:
    """A process that was started with these variables."""

    def __init__(self, environment: dict[str, str]) -> None:
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self.executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            self.executor.submit(_train, 1).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def train(self, steps: int) -> torch.Tensor:
        return torch.tensor(self.executor.submit(_train, steps).result())

    def peak(self) -> float:
        """MiB of the whole process."""
        return self.executor.submit(_status, "VmHWM").result() / 1024


@cache
def _batch() -> tuple[Any, Any, Any]:
    """A policy with an adapter, a batch of equal prompts, and what keeps the adapter on."""
    import talker_rl
    from talker_rl.records.prompt import Prompt
    from talker_rl.records.speech import Speech
    from talker_rl.speech.config import ConditioningConfig, LoraSettings, ModelConfig
    from talker_rl.speech.protocol import TalkerSequence

    torch.set_num_threads(1)
    model = talker_rl.load(ModelConfig(path="micro", device="cpu"), parts=("conditioner", "talker"))
    prompts = [Prompt("red, two.", speaker=model.speakers[i % 2]) for i in range(UTTERANCES)]
    seen = model.condition(prompts, ConditioningConfig())
    worn = model.policy(train=LoraSettings(r=16))
    policy = worn.__enter__()
    drawn = torch.Generator().manual_seed(0)
    spoken = [Speech(torch.randint(0, 200, (150 + i,), generator=drawn).tolist(), None, policy.codec)
              for i in range(UTTERANCES)]
    return worn, policy, policy.collate([TalkerSequence(a, b) for a, b in zip(seen, spoken, strict=True)])


def _take_off() -> None:
    _batch()[0].__exit__(None, None, None)


def _train(steps: int) -> list[float]:
    """Sums of log-probs; gradients are computed, and nothing is changed."""
    _, policy, batch = _batch()
    policy.module.train()
    found = []
    for _ in range(steps):
        total = policy.logps(batch).sum()
        total.backward()
        policy.module.zero_grad()
        found.append(float(total.detach()))
    return found
