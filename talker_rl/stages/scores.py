"""Scores: decode every candidate and judge it. A failure is a row with a code, never a number."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count, written
from talker_rl.base.ids import stable_hash
from talker_rl.base.versions import rules_of
from talker_rl.config import RunConfig
from talker_rl.planning import cost, memory
from talker_rl.planning.forecast import Job, Part, heard
from talker_rl.planning.sizes import per_round
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow, nothing_recognized
from talker_rl.rounds import Round
from talker_rl.stages import rollouts, tasks, worker
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input
from talker_rl.stages.legs import Leg, describe
from talker_rl.stages.rollouts import prompts_of, sampled
from talker_rl.stages.stage import MODEL, REWARD, Stage, Step
from talker_rl.store.shards import ShardFolder, chunks


def make(ctx: Context, round_: Round) -> None:
    """Write ``scores/`` of a round: one shard per shard of rollouts, so that a batch never crosses one.

    Raises:
        StageError: more scores failed than reward.max_failure_rate allows.
    """
    stage, source = round_.stage("scores"), round_.stage("rollouts")
    key = _begin(ctx, round_)
    candidates = ctx.shards(source)
    folder = ShardFolder(ctx.run.path / stage, key, source=candidates, early_key=_early_key(ctx, round_))
    with _judge(ctx, stage) as judge:
        leg = _leg(ctx, round_, folder, candidates, len(candidates), judge)
        seconds = ctx.flow(leg)
    _finish(ctx, leg, seconds)


def run_with_rollouts(ctx: Context, round_: Round) -> None:
    """``rollouts/`` and ``scores/`` of a round, each shard scored as soon as it is sampled; nothing where all its
    variants learn from a file. The same files as by the two stages one after the other.

    Raises:
        StageError: more scores failed than reward.max_failure_rate allows.
    """
    stage, source = round_.stage("scores"), round_.stage("rollouts")
    if not round_.samples(ctx.config):
        return
    sampling = rollouts.begin(ctx, round_)
    if ctx.run.is_done(source):
        rollouts.finish(ctx, sampling, ctx.flow(sampling))
        make(ctx, round_)
        return
    (ctx.run.path / stage).mkdir(parents=True, exist_ok=True)
    folder = ShardFolder(ctx.run.path / stage, _early_key(ctx, round_), source=sampling.folder)
    with _judge(ctx, stage) as judge:
        scoring = _leg(ctx, round_, folder, sampling.folder, sampling.count, judge)
        seconds = ctx.flow(sampling, scoring)
    # by wall time each has its share of the work
    share = sampling.busy / ((sampling.busy + scoring.busy) or 1.0)
    rollouts.finish(ctx, sampling, seconds * share)
    _begin(ctx, round_)
    _finish(ctx, scoring, seconds * (1 - share))
    if scoring.rows:
        ctx.say(describe([sampling, scoring], seconds))


def _begin(ctx: Context, round_: Round) -> str:
    source = round_.stage("rollouts")
    inputs = ctx.contents(source) | {"reward": ctx.scorer_input("recognizer")} | model_input(ctx.config)
    return STAGE.begin(ctx.run, ctx.config, round_.stage("scores"), inputs)


def _early_key(ctx: Context, round_: Round) -> str:
    """Key of scores whose rollouts are still being made: what they will be is known, their content is not yet."""
    stage, source = round_.stage("scores"), round_.stage("rollouts")
    return stable_hash("early", stage, STAGE.settings(ctx.config), ctx.run.stages[source]["key"],
                       ctx.scorer_input("recognizer"), model_input(ctx.config), *rules_of(*STAGE.rules).values())


def _leg(
    ctx: Context, round_: Round, folder: ShardFolder, source: ShardFolder, count: int,
    judge: Callable[[worker.Task], worker.Made],
) -> Leg:
    """The stage's work, as a leg of a flow."""
    stage = round_.stage("scores")
    prompts = prompts_of(ctx, round_.index)
    parts = chunks(prompts, ctx.config.rollouts.shard_size)
    audio = tasks.audio_spec(ctx, stage, prompts)
    total = len(prompts) * ctx.config.rollouts.num_candidates
    failures: Counter[str | None] = Counter()

    def task(i: int) -> worker.Task:
        candidates = source.read(i, Candidate)
        by_id = {p.prompt_id: p for p in parts[i]}
        asked = tasks.judging(ctx, tasks.of_candidates(by_id, candidates), audio=audio)
        return worker.Task(ctx.config.model, judging=asked, candidates=candidates)

    def store(folder: ShardFolder, i: int, made: worker.Made) -> None:
        _count_failures(ctx, stage, made.scores, failures, total)  # first: a shard that stops the run is made again
        folder.write(i, made.scores, ScoreRow)
        ctx.keep_audio(stage, made.audio)

    return Leg(stage, folder, count, task, judge, store, here=bool(ctx.endpoints))


def _finish(ctx: Context, leg: Leg, seconds: float) -> None:
    """Mark the stage as done, and tell what came out where something was made."""
    failures: Counter[str | None] = Counter()
    failed: list[ScoreRow] = []
    rewards: list[float] = []
    for i in range(leg.count):
        done = leg.folder.read(i, ScoreRow)
        failed += [r for r in done if r.status == "failed"]
        rewards += [r.reward for r in done if r.reward is not None]
    _count_failures(ctx, leg.stage, failed, failures, sum(leg.folder.row_count(i) for i in range(leg.count)))
    if leg.rows or not ctx.run.is_done(leg.stage):
        ctx.say(f"{leg.stage}: {count(len(rewards), 'score')}, mean reward "
                f"{written(sum(rewards) / max(1, len(rewards)))}, "
                f"{count(sum(failures.values()), 'failure')}")
    ctx.run.finish(leg.stage, content=leg.folder.content(), seconds=seconds,
                   counts={"ok": len(rewards), "failed": dict(failures)})


