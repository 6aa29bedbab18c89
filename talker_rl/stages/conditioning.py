"""Conditioning: what the Thinker gives the Talker, for every prompt of the three sets, once."""

from __future__ import annotations

import json

from talker_rl.data.records import stable_hash
from talker_rl.errors import PromptError, TalkerRLError
from talker_rl.run_dir import atomic_write, read_json, timed
from talker_rl.stages.context import SETS, Context
from talker_rl.stages.shards import chunks

SHARD_SIZE = 128
"""Prompts a shard. A shard is computed whole or not at all: sums in a batch depend on its widths by 1e-7, and an
interrupted run must give the same tensors."""


def run(ctx: Context) -> None:
    """Write ``conditioning/`` (safetensors shards and index); prompts the model cannot speak are counted and told."""
    from talker_rl.omni.checkpoint import load_omni
    from talker_rl.omni.conditioning import compute_conditioning, conditioning_key
    from talker_rl.omni.conditioning_cache import ConditioningCache

    inputs = {"prompts": ctx.run.content("prompts"), **ctx.model_input("thinker")}
    cfg = ctx.config.conditioning
    limit = {"conditioning.max_reply_wer": cfg.max_reply_wer} if cfg.mode == "generate" else None
    key = ctx.begin("conditioning", "conditioning", inputs, limit)
    folder = ctx.run.path / "conditioning"
    notes = folder / "skipped.json"
    skipped: dict[str, str] = read_json(notes) if notes.exists() else {}
    if not ctx.run.is_done("conditioning"):
        notes.unlink(missing_ok=True)  # ctx.prompts leaves out what is noted here
        skipped = {}
    prompts = [p for name in SETS for p in ctx.prompts(name)]
    total = len(prompts) + len(skipped)
    cache = ConditioningCache(folder)
    if cache.damaged:
        ctx.say(f"conditioning: {len(cache.damaged)} damaged shards are computed again")
        cache.drop_damaged()
    if ctx.run.is_done("conditioning") and all(p.prompt_id in cache for p in prompts):
        return
    with timed() as seconds:
        omni = load_omni(ctx.config.model, parts=("thinker",))
        keys = {p.prompt_id: conditioning_key(omni, p, cfg) for p in prompts}
        parts, stored = chunks(prompts, SHARD_SIZE), 0
        for part in ctx.progress(parts, len(parts), "conditioning"):
            if all(cache.has(p.prompt_id, keys[p.prompt_id]) for p in part):
                stored += len(part)
                continue
            errors: dict[str, TalkerRLError] = {}
            fresh = compute_conditioning(omni, part, cfg, errors=errors)
            skipped |= {prompt_id: error.what for prompt_id, error in errors.items()}
            if fresh:
                cache.put([(c, keys[c.prompt_id]) for c in fresh])
    if len(skipped) == total:
        raise PromptError("The model can speak none of the prompts", where=next(iter(skipped.values())),
                          fix="use texts of the words that the model knows")
    for reason in sorted(set(skipped.values()))[:10]:
        count = sum(r == reason for r in skipped.values())
        ctx.say(f"conditioning: skipped {count} of {total} prompts ({count / total:.1%}): {reason}")
    atomic_write(notes, json.dumps(skipped, ensure_ascii=False, indent=1) + "\n")
    ctx.say(f"conditioning: {total - len(skipped)} prompts, {stored} of them were there already; "
            f"{cache.size / 2**20:.1f} MiB in {ctx.config.model.dtype}")
    content = stable_hash(key, sorted(k for p, k in keys.items() if p not in skipped))
    ctx.run.finish("conditioning", content=content, seconds=seconds[0],
                   counts={"prompts": total - len(skipped), "skipped": len(skipped)})
