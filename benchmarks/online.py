"""A step of online training (GRPO) on the micro model, whole and by part, against a naive loop on the same work.

Ours is what `talker-rl run -c demo-online` does: the project's trainer on `Live`, whose candidates are decoded and
recognized by worker processes. The naive loop (`_naive_rl`) has transformers' `generate`, decodes and recognizes one
utterance after the other, and updates in padded rows as TRL does. Both have the same prompts, number of candidates,
sampling options, decoder preset, recognizer, adapter and batches. Whole steps are timed by twos, since ours measures
the drift from the start after every second one; the first two are a warm-up. Check-ups on held-out prompts and saving
are left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import TrainerCallback

from talker_rl.base.processes import WorkerPool, one_thread
from talker_rl.config import RunConfig, load_config
from talker_rl.data.prompts import read_prompts
from talker_rl.losses import build_loss
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.reward.scorer import ScoreItem, to_score_row
from talker_rl.speech.protocol import Policy, SampleRequest
from talker_rl.speech.registry import load
from talker_rl.stages import worker
from talker_rl.stages.online import PoolJudge
from talker_rl.store.shards import ShardFolder
from talker_rl.train.arguments import TalkerArguments
from talker_rl.train.collate import Batch
from talker_rl.train.config import TrainConfig
from talker_rl.train.live import Live
from talker_rl.train.objective import OnPolicy, PolicyObjective
from talker_rl.train.run import train_online
from talker_rl.train.trainer import TalkerTrainer

from ._measure import Row, compare, noted, say
from ._naive_rl import NaiveLoop
from ._upstream import furthest

GOAL = 4
"""Times as fast as the naive loop, on two cores."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--candidates", type=int, default=8, help="of each prompt")


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """Whole steps with two workers, with one, and sampling one step ahead; then the parts."""
    world = World(2, 4, 24) if args.quick else World(args.prompts, args.candidates)
    with tempfile.TemporaryDirectory() as folder, WorkerPool(2) as pool:
        yield from whole_rows(world, pool, Path(folder), args.repeats)
        with world.parts(pool, Path(folder) / "parts") as parts:
            yield from part_rows(parts, args.repeats)


# -- what both sides have in common ----------------------------------------------------------------------------------


class World:
    """Models, prompts and conditionings.

    Args:
        prompts: of a step.
        candidates: of each of them.
        limit: prompts in all; None: as many as demo-online has.
    """

    def __init__(self, prompts: int, candidates: int, limit: int | None = None) -> None:
        self.size = f"{prompts} prompts x {candidates}"
        self._settings = [
            f"train.online.prompts_per_step={prompts}", f"train.online.num_generations={candidates}",
            "train.online.held_out=null", "train.online.decodes=1000000", "train.args.save_steps=1000000",
            "model.device=cpu"]
        config = self.config()
        self._theirs = load(config.model)
        found = read_prompts(config.prompts.train, speakers=self._theirs.speakers,
                             limit=limit or config.prompts.limit.train)
        self.prompts = found.prompts
        self.conditionings = {c.prompt_id: c for c in self._theirs.condition(self.prompts)}
        self.ours = load(config.model, parts=("talker",))

    def config(self, *settings: str) -> RunConfig:
        """demo-online without an end, with further settings."""
        return load_config(["demo-online"], [*self._settings, *settings])

    @contextmanager
    def naive(self, config: RunConfig) -> Iterator[NaiveLoop]:
        """The loop with a fresh adapter."""
        cfg = training_of(config)
        with self._theirs.policy(train=cfg.lora, seed=int(cfg.args["seed"])) as policy:
            yield NaiveLoop(self._theirs, policy.module, self.conditionings, config)

    def live(self, config: RunConfig, pool: WorkerPool, folder: Path) -> Live:
        """As a run's training has it."""
        cfg, judge = training_of(config), PoolJudge(config, self.prompts, [], pool)
        assert cfg.online is not None
        return Live(cfg.online, self.prompts, self.conditionings, folder, "benchmark", judge,
                    sampling=cfg.online.drawn(config.rollouts.sampling.max_new_tokens),
                    batch_size=config.rollouts.batch_size, seed=int(cfg.args["seed"]), learned=cfg.learned)

    @contextmanager
    def parts(self, pool: WorkerPool, folder: Path) -> Iterator[Parts]:
        """Both sides with the same fresh adapter."""
        config = self.config("train.args.learning_rate=0")  # steps cost the same, and the policies stay what they are
        cfg = training_of(config)
        with self.naive(config) as loop, self.ours.policy(train=cfg.lora, seed=int(cfg.args["seed"])) as policy:
            yield Parts(self, config, pool, folder, policy, loop)


def training_of(config: RunConfig) -> TrainConfig:
    """Of the only variant."""
    (variant,) = config.variants.values()
    return variant.training()


