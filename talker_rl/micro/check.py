"""``talker-rl micro check``: the micro world's own lines, measured; exits 1 where one is missed.

Sentences are drawn with a seed of their own and are in no training set or prompt set.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.base.disk import atomic_write
from talker_rl.base.places import check_writable_file
from talker_rl.micro import checkpoint_dir
from talker_rl.micro.lexicon import VOICES, Clause, random_sentence, sentence_lang, sentence_text
from talker_rl.micro.prompts import prompt_texts
from talker_rl.records.prompt import Prompt

SEED = 8_000_001
NUM_STEPS = 3
"""token2wav steps without guidance, as the demo decodes."""
MAX_CODES = 400
PLAIN_SENTENCES, PLAIN_SEEDS = 50, 4
"""How much plain transformers speaks: one sampling a sentence would leave its WER uncertain by 3 points."""


@dataclass(frozen=True)
class Figure:
    """One measured figure and its line."""

    name: str
    value: float
    limit: str
    ok: bool


def at_most(name: str, value: float, limit: float) -> Figure:
    return Figure(name, value, f"<= {limit:g}", bool(value <= limit))


def at_least(name: str, value: float, limit: float) -> Figure:
    return Figure(name, value, f">= {limit:g}", bool(value >= limit))


def between(name: str, value: float, low: float, high: float) -> Figure:
    return Figure(name, value, f"{low:g} to {high:g}", bool(low <= value <= high))


def sentences(count: int) -> list[tuple[list[Clause], str]]:
    """Distinct (clauses, speaker), outside every prompt set."""
    rows: list[tuple[list[Clause], str]] = []
    rng, names, seen = random.Random(SEED), sorted(VOICES), set(prompt_texts())
    while len(rows) < count:
        clauses = random_sentence(rng)
        if (text := sentence_text(clauses)) not in seen:
            seen.add(text)
            rows.append((clauses, names[len(rows) % len(names)]))
    return rows


def word_errors(recognizer: Any, audios: Sequence[np.ndarray], texts: Sequence[str]) -> float:
    """Corpus WER of 24 kHz audio (Chinese by character); audio that cannot be recognized counts as all deleted."""
    from talker_rl.base.sound import resample
    from talker_rl.base.text.alignment import align, pool
    from talker_rl.base.text.tokens import tokens_of
    from talker_rl.reward.asr.base import Failure

    heard = recognizer.transcribe([resample(a, 24_000, 16_000) for a in audios], "mixed")
    counts = []
    for text, transcript in zip(texts, heard, strict=True):
        tokens = [] if isinstance(transcript, Failure) else transcript.tokens
        counts.append(align(tokens_of(text), tokens).counts)
    return float(pool(counts).rate or 0.0)


def onset_error(recognizer: Any, rendered: Sequence[Any]) -> float:
    """Median |recognized - true| onset in seconds of the words of rightly recognized utterances."""
    from talker_rl.base.sound import resample
    from talker_rl.base.text.tokens import tokens_of
    from talker_rl.reward.asr.base import Failure

    heard = recognizer.transcribe([resample(r.audio, 24_000, 16_000) for r in rendered], "mixed")
    errors = []
    for r, transcript in zip(rendered, heard, strict=True):
        if isinstance(transcript, Failure) or transcript.tokens != tokens_of(r.text) or not transcript.spans:
            continue
        at = 0
        for word in r.words:
            errors.append(abs(transcript.spans[at][0] - word.start))
            at += len(tokens_of(word.word))
    return float(np.median(errors)) if errors else float("inf")


def moved_pauses(rows: Sequence[tuple[list[Clause], str]]) -> list[Any]:
    """Requests whose pauses are kept, removed, changed or added where there is no mark."""
    from talker_rl.micro.corpus import RenderRequest, default_pauses

    rng, requests = random.Random(SEED + 1), []
    for clauses, speaker in rows:
        pauses = [rng.choice((p, 0.0, rng.uniform(0.22, 0.7))) for p in default_pauses(clauses)]
        inner: list[int] = []
        index = 0
        for clause in clauses:
            inner += range(index, index + len(clause.words) - 1)
            index += len(clause.words)
        extra = {rng.choice(inner): rng.uniform(0.32, 0.6)} if inner and rng.random() < 0.5 else None
        requests.append(RenderRequest(clauses, speaker, pauses, extra))
    return requests


def pause_f1(recognizer: Any, rendered: Sequence[Any]) -> float:
    """F1 of pauses found by the reward's own pause score against those that were put in (>= 0.15 s)."""
    from talker_rl.base.sound import resample
    from talker_rl.base.text.alignment import align
    from talker_rl.base.text.tokens import normalize, tokens_of
    from talker_rl.reward.asr.base import Failure
    from talker_rl.reward.config import PauseConfig
    from talker_rl.reward.pauses import score_pauses
    from talker_rl.reward.silences import find_silences

    config = PauseConfig()
    heard = recognizer.transcribe([resample(r.audio, 24_000, 16_000) for r in rendered], "mixed")
    right = found = true = 0
    for r, transcript in zip(rendered, heard, strict=True):
        ends = np.cumsum([len(tokens_of(w.word)) for w in r.words]) - 1
        truth = {int(ends[word]) for word, seconds in r.pauses if seconds >= 0.15}
        true += len(truth)
        if isinstance(transcript, Failure):
            continue
        text = normalize(r.text)
        alignment = align(text.tokens, transcript.tokens)
        silences = find_silences(r.audio, 24_000, config)
        score = score_pauses(
            text.marks, alignment.hits, transcript.spans, silences, config, len(transcript.tokens),
            transcript.spans_fault,
        )  # fmt: skip
        for boundary in score.boundaries:
            least = config.spurious_seconds if boundary.mark == "none" else config.hit_seconds
            if boundary.pause is not None and boundary.pause >= least:
                found += 1
                right += boundary.index in truth
    return 2 * right / (found + true) if found + true else 1.0


