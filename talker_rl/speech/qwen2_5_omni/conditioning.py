"""Conditioning: what the Thinker gives the Talker for a prompt.

As ``Qwen2_5OmniForConditionalGeneration.generate`` does it, with h(x) the Thinker's last hidden state at token x and
e(x) its token embedding, prompt tokens x_1..x_n, the reply's tokens y_1..y_m (its end token excluded) and the
speaker's bos token b:

    prefix       = h(x_1) + e(x_1), ..., h(x_n) + e(x_n),  e(b),  h(y_1) + e(y_1)
    reply_stream = h(y_2) + e(y_2), ..., h(y_m) + e(y_m),  e(text-eos),  e(text-pad)

The reply is either given (teacher-forced) or the Thinker's greedy answer; the same forward computes both. Where a
message holds sound, images or video, e of their placeholders is zero and positions follow the Thinker's TMRoPE:
:mod:`talker_rl.speech.qwen2_5_omni.context`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.base.errors import PromptError, TalkerRLError
from talker_rl.base.ids import stable_hash
from talker_rl.records.messages import check_messages, files_are_noted, identity, resolve_media
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig
from talker_rl.speech.media import Dialogue, thinker_inputs
from talker_rl.speech.placing import input_device
from talker_rl.speech.prompt_text import (
    check_prompt,
    checked_reply,
    greedy_replies,
    noting,
    prompt_messages,
    reply_ids,
)
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.context import encode, merge_media, position_ids

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.checkpoint import Omni

FORMAT = 1
"""Part of every cache key; raise it when the tensors' meaning changes."""
MEDIA_FORMAT = 2
"""Likewise, of prompts with sound, images or video alone. 2: images are turned as their EXIF data says, and what is not
finite is refused."""


@dataclass
class Conditioning:
    """The Talker's input of one prompt, on the CPU, in the Thinker's width E. Codec embeddings are not in it."""

    prompt_id: str
    prefix: torch.Tensor
    """(P, E), ends with the speaker's bos embedding and the first reply token."""
    reply_stream: torch.Tensor
    """(R, E), ends with text-eos, text-pad; the last row repeats for ever."""
    speaker: str
    reply_text: str = ""
    """What the reply says: the prompt's text, or the Thinker's answer in mode generate."""
    position_ids: torch.Tensor | None = None
    """(3, P) rotary positions of the prefix where it holds images or video; None: 0, 1, ..., P-1 on each axis."""

    @property
    def codec(self) -> str:
        """Name of the codec."""
        return CODEC.name

    @property
    def rows(self) -> tuple[int, int]:
        """Positions of the prefix, and rows of the reply stream."""
        return len(self.prefix), len(self.reply_stream)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored and hashed, by name."""
        placed = {} if self.position_ids is None else {"position_ids": self.position_ids}
        return {"prefix": self.prefix, "reply_stream": self.reply_stream, **placed}

    @property
    def next_position(self) -> int:
        """Position of the first row behind the prefix, on each axis."""
        return len(self.prefix) if self.position_ids is None else int(self.position_ids.max()) + 1


def compute_conditioning(
    omni: Omni,
    prompts: Sequence[Prompt],
    cfg: ConditioningConfig | None = None,
    *,
    errors: dict[str, TalkerRLError] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Conditioning]:
    """Conditioning of every prompt, in order.

    Args:
        omni: with Thinker and tokenizer loaded.
        prompts: what to speak.
        cfg: mode and batch size.
        errors: where given, prompts that cannot be used are left out and noted here by prompt id;
            otherwise the first one raises.
        progress: called with (done, total).

    Raises:
        PromptError: a prompt that cannot be spoken.
    """
    cfg = cfg or ConditioningConfig()
    tokenizer = omni.need("tokenizer")
    out: list[Conditioning] = []
    for start in range(0, len(prompts), cfg.batch_size):  # no more images in memory than a batch's
        chunk: list[tuple[Prompt, Dialogue, list[int]]] = []
        for prompt in prompts[start : start + cfg.batch_size]:
            with noting(prompt, errors):
                check_prompt(prompt, list(omni.speakers))
                reply = [] if cfg.mode == "generate" else reply_ids(tokenizer, prompt)
                context = encode(omni, prompt_messages(omni.settings, prompt), f"prompt {prompt.prompt_id}")
                chunk.append((prompt, context, reply))
        if cfg.mode == "generate" and chunk:
            replies = generate_replies(omni, [c for _, c, _ in chunk], cfg.max_reply_tokens)
            answered, chunk = chunk, []
            for (prompt, context, _), reply in zip(answered, replies, strict=True):
                with noting(prompt, errors):
                    said = checked_reply(tokenizer, prompt, reply, cfg.max_reply_wer, _media(omni))
                    chunk.append((prompt, context, said))
        if chunk:
            sums = _hidden_plus_embedding(omni, [context.extended(reply) for _, context, reply in chunk])
            for (prompt, context, reply), total in zip(chunk, sums, strict=True):
                text = tokenizer.decode(reply) if cfg.mode == "generate" else prompt.text
                with noting(prompt, errors):
                    out.append(_finite(_split(omni, prompt, total, context, text)))
        if progress:
            progress(min(start + cfg.batch_size, len(prompts)), len(prompts))
    return out


def _media(omni: Omni) -> set[int]:
    """Tokens that stand for media."""
    config = omni.config.thinker_config
    return {getattr(config, name) for name in ("audio_token_index", "image_token_index", "video_token_index",
                                               "audio_start_token_id", "vision_start_token_id")}  # fmt: skip


@torch.no_grad()
def generate_replies(omni: Omni, contexts: list[Dialogue], max_new_tokens: int) -> list[list[int]]:
    """Greedy answers of the Thinker (:func:`greedy_replies`)."""
    return greedy_replies(omni.need("thinker"), [c.ids for c in contexts], max_new_tokens, _end_ids(omni),
                          _pad_id(omni), omni.device, **thinker_inputs(contexts, omni.device))


def _end_ids(omni: Omni) -> list[int]:
    configured = omni.config.thinker_config.eos_token_id
    if configured is None:
        configured = omni.need("tokenizer").eos_token_id
    return list(configured) if isinstance(configured, (list, tuple)) else [int(configured)]


def _pad_id(omni: Omni) -> int:
    pad = omni.config.thinker_config.pad_token_id
    return int(pad if pad is not None else _end_ids(omni)[0])


def text_model(thinker: Any) -> Any:
    """The Thinker's decoder without its head, wherever this version of transformers keeps it."""
    return getattr(thinker.model, "language_model", thinker.model)


