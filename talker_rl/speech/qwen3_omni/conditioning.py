"""What the Talker reads of a prompt: token embeddings of the Thinker, which the Talker projects to its own width.

They are stored before that projection, whose weights are the Talker's own. A text prompt needs no forward of the
Thinker: only the user's turns and the reply reach the Talker, and of both no more than the embeddings. Where a user's
turn holds sound, the Talker reads what a middle layer of the Thinker made of it (``accept_hidden_layer``, 24 as
published), through another projection: those prompts are given to the Thinker.
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
from talker_rl.speech.media import Dialogue, Media, encode, positions, thinker_inputs
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
"""Likewise, of prompts with sound, images or video alone."""
MEDIA = ("audio", "image", "video")
_SHARED = (*(f"{kind}_token_id" for kind in MEDIA), "audio_start_token_id", "vision_start_token_id",
           "position_id_per_seconds")
"""What positions depend on and both Thinker and Talker configure."""
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
    """(U,) bool: rows of ``user`` that are hidden states, of sound, images and video; None: there are none."""
    position_ids: torch.Tensor | None = None
    """(3, P) rotary positions of the prefix where it holds images or video; None: 0, 1, ..., P-1 on each axis."""

    @property
    def rows(self) -> tuple[int, int]:
        """Positions of the prefix, and rows of the reply stream."""
        return len(self.user) + FIXED, len(self.reply)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored and hashed, by name."""
        more = {"heard": self.heard, "position_ids": self.position_ids}
        return {"marks": self.marks, "user": self.user, "reply": self.reply,
                "speaker_id": torch.tensor(self.speaker_id),
                **{name: value for name, value in more.items() if value is not None}}

    @property
    def next_position(self) -> float:
        """Position of the first frame, on each axis."""
        return self.rows[0] if self.position_ids is None else float(self.position_ids.max()) + 1


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
        model: with table and tokenizer loaded; in mode generate, and for media, its Thinker is read as well.
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
        chunk: list[tuple[Prompt, Dialogue, list[int]]] = []
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
    with media the Thinker and the files' content, too."""
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


def _replies(model: Qwen3, contexts: Sequence[Dialogue], most: int) -> list[list[int]]:
    """What the Thinker answers, which is read from its files when it is first asked."""
    tokenizer = model.need("tokenizer")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else model.config.im_end_token_id
    return greedy_replies(model.read_thinker(), [context.ids for context in contexts], most,
                          [model.config.im_end_token_id], pad, model.device, **thinker_inputs(contexts, model.device))


def _media(model: Qwen3) -> set[int]:
    """Tokens that stand for media, and that begin it."""
    config = model.config.thinker_config
    names = (*(f"{kind}_token_id" for kind in MEDIA), "audio_start_token_id", "vision_start_token_id")
    return {token for name in names if isinstance(token := getattr(config, name, None), int)}


def _dialogue(model: Qwen3, prompt: Prompt) -> Dialogue:
    """Tokens of the messages, up to where the reply begins, and what their placeholders stand for.

    Raises:
        PromptError: messages that are none, or whose files cannot be read; images in other turns than the user's.
        CheckpointError: the chat template does not end with the assistant's turn.
    """
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen

    where, config = f"prompt {prompt.prompt_id}", model.config.thinker_config

    def steps(frames: int) -> int:
        return int(qwen._get_feat_extract_output_lengths(frames, config.audio_config.n_window))

    tokens = {kind: getattr(config, f"{kind}_token_id") for kind in MEDIA}
    media = Media(model.path, config, tokens, steps, padded=False, whole="Qwen3OmniMoeProcessor", fps=1.0)
    messages = prompt_messages(model.settings, prompt)
    context = encode(media, model.need("tokenizer"), messages, where)
    if context.ids[-3:-1] != [model.config.im_start_token_id, model.config.assistant_token_id]:
        raise CheckpointError("the chat template does not end with the beginning of the assistant's turn",
                              where=str(model.path), fix="restore it: upstream's Talker reads its last three tokens")
    others = [m["role"] for m in messages if m["role"] != "user" and not isinstance(m["content"], str)
              and any(part["type"] != "text" for part in m["content"])]
    if context.media and others:  # upstream's Talker, which reads the user's turns alone, would take them for those
        raise PromptError(f"With images or video, no other turn than the user's may hold media: there is one of role "
                          f"{others[0]}", where=where, fix="move it into a user's message")
    return context


@torch.no_grad()
def _hidden(model: Qwen3, context: Dialogue) -> torch.Tensor:
    """(L, E) on the CPU: what the layer that the Talker listens to made of the tokens."""
    ids = torch.tensor([context.ids], device=model.device)
    out = model.read_thinker().model(
        input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False,
        **thinker_inputs([context], model.device))
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
    model: Qwen3, prompt: Prompt, context: Dialogue, reply: list[int], text: str
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
    tokens = torch.tensor([getattr(config.thinker_config, f"{kind}_token_id") for kind in MEDIA])
    heard = torch.isin(torch.tensor(user), tokens)
    if heard.any():
        hidden = _hidden(model, context)
        made.user[heard], made.heard = hidden[torch.tensor(places)[heard]].to(made.user.dtype), heard
        if not made.user.isfinite().all():
            raise PromptError("what the Thinker made of the media is not finite", where=f"prompt {prompt.prompt_id}",
                              fix="look at the files; where it is so for all, use a model.dtype of wider range")
    if context.media:
        read = [*user, *[config.tts_pad_token_id] * FIXED]
        made.position_ids = positions(model.read_thinker(), read, context, config.talker_config, _SHARED,
                                      str(model.path / "config.json")).float()
    return made
