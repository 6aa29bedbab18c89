"""What the Talker reads of a prompt: token embeddings of the Thinker, which the Talker projects to its own width.

They are stored before that projection, whose weights are the Talker's own. A text prompt needs no forward of the
Thinker: only the user's turns and the reply reach the Talker, and of both no more than the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.base.errors import CheckpointError, PromptError, TalkerRLError
from talker_rl.base.ids import stable_hash
from talker_rl.records.messages import check_messages, identity
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig
from talker_rl.speech.prompt_text import (
    check_prompt,
    checked_reply,
    greedy_replies,
    noting,
    prompt_messages,
    reply_ids,
)
from talker_rl.speech.protocol import Progress
from talker_rl.speech.qwen3_omni.codec import CODEC

if TYPE_CHECKING:
    from talker_rl.speech.qwen3_omni.checkpoint import Qwen3

FORMAT = 1
"""Part of every cache key; raise it when the tensors' meaning changes."""
MARKS = ("<|im_start|>", "assistant", "\n", "tts_pad", "tts_bos", "tts_eos")
"""Rows of :attr:`Conditioning.marks`."""
FIXED = 9
"""Positions between the user's turns and the first frame."""
PAD, BOS, EOS = MARKS.index("tts_pad"), MARKS.index("tts_bos"), MARKS.index("tts_eos")


