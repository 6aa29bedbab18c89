"""Tasks of sampling and judging with a run's settings: one way to them for rollouts, scores, dev and eval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from talker_rl.base.ids import stable_hash
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import to_row
from talker_rl.rounds import Round
from talker_rl.speech.config import SamplingConfig
from talker_rl.stages import worker
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import seeds
from talker_rl.stages.legs import Leg
from talker_rl.store.shards import ShardFolder, chunks

FIRST = Round(1).stage("rollouts")
"""The stage whose candidates are called ``<prompt>-<number>``; between the two, others have a hash of who made them."""
CANDIDATES = "candidates"
"""Folder in which a choice or an evaluation keeps what its policies sampled."""


def sampling(
    ctx: Context, stage: str, policy: Path | None, purpose: str, prompts: Sequence[Prompt], count: int,
    settings: SamplingConfig, step: int | None = None,
) -> worker.Sampling:
    """``count`` candidates of each prompt from a policy (None: the base); the same seeds whatever the policy.

    Args:
        step: tells apart the policies of a stage that has several.
    """
    alone = stage == FIRST or not ctx.run.stages[stage].get("unique_ids")
    return worker.Sampling(
        maker="" if alone else f"{stable_hash(stage, step)[:8]}-",
        policy=policy, conditioning=ctx.run.path / "conditioning",
        prompt_ids=[p.prompt_id for p in prompts], seeds=[seeds(ctx.config, purpose, p, count) for p in prompts],
        settings=settings, batch_size=ctx.config.rollouts.batch_size,
    )


def judging(
    ctx: Context, prompts: Iterable[Prompt], rows: Literal["score", "dev", "eval"] = "score", *,
    audio: worker.AudioSpec | None = None, extras: int = 0, seed: int | None = None,
) -> worker.Judging:
    """Candidates of these prompts are judged as the run says; arguments as the fields of ``Judging``."""
    config = ctx.config
    return worker.Judging(
        token2wav=config.token2wav, reward=config.reward, prompts=list(prompts),
        seed=config.seed if seed is None else seed, audio=audio, rows=rows, extras=extras,
    )


def of_candidates(prompts: dict[str, Prompt], candidates: Sequence[Candidate]) -> list[Prompt]:
    """The prompts that candidates are of, in their order; those of no prompt are told by whoever judges."""
    return [prompts[p] for p in dict.fromkeys(c.prompt_id for c in candidates) if p in prompts]


def speak_each(
    ctx: Context, stage: str, key: str, policies: Mapping[int, Path | None], which: Literal["dev", "eval"], count: int,
    settings: SamplingConfig,
) -> ShardFolder:
    """:func:`speak` of policies by training step: each says the texts of a set, and its rows bear its ``step``."""
    parts = chunks(ctx.prompts(which), ctx.config.rollouts.shard_size)
    work = [(step, part) for step in policies for part in parts]

    def task(i: int) -> worker.Task:
        step, part = work[i]
        return worker.Task(ctx.config.model, sampling(ctx, stage, policies[step], which, part, count, settings, step),
                           judging(ctx, part, which))

    return speak(ctx, stage, key, len(work), task, lambda i: {"step": work[i][0]})


def speak(
    ctx: Context, stage: str, key: str, count: int, task: Callable[[int], worker.Task],
    mark: Callable[[int], dict[str, Any]] = lambda i: {},
) -> ShardFolder:
    """Make the missing shards of a stage that samples and judges in one go: its rows, and the candidates below.

    Args:
        mark: columns that go before those of every row of a shard.
    """
    below = ctx.run.path / stage / CANDIDATES
    kept = below.exists() or not ctx.shards(stage, key).has(0)  # earlier versions kept none
    candidates = ctx.shards(f"{stage}/{CANDIDATES}", key)
    rows = ShardFolder(ctx.run.path / stage, key, beside=candidates if kept else None)

    def store(folder: ShardFolder, i: int, made: worker.Made) -> None:
        for target, found in ((candidates, [to_row(c) for c in made.candidates]), (folder, made.rows)):
            target.write(i, [{**mark(i), **row} for row in found])
        ctx.keep_audio(stage, made.audio)

    ctx.flow(Leg(stage, rows, count, task, worker.work, store))
    return rows


def audio_spec(ctx: Context, stage: str, prompts: Sequence[Prompt]) -> worker.AudioSpec | None:
    """Whose speech is kept, by `audio.keep`."""
    cfg = ctx.config.audio
    if cfg.keep == "none":
        return None
    kept = None if cfg.keep == "all" else [p.prompt_id for p in prompts[: cfg.sample_prompts]]
    return worker.AudioSpec(ctx.run.path / "audio" / stage, cfg.format, kept)