def speak(folder: Path, talker: str | None, rows: Sequence[tuple[list[Clause], str]], each: int = 1) -> list[Any]:
    """Sampled speech of each sentence by the base Talker (None) or the Talker in ``folder/omni/<talker>``.

    Returns ``each`` arrays (24 kHz) a sentence, one after the other; a candidate without codes is an empty one.
    """
    from talker_rl.speech.config import ModelConfig, SamplingConfig, Token2WavConfig
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning
    from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
    from talker_rl.speech.qwen2_5_omni.token2wav import decode

    weights = None if talker is None else str(folder / "omni" / talker)
    omni = load_omni(ModelConfig(path=str(folder / "omni"), talker=weights, device="cpu"))
    prompts = [Prompt(sentence_text(c), s, sentence_lang(c)) for c, s in rows]
    conditionings = compute_conditioning(omni, prompts)
    seeds = [[SEED + i + k * len(prompts) for k in range(each)] for i in range(len(prompts))]
    config = SamplingConfig(max_new_tokens=MAX_CODES)
    candidates = sample_candidates(omni.talker, conditionings, seeds, config)
    good = [c for c in candidates if c.codes and c.end_reason != "invalid_code"]
    cfg = Token2WavConfig(num_steps=NUM_STEPS, guidance_scale=0.0)
    speakers, noise = [omni.speakers[c.speaker] for c in good], [c.seed for c in good]
    waves = decode(omni.token2wav, [c.codes for c in good], speakers, noise, cfg)
    audio = dict(zip([c.candidate_id for c in good], waves, strict=True))
    return [audio.get(c.candidate_id, np.zeros(0, np.float32)) for c in candidates]


def speak_plainly(folder: Path, rows: Sequence[tuple[list[Clause], str]], each: int = 1) -> tuple[list[Any], float]:
    """Speech by transformers' own ``generate`` on the folder, nothing of this package in between.

    Returns ``each`` arrays (24 kHz) a sentence, one after the other, and the share of sentences that the Thinker
    answered exactly.
    """
    import torch
    from transformers import AutoTokenizer, Qwen2_5OmniForConditionalGeneration

    from talker_rl.micro.thinker import prompt_text
    from talker_rl.micro.tokenizer import SPEECH_SYSTEM_PROMPT

    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder / "omni", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "omni")
    audio, exact = [], 0
    for number, (clauses, speaker) in enumerate(rows):
        text = sentence_text(clauses)
        batch = tokenizer(prompt_text(text, SPEECH_SYSTEM_PROMPT), return_tensors="pt")
        for k in range(each):
            torch.manual_seed(SEED + number + k * len(rows))
            ids, wave = model.generate(**batch, speaker=speaker, talker_max_new_tokens=MAX_CODES,
                                       token2wav_num_steps=NUM_STEPS, token2wav_guidance_scale=0.0)
            audio.append(wave.numpy())
        exact += tokenizer.decode(ids[0, batch.input_ids.shape[1] :], skip_special_tokens=True) == text
    return audio, exact / len(rows)


