"""The micro Thinker: trained to read aloud, i.e. to answer a sentence with that sentence and to end.

``python -m talker_rl.micro.thinker`` trains it (minutes on one core) and writes ``build/micro/thinker.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.micro.assemble import BUILD_DIR, build_config, write_tokenizer
from talker_rl.micro.files import save_tensors
from talker_rl.micro.lexicon import random_sentence, sentence_text
from talker_rl.micro.tokenizer import SPEECH_SYSTEM_PROMPT, text_ids

if TYPE_CHECKING:
    import torch

HELD_OUT_SEED = 9_000_001
"""Seed of the held-out sentences of :func:`exactness`; training seeds stay below it."""


def load_tokenizer(build: Path = BUILD_DIR) -> Any:
    """The tokenizer as users load it, written to ``<build>/tokenizer`` first."""
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    folder = build / "tokenizer"
    write_tokenizer(folder)
    return Qwen2Tokenizer.from_pretrained(folder)


def prompt_text(sentence: str, system: str | None) -> str:
    """The chat template's string for one user message; ``system=None`` gives the template's default system message."""
    system = "You are a helpful assistant." if system is None else system
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{sentence}<|im_end|>\n<|im_start|>assistant\n"
    )


def new_thinker(build: Path = BUILD_DIR) -> torch.nn.Module:
    """An untrained Thinker of the micro size, float32."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    return Qwen2_5OmniThinkerForConditionalGeneration(build_config(build).thinker_config).float()


def positions(batch: int, length: int) -> torch.Tensor:
    """Text positions for the three rotary axes, (3, batch, length)."""
    import torch

    return torch.arange(length).expand(3, batch, length)


def cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    build: Path = BUILD_DIR, seed: int = 0, steps: int = 2500, batch_size: int = 48,
    new: Callable[[Path], Any] = new_thinker,
) -> Path:
    """Train on fresh random sentences; returns the weights' path. Loss: cross-entropy on the reply and its end.

    Args:
        new: an untrained Thinker.
    """
    import torch
    from torch.nn import functional as F

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer, ids = load_tokenizer(build), text_ids()
    end, pad = ids.added["<|im_end|>"], ids.added["<|endoftext|>"]
    model: Any = new(build)
    text_parameters = [p for n, p in model.named_parameters() if "visual" not in n and "audio_tower" not in n]
    optimizer = torch.optim.AdamW(text_parameters, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    start = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * cosine(step, steps)
        rows, starts = [], []
        for _ in range(batch_size):
            sentence = sentence_text(random_sentence(rng))
            system = SPEECH_SYSTEM_PROMPT if rng.random() < 0.75 else None
            prompt = tokenizer(prompt_text(sentence, system)).input_ids
            rows.append([*prompt, *tokenizer(sentence).input_ids, end])
            starts.append(len(prompt))
        length = max(map(len, rows))
        tokens = torch.full((batch_size, length), pad)
        labels = torch.full((batch_size, length), -100)
        for i, (row, first) in enumerate(zip(rows, starts, strict=True)):
            tokens[i, : len(row)] = torch.tensor(row)
            labels[i, first : len(row)] = torch.tensor(row[first:])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=tokens, position_ids=positions(batch_size, length)).last_hidden_state
            target = labels[:, 1:]
            logits = model.lm_head(hidden[:, :-1][target != -100])
        loss = F.cross_entropy(logits.float(), target[target != -100])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"thinker {step}/{steps} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
    # Rounded to the precision it ships in, so that conditioning is the same before and after shipping.
    state = {k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()}
    save_tensors(state, build / "thinker.safetensors")
    model.load_state_dict(state)
    figures = {"steps": steps, "seconds": round(time.time() - start, 1), "loss": loss.item()}
    figures["exact_200"] = exactness(model, tokenizer, 200)
    figures["exact_200_default_system"] = exactness(model, tokenizer, 200, system=None)
    (build / "thinker.json").write_text(json.dumps(figures, indent=2))
    print(figures, flush=True)
    return build / "thinker.safetensors"


def held_out_sentences(count: int) -> list[str]:
    """Distinct sentences drawn with a seed of their own."""
    rng = random.Random(HELD_OUT_SEED)
    found: dict[str, None] = {}
    while len(found) < count:
        found[sentence_text(random_sentence(rng))] = None
    return list(found)


def exactness(
    thinker: Any, tokenizer: Any, count: int = 200, system: str | None = SPEECH_SYSTEM_PROMPT, batch_size: int = 50
) -> float:
    """Share of held-out sentences that greedy ``generate`` repeats exactly and then ends."""
    replies = read_aloud(thinker, tokenizer, sentences := held_out_sentences(count), system, batch_size)
    return sum(a == b for a, b in zip(replies, sentences, strict=True)) / count


def read_aloud(
    thinker: Any,
    tokenizer: Any,
    sentences: Sequence[str],
    system: str | None = SPEECH_SYSTEM_PROMPT,
    batch_size: int = 50,
) -> list[str]:
    """The Thinker's greedy replies; one that does not end within 64 tokens keeps the mark ``<no end>``."""
    import torch

    end = text_ids().added["<|im_end|>"]
    tokenizer.padding_side = "left"
    replies = []
    thinker.eval()
    for at in range(0, len(sentences), batch_size):
        texts = [prompt_text(s, system) for s in sentences[at : at + batch_size]]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            out = thinker.generate(**batch, max_new_tokens=64, do_sample=False)
        for row in out[:, batch.input_ids.shape[1] :].tolist():
            ended = end in row
            row = row[: row.index(end)] if ended else row
            replies.append(tokenizer.decode(row) + ("" if ended else "<no end>"))
    return replies


def main(new: Callable[[Path], Any] = new_thinker, build: Path = BUILD_DIR) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=build)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    train(args.build, args.seed, args.steps, new=new)


if __name__ == "__main__":
    main()