# -- whole steps -----------------------------------------------------------------------------------------------------


def whole_rows(world: World, pool: WorkerPool, folder: Path, repeats: int) -> Iterator[Row]:
    """By the project's trainer, the naive loop having its turn after every second step."""
    config = world.config()
    with world.naive(config) as loop:
        ours, theirs = steps(world, config, pool, folder / "two", repeats, loop)
        row = whole(f"{world.size}, two workers", ours, theirs)
        yield noted(row, f"goal {GOAL} x {'met' if row.ratio >= GOAL else 'missed'}" if repeats > 1 else "")
        with WorkerPool(1) as alone:
            ours, more = steps(world, config, alone, folder / "one", repeats, loop)
            yield whole(f"{world.size}, one worker", ours, more)
    # the workers have work between its steps, so nothing can have a turn there: against all naive steps so far
    ahead, _ = steps(world, world.config("train.online.overlap=true"), pool, folder / "ahead", repeats, None)
    yield whole(f"{world.size}, two workers, overlap", ahead, [*theirs, *more])


@dataclass
class Spent:
    """On a step."""

    seconds: float
    cpu: float
    """Seconds of cores, this process's and its workers': other work on the machine changes them little."""


def steps(
    world: World, config: RunConfig, pool: WorkerPool, folder: Path, repeats: int, loop: NaiveLoop | None
) -> tuple[list[Spent], list[Spent]]:
    """What a step of ours (mean of two) and of the naive loop took, ``repeats`` of each after the warm-up."""
    live = world.live(config, pool, folder / "online")
    clock = Clock(live, folder / "online", world.prompts, 2 * repeats + 2, loop)
    train_online(world.ours, live, training_of(config), folder, facts={}, progress=False, extra_callbacks=[clock])
    return clock.ours[1:], clock.theirs[1:]


class Clock(TrainerCallback):
    """Times the trainer's steps by twos, and ends the training after so many.

    Args:
        folder: of what was sampled.
        loop: after each two it makes a step on the prompts of the second.
    """

    def __init__(
        self, live: Live, folder: Path, prompts: Sequence[Prompt], count: int, loop: NaiveLoop | None
    ) -> None:
        self._live, self._folder, self._count, self._loop = live, folder, count, loop
        self._prompts = {p.prompt_id: p for p in prompts}
        self.ours: list[Spent] = []
        self.theirs: list[Spent] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun = clocks()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step % 2:
            return control
        self.ours.append(since(self._begun, 2))
        say(f"online: {self.ours[-1]}")
        if self._loop is not None:
            sampled = ShardFolder(self._folder / "rollouts").rows(self._live.number, ["prompt_id"])
            begun = clocks()
            self._loop.step([self._prompts[i] for i in dict.fromkeys(row["prompt_id"] for row in sampled)])
            self.theirs.append(since(begun, 1))
            say(f"online: naive {self.theirs[-1]}")
        control.should_training_stop |= state.global_step >= self._count
        self._begun = clocks()
        return control


def clocks() -> tuple[float, float]:
    """Wall clock, and what this process and its children have spent on cores; both in seconds."""
    me = psutil.Process()
    spent = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return time.perf_counter(), sum(times.user + times.system for times in spent)


def since(begun: tuple[float, float], count: int) -> Spent:
    """A step's share of what was spent on so many."""
    return Spent(*((now - then) / count for now, then in zip(clocks(), begun, strict=True)))


def whole(case: str, ours: Sequence[Spent], theirs: Sequence[Spent]) -> Row:
    """A row of whole steps: medians, and the range. What workers hold is not this process's memory: none is told."""
    mine, other = (statistics.median(s.seconds for s in side) for side in (ours, theirs))
    spread = " and ".join(f"{min(s.seconds for s in side):.1f}-{max(s.seconds for s in side):.1f}"
                          for side in (ours, theirs))
    cpu = [statistics.median(s.cpu for s in side) for side in (ours, theirs)]
    nothing = float("nan")
    told = f"{spread} s; of cores {cpu[0]:.1f} against {cpu[1]:.1f} s, {cpu[1] / cpu[0]:.2f} x"
    return Row("online", f"whole step, {case}; {told}", mine, other, other / mine, nothing, nothing, None, len(ours))


# -- parts -----------------------------------------------------------------------------------------------------------


