"""A new speaker's entry heard before anything is trained on it: known codes, decoded with it.

The codes are said by one of the checkpoint's own speakers, whose sound from the same codes and the same noise is the
measure: what differs is the entry alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count
from talker_rl.base.ids import derive_seed
from talker_rl.records.prompt import Prompt
from talker_rl.speakers.entry import Entry
from talker_rl.speech.config import ModelConfig, SamplingConfig, Token2WavConfig
from talker_rl.speech.qwen2_5_omni.mel import HOP, SAMPLE_RATE, log_mel

if TYPE_CHECKING:
    from talker_rl.reward.asr.base import Recognizer

CODE_SAMPLES = 2 * HOP
QUIET_DBFS, CLIPPED_SHARE, SPARE_WER = -40.0, 0.001, 0.1
"""Below the first the loudest 20 ms are no speech; above the second share of samples at full scale it distorts; a WER
above the measure's by more than the third is told."""
TEXTS = {
    "en": ("The train to the coast leaves at nine, and it is seldom late.", "Could you read that to me once more?"),
    "zh": ("今天下午我们去图书馆看书。", "请再说一遍，我没有听清楚。"),
}

Finding = tuple[str, str]
"""(``ok``, ``warn`` or ``fail``; what was found)."""


@dataclass
class Known:
    """Codes with the text that they say."""

    text: str
    lang: str
    codes: list[int]


@dataclass
class Heard:
    """What came of the same codes with two entries: float32 at 24 kHz, one array per utterance."""

    known: list[Known]
    own: list[np.ndarray]
    """With the entry of the speaker who said them."""
    new: list[np.ndarray]


def known_codes(model: ModelConfig, speaker: str, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Known]:
    """What the model says of these prompts by one of its speakers; parts are loaded one after the other.

    Raises:
        StageError: none of its samples ended by itself.
    """
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning
    from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates

    conditionings = compute_conditioning(load_omni(model, parts=("thinker",)), prompts)
    seeds = [[derive_seed(0, "speaker", speaker, p.text)] for p in prompts]
    candidates = sample_candidates(load_omni(model, parts=("talker",)).talker, conditionings, seeds, sampling)
    known = [Known(p.text, p.lang, c.codes) for p, c in zip(prompts, candidates, strict=True)
             if c.end_reason == "eos" and c.codes]
    if not known:
        raise StageError("None of the samples ended by itself: there are no codes to hear the new speaker with",
                         where=f"speaker {speaker}", fix="give codes of your own: --codes FILE.jsonl")
    return known


def prompts_for(speaker: str, texts: Sequence[str] = ()) -> list[Prompt]:
    """Prompts of these texts, or of a few built-in ones."""
    from talker_rl.data.texts import check_text, detect_lang

    return [Prompt(check_text(t), speaker, detect_lang(t)) for t in texts or (*TEXTS["en"], *TEXTS["zh"])]


def hear(token2wav: Any, known: list[Known], own: Entry, new: Entry, cfg: Token2WavConfig) -> Heard:
    """Decode the codes with both entries, from the same noise."""
    from talker_rl.speech.qwen2_5_omni.token2wav import decode

    codes, n = [k.codes for k in known], len(known)
    seeds = [derive_seed(0, "token2wav", k.text) for k in known]
    return Heard(known, *(decode(token2wav, codes, [entry] * n, seeds, cfg) for entry in (own, new)))


def judge(
    heard: Heard, token2wav: Any, name: str, speakers: dict[str, Entry], asr: Recognizer | None
) -> Iterator[Finding]:
    """Findings on the sound.

    Args:
        name: the new speaker; ``speakers`` holds it and the checkpoint's own.
        asr: None leaves the words unchecked.
    """
    from talker_rl.base.sound import peak_level

    seconds = sum(len(k.codes) for k in heard.known) * CODE_SAMPLES / SAMPLE_RATE
    wrong = [k for k, wave in zip(heard.known, heard.new, strict=True) if len(wave) != len(k.codes) * CODE_SAMPLES]
    yield ("fail" if wrong else "ok"), (
        f"duration: {len(wrong)} of {count(len(heard.known), 'utterance')} not 480 samples per code" if wrong
        else f"duration: {count(len(heard.known), 'utterance')}, {seconds:.2f} s, exactly 480 samples per code")
    whole = np.concatenate(heard.new)
    if not np.isfinite(whole).all():
        yield "fail", f"samples: {int((~np.isfinite(whole)).sum())} are NaN or infinite"
        return
    level, before = (float(np.mean([peak_level(w, SAMPLE_RATE) for w in side])) for side in (heard.new, heard.own))
    yield ("ok" if level > QUIET_DBFS else "fail"), (
        f"energy: loudest 20 ms at {level:.1f} dBFS on average, {before:.1f} with the speaker who said the codes")
    clipped = float((np.abs(whole) >= 0.999).mean())
    if clipped > CLIPPED_SHARE:
        yield "warn", f"energy: {clipped:.1%} of the samples are at full scale"
    if asr is not None:
        yield _words(heard, asr)
    yield from _likeness(heard, token2wav, name, speakers)


