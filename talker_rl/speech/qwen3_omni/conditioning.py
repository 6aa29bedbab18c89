"""What the Talker reads of a prompt: token embeddings of the Thinker, which the Talker projects to its own width.

They are stored before that projection, whose weights are the Talker's own. A text prompt needs no forward of the
Thinker: only the user's turns and the reply reach the Talker, and of both no more than the embeddings. Where a user's
turn holds sound, the Talker reads what a middle layer of the Thinker made of it (``accept_hidden_layer``, 24 as
published), through another projection: those prompts are given to the Thinker. Positions are 0, 1, 2, ... all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.base.errors import CheckpointError, PromptError, TalkerRLError
from talker_rl.base.ids import stable_hash
from talker_rl.records.messages import check_messages, files_are_noted, identity, resolve_media
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig
from talker_rl.speech.media import read_sound, sound_inputs
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
MEDIA_FORMAT = 1
"""Likewise, of prompts with sound alone."""
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
    heard: torch.Tensor | None = None
    """(U,) bool: rows of ``user`` that are hidden states, of sound; None: there are none."""

    @property
    def rows(self) -> tuple[int, int]:
        """Positions of the prefix, and rows of the reply stream."""
        return len(self.user) + FIXED, len(self.reply)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored and hashed, by name."""
        heard = {} if self.heard is None else {"heard": self.heard}
        return {"marks": self.marks, "user": self.user, "reply": self.reply,
                "speaker_id": torch.tensor(self.speaker_id), **heard}


@dataclass
class _Dialogue:
    """Tokens of the messages, up to where the reply begins, and the sound that stands in them."""

    ids: list[int]
    sounds: list[torch.Tensor]
    """(mel bins, frames) each."""


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
        model: with table and tokenizer loaded; in mode generate, and for sound, its Thinker is read as well.
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
        chunk: list[tuple[Prompt, _Dialogue, list[int]]] = []
        for prompt in prompts[start : start + cfg.batch_size]:
            with noting(prompt, errors):
                check_prompt(prompt, list(model.speakers))
                reply = [] if cfg.mode == "generate" else reply_ids(tokenizer, prompt)
                chunk.append((prompt, _dialogue(model, prompt), reply))
        if cfg.mode == "generate" and chunk:
            replies = _replies(model, [context for _, context, _ in chunk], cfg.max_reply_tokens)
            chunk = [(prompt, context, reply) for (prompt, context, _), reply in zip(chunk, replies, strict=True)]
        for prompt, context, reply in chunk:
            with noting(prompt, errors):
                text = prompt.text
                if cfg.mode == "generate":
                    text = tokenizer.decode(checked_reply(tokenizer, prompt, reply, cfg.max_reply_wer, _media(model)))
                out.append(_conditioning(model, prompt, context, reply, text))
        if progress:
            progress(min(start + cfg.batch_size, len(prompts)), len(prompts))
    return out


def conditioning_key(model: Qwen3, prompt: Prompt, cfg: ConditioningConfig) -> str:
    """What the tensors depend on: text, context, speaker, table, precision and mode (not the Talker, not the batch);
    with sound the Thinker and the files' content, too."""
    messages, thinker = prompt_messages(model.settings, prompt), []
    with suppress(PromptError):  # told where it is computed
        checked = check_messages(messages, "")
        if any(not isinstance(m["content"], str) for m in checked):
            thinker = [MEDIA_FORMAT, model.hash_of("thinker")]
        if prompt.messages is not None and not files_are_noted(checked):
            messages = resolve_media(checked, Path.cwd(), "")
    return stable_hash(
        "conditioning", CODEC.name, FORMAT, model.hash_of("table"), model.settings.dtype, cfg.mode,
        cfg.max_reply_tokens if cfg.mode == "generate" else None, identity(messages),
        prompt.text, prompt.speaker, model.speakers.get(prompt.speaker), *thinker,
    )


def _replies(model: Qwen3, contexts: Sequence[_Dialogue], most: int) -> list[list[int]]:
    """What the Thinker answers, which is read from its files when it is first asked."""
    tokenizer = model.need("tokenizer")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else model.config.im_end_token_id
    sounds = [sound for context in contexts for sound in context.sounds]
    return greedy_replies(model.read_thinker(), [context.ids for context in contexts], most,
                          [model.config.im_end_token_id], pad, model.device, **sound_inputs(sounds, model.device))


