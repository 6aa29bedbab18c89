"""Teacher forcing of stored sequences in a worker: log-probs under any policy of a run, not in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.processes import one_thread
from talker_rl.records.codec import codec_named
from talker_rl.records.speech import Speech
from talker_rl.speech.config import ModelConfig
from talker_rl.stages.worker import generator_of
from talker_rl.stages.worn import policy_with

if TYPE_CHECKING:
    from talker_rl.speech.protocol import Policy, TalkerSequence


@dataclass
class ForceTask:
    """Score sequences under some policies."""

    model: ModelConfig
    policies: list[Path | None]
    """Folders of adapters (or of full Talker weights); None is the base."""
    conditioning: Path
    sequences: list[tuple[str, Speech]]
    """Prompt id and what was said; not empty."""
    batch_size: int
    reference: Path | None = None
    """Of ``beside``: an adapter; None is the base."""
    beside: bool = False
    """Also compare each policy with the reference; costs a second forward. Policies of full weights have none."""


@dataclass
class Forced:
    """One sequence under one policy."""

    logps: list[float]
    """Log-prob of each id."""
    p_stop: list[float]
    """Probability of stopping at each position, before any option of sampling."""
    ref_logps: list[float] = field(default_factory=list)
    """Likewise under the reference, where the policy was compared with it."""
    kl: list[float] = field(default_factory=list)
    """KL(policy || reference) at each position over the whole vocabulary, nats; likewise."""


def speech_of(candidate: dict[str, Any]) -> Speech:
    """``Candidate.speech`` of a row."""
    return Speech(candidate["codes"], candidate["stop_id"], codec_named(candidate.get("codec")))


def force(task: ForceTask) -> list[list[Forced]]:
    """For each policy, the sequences in their order."""
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.protocol import TalkerSequence

    generator = generator_of(task.model)
    prompt_ids = sorted({prompt_id for prompt_id, _ in task.sequences})
    stored = ConditioningCache.opened(task.conditioning).load(prompt_ids)
    examples = [TalkerSequence(stored[prompt_id], speech) for prompt_id, speech in task.sequences]
    found = []
    for weights in task.policies:
        reference = task.reference if task.beside and weights is not None else None
        with one_thread(), policy_with(generator, weights, reference) as policy:
            found.append(_force(policy, examples, task.batch_size, task.beside))
    return found


def _force(policy: Policy, examples: Sequence[TalkerSequence], batch_size: int, beside: bool) -> list[Forced]:
    """Sequences of a prompt side by side share its prefix."""
    import torch

    order = sorted(range(len(examples)), key=lambda i: examples[i].conditioning.prompt_id)
    found: dict[int, Forced] = {}
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        collated = policy.collate([examples[i] for i in batch])
        with torch.no_grad():
            logps, stops, *more = policy.compared(collated) if beside else policy.logps_and_stops(collated)
        columns = [one.cpu() for one in (logps, stops.exp(), *more)]
        for i, *rows in zip(batch, *columns, strict=True):
            length = examples[i].speech.steps
            found[i] = Forced(*(row[:length].tolist() for row in rows))
    return [found[i] for i in range(len(examples))]
