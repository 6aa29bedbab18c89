"""The small Qwen3-Omni's Talkers: ``clean`` (right readings) and ``base`` (stumbling ones), as the first model's.

``python -m talker_rl.micro.qwen3.talker clean`` trains from scratch, ``... base`` goes on from there. Rows, hidden
states and log-probs are those of the family's own teacher forcing, so that there is one layout.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.micro.files import save_json, save_tensors
from talker_rl.micro.lexicon import WORDS
from talker_rl.micro.qwen3.codes import Books
from talker_rl.micro.qwen3.config import BOOKS, BUILD_DIR, CODEC, FRAME, WIDTH, whole_config
from talker_rl.micro.talker import DEFAULT_SYSTEM_RATE, Example, batches
from talker_rl.micro.talker_data import PARTS, data_path, make_data
from talker_rl.micro.thinker import cosine, load_tokenizer
from talker_rl.micro.tokenizer import SPEECH_SYSTEM_PROMPT

if TYPE_CHECKING:
    import torch

SENTENCES = 12_000
TABLE = "model.language_model.embed_tokens.weight"
"""In the Thinker as transformers holds it."""
RESIDUAL_WEIGHT = 1.0
"""Of the mean cross-entropy of a frame's other codes: they are spoken, too."""
ALIGNMENT_WEIGHT = 0.5


