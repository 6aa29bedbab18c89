"""Reward noise: some rollouts decoded again and again from other seeds, each time judged by the reward recognizer."""

from __future__ import annotations

from itertools import islice
from typing import Any

from talker_rl.base.disk import read_json
from talker_rl.base.errors import StageError
from talker_rl.base.ids import derive_seed
from talker_rl.data.pairs import rank_value
from talker_rl.diagnostics.noise import reward_noise
from talker_rl.records.candidate import Candidate
from talker_rl.records.score import ScoreRow
from talker_rl.rounds import Round, train_stage
from talker_rl.stages import tasks, worker
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input
from talker_rl.stages.rollouts import prompts_of
from talker_rl.stages.stage import MODEL, REWARD, Stage
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder, chunks

NAME = "reward_noise"

CANDIDATES = 48
"""Candidates that are decoded, of the first prompts: an interval of about +-0.1 around an ICC of 0.8 at 4 decodes."""


def make(ctx: Context, decodes: int) -> dict[str, Any]:
    """Write ``reward_noise/noise.json``: ``figures`` (see :func:`reward_noise`) and ``notes``.

    Args:
        decodes: seeds that each candidate is decoded from.

    Raises:
        StageError: fewer than two decodes, or the rollouts are not there.
    """
    if decodes < 2:
        raise StageError("Reward noise needs at least two decodes of the same codes", where=f"--reward-noise {decodes}",
                         fix="give 4 or more")
    online = next((name for name, cfg in ctx.config.variants.items() if cfg.data == "online"), None)
    live = None if Round(1).samples(ctx.config) or online is None else train_stage(online, 1)
    inputs = ctx.contents(live or "rollouts") | {"reward": ctx.scorer_input("recognizer")} | model_input(ctx.config)
    key = STAGE.begin(ctx.run, ctx.config, NAME, inputs, {"decodes": decodes, "candidates": CANDIDATES})
    place = ctx.run.path / (f"{live}/online/rollouts" if live else "rollouts")
    able = list(islice((c for c in ShardFolder(place).records(Candidate)
                        if c.codes and c.end_reason in ("eos", "max_tokens")), CANDIDATES))
    said = {c.prompt_id for c in able}
    prompts = {p.prompt_id: p for p in prompts_of(ctx, 1) if p.prompt_id in said}
    parts = chunks(able, ctx.config.rollouts.shard_size)
    work = [(decode, part) for decode in range(decodes) for part in parts]

    def task(i: int) -> worker.Task:
        decode, candidates = work[i]
        seed = derive_seed(ctx.config.seed, "reward-noise", decode)
        asked = tasks.judging(ctx, tasks.of_candidates(prompts, candidates), seed=seed)
        return worker.Task(ctx.config.model, judging=asked, candidates=candidates)

    with timed() as seconds:
        folder = ctx.fill(NAME, key, len(work), task, worker.work,
                          lambda f, i, made: f.write(i, made.scores, ScoreRow))
        rows = [{"candidate_id": row.candidate_id, "reward": rank_value(row, ctx.config.pairs.reward_key),
                 "wer": row.components.get("wer")} for row in folder.read_all(ScoreRow)]
        notes: list[str] = []
        found = {"figures": reward_noise(rows, notes), "notes": notes}
        ctx.write_json(f"{NAME}/noise.json", found)
    if not ctx.run.is_done(NAME):
        ctx.run.finish(NAME, content=folder.content(), seconds=seconds[0], counts={"scores": len(rows)})
    return found


def stored(ctx: Context) -> dict[str, Any]:
    """What :func:`make` found before, or a note that says how to have it found."""
    if not ctx.run.is_done(NAME):
        return {"figures": None, "notes": ["reward_noise: not measured (talker-rl diagnose --reward-noise 4)"]}
    return read_json(ctx.run.path / NAME / "noise.json")


STAGE = Stage(NAME, NAME, each=None, rules=("decoding",), key=("token2wav", "seed"),
              through=(*MODEL, *REWARD), anew=("pairs.reward_key",))
