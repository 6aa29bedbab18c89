"""Guards of an online training: what must not drift while the reward rises, and when a training has learned enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback

from talker_rl.train import processes
from talker_rl.train.live import Live
from talker_rl.train.online_config import GuardsConfig

_RELATIVE = {"duration": ("online/seconds_per_word", "seconds a word"), "entropy": ("online/entropy", "entropy")}
_RISES = {"cut": ("online/cut", "share of candidates cut at the token limit"),
          "tail_silence": ("online/tail_silence", "silence at the end, s"),
          "failed": ("online/failed", "share of candidates without a score")}


def drifted(history: Sequence[Mapping[str, float]], cfg: GuardsConfig) -> dict[str, str]:
    """What has drifted too far, by name, and how.

    Args:
        history: figures of each sampling (:func:`~talker_rl.train.live_metrics.sampling_metrics`), and ``kl`` where it
            was measured.
    """
    found = {}
    if len(history) < 2 * cfg.window:
        return {}

    def ends(name: str) -> tuple[float, float] | None:
        parts = [[row[name] for row in part if name in row]
                 for part in (history[: cfg.window], history[-cfg.window :])]
        return (float(np.mean(parts[0])), float(np.mean(parts[1]))) if all(parts) else None

    for guard, (name, what) in _RELATIVE.items():
        limit, both = getattr(cfg, guard), ends(name)
        if limit is not None and both is not None and both[0] > 0:
            change = both[1] / both[0] - 1
            if change < -limit or (guard == "duration" and change > limit):
                found[guard] = f"{what} {both[0]:.3f} -> {both[1]:.3f} ({change:+.0%})"
    for guard, (name, what) in _RISES.items():
        limit, both = getattr(cfg, guard), ends(name)
        if limit is not None and both is not None and both[1] - both[0] > limit:
            found[guard] = f"{what} {both[0]:.3f} -> {both[1]:.3f}"
    kl = [row["kl"] for row in history if "kl" in row]
    if cfg.kl is not None and kl and kl[-1] > cfg.kl:
        found["kl"] = f"KL to the start {kl[-1]:.4f} nats a step"
    return found


def hacked(check_ups: Sequence[Mapping[str, float]]) -> str | None:
    """The sign of a reward that is being hacked, if there is one: by the latest check-up it has risen by more than two
    standard errors, and the second recognizer's WER has not fallen."""
    if len(check_ups) < 2:
        return None
    first, last = check_ups[0], check_ups[-1]
    if not all("held_out/wer" in one and "held_out/reward" in one for one in (first, last)):
        return None
    noise = float(np.hypot(first.get("held_out/reward_se", 0.0), last.get("held_out/reward_se", 0.0)))
    rise = last["held_out/reward"] - first["held_out/reward"]
    if rise <= 2 * noise or last["held_out/wer"] < first["held_out/wer"]:
        return None
    return (f"reward rises ({first['held_out/reward']:.3f} -> {last['held_out/reward']:.3f}), the second recognizer's "
            f"WER does not fall ({first['held_out/wer']:.1%} -> {last['held_out/wer']:.1%})")


def heard_to_drift(check_ups: Sequence[Mapping[str, float]], cfg: GuardsConfig) -> dict[str, str]:
    """Likewise between the first check-up and the latest."""
    found: dict[str, str] = {}
    if len(check_ups) < 2:
        return found

    def both(name: str) -> tuple[float, float] | None:
        ends = [one.get(f"held_out/{name}") for one in (check_ups[0], check_ups[-1])]
        return None if None in ends else (ends[0], ends[1])  # type: ignore[return-value]

    if cfg.f0_spread is not None and (f0 := both("f0_spread")) and f0[1] < f0[0] * (1 - cfg.f0_spread):
        found["f0_spread"] = f"spread of F0 {f0[0]:.2f} -> {f0[1]:.2f} semitones"
    if cfg.speaker_similarity is not None and (same := both("speaker_similarity")) and (
            same[0] - same[1] > cfg.speaker_similarity):
        found["speaker_similarity"] = f"similarity to the speaker {same[0]:.3f} -> {same[1]:.3f}"
    if cfg.stop_logp is not None and (stop := both("stop_logp")) and abs(stop[1] - stop[0]) > cfg.stop_logp:
        found["stop_logp"] = f"log P(stop) where the policy stopped at the start {stop[0]:.2f} -> {stop[1]:.2f} nats"
    return found


