"""Conditioning kept in a folder, as a script would do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.errors import PromptError, TalkerRLError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import ConditioningConfig
from talker_rl.speech.protocol import Generator


def ensure_conditioning(
    generator: Generator,
    prompts: Sequence[Prompt],
    cfg: ConditioningConfig,
    folder: Path | str,
    *,
    shard_size: int = 128,
    errors: dict[str, TalkerRLError] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Conditioning of the prompts by prompt id: what the folder has for this content, and the rest computed and stored.

    Prompts that cannot be used are noted in ``errors`` where it is given, otherwise the first one raises.
    """
    cache = ConditioningCache(folder)
    cache.drop_damaged()
    keys = {p.prompt_id: generator.conditioning_key(p, cfg) for p in prompts}
    if len(keys) != len(prompts):
        raise PromptError("two prompts have the same prompt_id", where=str(folder), fix="remove one, or its prompt_id")
    todo = [p for p in prompts if cache.keys([p.prompt_id]).get(p.prompt_id) != keys[p.prompt_id]]
    for start in range(0, len(todo), shard_size):
        fresh = generator.condition(todo[start : start + shard_size], cfg, errors=errors)
        if fresh:
            cache.put([(c, keys[c.prompt_id]) for c in fresh])
        if progress:
            progress(min(start + shard_size, len(todo)), len(todo))
    failed = errors or {}
    return cache.load([p.prompt_id for p in prompts if p.prompt_id not in failed])