def word_error_rate(asr: Recognizer, known: Sequence[Known], waves: Sequence[np.ndarray]) -> float:
    """Corpus WER of 24 kHz speech; an utterance that is not recognized counts as all deleted."""
    from talker_rl.base.sound import resample
    from talker_rl.base.text.alignment import align, pool
    from talker_rl.base.text.tokens import tokens_of
    from talker_rl.reward.asr.base import Failure

    counts = []
    for k, wave in zip(known, waves, strict=True):
        (transcript,) = asr.transcribe([resample(wave, SAMPLE_RATE, 16_000)], k.lang)
        counts.append(align(tokens_of(k.text), [] if isinstance(transcript, Failure) else transcript.tokens).counts)
    return float(pool(counts).rate or 0.0)


def _words(heard: Heard, asr: Recognizer) -> Finding:
    own, new = (word_error_rate(asr, heard.known, side) for side in (heard.own, heard.new))
    text = f"words: WER {new:.1%}, {own:.1%} with the speaker who said the codes"
    return ("warn", text + ": the entry costs words; try another cond") if new > own + SPARE_WER else ("ok", text)


def _likeness(heard: Heard, token2wav: Any, name: str, speakers: dict[str, Entry]) -> Iterator[Finding]:
    from talker_rl.speech.qwen2_5_omni.speaker import speaker_embedding

    mel = speakers[name]["ref_mel"][0]
    references = {n: speaker_embedding(token2wav, entry["ref_mel"][0]) for n, entry in speakers.items()}
    sounds = torch.stack([speaker_embedding(token2wav, log_mel(torch.from_numpy(w))) for w in heard.new])

    def cosines(x: torch.Tensor) -> dict[str, float]:
        return {n: float(torch.cosine_similarity(x, r[None]).mean()) for n, r in references.items()}

    half = len(mel) // 2
    itself = float(torch.cosine_similarity(speaker_embedding(token2wav, mel[:half]),
                                           speaker_embedding(token2wav, mel[half:]), dim=0))
    found = cosines(sounds)
    told = ", ".join(f"{n} {value:.2f}" for n, value in sorted(found.items(), key=lambda item: -item[1]))
    nearest = max(found, key=lambda n: found[n])
    yield ("ok" if nearest == name else "warn"), (
        f"likeness: cosine of the sound to each reference: {told}; the reference's two halves to each other "
        f"{itself:.2f}" + ("" if nearest == name else f". It sounds more like {nearest}: codes carry some of the voice "
                           "(train on it: -c stages/3-speakers), or cond does: try another"))
    others = {n: float(torch.cosine_similarity(references[name], r, dim=0)) for n, r in references.items() if n != name}
    close = max(others, key=lambda n: others[n])
    if others[close] > itself:
        yield "warn", f"likeness: the encoder hardly tells the reference from {close}'s ({others[close]:.2f})"


def read_codes(path: str) -> list[Known]:
    """Known codes from a JSONL file of {text, codes}.

    Raises:
        DataError: no such file, or a line without text or codes.
    """
    import json
    from pathlib import Path

    from talker_rl.base.text.files import raw_lines
    from talker_rl.data.texts import detect_lang

    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError("There is no such file of codes", where=path, fix="give a .jsonl file of {text, codes}")
    found = []
    for number, line in enumerate(raw_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            codes = [int(c) for c in row["codes"]]
            found.append(Known(str(row["text"]), str(row.get("lang") or detect_lang(row["text"])), codes))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"The line holds no text with codes: {error}", where=f"{path}, line {number}",
                            fix='write {"text": "...", "codes": [12, 7, ...]}') from None
    if not found:
        raise DataError("The file of codes is empty", where=path, fix="give at least one {text, codes}")
    return found
