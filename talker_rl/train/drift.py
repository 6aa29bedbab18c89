"""How far a policy has moved while it is trained, and what is to be done about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from talker_rl.speech.protocol import Policy, TalkerSequence
from talker_rl.train import processes

EVERY = 2
"""Optimizer steps between two measurements."""
SEQUENCES = 16
"""Sequences that are looked at: some thousands of steps of speech, at the cost of a third of a step on 16 pairs."""


def mean_kl(policy: Policy, sequences: Sequence[TalkerSequence], batch_size: int = 16) -> float:
    """KL(policy || reference) a step of these sequences, exact over the vocabulary, nats.

    Raises:
        ConfigError: full weights are trained.
    """
    training = policy.module.training
    policy.module.eval()
    sums, steps = [], 0
    for at in range(0, len(sequences), batch_size):
        batch = policy.collate(sequences[at : at + batch_size])
        sums.append(float(policy.compared(batch).kl_ST.double().sum()))
        steps += int(batch.mask_ST.sum())
    policy.module.train(training)
    return math.fsum(sums) / max(1, steps)


class KLTargets(TrainerCallback):
    """Measures the drift every few steps, logs it as ``kl``, saves where it first reaches a target, and ends the
    training where it reaches the last word. What was reached before an interruption is read from the log.

    Args:
        measure: the drift now; called in the main process.
        save_at: targets, nats a step.
        stop_at: where training ends; None: at max_steps alone.
        everywhere: measure in every process, where each holds a part of the weights; the main one's word counts.
    """

    def __init__(
        self, measure: Callable[[], float], save_at: Sequence[float], stop_at: float | None, everywhere: bool = False
    ) -> None:
        self._measure, self._stop_at, self._everywhere = measure, stop_at, everywhere
        self._targets = [*save_at, *([] if stop_at is None else [stop_at])]
        self.log: Callable[[dict[str, float]], None] = lambda logs: None
        """The trainer's, once there is one."""

    def reached(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Steps at which a target was first reached, by the log."""
        before, found = 0.0, set()
        for row in history:
            if "kl" in row:
                if any(before < target <= row["kl"] for target in self._targets):
                    found.add(int(row["step"]))
                before = max(before, row["kl"])
        return found

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step % EVERY and state.global_step < state.max_steps:
            return control
        kl = processes.gather(self._measure())[0] if self._everywhere else processes.on_main(self._measure)
        due = control.should_log
        self.log({"kl": kl})
        control.should_log = due  # which logging takes back
        if state.global_step in self.reached(state.log_history):
            control.should_save = True
        if self._stop_at is not None and kl >= self._stop_at:
            control.should_training_stop = control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        return control
