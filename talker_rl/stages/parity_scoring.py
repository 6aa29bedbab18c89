"""Sequences scored in every way that matters for parity: batch shapes, states of the adapter, and what known mistakes
would compute. Families are met through the protocol alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from talker_rl.diagnostics.parity import Logps
from talker_rl.records.candidate import Candidate
from talker_rl.records.speech import Speech
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.hashes import by_conditioning
from talker_rl.speech.protocol import Policy, PolicyBatch, TalkerSequence

SHAPES = ("one by one", "packed", "behind another")
"""Batch shapes: each sequence alone; a prompt's sequences in one row, sharing its prefix; the same behind another
prompt's in that row."""
PROBES, PROBED_STEPS = 4, 8
"""Sequences and steps of each for views that need a sequence of their own for every step."""

Score = Callable[[PolicyBatch], torch.Tensor]


def sequences_of(candidates: Sequence[Candidate], conditionings: Sequence[Any]) -> list[TalkerSequence]:
    """Candidates with what was said to which conditioning, which those of a prompt share."""
    by_id = {c.prompt_id: c for c in conditionings}
    return [TalkerSequence(by_id[c.prompt_id], c.speech) for c in candidates]


@torch.no_grad()
def scored(
    policy: Policy, sequences: Sequence[TalkerSequence], shape: str = SHAPES[0], score: Score | None = None
) -> list[Logps]:
    """Of each sequence the numbers of its steps.

    Args:
        score: what is computed of a batch, (S, T) or (S, T, G); None: raw log-probs.
    """
    score = score or policy.logps
    groups = [[i] for i in range(len(sequences))] if shape == SHAPES[0] else by_conditioning(sequences)
    out: dict[int, Logps] = {}
    for n, members in enumerate(groups):
        first = []
        if shape == SHAPES[2]:
            first = [sequences[i] for i in groups[n - 1]]
            if len(groups) == 1:  # the same content once more, as another prompt's
                spoken = copy.copy(first[0].conditioning)
                spoken.prompt_id += "'"
                first = [TalkerSequence(spoken, s.speech) for s in first]
        rows = score(policy.collate([*first, *(sequences[i] for i in members)]))[len(first) :]
        for i, row in zip(members, rows.double().cpu().numpy(), strict=True):
            out[i] = row[: sequences[i].speech.steps]
    return [out[i] for i in range(len(sequences))]


def processed(policy: Policy, sequences: Sequence[TalkerSequence], sampling: SamplingConfig) -> list[Logps]:
    """Of each sequence the processed log-probs under these options."""
    return scored(policy, sequences, SHAPES[1], lambda batch: policy.processed_logps(batch, sampling))


def views_of(
    policy: Policy, sequences: Sequence[TalkerSequence], conditionings: Sequence[Any]
) -> dict[str, list[Logps]]:
    """What known mistakes compute: other scorings by their name in :mod:`talker_rl.diagnostics.parity_causes`."""
    views: dict[str, list[Logps]] = {}
    if hasattr(policy.module, "peft_config"):
        with policy.as_reference():
            views["reference"] = scored(policy, sequences)
    if policy.codec.groups > 1:
        codes = scored(policy, sequences, score=policy.code_logps)
        views["first codebook"] = [c[:, 0] for c in codes]
        views["all codebooks"] = [c.sum(1) for c in codes]
    views["not shifted"] = _probed(policy, sequences, lambda frames, t: [*frames[: t + 1], frames[t]])
    views["shifted twice"] = _probed(policy, sequences, lambda frames, t: [*frames[: t - 1], frames[t]])
    if len(conditionings) > 1:
        views["another prompt"] = _swapped(policy, sequences, conditionings)
    return views


def _probed(
    policy: Policy, sequences: Sequence[TalkerSequence], said: Callable[[list[Any], int], list[Any]]
) -> list[Logps]:
    """The last step's number of a sequence made for each of some steps: a code at an output that is not its own is
    right after what that output has read. NaN at the others."""
    groups, out = policy.codec.groups, []
    for n, sequence in enumerate(sequences):
        speech = sequence.speech
        row = np.full(speech.steps, np.nan)
        frames = [tuple(speech.codes[i : i + groups]) for i in range(0, len(speech.codes), groups)]
        steps = range(1, min(PROBED_STEPS + 1, len(frames))) if n < PROBES else ()
        if steps:
            made = [[code for frame in said(frames, t) for code in frame] for t in steps]
            rows = scored(policy, [TalkerSequence(sequence.conditioning, Speech(codes, None, policy.codec))
                                   for codes in made], SHAPES[1])
            row[list(steps)] = [r[-1] for r in rows]
        out.append(row)
    return out


def _swapped(policy: Policy, sequences: Sequence[TalkerSequence], conditionings: Sequence[Any]) -> list[Logps]:
    """Under the conditioning of the prompt before it, round the end; a record of experts is of its own positions."""
    place = {c.prompt_id: i for i, c in enumerate(conditionings)}
    return scored(policy, [TalkerSequence(conditionings[place[s.conditioning.prompt_id] - 1],
                                          replace(s.speech, experts=None)) for s in sequences])
