"""What happens beside the steps: the log file, the progress line, the alarm, early stopping."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from talker_rl.base.disk import atomic_write
from talker_rl.base.errors import DataError
from talker_rl.base.figures import written
from talker_rl.base.progress import Pace
from talker_rl.base.seals import verified

_WALL_CLOCK = ("runtime", "_per_second")
"""Parts of the names of metrics that differ from run to run."""


def without_wall_clock(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that two runs with the same settings share."""
    return {name: value for name, value in metrics.items() if not any(part in name for part in _WALL_CLOCK)}


class JsonLog(TrainerCallback):
    """One line per logging step and evaluation in `log.jsonl`; a resumed run continues it without a seam."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.monotonic()
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_log(self.path) if line["step"] <= state.global_step and state.global_step > 0]
        atomic_write(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = without_wall_clock(logs or {})
        if not state.is_world_process_zero or not {"loss", "eval_loss", "kl"} & set(logs):
            return
        line = {"step": state.global_step, **logs, "seconds": round(time.monotonic() - self._started, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a `log.jsonl`; a last line that a killed process left unfinished is dropped.

    Raises:
        DataError: it is damaged.
    """
    path = Path(path)
    fix = "copy it back, or train again (talker-rl run with --force-stage): all else of the training is untouched"
    lines = path.read_bytes().splitlines() if verified(path, fix=fix).is_file() else []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            if "step" not in rows[-1]:
                raise ValueError("it has no step")
        except (ValueError, TypeError) as error:
            if number != len(lines):
                raise DataError(f"A line of the training's log is damaged: {error}", where=f"{path}:{number}",
                                fix=fix) from error
    return rows


class Track(TrainerCallback):
    """Hands what is logged to a tracker: `send(metrics, step)`."""

    def __init__(self, send: Callable[[Mapping[str, Any], int], None]) -> None:
        self._send = send

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self._send(logs, state.global_step)


class ProgressLine(TrainerCallback):
    """A short line on stderr at each log; where there is no terminal, now and then, at evaluations and at the end."""

    def __init__(self, name: str, decodes: int | None = None) -> None:
        """
        Args:
            decodes: of an online training, what it may spend.
        """
        self.name, self._decodes = name, decodes
        self._started = (0, time.monotonic())
        self._kl: float | None = None
        self._pace = Pace()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = (state.global_step, time.monotonic())
        self._kl = next((row["kl"] for row in reversed(state.log_history) if "kl" in row), None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        self._kl = logs.get("kl", self._kl)
        prefix = "eval_" if "eval_loss" in logs else ""
        if f"{prefix}loss" not in logs:
            return
        if not self._pace.due(last=bool(prefix) or state.global_step >= state.max_steps):
            return
        parts = [f"{self.name} {'eval ' if prefix else ''}step {state.global_step}/{state.max_steps}"]
        parts += self._of_samples(logs) if "online/decodes" in logs else _of_records(logs, prefix)
        steps = state.global_step - self._started[0]
        if steps and not prefix:
            left = (state.max_steps - state.global_step) * (time.monotonic() - self._started[1]) / steps
            parts.append(f"{left:.0f} s left")
        print("  ".join(parts), file=sys.stderr, flush=True)

    def _of_samples(self, logs: Mapping[str, Any]) -> list[str]:
        """Figures of the latest sampling, and the KL as it was last measured."""
        known = {**logs, **({} if self._kl is None else {"kl": self._kl})}
        parts = [pattern.format(known[name]) for name, pattern in _ONLINE.items() if name in known]
        if self._decodes is not None:
            parts.append(f"{self._decodes - logs['online/decodes']:.0f} decodes left")
        times = [f"{part} {logs[f'online/{part}_seconds']:.1f} s" for part in ("sampling", "waiting", "training")
                 if f"online/{part}_seconds" in logs]
        return [*parts, ", ".join(times)] if times else parts


_ONLINE = {"reward": "reward {:.3f}", "online/wer": "WER {:.1%}", "online/pause_error": "pauses {:.3f}",
           "online/seconds_per_word": "{:.3f} s per word", "kl": "KL {:.2g}",
           "frac_reward_zero_std": "without spread {:.0%}"}
"""Metric -> how a line of an online training tells it."""


def _of_records(logs: Mapping[str, Any], prefix: str) -> list[str]:
    labels = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin",
              "logps/chosen_drift": "chosen drift"}
    return [f"{label} {written(logs[prefix + name], '{:.4f}')}" for name, label in labels.items()
            if prefix + name in logs]  # completions have no accuracy and no margin


class LastStep(TrainerCallback):
    """The last step is always saved (and evaluated, where there are held-out pairs), multiple of save_steps or not."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_save = args.save_strategy != "no"
            control.should_evaluate = args.eval_strategy != "no"
        return control


class ChosenAlarm(TrainerCallback):
    """Warns, and stops if asked, when the chosen's log-prob falls far below the reference's: training unlearns."""

    def __init__(self, nats_per_code: float, stop: bool) -> None:
        self.limit, self.stop = nats_per_code, stop
        self.rang_at: int | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> Any:
        drift = (logs or {}).get("logps/chosen_drift")
        if drift is None or drift >= -self.limit:
            return control
        if self.rang_at is None:
            self.rang_at = state.global_step
            if state.is_world_process_zero:
                warnings.warn(
                    f"step {state.global_step}: the chosen's log-prob has fallen by {-drift:.3f} nats per code (alarm "
                    f"at {self.limit}). Fewer steps, a lower learning rate or an sft term in a mix keep it up.",
                    stacklevel=2,
                )
        if self.stop:
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
            control.should_evaluate = args.eval_strategy != "no"
        return control


def first_alarm(history: list[dict[str, Any]], nats_per_code: float | None) -> int | None:
    """The step at which the alarm rang first, also if that was before a resume."""
    if nats_per_code is None:
        return None
    return next((int(row["step"]) for row in history if row.get("logps/chosen_drift", 0.0) < -nats_per_code), None)


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without a better metric; counts from the log, so it survives a resume."""

    def __init__(self, metric: str, patience: int) -> None:
        self.metric, self.patience = metric, patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        history = evaluations(state.log_history, self.metric)
        best = best_step(history, self.metric)
        if best is not None and sum(step > best for step in history) >= self.patience:
            control.should_training_stop = control.should_save = True
        return control


def lower_is_better(metric: str) -> bool:
    """By its name: losses fall, everything else rises."""
    return metric.endswith("loss")


def evaluations(history: list[dict[str, Any]], metric: str) -> dict[int, float]:
    """Value of a metric by step; NaN counts as worst."""
    worst = math.inf if lower_is_better(metric) else -math.inf
    values = {int(row["step"]): float(row[metric]) for row in history if metric in row}
    return {step: worst if math.isnan(value) else value for step, value in sorted(values.items())}


def best_step(values: dict[int, float], metric: str) -> int | None:
    """The first step with the best value."""
    if not values:
        return None
    sign = 1.0 if lower_is_better(metric) else -1.0
    return min(values, key=lambda step: (sign * values[step], step))
