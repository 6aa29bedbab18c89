"""A source that samples: candidates of the policy as it is, judged, with an advantage for each of their steps.

What was sampled goes to disk before it is trained on, as ordinary shards of candidates and scores, one a sampling. A
training that was interrupted takes from there what it had made, so it goes on to the same weights.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import TrainerCallback

from talker_rl.base.errors import StageError
from talker_rl.base.ids import derive_seed
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.records.slots import Place, Slot, slots
from talker_rl.records.token_classes import words_and_gaps
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.protocol import Policy, SampleRequest, TalkerSequence
from talker_rl.store.shards import ShardFolder
from talker_rl.train import credit
from talker_rl.train.advantages import advantages, decoupled, says_something
from talker_rl.train.collate import Collator, Example
from talker_rl.train.online_config import OnlineConfig


class Judge(Protocol):
    """Decodes and scores candidates while others are sampled."""

    def submit(self, candidates: Sequence[Candidate]) -> Callable[[], list[ScoreRow]]:
        """Begin; what is returned waits for the scores, in the order of the candidates."""
        ...


@dataclass
class Group:
    """A prompt's candidates, what they earned, and the advantage of each of their steps."""

    prompt: Prompt
    candidates: list[Candidate]
    scores: list[ScoreRow]
    rewards: list[float]
    advantages: list[np.ndarray] = field(default_factory=list)


@dataclass
class Pauses:
    """What counts as a pause (``reward.pauses``)."""

    hit_seconds: float = 0.15
    spurious_seconds: float = 0.25