@contextlib.contextmanager
def _judge(ctx: Context, stage: str) -> Iterator[Callable[[worker.Task], worker.Made]]:
    """What scores a task: this process and its workers, or the services of ``--endpoint``."""
    if not ctx.endpoints:
        yield worker.work
        return
    from talker_rl.stages.remote import RemoteScorer

    if ctx.config.audio.keep != "none":
        ctx.say(f"{stage}: no speech is kept, because the services decode it")
    remote = RemoteScorer(ctx.config, ctx.endpoints, ctx.run.path / stage)
    try:
        yield remote
    finally:
        with contextlib.suppress(RuntimeError):  # interrupted: a thread still waits for an answer
            remote.close()


def _count_failures(
    ctx: Context, stage: str, rows: list[ScoreRow], failures: Counter[str | None], total: int
) -> None:
    """Add the rows' failures; StageError as soon as they are more than the configured share of all candidates."""
    failed = [r for r in rows if r.status == "failed"]
    failures.update(r.error_code for r in failed)
    rate = sum(failures.values()) / max(1, total)
    if failed and rate > ctx.config.reward.max_failure_rate:
        raise StageError(
            f"{rate:.0%} of the scores failed (" + ", ".join(f"{n} {code}" for code, n in failures.most_common()) + ")",
            where=f"{ctx.run.path / stage}; first: {failed[0].candidate_id}: {failed[0].error_message}",
            fix="mend the cause and --force-stage " + stage + ", or raise reward.max_failure_rate",
        )


class Scored:
    """Candidates and scores of a round, shard by shard: (prompts, candidates, scores) of the same prompts. Can be gone
    through again and again, and nothing is held.

    With reward.remove_length rewards are without their dependence on duration. That slope is fitted over the whole
    finished set, so it is applied when scores are read, never when a shard is made; the raw reward stays in the shards
    and in the component ``reward_raw``.
    """

    def __init__(self, ctx: Context, round_: Round) -> None:
        self._candidates, self._scores = ctx.shards(round_.stage("rollouts")), ctx.shards(round_.stage("scores"))
        self.prompts = prompts_of(ctx, round_.index)
        """All of them."""
        self._parts = chunks(self.prompts, ctx.config.rollouts.shard_size)
        self._fit: LengthSlope | None = None
        if ctx.config.reward.remove_length:
            from talker_rl.reward.combine import LengthSlope

            fit = LengthSlope()
            for _, candidates, scores in self:
                fit.look(*_lengths(candidates, scores))
            ctx.say(f"{round_.stage('scores')}: removed {written(fit.slope, '{:+.4f}')} of reward per second")
            self._fit = fit

    def __iter__(self) -> Iterator[tuple[list[Prompt], list[Candidate], list[ScoreRow]]]:
        for i in range(len(self._candidates)):
            candidates = self._candidates.read(i, Candidate)
            yield self._parts[i], candidates, self._without_length(candidates, self._scores.read(i, ScoreRow))

    def candidates(self) -> Iterator[Candidate]:
        """All of them, in order."""
        return (candidate for _, candidates, _ in self for candidate in candidates)

    def scores(self) -> Iterator[ScoreRow]:
        """All of them, in order."""
        return (score for _, _, scores in self for score in scores)

    def _without_length(self, candidates: list[Candidate], scores: list[ScoreRow]) -> list[ScoreRow]:
        if self._fit is not None:
            for row, reward in zip(scores, self._fit.removed(*_lengths(candidates, scores)), strict=True):
                row.components["reward_raw"] = row.reward
                row.reward = reward
        return scores


def _lengths(
    candidates: list[Candidate], scores: list[ScoreRow]
) -> tuple[list[float | None], list[float], list[str], list[bool]]:
    """What ``LengthSlope`` is told of a shard."""
    seconds = {c.candidate_id: c.duration for c in candidates}
    return ([r.reward for r in scores], [seconds[r.candidate_id] for r in scores], [r.prompt_id for r in scores],
            [nothing_recognized(r.components) for r in scores])


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    if not round_.samples(config):
        return []
    candidates = per_round(config, sizes) * config.rollouts.num_candidates
    return [Step("scores", f"{round_}: {count(candidates, 'utterance')} decoded and recognized", candidates)]


def _work(job: Job, index: int) -> list[Part]:
    policies, candidates = sampled(job, index)
    if not policies:
        return []
    config, each = job.config, job.config.rollouts.num_candidates
    works = cost.decode(job.geometry, candidates, job.lengths, config.token2wav) + heard(job, "recognizer", candidates)
    disk = candidates * memory.SCORE_BYTES + memory.audio_on_disk(config, candidates // each, each, job.lengths)
    return [Part("scores", f"round {index}: {count(candidates, 'utterance')}", works, job.devices, job.peaks["scores"],
                 disk, policies)]


STAGE = Stage("scores", "scores", make, "round", rules=("decoding",), key=("token2wav", "seed"),
              through=("rollouts", *MODEL, *REWARD),
              plan=_plan, work=_work)
