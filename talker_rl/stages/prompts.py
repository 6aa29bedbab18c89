"""Prompts: read the three sets, check them, keep them disjoint. Shard 0 is train, 1 is dev, 2 is eval."""

from __future__ import annotations

from talker_rl.base.errors import PromptError
from talker_rl.base.figures import count
from talker_rl.data.prompt_files import parse_source
from talker_rl.data.prompts import check_disjoint, drop_shared_pieces, read_prompts
from talker_rl.records.prompt import Prompt
from talker_rl.stages.assignment import assigned, assignment_key, check_assigned
from talker_rl.stages.context import SETS, Context
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder


def run(ctx: Context) -> None:
    """Write ``prompts/``; what was skipped is told and noted in the manifest."""
    from talker_rl.speech.qwen2_5_omni.checkpoint import speakers_of

    cfg = ctx.config.prompts
    inputs = {f"prompts.{name}": parse_source(getattr(cfg, name)).content_hash() for name in SETS}
    speakers = sorted(speakers_of(ctx.config.model))
    key = ctx.begin("prompts", "prompts", inputs, {"speakers": speakers, **assignment_key(ctx.config)})
    folder = ShardFolder(ctx.run.path / "prompts", key)
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