def alarms(
    history: Sequence[Mapping[str, float]], check_ups: Sequence[Mapping[str, float]], cfg: GuardsConfig
) -> dict[str, str]:
    """Every alarm that rings after a sampling, by name, and why.

    Args:
        history: as :func:`drifted` takes it, up to this sampling.
        check_ups: figures of those so far (:func:`~talker_rl.train.live_metrics.held_out_metrics`).
    """
    hack = hacked(check_ups) if cfg.hack else None
    found = drifted(history, cfg) | heard_to_drift(check_ups, cfg)
    return found if hack is None else found | {"hack": hack}


def rung(
    history: Sequence[Mapping[str, float]], check_ups: Sequence[Mapping[str, float]], cfg: GuardsConfig, every: int
) -> dict[str, tuple[int, str]]:
    """The alarms of a whole training, in order: name -> (sampling after which it rang first, from 0; why).

    Args:
        history, check_ups: of the whole training.
        every: samplings between two check-ups.
    """
    found: dict[str, tuple[int, str]] = {}
    for number in range(len(history)):
        for name, what in alarms(history[: number + 1], check_ups[: number // every + 1], cfg).items():
            found.setdefault(name, (number, what))
    return found


def without_gain(check_ups: Sequence[Mapping[str, float]]) -> int:
    """Check-ups since the lowest WER."""
    wers = [one.get("held_out/wer", float("inf")) for one in check_ups]
    return len(wers) - 1 - int(np.argmin(wers)) if wers else 0


class Guards(TrainerCallback):
    """Tells of alarms, and ends a training where the configuration says so. What it looks at lies on disk or in the
    log, so that a resumed training is told the same.

    Args:
        live: what samples.
        tell: takes a line.
    """

    def __init__(self, live: Live, tell: Callable[[str], None] | None = None) -> None:
        self._live, self._cfg = live, live.cfg.guards
        self._tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))
        self._history: list[dict[str, float]] = []
        self._told: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        each = self._live.cfg.steps_per_sampling
        self._history, self._told = [], set()
        for number in range(state.global_step // each):
            self._told |= self._look(number, self._live.sampled(number), state, (number + 1) * each).keys()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        live = self._live
        if state.global_step % live.cfg.steps_per_sampling:
            return control
        found = self._look(live.number, live.metrics, state, state.global_step)
        for name, what in found.items():
            if name not in self._told:
                self._told.add(name)
                live.metrics[f"alarm/{name}"] = 1.0
                if processes.is_main():
                    self._tell(f"ALARM {name}: {what}, after {live.number + 1} samplings")
        patience = live.cfg.held_out.patience if live.cfg.held_out else None
        late = patience is not None and without_gain(live.check_ups.upto(live.number)) >= patience
        if late or (self._cfg.stop and found):
            why = "the held-out WER falls no more" if late else f"guards.stop: {', '.join(found)}"
            if processes.is_main():
                self._tell(f"training ends at step {state.global_step}: {why}")
            control.should_training_stop = control.should_log = control.should_save = True
        return control

    def _look(self, number: int, metrics: Mapping[str, float], state: Any, step: int) -> dict[str, str]:
        """Alarms after a sampling and its last step."""
        kl = next((row["kl"] for row in reversed(state.log_history) if "kl" in row and row["step"] <= step), None)
        self._history.append({**metrics} if kl is None else {**metrics, "kl": kl})
        return alarms(self._history, self._live.check_ups.upto(number) if self._live.cfg.held_out else [], self._cfg)


class LiveMetrics(TrainerCallback):
    """Puts the figures of the latest sampling into what is logged, and ends a training with its last decode."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            logs.update(self._live.metrics)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Refills spend decodes faster than the steps were counted: the last step that there is is kept too."""
        if state.global_step % self._live.cfg.steps_per_sampling == 0 and self._live.spent_all:
            control.should_save = control.should_log = control.should_training_stop = True
        return control
