"""Does an exported checkpoint say what the policy says? Log-probs of the run's own samples, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.records.candidate import Candidate
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.protocol import Generator, PolicyBatch, TalkerSequence
from talker_rl.speech.registry import family_of, load
from talker_rl.store.shards import ShardFolder

UTTERANCES = 4
"""Samples that are compared, of as many prompts."""

EXACT = 1e-4
"""Largest difference of a log-prob that summing in another order explains, float32."""


@dataclass
class Policy:
    """A policy before and after its merge, and what it thinks of some of the run's samples; all float32, on the CPU."""

    merged: Any
    """The Talker with the adapter in its weights."""
    batch: PolicyBatch
    base_ST: torch.Tensor
    """Log-probs (S, T) of the base."""
    policy_ST: torch.Tensor
    """Log-probs (S, T) with the adapter beside the weights."""

    def check(self, folder: Path, *, exact: bool) -> list[str]:
        """Read the written Talker back and compare; lines for the user and the card.

        Args:
            exact: nothing was rounded, so the log-probs must be the same.

        Raises:
            StageError: they are not.
        """
        mask = self.batch.mask_ST
        with _talker(ModelConfig(path=str(folder))).policy() as policy:
            written = _logps(policy, self.batch)
        difference = (written - self.policy_ST)[mask].abs()
        trained = (self.policy_ST - self.base_ST)[mask].abs()
        if exact and float(difference.max()) > EXACT:
            raise StageError(f"The written checkpoint is not the trained policy: a log-prob differs by "
                             f"{float(difference.max()):.2g}", where=str(folder), fix="this is a bug: please report it")
        line = (f"log-probs of {len(mask)} of the run's samples, {count(int(mask.sum()), 'code')}: training moved "
                f"them by "
                f"{float(trained.mean()):.2g} per code, merging and storing by {float(difference.mean()):.2g} (largest "
                f"{float(difference.max()):.2g})")
        if not exact and float(difference.mean()) > float(trained.mean()):
            line += ("; WARNING: rounding changes more than the training did, so export with --talker-dtype float32, "
                     "or use the adapter unmerged")
        return [line]


def policy_of(run: Path, weights: Path, model: ModelConfig) -> Policy | None:
    """The policy of a run, merged; None where the run keeps no samples to compare with (codes came from a file).

    Raises:
        CheckpointError: base or adapter are incomplete, or of different geometries.
    """
    sequences = _samples(run)
    if not sequences:
        return None
    generator = _talker(model)
    with generator.policy() as policy:
        batch = policy.collate(sequences)
        base_ST = _logps(policy, batch)
    with generator.policy(weights) as policy:
        policy_ST = _logps(policy, batch)
    return Policy(family_of(model.path).exporter().merged_talker(weights, model), batch, base_ST, policy_ST)


def _talker(model: ModelConfig) -> Generator:
    """float32, on the CPU: what is merged into."""
    return load(model.model_copy(update={"dtype": "float32", "device": "cpu"}), parts=("talker",))


def _samples(run: Path) -> list[TalkerSequence]:
    """The first finished candidates, one per prompt, of the first round."""
    if not (run / "rollouts" / "index.json").is_file():
        return []
    chosen: dict[str, Candidate] = {}
    for candidate in ShardFolder(run / "rollouts").read(0, Candidate):
        if candidate.end_reason == "eos" and len(chosen) < UTTERANCES:
            chosen.setdefault(candidate.prompt_id, candidate)
    if not chosen:
        return []
    conditionings = ConditioningCache(run / "conditioning", strict=True).load(list(chosen))
    return [TalkerSequence(conditionings[p], c.speech) for p, c in chosen.items()]


@torch.no_grad()
def _logps(policy: Any, batch: PolicyBatch) -> torch.Tensor:
    return policy.logps(batch)  # type: ignore[no-any-return]
