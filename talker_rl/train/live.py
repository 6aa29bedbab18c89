"""A source that samples: candidates of the policy as it is, judged, with an advantage for each of their steps.

What was sampled goes to disk before it is trained on, as ordinary shards of candidates, scores and advantages, one a
sampling. A training that was interrupted takes from there what it had made, so it goes on to the same weights.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.base.ids import derive_seed
from talker_rl.data.completions import select_completions
from talker_rl.data.pairs import select_pairs
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.records.valued import Valued
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.protocol import Policy, TalkerSequence
from talker_rl.store.shards import ShardFolder
from talker_rl.train import importance
from talker_rl.train.advantages import says_something
from talker_rl.train.check_ups import CheckUps
from talker_rl.train.collate import Collator, Example
from talker_rl.train.groups import Group, Pauses, classes_of, demoted, grouped, value
from talker_rl.train.live_metrics import held_out_metrics, sampling_metrics
from talker_rl.train.live_sampler import LiveSampler, Row
from talker_rl.train.online_config import OnlineConfig

_JUDGED_TOGETHER = 16
"""Candidates that ended before they are given to the judge."""


class Judge(Protocol):
    """Decodes and judges candidates while others are sampled."""

    def submit(self, candidates: Sequence[Candidate]) -> Callable[[], list[ScoreRow]]:
        """Begin; what is returned waits for the scores, in the order of the candidates."""
        ...

    def check_up(self, candidates: Sequence[Candidate]) -> Callable[[], list[Row]]:
        """Likewise of held-out prompts: flat rows, by the second recognizer."""
        ...


class Live:
    """Candidates of the live policy.

    Args:
        cfg: how many of how many prompts.
        prompts: to train on.
        conditionings: by prompt id, of the held-out prompts too.
        folder: where candidates, scores and advantages go, each in a folder of its own below it.
        key: of those shards: what they depend on beside the policy.
        judge: decodes and judges.
        learned: what becomes of them: samples with advantages, pairs, or completions to imitate.
        sampling: how they are drawn.
        batch_size: candidates of one forward of sampling.
        seed: of prompts' order and of candidates.
        held_out: prompts of check-ups, where there are any.
        speaking: how they are spoken; None: as ``sampling``.
        pauses: which gaps of a transcript are pauses, for token credit.
        classes: whether the loss asks what each step says (token_weights).
        max_failure_rate: of scores of a sampling; more end the training (``reward.max_failure_rate``).

    Raises:
        StageError: too few prompts.
    """

    train: torch.utils.data.Dataset[Any]
    """Nothing that could be asked for by index: batches come by :meth:`batches`."""
    held_out: torch.utils.data.Dataset[Any] | None
    micro_batches = 1
    """Batches of an optimizer step."""

    def __init__(
        self, cfg: OnlineConfig, prompts: Sequence[Prompt], conditionings: Mapping[str, Any], folder: Path, key: str,
        judge: Judge, *, sampling: SamplingConfig, batch_size: int, seed: int,
        learned: Literal["samples", "pairs", "completions"] = "samples", held_out: Sequence[Prompt] = (),
        speaking: SamplingConfig | None = None, pauses: Pauses | None = None, classes: bool = False,
        max_failure_rate: float = 1.0,
    ) -> None:
        if len(prompts) < cfg.prompts_per_step:
            raise StageError(f"a sampling takes {count(cfg.prompts_per_step, 'prompt')}, and there "
                             + ("is 1" if len(prompts) == 1 else f"are {len(prompts)}"), where="train.online",
                             fix="raise prompts.limit.train, or lower online.prompts_per_step")
        self.train, self.held_out = _Nothing(), None
        self.cfg, self.prompts, self._judge = cfg, list(prompts), judge
        self._by_id = {p.prompt_id: p for p in prompts}
        self._rollouts, self._scores, self._valued = (ShardFolder(folder / name, key)
                                                      for name in ("rollouts", "scores", "advantages"))
        self._sizes: list[int] = []
        self._sampler, self._sampling, self._seed = LiveSampler(conditionings, batch_size), sampling, seed
        self.check_ups = CheckUps(cfg.held_out, held_out, self._sampler, speaking or sampling, judge.check_up, folder,
                                  key, seed)
        self._learned, self._classes, self._pauses = learned, classes, pauses or Pauses()
        self._max_failure_rate = max_failure_rate
        self._groups: tuple[int, list[Group]] | None = None
        self._begun: dict[int, tuple[list[Candidate], Callable[[], list[ScoreRow]]]] = {}
        self._began: float | None = None
        """When the training on the sampling before began; None: in another process, or there was none."""
        self.number = 0
        """Of the sampling at hand."""
        self.metrics: dict[str, float] = {}
        """Of the latest sampling, and of the check-up before it, for the log."""

    def some(self, count: int) -> list[TalkerSequence]:
        """At most ``count`` sequences of the latest sampling, from all over it."""
        said = [c for group in (self._groups[1] if self._groups else ()) for c in group.candidates if c.speech.steps]
        return self._sampler.sequences(said[:: max(1, -(-len(said) // count))][:count])

    def facts(self) -> dict[str, Any]:
        """Counts, for the result and the card."""
        rows = [row for i in range(len(self._rollouts)) for row in self._rollouts.rows(i, ["prompt_id"])]
        return {"decodes": len(rows), "samplings": len(self._rollouts), "prompts": len({r["prompt_id"] for r in rows})}

    @property
    def max_new_tokens(self) -> int:
        """Steps of a candidate at most."""
        return self._sampling.max_new_tokens

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
            self.number, within = divmod(step, self.cfg.steps_per_sampling)
            groups = self._sampling_of(self.number, policy, first=within == 0)
            if groups is None:
                return
            fresh = within == 0 and not (self.cfg.overlap and self.number)
            yield from self._collated(groups, within % self.cfg.mini_batches, collate, fresh=fresh)

    def _collated(self, groups: Sequence[Group], part: int, collate: Collator, *, fresh: bool
                  ) -> Iterator[dict[str, Any]]:
        telling = [group for group in groups if self._tells(group)]
        examples = self._examples(telling[part :: self.cfg.mini_batches])
        if not examples and self._learned == "samples":  # nothing is learned of them, their log-probs are looked at
            nothing = [np.zeros_like(steps) for steps in groups[0].advantages]
            examples = [replace(e, imitate=0.0) for e in self._examples([replace(groups[0], advantages=nothing)])]
        filler = examples[:1] or self._filler(groups[0])  # where nothing can be learned a step is still a step
        total = sum(e.sequences[0].speech.steps for e in examples)
        bounds = [round(i * len(examples) / self.micro_batches) for i in range(self.micro_batches + 1)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            mine = examples[start:end]
            made = collate(list(enumerate(mine or filler)))
            made["batch"] = replace(made["batch"], weight=len(mine) * self.micro_batches / max(1, len(examples)),
                                    fresh=fresh and bool(mine), mean_steps=total / len(examples) if mine else None)
            yield made

    def _tells(self, group: Group) -> bool:
        """Whether something can be learned from a group: of samples, whether any step has an advantage."""
        return group.teaches if self._learned == "samples" else says_something(group.rewards)

    def _examples(self, groups: Sequence[Group]) -> list[Example]:
        if self._learned == "samples":
            return self._of_samples(groups)
        prompts = [g.prompt for g in groups]
        candidates = [c for g in groups for c in g.candidates]
        sampled = {c.candidate_id: torch.tensor(c.token_logps) for c in candidates}
        said = dict(zip(sampled, self._sampler.sequences(candidates), strict=True))
        scores = [replace(s, reward=r) if s.status == "ok" else s for g in groups
                  for s, r in zip(g.scores, g.rewards, strict=True)]
        if self._learned == "completions":
            best, _ = select_completions(prompts, candidates, scores, self.cfg.completions)
            return [Example(c.completion_id, [said[c.origin]], behaviour_logps=[sampled[c.origin]]) for c in best]
        pairs, _ = select_pairs(prompts, candidates, scores, self.cfg.pairs)
        kinds = {k: v for g in groups for k, v in classes_of(g, self._pauses).items()} if self._classes else None
        return [Example(pair.pair_id, [said[pair.chosen_id], said[pair.rejected_id]],
                        behaviour_logps=[sampled[pair.chosen_id], sampled[pair.rejected_id]],
                        classes=None if kinds is None else [torch.tensor(kinds[i]) for i in
                                                            (pair.chosen_id, pair.rejected_id)])
                for pair in pairs if kinds is None or {pair.chosen_id, pair.rejected_id} <= kinds.keys()]

    def _of_samples(self, groups: Sequence[Group]) -> list[Example]:
        found = []
        for group in groups:
            low = demoted(group.candidates, self.cfg)
            best = int(np.argmax(group.rewards))
            for k, (c, steps) in enumerate(zip(group.candidates, group.advantages, strict=True)):
                cut = c.end_reason == "max_tokens"
                if not c.speech.steps or (self.cfg.truncated == "left_out" and cut):
                    continue
                raw = torch.tensor(c.token_logps, dtype=torch.float32)
                weights = None if self.cfg.importance is None else [importance.weights(
                    raw, torch.tensor(c.processed_logps, dtype=torch.float32), self.cfg.importance)]
                found.append(Example(
                    c.candidate_id, self._sampler.sequences([c]), behaviour_logps=[raw],
                    advantages=[torch.from_numpy(steps)], weights=weights,
                    imitate=float(k == best and not low[k])))
        share = len(found) / max(1.0, sum(example.imitate for example in found))
        return [replace(example, imitate=example.imitate * share) for example in found]

    def _filler(self, group: Group) -> list[Example]:
        """Something that fits the objective, to be weighed 0."""
        sequences = self._sampler.sequences(group.candidates)
        n = 2 if self._learned == "pairs" else 1
        nothing = [torch.zeros(s.speech.steps) for s in sequences[:n]]
        return [Example(group.candidates[0].candidate_id, sequences[:n], advantages=nothing,
                        behaviour_logps=[torch.tensor(c.token_logps) for c in group.candidates[:n]],
                        classes=[zeros.long() for zeros in nothing] if self._classes else None)]

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _sampling_of(self, number: int, policy: Policy, *, first: bool) -> list[Group] | None:
        """The groups of a sampling: those at hand, those on disk, or new ones. None: the decodes are spent."""
        if self._groups is not None and self._groups[0] == number:
            self.metrics = {k: v for k, v in self.metrics.items() if not k.startswith("held_out/")}
            return self._groups[1]
        trained = {} if self._began is None else {"online/training_seconds": time.monotonic() - self._began}
        spent, at = self._before(number)
        each = self.cfg.decodes_per_sampling
        if spent + each > self.cfg.decodes:
            return None
        heard = self.check_ups.begin(number, policy) if first else None
        began = time.monotonic()
        if self._rollouts.has(number) and self._scores.has(number):
            candidates, scores = self._rollouts.read(number, Candidate), self._scores.read(number, ScoreRow)
            sampled = began
        elif self.cfg.overlap:
            for ahead in (number, number + 1):
                if (ahead + 1) * each <= self.cfg.decodes:
                    self._begin(ahead, policy)
            candidates, waiting = self._begun.pop(number)
            sampled = time.monotonic()
            scores = waiting()
            self._scores.write(number, scores, ScoreRow)
        else:
            candidates, scores, sampled = self._make(number, at, self.cfg.decodes - spent, policy)
            self._rollouts.write(number, candidates, Candidate)
            self._scores.write(number, scores, ScoreRow)
        groups = self._valued_groups(number, candidates, scores)
        self._check(number, groups, scores)
        if not self._valued.has(number):
            self._valued.write(number, [row for group in groups for row in group.rows()], Valued)
        self.metrics = sampling_metrics(groups, spent + len(candidates)) | {
            "online/staleness": float(self.cfg.overlap and number > 0),
            "online/sampling_seconds": sampled - began, "online/waiting_seconds": time.monotonic() - sampled} | trained
        if heard is not None:
            self.metrics |= held_out_metrics(heard())
        self._groups = number, groups
        self._began = time.monotonic()
        return groups

    def _valued_groups(
        self, number: int, candidates: Sequence[Candidate], scores: Sequence[ScoreRow]
    ) -> list[Group]:
        groups = grouped(self._by_id, candidates, scores, self.cfg)
        running = self._mean_before(number) if self.cfg.advantages.baseline == "running" else None
        value(groups, self.cfg, self._pauses, running)
        return groups

    def _check(self, number: int, groups: Sequence[Group], scores: Sequence[ScoreRow]) -> None:
        """Refuse to spend decodes on what teaches nothing.

        Raises:
            StageError: too many candidates could not be scored; or credit is asked for, and no word has a time.
        """
        failed = [score for score in scores if score.status != "ok"]
        if len(failed) > self._max_failure_rate * len(scores):
            code, many = Counter(score.error_code for score in failed).most_common(1)[0]
            first = next(score for score in failed if score.error_code == code)
            raise StageError(
                f"{len(failed)} of {count(len(scores), 'candidate')} of sampling {number + 1} could not be scored, "
                f"{many} of them for {code}: {first.error_message}", where=f"{first.candidate_id}",
                fix="mend the cause, or raise reward.max_failure_rate")
        asked = self.cfg.advantages.credit
        if self._learned == "samples" and asked != "sequence" and len(failed) < len(scores) and not any(
                group.placed for group in groups):
            raise StageError(
                f"Credit {asked} falls on words, and no candidate of sampling {number + 1} has a time for each word "
                "that was heard", where="train.online.advantages.credit",
                fix="use a recognizer that gives times (docs/RECOGNIZERS.md), or credit: sequence")

    @property
    def spent_all(self) -> bool:
        """Whether the decodes that are left are not enough for another sampling."""
        return self._before(self.number + 1)[0] + self.cfg.decodes_per_sampling > self.cfg.decodes

    def _before(self, number: int) -> tuple[int, int]:
        """Candidates of the samplings before, and prompts."""
        for i in range(len(self._sizes), number):
            self._sizes.append(len(self._rollouts.rows(i, ["candidate_id"])))
        spent = sum(self._sizes[:number])
        return spent, spent // self.cfg.num_generations

    def _drawn(self, at: int) -> Prompt:
        """The prompt at a place of the order: every prompt once, in a new order each time round."""
        turn, place = divmod(at, len(self.prompts))
        order = list(range(len(self.prompts)))
        random.Random(derive_seed(self._seed, "order", turn)).shuffle(order)
        return self.prompts[order[place]]

    def _begin(self, number: int, policy: Policy) -> None:
        """Sample, write, and ask the judge; where it was sampled before an interruption, only ask."""
        if number in self._begun or (self._rollouts.has(number) and self._scores.has(number)):
            return
        if self._rollouts.has(number):
            candidates = self._rollouts.read(number, Candidate)
            self._begun[number] = candidates, self._judge.submit(candidates)
            return
        wanted = self.cfg.prompts_per_step
        prompts = [self._drawn(number * wanted + i) for i in range(wanted)]
        candidates, judged = self._sample(number, prompts, policy, Counter())
        self._rollouts.write(number, candidates, Candidate)  # before the step that changes the policy
        self._begun[number] = candidates, judged

    def _make(self, number: int, at: int, left: int, policy: Policy
              ) -> tuple[list[Candidate], list[ScoreRow], float]:
        """Sample, decode and judge, and when the last was sampled; groups that say nothing are refilled while the
        settings and the decodes allow it."""
        each = self.cfg.num_generations
        wanted, refills = self.cfg.prompts_per_step, self.cfg.refill
        candidates: list[Candidate] = []
        scores: list[ScoreRow] = []
        drawn: Counter[str] = Counter()
        sampled = time.monotonic()
        while wanted and len(candidates) + wanted * each <= left:
            prompts = [self._drawn(at + i) for i in range(wanted)]
            at += wanted
            made, judged = self._sample(number, prompts, policy, drawn)
            sampled = time.monotonic()
            candidates += made
            scores += judged()
            if not refills:
                break
            telling = sum(map(self._tells, self._valued_groups(number, candidates, scores)))
            wanted = max(0, min(self.cfg.prompts_per_step - telling, refills))
            refills -= wanted
        return candidates, scores, sampled

    def _sample(self, number: int, prompts: Sequence[Prompt], policy: Policy, drawn: Counter[str]
                ) -> tuple[list[Candidate], Callable[[], list[ScoreRow]]]:
        """Candidates, and what waits for their scores: those that end early are judged while others go on.

        Args:
            drawn: how often each prompt was in this sampling before; these are counted. A further time, at the seam of
                two rounds or in place of another, it is said otherwise.
        """
        many = self.cfg.num_generations
        seeds, first = [], []
        for p in prompts:
            again = [drawn[p.prompt_id]] if drawn[p.prompt_id] else []
            seeds.append([derive_seed(self._seed, "online", number, p.prompt_id, k, *again) for k in range(many)])
            first.append(drawn[p.prompt_id] * many)
            drawn[p.prompt_id] += 1
        over: list[Candidate] = []
        asked: list[Callable[[], list[ScoreRow]]] = []

        def ended(more: list[Candidate], least: int = _JUDGED_TOGETHER) -> None:
            over.extend(more)
            if len(over) >= least:
                asked.append(self._judge.submit(list(over)))
                over.clear()

        candidates = self._sampler.said(policy, prompts, seeds, f"{number}-", self._sampling, ended, first)
        ended([], least=1)

        def scores() -> list[ScoreRow]:
            found = {row.candidate_id: row for judged in asked for row in judged()}
            return [found[c.candidate_id] for c in candidates]

        return candidates, scores

    def _mean_before(self, number: int) -> float | None:
        """Mean reward of the samplings before, as they lie on disk; None at the first."""
        rewards = [row["reward"] for i in range(number) for row in self._valued.rows(i, ["reward"])]
        return float(np.mean(rewards)) if rewards else None

    def sampled(self, number: int) -> dict[str, float]:
        """Figures of a sampling that lies on disk."""
        candidates, scores = self._rollouts.read(number, Candidate), self._scores.read(number, ScoreRow)
        return sampling_metrics(grouped(self._by_id, candidates, scores, self.cfg), 0)


class _Nothing(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("a live source gives whole batches")
