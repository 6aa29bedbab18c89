"""Who speaks which text in a run, under which instruction: what the configuration makes of the rules in ``data``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from talker_rl.base.errors import PromptError
from talker_rl.config import RunConfig
from talker_rl.data.speaker_settings import SETS
from talker_rl.data.speakers import assign_instructions, assign_speakers
from talker_rl.records.prompt import Prompt


def check_assigned(config: RunConfig, known: Sequence[str]) -> None:
    """PromptError for a speaker that is to be assigned and that the checkpoint does not have."""
    unknown = [name for name in config.prompts.speakers or () if name not in known]
    if unknown:
        raise PromptError(f"Unknown speaker {unknown[0]!r}", where="prompts.speakers",
                          fix=f"this model has: {', '.join(known)}; `talker-rl speaker add` and model.speakers add one")


def assignment_key(config: RunConfig) -> dict[str, Any]:
    """What an assignment depends on besides ``prompts`` and the speakers; empty where nothing is assigned."""
    cfg = config.prompts
    if cfg.instructions is None and all(cfg.assignment(name) == "as_given" for name in SETS):
        return {}
    return {"seed": config.seed, "system_prompt": config.model.system_prompt}


def assigned(config: RunConfig, prompts: Sequence[Prompt], which: str, known: Sequence[str]) -> list[Prompt]:
    """The prompts of a set as the settings assign speakers and instructions to them."""
    cfg, model = config.prompts, config.model
    out = assign_speakers(prompts, cfg.speakers or sorted(known), cfg.assignment(which), config.seed)
    return assign_instructions(out, cfg.instructions, model.system_prompt, config.seed) if cfg.instructions else out