def part_rows(parts: Parts, repeats: int) -> Iterator[Row]:
    """Each part, on the candidates of one sampling of ours."""
    loop, size = parts.loop, parts.world.size

    def row(case: str, *rest: Any) -> Row:
        return compare("online", f"{size}, {case}", *rest, repeats=repeats)

    yield row("sampling, against one generate call", parts.sample, lambda: loop.sample(parts.prompts))
    loop.prompts_a_call = 1
    yield row("sampling, against a generate call a prompt", parts.sample, lambda: loop.sample(parts.prompts))
    with one_thread():
        yield row("decoding, one process and thread", parts.decode, lambda: loop.decode(parts.candidates),
                  lambda a, b: furthest(a.values(), b.values()))
        sounds = parts.decode()
        yield row("recognition, one process and thread", lambda: parts.recognize(sounds),
                  lambda: loop.recognize(parts.prompts, parts.candidates, sounds), reward_gap)
    yield row("decoding and recognition, two workers", parts.judge, parts.judge_naively, reward_gap)
    yield row("update", parts.update, lambda: loop.update(parts.samples), gradient_gap)
    loop.shortcuts = True
    yield row("update, against one with TRL's savings", parts.update, lambda: loop.update(parts.samples), gradient_gap)


class Parts:
    """One sampling by ours, judged, and what each side does with it."""

    def __init__(
        self, world: World, config: RunConfig, pool: WorkerPool, folder: Path, policy: Policy, loop: NaiveLoop
    ) -> None:
        self.world, self.config, self.policy, self.loop = world, config, policy, loop
        cfg = training_of(config)
        live = world.live(config, pool, folder / "online")
        live.micro_batches = loop.micro_batches
        batches = live.batches(policy, 0)
        self.batches: list[Batch] = [next(batches)["batch"] for _ in range(live.micro_batches)]
        self.candidates = ShardFolder(folder / "online/rollouts").read(0, Candidate)
        self.scores = ShardFolder(folder / "online/scores").read(0, ScoreRow)
        known = {p.prompt_id: p for p in world.prompts}
        self.prompts = [known[i] for i in dict.fromkeys(c.prompt_id for c in self.candidates)]
        self.samples = loop.batches(self.prompts, self.candidates, self.scores)
        self._judge = PoolJudge(config, world.prompts, [], pool)
        self._sampling = loop.online.drawn(config.rollouts.sampling.max_new_tokens)
        args = TalkerArguments(output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1,
                               learning_rate=float(cfg.args["learning_rate"]))
        objective = OnPolicy(PolicyObjective(build_loss(cfg.loss)), exact=True)
        self._trainer = TalkerTrainer(policy, args, objective=objective, source=live)
        self._optimizer = self._trainer.create_optimizer()
        self.trained = [p for p in policy.module.parameters() if p.requires_grad]

    def sample(self) -> list[Candidate]:
        """In two halves, as `Live` asks for them."""
        half, seeds = -(-len(self.prompts) // 2), list(range(self.loop.online.num_generations))
        self.policy.module.eval()
        made = []
        for part in (self.prompts[:half], self.prompts[half:]):
            requests = [SampleRequest(self.world.conditionings[p.prompt_id], seeds) for p in part]
            with torch.no_grad():
                made += self.policy.sample(requests, self._sampling, batch_size=self.config.rollouts.batch_size)
        self.policy.module.train()
        return made

    def decode(self) -> dict[str, np.ndarray]:
        """Speech by candidate id, in this process."""
        return worker.decode(self.config.model, self.config.token2wav, self.config.seed, self.candidates)

    def recognize(self, sounds: dict[str, np.ndarray]) -> list[ScoreRow]:
        """In batches, in this process."""
        texts, size = {p.prompt_id: p for p in self.prompts}, self.config.reward.batch_size
        items = [ScoreItem.from_candidate(texts[c.prompt_id], c, sounds.get(c.candidate_id)) for c in self.candidates]
        found = [r for at in range(0, len(items), size) for r in self.loop.scorer.score(items[at : at + size])]
        return [to_score_row(item, result) for item, result in zip(items, found, strict=True)]

    def judge(self) -> list[ScoreRow]:
        """Both, by the workers."""
        return self._judge.submit(self.candidates)()

    def judge_naively(self) -> list[ScoreRow]:
        """Both, by the naive loop."""
        return self.loop.recognize(self.prompts, self.candidates, self.loop.decode(self.candidates))

    def update(self) -> list[Tensor]:
        """An optimizer step; the gradients before they are clipped, as of :attr:`trained`."""
        model = self.policy.module
        for batch in self.batches:
            (self._trainer.compute_loss(model, {"batch": batch}) / len(self.batches)).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.trained]
        torch.nn.utils.clip_grad_norm_(self.trained, self._trainer.args.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return gradients


def reward_gap(ours: Sequence[ScoreRow], theirs: Sequence[ScoreRow]) -> float:
    """Largest difference of two rewards; infinite where one side has none."""
    if [a.reward is None for a in ours] != [b.reward is None for b in theirs]:
        return float("inf")
    return max((abs(a.reward - b.reward) for a, b in zip(ours, theirs, strict=True)
                if a.reward is not None and b.reward is not None), default=0.0)


def gradient_gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Norm of the difference of two gradients over that of the first."""
    a, b = (torch.cat([g.flatten() for g in side]) for side in (ours, theirs))
    return float((a - b).norm() / a.norm())
