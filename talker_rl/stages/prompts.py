"""Prompts: read the three sets, check them, keep them disjoint. Shard 0 is train, 1 is dev, 2 is eval."""

from __future__ import annotations

from talker_rl.base.errors import PromptError
from talker_rl.base.figures import count
from talker_rl.config import RunConfig
from talker_rl.data.prompt_files import parse_source
from talker_rl.data.prompts import check_disjoint, drop_shared_pieces, read_prompts
from talker_rl.data.speaker_settings import SETS
from talker_rl.records.prompt import Prompt
from talker_rl.rounds import Round
from talker_rl.speech.registry import family_of
from talker_rl.stages.assignment import assigned, assignment_key, check_assigned
from talker_rl.stages.context import Context
from talker_rl.stages.stage import Stage, Step
from talker_rl.store.run_dir import timed


def make(ctx: Context) -> None:
    """Write ``prompts/``; what was skipped is told and noted in the manifest."""
    cfg = ctx.config.prompts
    inputs = {f"prompts.{name}": parse_source(getattr(cfg, name)).content_hash() for name in SETS}
    speakers = family_of(ctx.config.model.path).speakers(ctx.config.model)
    named = {"speakers": speakers, **assignment_key(ctx.config)}
    folder = ctx.shards("prompts", STAGE.begin(ctx.run, ctx.config, "prompts", inputs, named))
    if ctx.run.is_done("prompts") and not folder.missing(len(SETS)):
        return
    if cfg.speaker is not None and cfg.speaker not in speakers:
        raise PromptError(f"Unknown speaker {cfg.speaker!r}", where="prompts.speaker",
                          fix=f"this checkpoint has: {', '.join(speakers)}")
    check_assigned(ctx.config, speakers)
    with timed() as seconds:
        sets = {name: read_prompts(**cfg.reading(name), speakers=speakers) for name in SETS}
        dropped = drop_shared_pieces(sets)
        check_disjoint({name: found.prompts for name, found in sets.items()})
        for name, found in sets.items():
            found.prompts = assigned(ctx.config, found.prompts, name, speakers)
        for i, name in enumerate(SETS):
            for line in sets[name].describe():
                ctx.say(f"prompts: {line}")
            folder.write(i, sets[name].prompts, Prompt)
    if dropped:
        ctx.say(f"prompts: {count(dropped, 'piece')} of long texts left out, since a later set holds the same text")
    ctx.say("prompts: " + ", ".join(f"{len(sets[name].prompts)} {name}" for name in SETS))
    ctx.run.finish("prompts", content=folder.content(), seconds=seconds[0],
                   counts={name: len(found.prompts) for name, found in sets.items()},
                   skipped={name: found.counts() for name, found in sets.items() if found.skips})


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    return [Step("prompts", ", ".join(f"{n} {name}" for name, n in sizes.items()))]


STAGE = Stage("prompts", "prompts", make, key=("prompts",), plan=_plan,
              through=("seed", "model.path", "model.speakers", "model.system_prompt"))