def load_examples(build: Path, which: str, sentences: int = SENTENCES) -> list[Example]:
    """``clean``, ``noisy`` or ``held_out`` examples; made first if the file is not there."""
    path = data_path(build, which)
    if not path.exists():
        books = Books.load(build / "books.safetensors")
        make_data(build, sentences=sentences, parts=PARTS, encode=books.encode_one, grid=FRAME, groups=BOOKS)
    return [Example(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def new_talker(build: Path = BUILD_DIR) -> Any:
    """An untrained Talker, float32; transformers leaves experts uninitialized memory and routers zero."""
    import torch
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

    talker = Qwen3OmniMoeTalkerForConditionalGeneration(whole_config(build).talker_config).float()
    with torch.no_grad():
        for layer in talker.model.layers:
            for weights in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj, layer.mlp.gate.weight):
                weights.normal_(0, 0.02)
    return talker


def load_talker(path: Path, build: Path = BUILD_DIR) -> Any:
    """A Talker from its safetensors file, in evaluation mode."""
    from safetensors.torch import load_file

    talker = new_talker(build)
    talker.load_state_dict({k: v.float() for k, v in load_file(str(path)).items()})
    return talker.eval()


class Conditioner:
    """Conditioning of texts from the trained Thinker's embedding table, as the family's own."""

    def __init__(self, build: Path) -> None:
        from safetensors.torch import load_file

        from talker_rl.speech.config import ModelConfig
        from talker_rl.speech.qwen3_omni.checkpoint import Qwen3

        table = load_file(str(build / "thinker.safetensors"))[TABLE].float()
        self._model = Qwen3(settings=ModelConfig(path="micro", instruction="{text}"), path=build,
                            config=whole_config(build), device=table.device, table=table,
                            tokenizer=load_tokenizer(build))

    def __call__(self, group: Sequence[Example], systems: Sequence[str]) -> list[Any]:
        """Of each example, behind its system prompt."""
        from talker_rl.records.prompt import Prompt
        from talker_rl.speech.qwen3_omni.conditioning import compute_conditioning

        prompts = [Prompt(e.text, speaker=e.speaker, messages=[{"role": "system", "content": system},
                                                              {"role": "user", "content": e.text}])
                   for e, system in zip(group, systems, strict=True)]
        return compute_conditioning(self._model, prompts)


def word_targets(group: Sequence[Example]) -> torch.Tensor:
    """At each step of all sequences the word being said and the one after it: (2, M), -100 where unknown.

    The end counts as a word. It tells at every frame what the codes alone tell once a word: the place in the text.
    """
    import torch

    number = {word: i for i, word in enumerate(WORDS)}
    found = []
    for example in group:
        frames = len(example.codes) // BOOKS
        now, following = torch.full((frames + 1,), -100), torch.full((frames + 1,), -100)
        if example.starts:
            ids = [number[word] for word in example.words] + [len(WORDS)]
            bounds = [*example.starts, frames]
            following[: bounds[0]] = ids[0]
            for k in range(len(example.words)):
                now[bounds[k] : bounds[k + 1]], following[bounds[k] : bounds[k + 1]] = ids[k], ids[k + 1]
        found.append(torch.stack([now, following]))
    return torch.cat(found, dim=1)


def train(
    examples: Sequence[Example], out: Path, build: Path = BUILD_DIR, start: Path | None = None, seed: int = 0,
    steps: int = 3000, batch_size: int = 16, lr: float = 2e-3, lr_floor: float = 0.02, snapshot_every: int = 500,
) -> dict[str, Any]:
    """Train a Talker on ``examples`` and write it to ``out`` (rounded to bf16, stored as float32); returns figures."""
    import torch
    from torch.nn import functional as F

    from talker_rl.records.speech import Speech
    from talker_rl.speech.head import selective_logps
    from talker_rl.speech.protocol import TalkerSequence
    from talker_rl.speech.qwen3_omni.layout import Specials, collate
    from talker_rl.speech.qwen3_omni.logps import forced, residual_logps

    torch.manual_seed(seed)
    rng, conditioner = random.Random(seed), Conditioner(build)
    talker = new_talker(build) if start is None else load_talker(start, build)
    talker.train()
    specials = Specials.of(talker)
    reader = torch.nn.Linear(WIDTH, 2 * (len(WORDS) + 1))  # thrown away after training
    weights = [*talker.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.02, betas=(0.9, 0.97), fused=True)
    began, step, seen = time.time(), 0, []
    while step < steps:
        for group in batches(examples, batch_size, rng):
            if step == steps:
                break
            for parameters in optimizer.param_groups:
                parameters["lr"] = lr * cosine(step, steps, warmup=60, floor=lr_floor)
            systems = ["You are a helpful assistant." if rng.random() < DEFAULT_SYSTEM_RATE else SPEECH_SYSTEM_PROMPT
                       for _ in group]
            batch = collate([TalkerSequence(spoken, Speech(e.codes, CODEC.stop, CODEC))
                             for spoken, e in zip(conditioner(group, systems), group, strict=True)], specials)
            logits_MV, hidden_MH, batch = forced(talker, batch)
            mask = batch.mask_ST
            first = -selective_logps(logits_MV, batch.first_ST[mask]).mean()
            residual = -residual_logps(talker, hidden_MH[batch.framed_ST[mask]], batch.frames_NG).mean()
            spoken = word_targets(group)
            read = reader(hidden_MH).chunk(2, dim=-1)
            words = sum(F.cross_entropy(logits, ids, ignore_index=-100)
                        for logits, ids in zip(read, spoken, strict=True) if bool((ids >= 0).any()))
            loss = first + RESIDUAL_WEIGHT * residual + ALIGNMENT_WEIGHT * words
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(talker.parameters(), 1.0)
            optimizer.step()
            seen.append((first.item(), residual.item(), float(words)))
            step += 1
            if step % 25 == 0 or step == steps:
                means = [sum(column) / len(column) for column in zip(*seen[-25:], strict=True)]
                print(f"{out.stem} {step}/{steps} first {means[0]:.3f} residual {means[1]:.3f} words {means[2]:.3f} "
                      f"{time.time() - began:.0f} s", flush=True)
            if step % snapshot_every == 0:
                save_tensors(talker.state_dict(), out.with_suffix(".part.safetensors"))
    save_tensors({k: v.to(torch.bfloat16).float() for k, v in talker.state_dict().items()}, out)
    last = [round(sum(column) / len(column), 4) for column in zip(*seen[-100:], strict=True)]
    return {"steps": steps, "seconds": round(time.time() - began), "first": last[0], "residual": last[1],
            "examples": len(examples)}


def agreement(talker: Any, build: Path, examples: Sequence[Example]) -> dict[str, float]:
    """Sampled against reference codes of held-out sentences: lengths, shares cut, and first codes by edit distance."""
    from rapidfuzz.distance import Levenshtein

    from talker_rl.speech.config import SamplingConfig
    from talker_rl.speech.protocol import SampleRequest
    from talker_rl.speech.qwen3_omni.policy import TalkerPolicy

    seen = Conditioner(build)(examples, [SPEECH_SYSTEM_PROMPT] * len(examples))
    said = TalkerPolicy(talker).sample([SampleRequest(one, [i]) for i, one in enumerate(seen)],
                                       SamplingConfig(max_new_tokens=150, repetition_penalty=1.0))
    distance = sum(Levenshtein.distance(c.codes[::BOOKS], e.codes[::BOOKS])
                   for c, e in zip(said, examples, strict=True))
    total = sum(len(e.codes) // BOOKS for e in examples)
    return {"code_error": round(distance / total, 4), "cut": sum(c.stop_id is None for c in said) / len(said),
            "length_ratio": round(sum(len(c.codes) // BOOKS for c in said) / total, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["data", "clean", "base"])
    parser.add_argument("--build", type=Path, default=BUILD_DIR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--start", type=Path, help="weights to go on from (base: the clean Talker's)")
    args = parser.parse_args()
    if args.which == "data":
        load_examples(args.build, "clean", args.sentences)
        save_json({"sentences": args.sentences}, args.build / "talker_data.json")
        return
    clean = args.which == "clean"
    out = args.build / f"talker_{args.which}.safetensors"
    figures = train(
        load_examples(args.build, "clean" if clean else "noisy", args.sentences), out, args.build,
        start=args.start or (None if clean else args.build / "talker_clean.safetensors"), seed=args.seed,
        steps=args.steps or (3600 if clean else 1600), lr=args.lr or (2e-3 if clean else 7e-4))
    held_out = load_examples(args.build, "held_out")[:100]
    figures["sampled"] = agreement(load_talker(out, args.build), args.build, held_out)
    save_json(figures, out.with_suffix(".json"))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
