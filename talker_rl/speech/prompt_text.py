"""What a prompt says, before any model reads it: its messages, its reply's tokens, and what cannot be spoken."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from talker_rl.base.errors import PromptError, TalkerRLError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ModelConfig


def prompt_messages(settings: ModelConfig, prompt: Prompt) -> list[dict[str, Any]]:
    """Chat messages before the reply: the configured system prompt and instruction, or the prompt's own, behind the
    configured system prompt unless they begin with another or it is empty.
    """
    system = {"role": "system", "content": settings.system_prompt}
    messages = prompt.messages
    if messages is None:
        return [system, {"role": "user", "content": settings.instruction.replace("{text}", prompt.text)}]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages  # told where they are checked
    if not settings.system_prompt or (messages and messages[0].get("role") == "system"):
        return messages
    return [system, *messages]


def check_prompt(prompt: Prompt, speakers: Sequence[str] | None = None) -> None:
    """PromptError for an empty, non-text or unspeakable prompt, or one whose speaker is not known."""
    where = f"prompt {prompt.prompt_id}"
    if not isinstance(prompt.text, str):
        raise PromptError(f"the text is {type(prompt.text).__name__}, not a string", where=where, fix="give a string")
    if not prompt.text.strip():
        raise PromptError("the text is empty", where=where, fix="give a text, or remove the prompt")
    if not any(unicodedata.category(ch)[0] in "LN" for ch in prompt.text):
        raise PromptError(f"nothing to speak in {prompt.text!r}", where=where, fix="give a text with letters or digits")
    if any(unicodedata.category(ch) in ("Cc", "Cs") and ch not in "\n\t" for ch in prompt.text):
        raise PromptError("the text holds control characters", where=where, fix="remove them")
    if speakers is not None and prompt.speaker not in speakers:
        raise PromptError(
            f"unknown speaker {prompt.speaker!r}", where=where, fix=f"use one of: {', '.join(sorted(speakers))}"
        )


@contextmanager
def noting(prompt: Prompt, errors: dict[str, TalkerRLError] | None) -> Iterator[None]:
    """A prompt that cannot be used is noted in ``errors`` where it is given."""
    try:
        yield
    except PromptError as error:
        if errors is None:
            raise
        errors[prompt.prompt_id] = error


def reply_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Tokens of the prompt's text, as a reply.

    Raises:
        PromptError: there are none, or some are no words.
    """
    ids = list(tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise PromptError("the text has no tokens", where=f"prompt {prompt.prompt_id}", fix="give another text")
    specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if specials & set(ids):
        raise PromptError(
            f"the text holds a control token: {prompt.text!r}",
            where=f"prompt {prompt.prompt_id}",
            fix="remove markers such as <|im_end|>",
        )
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise PromptError(
            f"the model's vocabulary does not cover {prompt.text!r}",
            where=f"prompt {prompt.prompt_id}",
            fix="use words the model knows (the micro model's are in omni/words.txt)",
        )
    return ids


def checked_reply(
    tokenizer: Any, prompt: Prompt, reply: list[int], max_wer: float | None, media: Collection[int]
) -> list[int]:
    """A Thinker's reply.

    Raises:
        PromptError: it is empty, holds tokens that stand for media, or says something else than the text that it will
            be judged by.
    """
    where = f"prompt {prompt.prompt_id}"
    if not reply:
        raise PromptError("the Thinker answered nothing", where=where, fix="use mode teacher_forced")
    if set(media) & set(reply):
        raise PromptError("the Thinker answered with tokens that stand for media",
                          where=f"{where}: {tokenizer.decode(reply)[:80]!r}", fix="use mode teacher_forced")
    if max_wer is None:
        return reply
    from talker_rl.base.text.alignment import align  # jiwer, which a machine that only samples and trains may lack
    from talker_rl.base.text.tokens import tokens_of

    said = tokenizer.decode(reply, skip_special_tokens=True)
    rate = align(tokens_of(prompt.text), tokens_of(said)).counts.rate
    if rate is None or rate > max_wer:
        raise PromptError(
            "the Thinker does not read the text aloud, it says something else", where=f"{where}: {said[:80]!r}",
            fix="ask for reading (model.instruction: 'Read this aloud: {text}'), use conditioning.mode: "
            "teacher_forced, or raise conditioning.max_reply_wer",
        )  # fmt: skip
    return reply


def greedy_replies(
    thinker: Any, contexts: Sequence[Sequence[int]], max_new_tokens: int, ends: Sequence[int], pad: int, device: Any,
    **inputs: Any,
) -> list[list[int]]:
    """Greedy answers of a Thinker: the token ids it was fed back, so without its end token (or the last id, if cut).

    Rows are left-padded; the attention mask keeps padding out.

    Args:
        contexts: token ids up to where each reply begins.
        inputs: what ``generate`` is given besides.
    """
    import torch

    width = max(map(len, contexts))
    ids = torch.full((len(contexts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, context in enumerate(contexts):
        start = width - len(context)
        ids[i, start:], mask[i, start:] = torch.tensor(context), 1
    with torch.no_grad():
        out = thinker.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=list(ends), pad_token_id=pad, **inputs,
        )[:, width:].tolist()
    replies = []
    for row in out:
        end = next((k for k, token in enumerate(row) if token in ends), len(row) - 1)
        replies.append(row[:end])
    return replies
