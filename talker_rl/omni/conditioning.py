"""Conditioning: what the Thinker gives the Talker for a prompt.

As ``Qwen2_5OmniForConditionalGeneration.generate`` does it, with h(x) the Thinker's last hidden state at token x and
e(x) its token embedding, prompt tokens x_1..x_n, the reply's tokens y_1..y_m (its end token excluded) and the
speaker's bos token b:

    prefix       = h(x_1) + e(x_1), ..., h(x_n) + e(x_n),  e(b),  h(y_1) + e(y_1)
    reply_stream = h(y_2) + e(y_2), ..., h(y_m) + e(y_m),  e(text-eos),  e(text-pad)

The reply is either given (teacher-forced) or the Thinker's greedy answer; the same forward computes both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.data.records import Prompt, stable_hash
from talker_rl.errors import PromptError, TalkerRLError
from talker_rl.omni.config import ConditioningConfig

if TYPE_CHECKING:
    from talker_rl.omni.checkpoint import Omni

FORMAT = 1
"""Part of every cache key; raise it when the tensors' meaning changes."""


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


def prompt_messages(omni: Omni, prompt: Prompt) -> list[dict[str, Any]]:
    """Chat messages before the reply: the prompt's own, or the configured system prompt and instruction."""
    if prompt.messages is not None:
        return prompt.messages
    instruction = omni.settings.instruction.replace("{text}", prompt.text)
    return [
        {"role": "system", "content": omni.settings.system_prompt},
        {"role": "user", "content": instruction},
    ]


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
    for message in prompt.messages or []:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise PromptError(
                "a message is not a role with a text as content", where=where, fix="only text contexts are supported"
            )


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
    thinker, tokenizer = omni.need("thinker"), omni.need("tokenizer")
    ready: list[tuple[Prompt, list[int], list[int]]] = []
    for prompt in prompts:
        try:
            check_prompt(prompt, list(omni.speakers))
            context = _context_ids(tokenizer, prompt_messages(omni, prompt))
            reply = [] if cfg.mode == "generate" else _reply_ids(tokenizer, prompt)
        except TalkerRLError as error:
            if errors is None:
                raise
            errors[prompt.prompt_id] = error
            continue
        ready.append((prompt, context, reply))
    out: list[Conditioning] = []
    for start in range(0, len(ready), cfg.batch_size):
        chunk = ready[start : start + cfg.batch_size]
        if cfg.mode == "generate":
            replies = generate_replies(omni, [c for _, c, _ in chunk], cfg.max_reply_tokens)
            chunk = _with_replies(chunk, replies, errors)
        if chunk:
            sums = _hidden_plus_embedding(thinker, [context + reply for _, context, reply in chunk])
            for (prompt, context, reply), total in zip(chunk, sums, strict=True):
                text = tokenizer.decode(reply) if cfg.mode == "generate" else prompt.text
                out.append(_split(omni, prompt, total, len(context), text))
        if progress:
            progress(min(start + cfg.batch_size, len(ready)), len(ready))
    return out


def _context_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _reply_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
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


def _with_replies(
    chunk: list[tuple[Prompt, list[int], list[int]]],
    replies: list[list[int]],
    errors: dict[str, TalkerRLError] | None,
) -> list[tuple[Prompt, list[int], list[int]]]:
    out = []
    for (prompt, context, _), reply in zip(chunk, replies, strict=True):
        if reply:
            out.append((prompt, context, reply))
            continue
        error = PromptError(
            "the Thinker answered nothing", where=f"prompt {prompt.prompt_id}", fix="use mode teacher_forced"
        )
        if errors is None:
            raise error
        errors[prompt.prompt_id] = error
    return out


@torch.no_grad()
def generate_replies(omni: Omni, contexts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Greedy answers of the Thinker: the token ids it was fed back, so without its end token (or the last id, if cut).

    Rows are left-padded; the attention mask keeps padding out.
    """
    thinker = omni.need("thinker")
    width = max(len(c) for c in contexts)
    ids = torch.full((len(contexts), width), _pad_id(omni), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, context in enumerate(contexts):
        ids[i, width - len(context) :], mask[i, width - len(context) :] = torch.tensor(context), 1
    ends = _end_ids(omni)
    out = thinker.generate(
        input_ids=ids.to(omni.device),
        attention_mask=mask.to(omni.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=_pad_id(omni),
    )[:, width:].tolist()
    replies = []
    for row in out:
        end = next((k for k, token in enumerate(row) if token in ends), len(row) - 1)
        replies.append(row[:end])
    return replies


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
def _hidden_plus_embedding(thinker: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """h(x) + e(x) of every token: one (len, E) a sequence. Right-padded, so causal attention needs no mask."""
    device = thinker.get_input_embeddings().weight.device
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
    embeds = thinker.get_input_embeddings()(ids.to(device))
    hidden = text_model(thinker)(
        inputs_embeds=embeds,
        attention_mask=None,
        position_ids=torch.arange(width, device=device).expand(3, len(sequences), width),
        use_cache=False,
    ).last_hidden_state
    total = (hidden + embeds).cpu()
    return [total[i, : len(sequence)] for i, sequence in enumerate(sequences)]


def _split(omni: Omni, prompt: Prompt, total: torch.Tensor, context: int, reply_text: str) -> Conditioning:
    talker = omni.config.talker_config
    tokens = [omni.speaker(prompt.speaker)["bos_token"], talker.tts_text_end_token_id, talker.tts_text_pad_token_id]
    embed = omni.need("thinker").get_input_embeddings()
    bos, eos, pad = embed(torch.tensor(tokens, device=embed.weight.device)).detach().cpu()
    return Conditioning(
        prompt_id=prompt.prompt_id,
        prefix=torch.cat([total[:context], bos[None], total[context : context + 1]]).contiguous(),
        reply_stream=torch.cat([total[context + 1 :], eos[None], pad[None]]).contiguous(),
        speaker=prompt.speaker,
        reply_text=reply_text,
    )


def conditioning_key(omni: Omni, prompt: Prompt, cfg: ConditioningConfig) -> str:
    """What the tensors depend on: text, context, speaker, model, precision and mode (not the Talker, not the batch)."""
    return stable_hash(
        "conditioning",
        FORMAT,
        omni.checkpoint_hash,
        omni.settings.dtype,
        cfg.mode,
        cfg.max_reply_tokens if cfg.mode == "generate" else None,
        prompt_messages(omni, prompt),
        prompt.text,
        prompt.speaker,
        *filter(None, [omni.settings.thinker_quantization]),  # none leaves the key as it was before there were any
    )