def _media(model: Qwen3) -> set[int]:
    """Tokens that stand for media."""
    config = model.config.thinker_config
    names = ("audio_token_id", "image_token_id", "video_token_id", "audio_start_token_id", "vision_start_token_id")
    return {token for name in names if isinstance(token := getattr(config, name, None), int)}


def _dialogue(model: Qwen3, prompt: Prompt) -> _Dialogue:
    """Tokens of the messages, up to where the reply begins, and their sound.

    Raises:
        PromptError: messages that are none, or that hold images or video; sound that cannot be read.
        CheckpointError: the chat template does not end with the assistant's turn.
    """
    where = f"prompt {prompt.prompt_id}"
    messages = resolve_media(check_messages(prompt_messages(model.settings, prompt), where), Path.cwd(), where)
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"] if p["type"] != "text"]
    if any(part["type"] != "audio" for part in parts):
        raise PromptError("images and video are not read for this family", where=where,
                          fix="give messages of text and sound alone")
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
    return _with_sound(model, ids, [Path(part["audio"]) for part in parts], where)


def _with_sound(model: Qwen3, ids: list[int], files: list[Path], where: str) -> _Dialogue:
    """Each sound's placeholder becomes as many as its tower gives vectors."""
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen

    config = model.config.thinker_config
    if ids.count(config.audio_token_id) != len(files):
        raise PromptError(f"{ids.count(config.audio_token_id)} audio placeholders for {len(files)} audio parts",
                          where=where, fix="remove the placeholder's token from the text")
    sounds = [read_sound(model.path, file, where, padded=False) for file in files]
    counts = [int(qwen._get_feat_extract_output_lengths(sound.shape[1], config.audio_config.n_window))
              for sound in sounds]
    out: list[int] = []
    for token in ids:
        out += [token] * counts.pop(0) if token == config.audio_token_id else [token]
    return _Dialogue(out, sounds)


@torch.no_grad()
def _hidden(model: Qwen3, context: _Dialogue) -> torch.Tensor:
    """(L, E) on the CPU: what the layer that the Talker listens to made of the tokens up to the last of sound."""
    end = max(i for i, token in enumerate(context.ids) if token == model.config.thinker_config.audio_token_id) + 1
    ids = torch.tensor([context.ids[:end]], device=model.device)
    out = model.read_thinker().model(
        input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False,
        **sound_inputs(context.sounds, model.device))
    found: torch.Tensor = out.hidden_states[model.config.talker_config.accept_hidden_layer][0]
    return found.cpu()


def user_turns(ids: Sequence[int], config: Any) -> list[int]:
    """Places of the tokens of the user's turns, the marks around them included; system turns and earlier answers never
    reach the Talker."""
    starts = [i for i, token in enumerate(ids) if token == config.im_start_token_id]
    out: list[int] = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        if start + 1 < len(ids) and ids[start + 1] == config.user_token_id:
            out += range(start, end)
    return out


def _conditioning(
    model: Qwen3, prompt: Prompt, context: _Dialogue, reply: list[int], text: str
) -> Conditioning:
    config, table = model.config, model.need("table")
    marks = [*context.ids[-3:], config.tts_pad_token_id, config.tts_bos_token_id, config.tts_eos_token_id]
    places = user_turns(context.ids, config)
    user = [context.ids[i] for i in places]
    worst = max([*marks, *user, *reply])
    if worst >= len(table):
        raise PromptError(f"the tokenizer gives {worst}, and the Thinker's table has {len(table)} rows",
                          where=f"prompt {prompt.prompt_id}", fix="restore the tokenizer's files")

    def rows(tokens: list[int]) -> torch.Tensor:
        return table[torch.tensor(tokens, dtype=torch.long)]

    made = Conditioning(prompt.prompt_id, rows(marks), rows(user), rows(reply), prompt.speaker,
                        model.speaker(prompt.speaker), text, model.codec.name)
    heard = torch.tensor(user) == config.thinker_config.audio_token_id
    if heard.any():
        hidden = _hidden(model, context)
        made.user[heard], made.heard = hidden[torch.tensor(places)[heard]].to(made.user.dtype), heard
        if not made.user.isfinite().all():
            raise PromptError("what the Thinker made of the sound is not finite", where=f"prompt {prompt.prompt_id}",
                              fix="look at the file; where it is so for all, use a model.dtype of wider range")
    return made
