"""Figures of an online training, under the names of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from talker_rl.records.score import counted_errors
from talker_rl.train import importance
from talker_rl.train.advantages import says_something
from talker_rl.train.groups import Group


def sampling_metrics(groups: Sequence[Group], decodes: int) -> dict[str, float]:
    """Of a sampling.

    Args:
        decodes: candidates so far, these included.
    """
    scores = [score for group in groups for score in group.scores if score.status == "ok"]
    candidates = [c for group in groups for c in group.candidates]
    said = [c for c in candidates if c.token_logps]

    def mean(name: str) -> float | None:
        values = [v for s in scores if (v := s.components.get(name)) is not None]
        return float(np.mean(values)) if values else None

    words = sum(s.components.get("ref_words") or 0 for s in scores)
    wrong = sum(counted_errors(s.components) for s in scores)
    seconds = {c.candidate_id: c.duration for c in candidates}
    logps = [value for c in said for value in c.token_logps]
    stops = [c.token_logps[-1] for c in said if c.stop_id is not None]
    found: dict[str, float | None] = {
        "reward": float(np.mean([r for group in groups for r in group.rewards])),
        "reward_std": float(np.mean([np.std(group.rewards, ddof=1) for group in groups])),
        "frac_reward_zero_std": float(np.mean([not says_something(group.rewards) for group in groups])),
        "online/wer": wrong / words if words else None,
        "online/pause_error": mean("pause_error"),
        "online/duration": float(np.mean([c.duration for c in candidates])),
        "online/duration_ratio": mean("duration_ratio"),
        "online/seconds_per_word": sum(seconds[s.candidate_id] for s in scores) / words if words else None,
        "online/tail_silence": mean("tail_silence"),
        "online/cut": float(np.mean([c.end_reason == "max_tokens" for c in candidates])),
        "online/failed": 1 - len(scores) / len(candidates),
        # samples of a distribution say its entropy without bias, where they were drawn from the policy itself
        "online/entropy": -float(np.mean(logps)) if logps else None,
        "online/stop_logp_where_stopped": float(np.mean(stops)) if stops else None,
        "online/credited": _credited(groups),
        "online/decodes": float(decodes),
    }
    found |= importance.gap(torch.tensor(logps), torch.tensor([v for c in said for v in c.processed_logps])) if all(
        len(c.processed_logps) == len(c.token_logps) for c in said) and said else {}
    return {name: value for name, value in found.items() if value is not None}


def held_out_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of a check-up: WER, pause error and durations by the second recognizer, the reward by the reward's own."""
    heard = [row for row in rows if row["status"] == "ok"]
    words = sum(row.get("ref_words") or 0 for row in heard)
    wrong = sum(map(counted_errors, heard))
    found: dict[str, float] = {"held_out/wer": wrong / words} if words else {}
    for name in ("reward", "pause_error", "duration_ratio", "tail_silence", "f0_spread", "speaker_similarity",
                 "stop_logp"):
        values = [v for row in heard if (v := row.get(name)) is not None]
        if values:
            found[f"held_out/{name}"] = float(np.mean(values))
    rewards = [v for row in heard if (v := row.get("reward")) is not None]
    if len(rewards) > 1:
        found["held_out/reward_se"] = float(np.std(rewards, ddof=1) / len(rewards) ** 0.5)
    return found


def _credited(groups: Sequence[Group]) -> float | None:
    shares = [float(np.mean(steps != 0)) for group in groups for steps in group.advantages if len(steps)]
    return float(np.mean(shares)) if shares else None
