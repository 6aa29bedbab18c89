"""Train a micro recognizer: ``python -m talker_rl.micro.asr_train reward|eval --out build/micro/asr/reward``.

One thread; same seed, options and starting directory, same model. The directory is rewritten (atomically) after every
evaluation, so it can be used while training goes on, and ``--init`` continues from one. The shipped recognizers came
about in stages, while codec and token2wav were still training: reward 500 + 700 steps on plain and damaged speech, then
400 with decoded speech; eval 500 + 700 + 500, all with decoded speech.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.text.alignment import align
from talker_rl.micro.asr_augment import Utterance
from talker_rl.micro.asr_data import Batches, PoolSettings, build_pool, decoded_pool, held_out
from talker_rl.micro.asr_model import (
    SIZES,
    TOKENS,
    build_frontend,
    build_model,
    save_directory,
    training_loss,
)

SEEDS = {"reward": 11, "eval": 23}


@dataclass(frozen=True)
class AsrTraining:
    """Length and rate of a training."""

    steps: int = 2000
    batch_size: int = 24
    learning_rate: float = 1.2e-3
    warmup: int = 200
    clip: float = 1.0
    evaluate_every: int = 500


@dataclass
class AsrReport:
    """Errors of a recognizer on known utterances; rates are fractions, times are milliseconds."""

    tokens: int = 0
    errors: int = 0
    wrong: list[tuple[list[str], list[str]]] = field(default_factory=list)
    onset_errors: list[float] = field(default_factory=list)

    @property
    def wer(self) -> float:
        return self.errors / max(1, self.tokens)

    def line(self) -> str:
        late = np.array(self.onset_errors or [math.nan])
        return (
            f"wer {100 * self.wer:5.2f} % of {self.tokens}, onset |median| {np.median(np.abs(late)):.0f} ms, "
            f"p95 {np.percentile(np.abs(late), 95):.0f} ms, bias {np.median(late):+.0f} ms"
        )


def recognize(model: Any, frontend: Any, audio: list[np.ndarray]) -> list[tuple[list[str], list[tuple[float, float]]]]:
    """FunASR's own inference on an in-memory model, one utterance at a time: tokens and (start, end) seconds."""
    from funasr.register import tables

    tokenizer = tables.tokenizer_classes["CharTokenizer"](token_list=TOKENS, unk_symbol="<unk>", split_with_space=True)
    out = []
    with torch.inference_mode():
        for clip in audio:
            found = model.inference([clip], key=["a"], tokenizer=tokenizer, frontend=frontend, device="cpu")
            result: Any = found[0][0] if found else {"text": "", "timestamp": []}
            spans = [(start / 1000, end / 1000) for start, end in result["timestamp"]]
            out.append((result["text"].split(), spans))
    return out


def evaluate(model: Any, frontend: Any, utterances: list[Utterance]) -> AsrReport:
    """Token errors and, where the transcript is right, onset errors at word starts."""
    training = model.training
    model.eval()
    report = AsrReport()
    audio = [u.audio.astype(np.float32) / 32768 if u.audio.dtype == np.int16 else u.audio for u in utterances]
    for utterance, (tokens, spans) in zip(utterances, recognize(model, frontend, audio), strict=True):
        truth = [TOKENS[t] for t in utterance.tokens]
        errors = align(truth, tokens).counts.errors
        report.tokens += len(truth)
        report.errors += errors
        if errors:
            report.wrong.append((truth, tokens))
        elif len(spans) == len(truth):
            report.onset_errors += [
                1000 * (got[0] - true[0])
                for got, true, start in zip(spans, utterance.spans, utterance.breaks, strict=True)
                if start
            ]
    model.train(training)
    return report


def train(
    name: str,
    out: Path,
    settings: AsrTraining,
    pool: PoolSettings,
    decoded: Path | None = None,
    init: Path | None = None,
) -> AsrReport:
    """Train the recognizer ``name`` ("reward" or "eval") into the directory ``out``.

    Args:
        decoded: folder with the trained codec and token2wav; half of each batch then is decoded speech.
        init: recognizer directory to continue from (its weights and feature normalization).
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # FunASR logs a line for each call
    seed = SEEDS[name]
    torch.manual_seed(seed)
    size = SIZES[name]
    model: Any = build_model(size)
    utterances = build_pool(pool, seed)
    spoken = decoded_pool(pool, decoded) if decoded else []
    tests = {"clean": held_out(200)}
    if spoken:
        tests["decoded"] = held_out(100, decoded)
    batches = Batches(name, utterances, spoken, settings.batch_size, seed, init / "am.mvn" if init else None)
    if init:
        model.load_state_dict(torch.load(init / "model.pt", weights_only=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    report = AsrReport()
    began = time.monotonic()
    mean: dict[str, float] = {}
    for step in range(1, settings.steps + 1):
        rate = min(step / settings.warmup, 0.5 * (1 + math.cos(math.pi * step / settings.steps)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        features, lengths, text, text_lengths, spans = batches.draw()
        model.train()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # the sampler casts under no_grad
            loss, numbers = training_loss(model, features, lengths, text, text_lengths, spans)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the recognizer's loss is {float(loss)} at step {step}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        mean = {k: 0.95 * mean.get(k, v) + 0.05 * v for k, v in numbers.items()}
        if step % 50 == 0:
            line = " ".join(f"{k} {v:.3f}" for k, v in mean.items())
            print(f"{name} {step}/{settings.steps} {line} {(time.monotonic() - began) / step:.2f} s/step", flush=True)
        if step % settings.evaluate_every == 0 or step == settings.steps:
            save_directory(out, size, model, batches.cmvn)
            frontend = build_frontend(out / "am.mvn")
            for kind, test in tests.items():
                report = evaluate(model, frontend, test)
                print(f"{name} {step} {kind}: {report.line()}", flush=True)
                for truth, found in report.wrong[:4]:
                    print(f"    {' '.join(truth)} -> {' '.join(found)}", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SIZES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=AsrTraining.steps)
    parser.add_argument("--learning-rate", type=float, default=AsrTraining.learning_rate)
    parser.add_argument("--batch-size", type=int, default=AsrTraining.batch_size)
    parser.add_argument("--utterances", type=int, default=PoolSettings.utterances)
    parser.add_argument("--decoded-utterances", type=int, default=PoolSettings.decoded)
    parser.add_argument("--decoded", type=Path, help="folder of the trained codec and token2wav")
    parser.add_argument("--init", type=Path, help="recognizer directory to continue from")
    arguments = parser.parse_args()
    settings = AsrTraining(
        steps=arguments.steps, batch_size=arguments.batch_size, learning_rate=arguments.learning_rate
    )
    pool = PoolSettings(utterances=arguments.utterances, decoded=arguments.decoded_utterances)
    train(arguments.name, arguments.out, settings, pool, arguments.decoded, arguments.init)


if __name__ == "__main__":
    main()