@dataclass
class Conditioning:
    """The Talker's input of one prompt, on the CPU, in the Thinker's width E. Codec embeddings are not in it."""

    prompt_id: str
    marks: torch.Tensor
    """(6, E) embeddings of the tokens that stand in every prompt."""
    user: torch.Tensor
    """(U, E) embeddings of all tokens of the user's turns, their marks included; system turns are left out."""
    reply: torch.Tensor
    """(R, E) embeddings of the reply's tokens, at least one; its end token is not among them."""
    speaker: str
    speaker_id: int
    """The voice: a row of the codec embedding."""
    reply_text: str = ""
    codec: str = CODEC.name
    """Name of the codec."""

    @property
    def rows(self) -> tuple[int, int]:
        """Positions of the prefix, and rows of the reply stream."""
        return len(self.user) + FIXED, len(self.reply)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored and hashed, by name."""
        return {"marks": self.marks, "user": self.user, "reply": self.reply,
                "speaker_id": torch.tensor(self.speaker_id)}


def compute_conditioning(
    model: Qwen3,
    prompts: Sequence[Prompt],
    cfg: ConditioningConfig | None = None,
    *,
    errors: dict[str, TalkerRLError] | None = None,
    progress: Progress | None = None,
) -> list[Conditioning]:
    """Conditioning of every prompt, in order.

    Args:
        model: with table and tokenizer loaded; in mode generate its Thinker is read as well.
        prompts: what to speak.
        cfg: mode and batch size.
        errors: where given, prompts that cannot be used are left out and noted here by prompt id;
            otherwise the first one raises.
        progress: called with (done, total).

    Raises:
        PromptError: a prompt that cannot be spoken.
    """
    cfg = cfg or ConditioningConfig()
    tokenizer = model.need("tokenizer")
    out: list[Conditioning] = []
    for start in range(0, len(prompts), cfg.batch_size):
        chunk: list[tuple[Prompt, list[int], list[int]]] = []
        for prompt in prompts[start : start + cfg.batch_size]:
            with noting(prompt, errors):
                check_prompt(prompt, list(model.speakers))
                reply = [] if cfg.mode == "generate" else reply_ids(tokenizer, prompt)
                chunk.append((prompt, _dialogue(model, prompt), reply))
        if cfg.mode == "generate" and chunk:
            chunk = [(prompt, ids, reply) for (prompt, ids, _), reply
                     in zip(chunk, _replies(model, [ids for _, ids, _ in chunk], cfg.max_reply_tokens), strict=True)]
        for prompt, ids, reply in chunk:
            with noting(prompt, errors):
                text = prompt.text
                if cfg.mode == "generate":
                    text = tokenizer.decode(checked_reply(tokenizer, prompt, reply, cfg.max_reply_wer, _media(model)))
                out.append(_conditioning(model, prompt, ids, reply, text))
        if progress:
            progress(min(start + cfg.batch_size, len(prompts)), len(prompts))
    return out


def conditioning_key(model: Qwen3, prompt: Prompt, cfg: ConditioningConfig) -> str:
    """What the tensors depend on: text, context, speaker, table, precision and mode (not the Talker, not the batch)."""
    return stable_hash(
        "conditioning", CODEC.name, FORMAT, model.hash_of("table"), model.settings.dtype, cfg.mode,
        cfg.max_reply_tokens if cfg.mode == "generate" else None, identity(prompt_messages(model.settings, prompt)),
        prompt.text, prompt.speaker, model.speakers.get(prompt.speaker),
    )


def _replies(model: Qwen3, contexts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """What the Thinker answers, which is read from its files when it is first asked."""
    tokenizer = model.need("tokenizer")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else model.config.im_end_token_id
    return greedy_replies(model.read_thinker(), contexts, most, [model.config.im_end_token_id], pad, model.device)


def _media(model: Qwen3) -> set[int]:
    """Tokens that stand for media."""
    config = model.config.thinker_config
    names = ("audio_token_id", "image_token_id", "video_token_id", "audio_start_token_id", "vision_start_token_id")
    return {token for name in names if isinstance(token := getattr(config, name, None), int)}


def _dialogue(model: Qwen3, prompt: Prompt) -> list[int]:
    """Tokens of the messages, up to where the reply begins.

    Raises:
        PromptError: messages that are none, or that hold sound, images or video.
        CheckpointError: the chat template does not end with the assistant's turn.
    """
    where = f"prompt {prompt.prompt_id}"
    messages = check_messages(prompt_messages(model.settings, prompt), where)
    if any(not isinstance(message["content"], str) for message in messages):
        raise PromptError("sound, images and video are not read for this family", where=where,
                          fix="give messages of text alone")
    tokenizer, config = model.need("tokenizer"), model.config
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's, and what a template raises on purpose
        raise PromptError(f"the checkpoint's chat template refuses the messages: {error}", where=where,
                          fix="change the messages or model.system_prompt, or restore the template") from error
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if ids[-3:-1] != [config.im_start_token_id, config.assistant_token_id]:
        raise CheckpointError("the chat template does not end with the beginning of the assistant's turn",
                              where=str(model.path), fix="restore it: upstream's Talker reads its last three tokens")
    return ids


def user_turns(ids: Sequence[int], config: Any) -> list[int]:
    """Tokens of the user's turns, the marks around them included; system turns and earlier answers never reach the
    Talker."""
    starts = [i for i, token in enumerate(ids) if token == config.im_start_token_id]
    out: list[int] = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        if start + 1 < len(ids) and ids[start + 1] == config.user_token_id:
            out += ids[start:end]
    return out


def _conditioning(model: Qwen3, prompt: Prompt, ids: list[int], reply: list[int], text: str) -> Conditioning:
    config, table = model.config, model.need("table")
    marks = [*ids[-3:], config.tts_pad_token_id, config.tts_bos_token_id, config.tts_eos_token_id]
    user = user_turns(ids, config)
    worst = max([*marks, *user, *reply])
    if worst >= len(table):
        raise PromptError(f"the tokenizer gives {worst}, and the Thinker's table has {len(table)} rows",
                          where=f"prompt {prompt.prompt_id}", fix="restore the tokenizer's files")

    def rows(tokens: list[int]) -> torch.Tensor:
        return table[torch.tensor(tokens, dtype=torch.long)]

    return Conditioning(prompt.prompt_id, rows(marks), rows(user), rows(reply), prompt.speaker,
                        model.speaker(prompt.speaker), text, model.codec.name)
