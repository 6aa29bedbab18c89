"""The micro Talkers: ``clean`` (trained on right readings) and ``base`` (trained on stumbling ones).

``python -m talker_rl.micro.talker clean`` trains from scratch, ``... base`` goes on from the clean weights on noisy
labels. Teacher forcing follows the published layout: every position is a sum of Thinker width, the codec embedding
plus the reply stream, and the target of a position is the next code; the stop (8294) is a target like any other.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfuzz.distance import Levenshtein

from talker_rl.micro.assemble import BUILD_DIR, build_config
from talker_rl.micro.files import save_tensors
from talker_rl.micro.lexicon import WORDS
from talker_rl.micro.talker_losses import sampled_loss, word_loss, word_targets
from talker_rl.micro.thinker import cosine, load_tokenizer, new_thinker, positions, prompt_text
from talker_rl.micro.tokenizer import SPEECH_SYSTEM_PROMPT, text_ids

if TYPE_CHECKING:
    import torch

CODEC_PAD, CODEC_BOS, CODEC_EOS, CODEC_MASK = 8292, 8293, 8294, 8296
BARE_START_RATE = 0.15
"""Share of training rows without the codec pad and bos embeddings: transformers 5.23 leaves them out for batches
without padding, and the shipped Talker should speak under its plain ``generate`` too."""
DEFAULT_SYSTEM_RATE = 0.15


@dataclass
class Example:
    """One utterance: its text, its speaker and the codes to say (without the stop)."""

    text: str
    speaker: str
    codes: list[int]
    words: list[str] = field(default_factory=list)
    """The words spoken, and below the code at which each begins; empty where no alignment is known."""
    starts: list[int] = field(default_factory=list)


@dataclass
class Speech:
    """What the Thinker gives the Talker for one utterance (see the design's conditioning)."""

    prefix: torch.Tensor
    """(P, E), without codec embeddings; ends with the speaker's bos embedding and the first reply token."""
    reply_stream: torch.Tensor
    """(R, E), ends in text-eos and text-pad; the last row repeats."""


class Conditioner:
    """Teacher-forces the frozen Thinker over prompt and reply.

    Args:
        thinker: the trained Thinker (float32).
        tokenizer: the checkpoint's tokenizer.
        fast: bf16 autocast, for training only.
    """

    def __init__(self, thinker: Any, tokenizer: Any, fast: bool = False) -> None:
        import torch

        self.fast = fast
        self.thinker, self.tokenizer, self.ids = thinker.eval(), tokenizer, text_ids()
        table = thinker.get_input_embeddings().weight.detach()
        self.device = table.device
        self.speaker = {name: table[i][None] for name, i in self.ids.speakers.items()}
        self.tail = torch.cat([table[self.ids.tts_end][None], table[self.ids.tts_pad][None]])

    def __call__(self, texts: Sequence[str], speakers: Sequence[str], systems: Sequence[str | None]) -> list[Speech]:
        """Conditioning of each text; hidden state of the last layer plus token embedding."""
        import torch

        prompts = [self.tokenizer(prompt_text(t, s)).input_ids for t, s in zip(texts, systems, strict=True)]
        rows = [[*p, *self.tokenizer(t).input_ids] for p, t in zip(prompts, texts, strict=True)]
        length = max(map(len, rows))
        tokens = torch.full((len(rows), length), self.ids.added["<|endoftext|>"])
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        # Padding is on the right, so causal attention never sees it.
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            out = self.thinker.model(
                input_ids=tokens.to(self.device),
                position_ids=positions(len(rows), length).to(self.device),
                output_hidden_states=True,
            )
            total = out.hidden_states[-1].float() + out.hidden_states[0].float()
        speech = []
        for i, (prompt, row, speaker) in enumerate(zip(prompts, rows, speakers, strict=True)):
            p = len(prompt)
            prefix = torch.cat([total[i, :p], self.speaker[speaker], total[i, p : p + 1]])
            speech.append(Speech(prefix, torch.cat([total[i, p + 1 : len(row)], self.tail])))
        return speech


def load_thinker(build: Path = BUILD_DIR) -> Any:
    """The trained Thinker of the build folder."""
    from safetensors.torch import load_file

    thinker = new_thinker(build)
    thinker.load_state_dict(load_file(build / "thinker.safetensors"))
    return thinker


def new_talker(build: Path = BUILD_DIR) -> Any:
    """An untrained Talker of the micro size, float32."""
    from transformers import Qwen2_5OmniTalkerForConditionalGeneration

    return Qwen2_5OmniTalkerForConditionalGeneration(build_config(build).talker_config).float()


def load_talker(path: Path, build: Path = BUILD_DIR) -> Any:
    """A Talker from its safetensors file, in evaluation mode."""
    from safetensors.torch import load_file

    talker = new_talker(build)
    talker.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return talker.eval()


def collate(
    speech: Sequence[Speech], codes: Sequence[Sequence[int]], bare: Sequence[bool], embed: Any
) -> tuple[Any, Any]:
    """Right-padded inputs (B, T, E) and targets (B, T), -100 where nothing is predicted.

    ``embed`` is the Talker's codec embedding; gradients flow into it. Inputs are on its device, targets too.
    """
    import torch

    length = max(len(s.prefix) + len(c) for s, c in zip(speech, codes, strict=True))
    length = -(-length // 16) * 16
    batch, width, device = len(speech), speech[0].prefix.shape[-1], embed.weight.device
    fixed = torch.zeros(batch, length, width, device=device)
    code_ids = torch.full((batch, length), CODEC_MASK)
    has_code = torch.zeros(batch, length, 1)
    targets = torch.full((batch, length), -100)
    for i, (s, row, no_start) in enumerate(zip(speech, codes, bare, strict=True)):
        p, n = len(s.prefix), len(row)
        fixed[i, :p] = s.prefix
        fixed[i, p : p + n] = s.reply_stream[-1]
        said = min(n, len(s.reply_stream))
        fixed[i, p : p + said] = s.reply_stream[:said]
        code_ids[i, p : p + n] = torch.tensor(row)
        has_code[i, p : p + n] = 1
        if not no_start:
            code_ids[i, p - 2], code_ids[i, p - 1] = CODEC_PAD, CODEC_BOS
            has_code[i, p - 2 : p] = 1
        targets[i, p - 1 : p + n - 1] = torch.tensor(row)
        targets[i, p + n - 1] = CODEC_EOS
    return fixed + embed(code_ids.to(device)) * has_code.to(device), targets.to(device)


def register_training_attention() -> None:
    """Causal attention by two batched matrix products: on a CPU its backward is several times faster than SDPA's."""
    import torch
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    masks: dict[tuple[int, int, Any], Any] = {}

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> tuple[Any, None]:
        batch, heads, length, dim = q.shape
        groups, keys = heads // k.shape[1], k.shape[1]
        q = (q * scaling).reshape(batch * keys, groups * length, dim)
        k, v = k.reshape(batch * keys, length, dim), v.reshape(batch * keys, length, dim)
        name = (length, groups, q.dtype)
        if name not in masks:
            masks[name] = torch.full((length, length), -1e4, dtype=q.dtype).triu(1).repeat(groups, 1)[None]
        weights = torch.softmax(torch.baddbmm(masks[name], q, k.transpose(1, 2)), -1)
        return torch.bmm(weights, v).view(batch, heads, length, dim).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("micro_training", attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("micro_training", lambda *_args, **_kwargs: None)


def batches(examples: Sequence[Example], batch_size: int, rng: random.Random) -> Iterator[list[Example]]:
    """One epoch of length-bucketed batches in random order."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].codes) + rng.random() * 8)
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(groups)
    for group in groups:
        yield [examples[i] for i in group]


def train(
    examples: Sequence[Example],
    out: Path,
    build: Path = BUILD_DIR,
    start: Path | None = None,
    seed: int = 0,
    steps: int = 2500,
    batch_size: int = 16,
    lr: float = 1.5e-3,
    lr_floor: float = 0.02,
    alignment_weight: float = 0.5,
    snapshot_every: int = 500,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a Talker on ``examples`` and write it to ``out`` (rounded to bf16, stored as float32).

    One seed gives one Talker on one kind of device; another device rounds differently.

    Returns figures: steps, seconds, last losses.
    """
    import torch

    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    conditioner = Conditioner(load_thinker(build).to(device), load_tokenizer(build), fast=True)
    talker = new_talker(build)
    if start is not None:
        talker.load_state_dict(load_talker(start, build).state_dict())
    talker.to(device).train()
    if device == "cpu":
        register_training_attention()
        talker.set_attn_implementation("micro_training")
    seen = sorted({c for e in examples for c in e.codes} | {CODEC_EOS})
    used = torch.tensor(seen, device=device)
    index = torch.full((talker.config.vocab_size,), -1, device=device)
    index[used] = torch.arange(len(used), device=device)
    rest = torch.tensor(sorted(set(range(talker.config.vocab_size)) - set(seen)), device=device)
    reader = torch.nn.Linear(talker.config.hidden_size, 2 * (len(WORDS) + 1)).to(device)  # thrown away after training
    weights = [*talker.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.02, betas=(0.9, 0.97), fused=True)
    began, step, losses, extra = time.time(), 0, [], []
    while step < steps:
        for group in batches(examples, batch_size, rng):
            if step == steps:
                break
            for parameters in optimizer.param_groups:
                parameters["lr"] = lr * cosine(step, steps, warmup=60, floor=lr_floor)
            systems = [None if rng.random() < DEFAULT_SYSTEM_RATE else SPEECH_SYSTEM_PROMPT for _ in group]
            speech = conditioner([e.text for e in group], [e.speaker for e in group], systems)
            bare = [rng.random() < BARE_START_RATE for _ in group]
            inputs, targets = collate(speech, [e.codes for e in group], bare, talker.model.embed_tokens)
            at = targets != -100
            with torch.autocast(device, torch.bfloat16):
                projected = talker.thinker_to_talker_proj(inputs)
                hidden = talker.model(
                    inputs_embeds=projected, position_ids=positions(*inputs.shape[:2]).to(device), use_cache=False
                ).last_hidden_state
            loss = sampled_loss(hidden[at], index[targets[at]], talker.codec_head, used, rest, generator)
            spoken = word_targets(group, [len(s.prefix) for s in speech], inputs.shape[1]).to(device)
            total = loss
            if group[0].starts:
                total = loss + alignment_weight * word_loss(reader(hidden.float()), spoken)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(talker.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
            extra.append((total - loss).detach())
            step += 1
            if step % 25 == 0 or step == steps:
                mean, aligned = (float(torch.stack(x[-25:]).mean()) for x in (losses, extra))
                line = f"{out.stem} {step}/{steps} loss {mean:.4f} words {aligned:.4f}"
                print(f"{line} {time.time() - began:.0f} s", flush=True)
            if step % snapshot_every == 0:
                save_tensors(talker.state_dict(), out.with_suffix(".part.safetensors"))
    save_tensors({k: v.to(torch.bfloat16).float().cpu() for k, v in talker.state_dict().items()}, out)
    return {
        "steps": steps,
        "seconds": round(time.time() - began, 1),
        "loss": round(float(torch.stack(losses[-100:]).mean()), 4),
        "examples": len(examples),
    }


def sample(
    talker: Any, speech: Sequence[Speech], seed: int = 0, max_new_tokens: int = 400, **options: Any
) -> list[list[int]]:
    """Sample codes by transformers' own ``generate`` (left-padded, one masked column always); the stop is stripped.

    ``options`` override do_sample=True, temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.0.
    """
    import torch

    torch.manual_seed(seed)
    batch, width = len(speech), speech[0].prefix.shape[-1]
    length = max(len(s.prefix) for s in speech) + 1  # one column more: a batch without padding loses bos and pad
    stream = max(len(s.reply_stream) for s in speech)
    inputs = torch.zeros(batch, length, width)
    mask = torch.zeros(batch, length, dtype=torch.long)
    reply = torch.zeros(batch, stream, width)
    for i, s in enumerate(speech):
        inputs[i, length - len(s.prefix) :] = s.prefix
        mask[i, length - len(s.prefix) :] = 1
        reply[i] = s.reply_stream[torch.arange(stream).clamp(max=len(s.reply_stream) - 1)]
    ids = torch.full((batch, length), CODEC_MASK)
    ids[:, -2], ids[:, -1] = CODEC_PAD, CODEC_BOS
    settings: dict[str, Any] = {
        "do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.0, **options
    }  # fmt: skip
    with torch.no_grad():
        out = talker.generate(
            input_ids=ids,
            input_text_ids=torch.zeros(batch, length, dtype=torch.long),
            thinker_reply_part=reply,
            inputs_embeds=inputs,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            suppress_tokens=[CODEC_BOS],
            eos_token_id=[CODEC_PAD, CODEC_EOS],
            pad_token_id=CODEC_PAD,
            **settings,
        )
    rows = []
    for row in out[:, length:].tolist():
        stops = [i for i, c in enumerate(row) if c in (CODEC_PAD, CODEC_EOS)]
        rows.append(row[: stops[0]] if stops else row)
    return rows


def agreement(talker: Any, conditioner: Conditioner, examples: Sequence[Example], **options: Any) -> dict[str, float]:
    """Sampled codes against the reference codes: exact share, code error rate, length ratio, share without a stop."""
    limit = options.pop("max_new_tokens", 400)
    exact, distance, length, total, cut = 0, 0, 0, 0, 0
    for at in range(0, len(examples), 50):
        group = examples[at : at + 50]
        speech = conditioner([e.text for e in group], [e.speaker for e in group], [SPEECH_SYSTEM_PROMPT] * len(group))
        for row, e in zip(sample(talker, speech, seed=at, max_new_tokens=limit, **options), group, strict=True):
            exact += row == e.codes
            distance += Levenshtein.distance(row, e.codes)
            length += len(row)
            total += len(e.codes)
            cut += len(row) == limit
    n = len(examples)
    figures = {"exact": exact / n, "code_error": distance / total, "length_ratio": length / total, "cut": cut / n}
    return {k: round(v, 4) for k, v in figures.items()}


def main() -> None:
    from talker_rl.micro.talker_data import load_examples

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["clean", "base"])
    parser.add_argument("--build", type=Path, default=BUILD_DIR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--lr-floor", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="other name for the weights")
    parser.add_argument("--start", type=Path, help="weights to go on from (base: the clean Talker's)")
    args = parser.parse_args()
    clean = args.build / "talker_clean.safetensors"
    out = args.out or args.build / f"talker_{args.which}.safetensors"
    steps = args.steps or (4600 if args.which == "clean" else 2000)
    figures = train(
        load_examples(args.build, "clean" if args.which == "clean" else "noisy"),
        out,
        args.build,
        start=args.start or (None if args.which == "clean" else clean),
        seed=args.seed,
        steps=steps,
        lr_floor=args.lr_floor,
        lr=args.lr or (1.5e-3 if args.which == "clean" else 6e-4),
        batch_size=args.batch_size,
        device=args.device,
    )
    conditioner = Conditioner(load_thinker(args.build), load_tokenizer(args.build))
    talker, held_out = load_talker(out, args.build), load_examples(args.build, "held_out")[:200]
    figures["sampled"] = agreement(talker, conditioner, held_out)
    figures["sampled_penalty_1.05"] = agreement(talker, conditioner, held_out, repetition_penalty=1.05)
    out.with_suffix(".json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