class Live:
    """Candidates of the live policy.

    Args:
        cfg: how many of how many prompts.
        prompts: to train on.
        conditionings: by prompt id.
        folder: where candidates and scores go, ``rollouts`` and ``scores`` below it.
        key: of those shards: what they depend on beside the policy.
        judge: decodes and scores.
        sampling: how they are drawn.
        batch_size: candidates of one forward of sampling.
        seed: of prompts' order and of candidates.
        pauses: which gaps of a transcript are pauses, for token credit.
    """

    train: torch.utils.data.Dataset[Any]
    """Nothing that could be asked for by index: batches come by :meth:`batches`."""
    held_out: torch.utils.data.Dataset[Any] | None
    micro_batches = 1
    """Batches of an optimizer step."""

    def __init__(
        self, cfg: OnlineConfig, prompts: Sequence[Prompt], conditionings: Mapping[str, Any], folder: Path, key: str,
        judge: Judge, *, sampling: SamplingConfig, batch_size: int, seed: int,
        pauses: Pauses | None = None,
    ) -> None:
        if not prompts:
            raise StageError("there is no prompt to sample for", fix="raise prompts.limit.train")
        self.train, self.held_out = _Nothing(), None
        self.cfg, self.prompts, self._conditionings, self._judge = cfg, list(prompts), conditionings, judge
        self._rollouts, self._scores = ShardFolder(folder / "rollouts", key), ShardFolder(folder / "scores", key)
        self._sampling, self._batch_size, self._seed = sampling, batch_size, seed
        self._pauses = pauses or Pauses()
        self._groups: tuple[int, list[Group]] | None = None
        self.metrics: dict[str, float] = {}
        """Of the latest sampling, for the log."""

    def some(self, count: int) -> list[TalkerSequence]:
        """At most ``count`` sequences of the latest sampling, from all over it."""
        said = [c for group in (self._groups[1] if self._groups else ()) for c in group.candidates if c.speech.steps]
        return [TalkerSequence(self._conditionings[c.prompt_id], c.speech)
                for c in said[:: max(1, -(-len(said) // count))]][:count]

    def facts(self) -> dict[str, Any]:
        """Counts, for the result and the card."""
        rows = [row for i in range(len(self._rollouts)) for row in self._rollouts.rows(i, ["prompt_id"])]
        return {"decodes": len(rows), "samplings": len(self._rollouts), "prompts": len({r["prompt_id"] for r in rows})}

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most."""
        return self.cfg.samplings * self.cfg.steps_per_sampling

    # -- what the trainer takes ---------------------------------------------------------------------------------------

    def batches(self, policy: Policy, first: int) -> Iterator[dict[str, Any]]:
        """Batches of the optimizer steps from ``first`` on, as the collator makes them: ``micro_batches`` a step.

        Nothing is sampled before its step is asked for, so that the policy has taken the step before.
        """
        collate = Collator(policy)
        for step in range(first, self.max_steps):
            number, within = divmod(step, self.cfg.steps_per_sampling)
            groups = self._sampling_of(number, policy)
            if groups is None:
                return
            part = within % self.cfg.mini_batches
            mine = [group for group in groups if says_something(group.rewards)][part :: self.cfg.mini_batches]
            yield from self._collated(mine or groups[:1], collate, fresh=within == 0)

    def _collated(self, groups: Sequence[Group], collate: Collator, *, fresh: bool) -> Iterator[dict[str, Any]]:
        examples = [example for group in groups for example in self._examples(group)]
        total = sum(e.sequences[0].speech.steps for e in examples)
        bounds = [round(i * len(examples) / self.micro_batches) for i in range(self.micro_batches + 1)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            part = examples[start:end]
            made = collate(list(enumerate(part or examples[:1])))
            batch = made["batch"]
            made["batch"] = replace(batch, weight=len(part) * self.micro_batches / len(examples), fresh=fresh,
                                    steps_per_batch=total / self.micro_batches)
            yield made

    def _examples(self, group: Group) -> list[Example]:
        conditioning = self._conditionings[group.prompt.prompt_id]
        return [
            Example(c.candidate_id, [TalkerSequence(conditioning, c.speech)], behaviour_logps=[torch.tensor(
                c.token_logps, dtype=torch.float32)], advantages=[torch.from_numpy(a)])
            for c, a in zip(group.candidates, group.advantages, strict=True)
            if c.speech.steps and len(c.token_logps) == c.speech.steps
            and not (self.cfg.truncated == "left_out" and c.end_reason == "max_tokens")
        ]

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _sampling_of(self, number: int, policy: Policy) -> list[Group] | None:
        """The groups of a sampling: those at hand, those on disk, or new ones. None: the decodes are spent."""
        if self._groups is not None and self._groups[0] == number:
            return self._groups[1]
        spent, at = self._before(number)
        each = self.cfg.prompts_per_step * self.cfg.num_generations
        if spent + each > self.cfg.decodes:
            return None
        began = time.monotonic()
        if self._rollouts.has(number) and self._scores.has(number):
            candidates, scores = self._rollouts.read(number, Candidate), self._scores.read(number, ScoreRow)
        else:
            candidates, scores = self._make(number, at, self.cfg.decodes - spent, policy)
            self._rollouts.write(number, candidates, Candidate)
            self._scores.write(number, scores, ScoreRow)
        groups = self._grouped(candidates, scores)
        self._value(groups, number)
        self.metrics = _metrics(groups, spent + len(candidates), time.monotonic() - began)
        self._groups = number, groups
        return groups

    def _before(self, number: int) -> tuple[int, int]:
        """Candidates of the samplings before, and prompts."""
        spent = sum(len(self._rollouts.rows(i, ["candidate_id"])) for i in range(number))
        return spent, spent // self.cfg.num_generations

    def _drawn(self, at: int) -> Prompt:
        """The prompt at a place of the order: every prompt once, in a new order each time round."""
        turn, place = divmod(at, len(self.prompts))
        order = list(range(len(self.prompts)))
        random.Random(derive_seed(self._seed, "order", turn)).shuffle(order)
        return self.prompts[order[place]]

    def _make(self, number: int, at: int, left: int, policy: Policy) -> tuple[list[Candidate], list[ScoreRow]]:
        """Sample, decode and judge; groups that say nothing are refilled while the settings and the decodes
        allow it."""
        each = self.cfg.num_generations
        wanted, refills = self.cfg.prompts_per_step, self.cfg.refill
        candidates: list[Candidate] = []
        scores: list[ScoreRow] = []
        while wanted and len(candidates) + wanted * each <= left:
            prompts = [self._drawn(at + i) for i in range(wanted)]
            at += wanted
            half = max(1, -(-len(prompts) // 2))  # the first are judged while the others are sampled
            asked = []
            for part in (prompts[:half], prompts[half:]):
                if part:
                    made = self._sample(number, part, policy)
                    asked.append((made, self._judge.submit(made)))
            for made, scored in asked:
                candidates += made
                scores += scored()
            flat = sum(not says_something(group.rewards) for group in self._grouped(candidates, scores))
            wanted = min(flat, refills)
            refills -= wanted
        return candidates, scores

    def _sample(self, number: int, prompts: Sequence[Prompt], policy: Policy) -> list[Candidate]:
        seeds = [[derive_seed(self._seed, "online", number, p.prompt_id, k) for k in range(self.cfg.num_generations)]
                 for p in prompts]
        requests = [SampleRequest(self._conditionings[p.prompt_id], s) for p, s in zip(prompts, seeds, strict=True)]
        training = policy.module.training
        policy.module.eval()
        with torch.no_grad():
            made = policy.sample(requests, self._sampling, batch_size=self._batch_size)
        policy.module.train(training)
        ids = [f"{p.prompt_id}-{number}-{k}" for p in prompts for k in range(self.cfg.num_generations)]
        return [replace(c, candidate_id=name) for c, name in zip(made, ids, strict=True)]

    # -- rewards and advantages ---------------------------------------------------------------------------------------

    def _grouped(self, candidates: Sequence[Candidate], scores: Sequence[ScoreRow]) -> list[Group]:
        by_id, known = {p.prompt_id: p for p in self.prompts}, {s.candidate_id: s for s in scores}
        n = self.cfg.num_generations
        groups = []
        for start in range(0, len(candidates), n):
            mine = list(candidates[start : start + n])
            found = [known[c.candidate_id] for c in mine]
            groups.append(Group(by_id[mine[0].prompt_id], mine, found, _rewards(mine, found)))
        return groups

    def _value(self, groups: Sequence[Group], number: int) -> None:
        """Give each step of a sampling's candidates its advantage."""
        cfg = self.cfg.advantages
        if cfg.rewards:
            values = decoupled([_components(group, cfg.rewards) for group in groups], cfg)
        else:
            running = self._mean_before(number) if cfg.baseline == "running" else None
            values = advantages([group.rewards for group in groups], cfg, running)
        for group, each in zip(groups, values, strict=True):
            group.advantages = self._credited(group, each)

    def _mean_before(self, number: int) -> float | None:
        """Mean reward of the samplings before, as they lie on disk; None at the first."""
        rewards = [reward for i in range(number) for group in self._grouped(
            self._rollouts.read(i, Candidate), self._scores.read(i, ScoreRow)) for reward in group.rewards]
        return float(np.mean(rewards)) if rewards else None

    def _credited(self, group: Group, values: np.ndarray) -> list[np.ndarray]:
        cfg, steps = self.cfg.advantages, [c.speech.steps for c in group.candidates]
        if cfg.credit == "sequence":
            return credit.of_sequences(values.tolist(), steps)
        places = [self._places(group.prompt, c, s) for c, s in zip(group.candidates, group.scores, strict=True)]
        if cfg.credit == "what_differs":
            return credit.of_what_differs(values.tolist(), steps, places)
        return credit.of_words(values.tolist(), steps, places, cfg.sequence_share)

    def _places(self, prompt: Prompt, candidate: Candidate, score: ScoreRow) -> dict[Place, Slot]:
        """Empty where the recognizer's times cannot be used, or nothing was scored."""
        with suppress(ValueError):
            if score.status == "ok":
                heard = words_and_gaps(prompt.text, prompt.lang, score.transcript, score.spans,
                                       hit_seconds=self._pauses.hit_seconds,
                                       spurious_seconds=self._pauses.spurious_seconds)
                return slots(candidate.speech, heard)
        return {}


class _Nothing(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("a live source gives whole batches")


class LiveMetrics(TrainerCallback):
    """Puts the figures of the latest sampling into what is logged."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            logs.update(self._live.metrics)


def _rewards(candidates: Sequence[Candidate], scores: Sequence[ScoreRow]) -> list[float]:
    """Rewards of a group; what failed, and what was cut, is as its worst."""
    known = [s.reward for s in scores if s.reward is not None]
    worst = min(known, default=0.0)
    return [worst if s.reward is None or c.end_reason == "max_tokens" else s.reward
            for c, s in zip(candidates, scores, strict=True)]


def _components(group: Group, names: Mapping[str, float]) -> list[dict[str, float]]:
    """Components of a group; one that is null, or of a failure, is as the group's worst by the sign of its weight."""
    table = [{name: score.reward if name == "reward" else score.components.get(name) for name in names}
             for score in group.scores]
    worst = {name: (min if weight > 0 else max)((v for row in table if (v := row[name]) is not None), default=0.0)
             for name, weight in names.items()}
    return [{name: worst[name] if value is None or c.end_reason == "max_tokens" else value
             for name, value in row.items()} for c, row in zip(group.candidates, table, strict=True)]


def _metrics(groups: Sequence[Group], decodes: int, seconds: float) -> dict[str, float]:
    """Of a sampling, under the names of the log."""
    scores = [score for group in groups for score in group.scores if score.status == "ok"]
    candidates = [c for group in groups for c in group.candidates]

    def mean(name: str) -> float | None:
        values = [v for s in scores if (v := s.components.get(name)) is not None]
        return float(np.mean(values)) if values else None

    words = sum(s.components.get("ref_words") or 0 for s in scores)
    wrong = sum(sum(s.components.get(k) or 0 for k in ("substitutions", "deletions", "insertions")) for s in scores)
    found: dict[str, float | None] = {
        "reward": float(np.mean([r for group in groups for r in group.rewards])),
        "reward_std": float(np.mean([np.std(group.rewards, ddof=1) for group in groups])),
        "frac_reward_zero_std": float(np.mean([not says_something(group.rewards) for group in groups])),
        "online/wer": wrong / words if words else None, "online/pause_error": mean("pause_error"),
        "online/duration": float(np.mean([c.duration for c in candidates])),
        "online/duration_ratio": mean("duration_ratio"), "online/tail_silence": mean("tail_silence"),
        "online/cut": float(np.mean([c.end_reason == "max_tokens" for c in candidates])),
        "online/failed": 1 - len(scores) / len(candidates),
        "online/credited": float(np.mean([np.mean(a != 0) for g in groups for a in g.advantages if len(a)])),
        "online/decodes": float(decodes), "online/sampling_seconds": seconds,
    }
    return {name: value for name, value in found.items() if value is not None}
