"""Who speaks which text, and under which instruction: assigned by seed, so that a voice cannot be told from a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from talker_rl.base.ids import derive_seed
from talker_rl.data.speaker_settings import Assignment
from talker_rl.records.messages import identity
from talker_rl.records.prompt import Prompt


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
