"""Scores: decode every candidate and judge it. A failure is a row with a code, never a number."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count, written
from talker_rl.base.ids import stable_hash
from talker_rl.records.candidate import Candidate
from talker_rl.records.rows import from_row, to_row
from talker_rl.records.score import ScoreRow, nothing_recognized
from talker_rl.stages import rollouts, worker
from talker_rl.stages.context import Context, Round
from talker_rl.stages.flow import Leg, describe
from talker_rl.stages.rollouts import prompts_of
from talker_rl.store.shards import ShardFolder


def run(ctx: Context, round_: Round) -> None:
    """Write ``scores/`` of a round: one shard per shard of rollouts, so that a batch never crosses one.

    Raises:
        StageError: more scores failed than reward.max_failure_rate allows.
    """
    stage, source = round_.stage("scores"), round_.stage("rollouts")
    key = _begin(ctx, round_)
    sampled = ShardFolder(ctx.run.path / source)
    folder = ShardFolder(ctx.run.path / stage, key, source=sampled, early_key=_early_key(ctx, round_))
    with _judge(ctx, stage) as judge:
        leg = _leg(ctx, round_, folder, sampled, len(sampled), judge)
        seconds = ctx.flow(leg)
    _finish(ctx, leg, seconds)


def run_with_rollouts(
    ctx: Context, round_: Round, policy: Path | None = None, policy_inputs: dict[str, str] | None = None
) -> None:
    """``rollouts/`` and ``scores/`` of a round, each shard scored as soon as it is sampled. The same files as by the
    two stages one after the other; arguments as for the rollouts.

    Raises:
        StageError: more scores failed than reward.max_failure_rate allows.
    """
    stage, source = round_.stage("scores"), round_.stage("rollouts")
    if ctx.run.is_done(source):
        rollouts.run(ctx, round_, policy, policy_inputs)
        run(ctx, round_)
        return
    sampling = rollouts.begin(ctx, round_, policy, policy_inputs)
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
    inputs = {source: ctx.run.content(source), "reward": ctx.scorer_input("recognizer"), **ctx.model_input()}
    return ctx.begin(round_.stage("scores"), "scores", inputs)


def _early_key(ctx: Context, round_: Round) -> str:
    """Key of scores whose rollouts are still being made: what they will be is known, their content is not yet."""
    stage, source = round_.stage("scores"), round_.stage("rollouts")
    return stable_hash("early", stage, ctx.settings_of("scores"), ctx.run.stages[source]["key"],
                       ctx.scorer_input("recognizer"), ctx.model_input())


def _leg(
    ctx: Context, round_: Round, folder: ShardFolder, source: ShardFolder, count: int,
    judge: Callable[[worker.ScoreTask], list[dict[str, Any]]],
) -> Leg:
    """The stage's work, as a leg of a flow."""
    stage = round_.stage("scores")
    prompts = prompts_of(ctx, round_.index)
    rows = {p.prompt_id: to_row(p) for p in prompts}
    audio = audio_spec(ctx, stage, [p.prompt_id for p in prompts])
    total = len(prompts) * ctx.config.rollouts.num_candidates
    failures: Counter[str | None] = Counter()

    def task(i: int) -> worker.ScoreTask:
        candidates = source.rows(i)
        return score_task(ctx, [rows[p] for p in dict.fromkeys(c["prompt_id"] for c in candidates)], candidates, audio)

    def store(folder: ShardFolder, i: int, made: list[dict]) -> None:
        records: list[ScoreRow] = [from_row(ScoreRow, r) for r in made]
        _count_failures(ctx, stage, records, failures, total)  # first: a shard that stops the run is made again
        folder.write(i, records, ScoreRow)

    return Leg(stage, folder, count, task, judge, store, here=bool(ctx.endpoints))


def _finish(ctx: Context, leg: Leg, seconds: float) -> None:
    """Mark the stage as done, and tell what came out where something was made."""
    done = leg.folder.read_all(ScoreRow)
    failures: Counter[str | None] = Counter()
    _count_failures(ctx, leg.stage, done, failures, len(done))
    rewards = [r.reward for r in done if r.reward is not None]
    if leg.rows or not ctx.run.is_done(leg.stage):
        ctx.say(f"{leg.stage}: {count(len(rewards), 'score')}, mean reward "
                f"{written(sum(rewards) / max(1, len(rewards)))}, "
                f"{count(sum(failures.values()), 'failure')}")
    ctx.run.finish(leg.stage, content=leg.folder.content(), seconds=seconds,
                   counts={"ok": len(rewards), "failed": dict(failures)})


@contextlib.contextmanager
def _judge(ctx: Context, stage: str) -> Iterator[Callable[[worker.ScoreTask], list[dict[str, Any]]]]:
    """What scores a task: this process and its workers, or the services of ``--endpoint``."""
    if not ctx.endpoints:
        yield worker.score
        return
    from talker_rl.stages.remote import RemoteScorer

    if ctx.config.audio.keep != "none":
        ctx.say(f"{stage}: no speech is kept, because the services decode it")
    remote = RemoteScorer(ctx, stage)
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


def score_task(
    ctx: Context, prompts: list[dict], candidates: list[dict], audio: worker.AudioSpec | None = None
) -> worker.ScoreTask:
    """A scoring task with the run's settings."""
    return worker.ScoreTask(
        model=ctx.model_dump(), token2wav=ctx.config.token2wav.model_dump(mode="json"),
        reward=ctx.config.reward.model_dump(mode="json"), prompts=prompts, candidates=candidates,
        seed=ctx.config.seed, audio=audio,
    )


def audio_spec(ctx: Context, stage: str, prompt_ids: list[str]) -> worker.AudioSpec | None:
    """Whose speech is kept, by `audio.keep`."""
    cfg = ctx.config.audio
    if cfg.keep == "none":
        return None
    kept = None if cfg.keep == "all" else prompt_ids[: cfg.sample_prompts]
    return worker.AudioSpec(str(Path(ctx.run.path) / "audio" / stage), cfg.format, kept)


def load_scores(ctx: Context, round_: Round) -> list[ScoreRow]:
    """Score rows of a round; with reward.remove_length their rewards without the dependence on duration.

    That slope is fitted over the whole finished set, so it is applied when scores are read, never shard by shard; the
    raw reward stays in the shards and in the component ``reward_raw``.
    """
    rows = ShardFolder(ctx.run.path / round_.stage("scores")).read_all(ScoreRow)
    if not ctx.config.reward.remove_length:
        return rows
    from talker_rl.reward.combine import remove_length

    candidates = ShardFolder(ctx.run.path / round_.stage("rollouts")).read_all(Candidate)
    seconds = {c.candidate_id: c.duration for c in candidates}
    rewards, slope = remove_length([r.reward for r in rows], [seconds[r.candidate_id] for r in rows],
                                   [r.prompt_id for r in rows], [nothing_recognized(r.components) for r in rows])
    ctx.say(f"{round_.stage('scores')}: removed {written(slope, '{:+.4f}')} of reward per second")
    for row, reward in zip(rows, rewards, strict=True):
        row.components["reward_raw"] = row.reward
        row.reward = reward
    return rows
