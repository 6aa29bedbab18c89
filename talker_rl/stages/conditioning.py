"""Conditioning: what the Thinker gives the Talker, for every prompt of the three sets, once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from talker_rl.base.disk import write_json
from talker_rl.base.errors import PromptError, TalkerRLError
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.config import RunConfig
from talker_rl.data.speaker_settings import SETS
from talker_rl.planning import cost, memory
from talker_rl.planning.forecast import Job, Part
from talker_rl.records.prompt import Prompt
from talker_rl.rounds import Round
from talker_rl.speech.cache import ConditioningCache, write_shard
from talker_rl.speech.config import ConditioningConfig, ModelConfig
from talker_rl.speech.protocol import Generator
from talker_rl.speech.registry import load
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input
from talker_rl.stages.stage import Stage, Step
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import chunks

SHARD_SIZE = 128
"""Prompts per shard. A shard is computed whole or not at all: sums in a batch depend on its widths by 1e-7, and an
interrupted run must give the same tensors."""
REASONS = 10
"""Reasons that are printed; the file has all."""

Note = dict[str, str]
"""What, where and fix of a prompt that was left out."""


def make(ctx: Context) -> None:
    """Write ``conditioning/`` (safetensors shards and index); prompts the model cannot speak are counted and told."""
    inputs = ctx.contents("prompts") | model_input(ctx.config, "conditioner")
    cfg = ctx.config.conditioning
    limit = {"conditioning.max_reply_wer": cfg.max_reply_wer} if cfg.mode == "generate" else None
    key = STAGE.begin(ctx.run, ctx.config, "conditioning", inputs, limit)
    folder = ctx.run.path / "conditioning"
    notes = folder / "skipped.json"
    skipped: dict[str, Note] = {i: _note(told) for i, told in ctx.skipped_prompts().items()}
    if not ctx.run.is_done("conditioning"):
        notes.unlink(missing_ok=True)  # ctx.prompts leaves out what is noted here
        skipped = {}
    prompts = [p for name in SETS for p in ctx.prompts(name)]
    total = len(prompts) + len(skipped)
    cache = ConditioningCache(folder)
    if cache.damaged:
        ctx.say(f"conditioning: {count(len(cache.damaged), 'damaged shard is', 'damaged shards are')} computed again")
        cache.drop_damaged()
    if ctx.run.is_done("conditioning") and all(p.prompt_id in cache for p in prompts):
        return
    with timed() as seconds:
        parts = chunks(prompts, SHARD_SIZE)
        tasks = [Shard(ctx.config.model, cfg, part, folder.absolute(), cache.keys([p.prompt_id for p in part]))
                 for part in parts]
        keys: dict[str, str] = {}
        stored = 0
        for made in ctx.progress(_made(ctx, tasks), len(parts), "conditioning"):
            keys |= made.keys
            skipped |= made.skipped
            stored += made.stored
            if made.shard is not None:
                cache.adopt(folder / made.shard)
    if len(skipped) == total:
        first = next(iter(skipped.values()))
        raise PromptError(f"The model can speak none of the prompts. The first: {first['what']}",
                          where=first["where"], fix=first["fix"])
    for line in _told(skipped, total):
        ctx.say(f"conditioning: {line}")
    write_json(notes, skipped)
    ctx.say(f"conditioning: {count(total - len(skipped), 'prompt')}, {stored} of them there already; "
            f"{cache.size / 2**20:.1f} MiB in {ctx.config.model.dtype}")
    content = stable_hash(key, sorted(k for p, k in keys.items() if p not in skipped))
    ctx.run.finish("conditioning", content=content, seconds=seconds[0],
                   counts={"prompts": total - len(skipped), "skipped": len(skipped)})


@dataclass
class Shard:
    """Prompts of a shard."""

    model: ModelConfig
    settings: ConditioningConfig
    prompts: list[Prompt]
    folder: Path
    stored: dict[str, str]
    """Prompt id -> key of what is stored already."""


@dataclass
class Made:
    """What came of them."""

    keys: dict[str, str]
    """Of every prompt."""
    shard: str | None = None
    """Name of the file; None where all were there, or none can be spoken."""
    skipped: dict[str, Note] = field(default_factory=dict)
    stored: int = 0
    """Prompts that were there."""


@lru_cache(maxsize=1)
def _conditioner(model_json: str) -> Generator:
    return load(ModelConfig.model_validate_json(model_json), parts=("conditioner",))


def condition(task: Shard) -> Made:
    """Compute what is missing of a shard, as a whole, and write it."""
    generator = _conditioner(task.model.model_dump_json())
    keys = {p.prompt_id: generator.conditioning_key(p, task.settings) for p in task.prompts}
    if task.stored == keys:
        return Made(keys, stored=len(keys))
    errors: dict[str, TalkerRLError] = {}
    fresh = generator.condition(task.prompts, task.settings, errors=errors)
    shard = write_shard(task.folder, [(c, keys[c.prompt_id]) for c in fresh]).name if fresh else None
    return Made(keys, shard, {prompt_id: _note(error) for prompt_id, error in errors.items()})


def _made(ctx: Context, tasks: list[Shard]) -> Iterator[Made]:
    """In this process, which loads one Thinker for all; or, where nothing is worked out here, wherever that is."""
    if ctx.pool.elsewhere:
        yield from (made for _, made in ctx.pool.imap(condition, tasks))
        return
    ctx.pool.pin_here()
    try:
        yield from map(condition, tasks)
    finally:
        _conditioner.cache_clear()
        gc.collect()  # hooks of a Thinker over several GPUs hold it in cycles, and the Talker needs the memory


def _note(told: TalkerRLError | Note | str) -> Note:
    """What, where and fix of an error; of a note itself; of what earlier versions noted, the `what` alone."""
    if isinstance(told, TalkerRLError):
        return {"what": told.what, "where": told.where or "", "fix": told.fix or ""}
    return {"what": told, "where": "", "fix": ""} if isinstance(told, str) else told


def _told(skipped: dict[str, Note], total: int) -> list[str]:
    """A line a reason, the most frequent first, each with the place of its first prompt."""
    reasons: dict[str, list[str]] = {}
    for note in skipped.values():
        reasons.setdefault(note["what"], []).append(note["where"])
    lines = []
    for what, places in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        n = len(places)
        others = f" and {n - 1} more" if n > 1 else ""
        place = f" ({_one_line(places[0])}{others})" if places[0] else ""
        lines.append(f"skipped {n} of {count(total, 'prompt')} ({n / total:.1%}): {what}{place}")
    if len(lines) > REASONS:
        lines[REASONS:] = [f"{len(lines) - REASONS} more reasons: see conditioning/skipped.json"]
    return lines


def _one_line(text: str, width: int = 160) -> str:
    """Shortened in the middle: a place begins with its prompt and ends with its file's name."""
    text = " ".join(text.split())
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    return [Step("conditioning", f"{count(sum(sizes.values()), 'prompt')} through the Thinker")]


def _work(job: Job, index: int) -> list[Part]:
    config, prompts = job.config, sum(job.sizes.values())
    cfg = config.conditioning
    works = cost.conditioning(job.geometry, prompts, job.lengths, cfg.batch_size, cfg.mode == "generate",
                              config.model.dtype)
    return [Part("conditioning", count(prompts, "prompt"), works, job.devices if job.machine.is_cpu else 1,
                 job.peaks["conditioning"], memory.cache_on_disk(job.geometry, config, prompts, job.lengths))]


STAGE = Stage(
    "conditioning", "conditioning", make, plan=_plan, work=_work,
    key=("conditioning.mode", "conditioning.max_reply_tokens", "model.dtype", "model.system_prompt",
         "model.instruction", "model.thinker_quantization"),
    through=("conditioning.max_reply_wer", "model.path", "model.speakers"),
)