@torch.no_grad()
def _hidden_plus_embedding(omni: Omni, sequences: list[Dialogue]) -> list[torch.Tensor]:
    """h(x) + e(x) of every token: one (len, E) a sequence. Right-padded, so causal attention needs no mask."""
    thinker = omni.need("thinker")
    device = input_device(thinker.get_input_embeddings())
    width = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    positions = torch.arange(width).repeat(3, len(sequences), 1)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence.ids)] = torch.tensor(sequence.ids)
        positions[:, i, : len(sequence.ids)] = position_ids(omni, sequence)
    ids = ids.to(device)
    read, kept = merge_media(thinker, ids, thinker.get_input_embeddings()(ids), sequences)
    hidden = text_model(thinker)(
        inputs_embeds=read, attention_mask=None, position_ids=positions.to(device), use_cache=False
    ).last_hidden_state
    total = (hidden.to(kept.device) + kept).cpu()  # a Thinker in parts may end elsewhere than it begins
    return [total[i, : len(sequence.ids)] for i, sequence in enumerate(sequences)]


def _split(omni: Omni, prompt: Prompt, total: torch.Tensor, before: Dialogue, reply_text: str) -> Conditioning:
    talker = omni.config.talker_config
    tokens = [omni.speaker(prompt.speaker)["bos_token"], talker.tts_text_end_token_id, talker.tts_text_pad_token_id]
    embed = omni.need("thinker").get_input_embeddings()
    context = len(before.ids)
    bos, eos, pad = embed(torch.tensor(tokens, device=input_device(embed))).detach().cpu()
    return Conditioning(
        prompt_id=prompt.prompt_id,
        prefix=torch.cat([total[:context], bos[None], total[context : context + 1]]).contiguous(),
        reply_stream=torch.cat([total[context + 1 :], eos[None], pad[None]]).contiguous(),
        speaker=prompt.speaker,
        reply_text=reply_text,
        position_ids=_prefix_positions(omni, before),
    )


def _finite(made: Conditioning) -> Conditioning:
    """The conditioning, or a PromptError: stored, a NaN would stop a later stage for all prompts."""
    for name, rows in (("prefix", made.prefix), ("reply_stream", made.reply_stream)):
        if not rows.isfinite().all():
            raise PromptError(
                f"the Thinker's {name} is not finite", where=f"prompt {made.prompt_id}",
                fix="look at the prompt's media; where it is so for all prompts, check the checkpoint, or use a "
                "model.dtype of wider range (bfloat16, float32)",
            )  # fmt: skip
    return made


def _prefix_positions(omni: Omni, context: Dialogue) -> torch.Tensor | None:
    """Of the Talker: the Thinker's, and two more for the speaker's bos and the first reply token."""
    if not context.media:
        return None
    positions = position_ids(omni, context)
    last = torch.arange(1, 3).expand(3, 2) + positions.max()
    return torch.cat([positions, last], dim=1)


def conditioning_key(omni: Omni, prompt: Prompt, cfg: ConditioningConfig) -> str:
    """What the tensors depend on: text, context, speaker, model, precision and mode (not the Talker, not the batch).

    Files in messages that were not read from a prompt file are read here, for their content.
    """
    messages = prompt_messages(omni.settings, prompt)
    media = []
    with suppress(PromptError):  # told where it is computed
        checked = check_messages(messages, "")
        media = [MEDIA_FORMAT for m in checked if not isinstance(m["content"], str)][:1]
        if prompt.messages is not None and not files_are_noted(checked):
            messages = resolve_media(checked, Path.cwd(), "")
    return stable_hash(
        "conditioning",
        FORMAT,
        omni.hash_of("thinker"),
        omni.settings.dtype,
        cfg.mode,
        cfg.max_reply_tokens if cfg.mode == "generate" else None,
        identity(messages),
        prompt.text,
        prompt.speaker,
        *filter(None, [omni.settings.thinker_quantization]),  # none leaves the key as it was before there were any
        *media,  # likewise
    )
