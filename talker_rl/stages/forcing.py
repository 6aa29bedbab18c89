"""Teacher forcing of stored sequences in a worker: log-probs under any policy of a run, not in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from talker_rl.records.candidate import with_stop
from talker_rl.stages.worker import omni_of, one_thread, policy_on


@dataclass
class ForceTask:
    """Score sequences under some policies."""

    model: dict[str, Any]
    policies: list[str | None]
    """Folders of adapters (or of full Talker weights); None is the base."""
    conditioning: str
    sequences: list[tuple[str, list[int]]]
    """Prompt id and ids, the stop last if it was sampled; not empty."""
    batch_size: int


@dataclass
class Forced:
    """One sequence under one policy."""

    logps: list[float]
    """Log-prob of each id."""
    p_stop: list[float]
    """Probability of stopping at each position, before any option of sampling."""


def ids_of(candidate: dict[str, Any]) -> list[int]:
    """``Candidate.codes_with_stop`` of a row."""
    return with_stop(candidate["codes"], candidate["stop_id"])


def force(task: ForceTask) -> list[list[Forced]]:
    """For each policy, the sequences in their order."""
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.qwen2_5_omni.layout import TalkerExample

    omni = omni_of(task.model)
    prompt_ids = sorted({prompt_id for prompt_id, _ in task.sequences})
    stored = ConditioningCache(task.conditioning, strict=True).load(prompt_ids)
    examples = [TalkerExample(stored[prompt_id], ids) for prompt_id, ids in task.sequences]
    found = []
    for policy in task.policies:
        with one_thread(), policy_on(omni, policy) as talker:
            found.append(_force(talker, examples, task.batch_size))
    return found


def _force(talker: Any, examples: Sequence[Any], batch_size: int) -> list[Forced]:
    """Sequences of a prompt side by side share its prefix."""
    import torch

    from talker_rl.speech.qwen2_5_omni.layout import collate
    from talker_rl.speech.qwen2_5_omni.logps import token_and_stop_logps

    order = sorted(range(len(examples)), key=lambda i: examples[i].conditioning.prompt_id)
    found: dict[int, Forced] = {}
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        with torch.no_grad():
            logps, stops = token_and_stop_logps(talker, collate([examples[i] for i in batch]))
        for i, row, stop in zip(batch, logps.cpu(), stops.exp().cpu(), strict=True):
            length = len(examples[i].codes)
            found[i] = Forced(row[:length].tolist(), stop[:length].tolist())
    return [found[i] for i in range(len(examples))]