def decode_reference(folder: Path, rendered: Sequence[Any]) -> list[np.ndarray]:
    """Rendered speech -> codes -> token2wav."""
    from talker_rl.micro.codec import Codec
    from talker_rl.speech.config import ModelConfig, Token2WavConfig
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.token2wav import decode

    omni = load_omni(ModelConfig(path=str(folder / "omni"), device="cpu"), parts=("token2wav",))
    codec = Codec.load(folder / "codec.safetensors")
    codes = [codec.encode(r.audio) for r in rendered]
    speakers = [omni.speakers[r.speaker] for r in rendered]
    cfg = Token2WavConfig(num_steps=NUM_STEPS, guidance_scale=0.0)
    return decode(omni.token2wav, codes, speakers, list(range(len(codes))), cfg)


def check(folder: Path | None = None, count: int = 200) -> list[Figure]:
    """Every figure of the micro checkpoint in ``folder`` (default: the shipped one) on ``count`` sentences."""
    from transformers import AutoTokenizer

    from talker_rl.micro.corpus import RenderRequest, render_all
    from talker_rl.micro.thinker import exactness
    from talker_rl.reward.asr.funasr_recognizer import FunASRRecognizer
    from talker_rl.speech.config import ModelConfig
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni

    folder, began, figures = folder or checkpoint_dir(), time.time(), []

    def add(figure: Figure) -> None:
        figures.append(figure)
        print(f"{time.time() - began:6.0f} s  {_line(figure)}", flush=True)

    thinker = load_omni(ModelConfig(path=str(folder / "omni"), device="cpu"), parts=("thinker",)).thinker
    tokenizer = AutoTokenizer.from_pretrained(folder / "omni")
    add(at_least("thinker: sentences repeated exactly", exactness(thinker, tokenizer, count), 0.99))
    rows = sentences(count)
    texts = [sentence_text(c) for c, _ in rows]
    reference = render_all([RenderRequest(c, s) for c, s in rows], progress=False)
    moved = render_all(moved_pauses(rows), progress=False)
    decoded = decode_reference(folder, reference)
    clean = speak(folder, "talker_clean", rows)
    base = speak(folder, None, rows)
    recognizers = {name: FunASRRecognizer(str(folder / "asr" / name)) for name in ("reward", "eval")}
    for name, recognizer in recognizers.items():
        plain = [r.audio for r in reference]
        add(at_most(f"{name}: WER, reference speech", word_errors(recognizer, plain, texts), 0.01))
        add(at_most(f"{name}: WER, reference codes decoded", word_errors(recognizer, decoded, texts), 0.02))
        add(at_most(f"{name}: WER, clean Talker's samples", word_errors(recognizer, clean, texts), 0.03))
        add(between(f"{name}: WER, base Talker's samples", word_errors(recognizer, base, texts), 0.08, 0.30))
        add(at_most(f"{name}: onset error, median seconds", onset_error(recognizer, reference), 0.06))
        add(at_least(f"{name}: pause F1, pauses moved", pause_f1(recognizer, moved), 0.97))
    some = rows[:PLAIN_SENTENCES]
    said = [sentence_text(c) for c, _ in some for _ in range(PLAIN_SEEDS)]
    plain_audio, exact = speak_plainly(folder, some, PLAIN_SEEDS)
    theirs = word_errors(recognizers["eval"], plain_audio, said)
    ours = word_errors(recognizers["eval"], speak(folder, None, some, PLAIN_SEEDS), said)
    add(at_least("transformers' generate: the Thinker's text is exact", exact, 0.99))
    print(f"        WER of transformers' generate {theirs:.4f}, of talker-rl {ours:.4f}", flush=True)
    add(at_most("transformers' generate: WER against talker-rl's, difference", abs(theirs - ours), 0.03))
    return figures


def _line(figure: Figure) -> str:
    return f"{'ok    ' if figure.ok else 'MISSED'} {figure.value:8.4f}  {figure.limit:12s} {figure.name}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its options, and what it does."""
    parser.description = __doc__
    parser.add_argument("--folder", type=Path, help="default: the shipped checkpoint")
    parser.add_argument("--count", type=int, default=200, help="sentences")
    parser.add_argument("--json", type=Path, help="write the figures here too")


def verb(args: argparse.Namespace) -> int:
    """The command."""
    if args.json:
        check_writable_file(args.json)
    figures = check(args.folder, args.count)
    if args.json:
        atomic_write(args.json, json.dumps([f.__dict__ for f in figures], indent=2) + "\n")
    missed = [f.name for f in figures if not f.ok]
    print(f"{len(figures) - len(missed)} of {len(figures)} lines met", *(f"; missed: {name}" for name in missed))
    return 1 if missed else 0
