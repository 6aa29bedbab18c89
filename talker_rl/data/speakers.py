"""Who speaks which text, and under which instruction: assigned by seed, so that a voice cannot be told from a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import PromptError, TalkerRLError
from talker_rl.base.ids import derive_seed
from talker_rl.data.speaker_settings import SETS, Assignment
from talker_rl.records.messages import identity
from talker_rl.records.prompt import Prompt

if TYPE_CHECKING:
    from talker_rl.config import RunConfig


def check_assigned(config: RunConfig, known: Sequence[str]) -> None:
    """PromptError for a speaker that is to be assigned and that the checkpoint does not have."""
    unknown = [name for name in config.prompts.speakers or () if name not in known]
    if unknown:
        raise PromptError(f"Unknown speaker {unknown[0]!r}", where="prompts.speakers",
                          fix=f"this model has: {', '.join(known)}; `talker-rl speaker add` and model.speakers add one")


def voices(config: RunConfig, which: str) -> int:
    """How often each text of a set is spoken: once, or by each of the speakers."""
    cfg = config.prompts
    if cfg.assignment(which) != "all":
        return 1
    if cfg.speakers:
        return len(cfg.speakers)
    from talker_rl.speech.qwen2_5_omni.checkpoint import speakers_of

    try:
        return len(speakers_of(config.model))
    except TalkerRLError:  # a forecast needs no checkpoint
        return 2  # as the published ones have


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


def assign_speakers(prompts: Sequence[Prompt], speakers: Sequence[str], how: Assignment, seed: int) -> list[Prompt]:
    """The prompts with their speakers assigned anew, in their order.

    Args:
        speakers: among whom to assign.
        how: as_given: nothing changes. shuffled: each text gets one speaker by ``seed`` and its own words, whatever
            other texts are there. all: each text once by each speaker.
        seed: of shuffled.

    A known duration of a clean rendering is that of the given speaker: it is dropped where another one speaks. Prompts
    that become the same one (a text that was there with two speakers) are kept once.
    """
    if how == "as_given":
        return list(prompts)
    out: dict[str, Prompt] = {}
    for prompt in prompts:
        drawn = speakers[derive_seed(seed, "speaker", prompt.text, identity(prompt.messages)) % len(speakers)]
        for speaker in speakers if how == "all" else (drawn,):
            made = _by(prompt, speaker)
            out.setdefault(made.prompt_id, made)
    return list(out.values())


def _by(prompt: Prompt, speaker: str) -> Prompt:
    if speaker == prompt.speaker:
        return prompt
    return replace(prompt, speaker=speaker, reference_seconds=None, prompt_id="")


def assign_instructions(
    prompts: Sequence[Prompt], instructions: Sequence[str], system_prompt: str, seed: int
) -> list[Prompt]:
    """Each prompt without messages gets one of the user messages by ``seed`` and its text, whoever speaks it.

    Args:
        instructions: user messages; ``{text}`` stands for the prompt's text.
        system_prompt: the message before it.
    """
    return [
        prompt if prompt.messages is not None else replace(
            prompt, prompt_id="", messages=[
                {"role": "system", "content": system_prompt},
                {"role": "user", "content": _pick(prompt, instructions, seed).replace("{text}", prompt.text)},
            ])
        for prompt in prompts
    ]


def _pick(prompt: Prompt, instructions: Sequence[str], seed: int) -> str:
    return instructions[derive_seed(seed, "instruction", prompt.text) % len(instructions)]
