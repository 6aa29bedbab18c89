"""A new speaker's entry heard before anything is trained on it: known codes, decoded with it.

The codes are said by one of the checkpoint's own speakers, whose sound from the same codes and the same noise is the
measure: what differs is the entry alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count
from talker_rl.base.findings import Finding
from talker_rl.base.ids import derive_seed
from talker_rl.records.codec import Codec
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ModelConfig, SamplingConfig, Token2WavConfig
from talker_rl.speech.protocol import Generator, SampleRequest, Utterance
from talker_rl.speech.registry import load

if TYPE_CHECKING:
    from talker_rl.reward.asr.base import Recognizer

QUIET_DBFS, CLIPPED_SHARE, SPARE_WER = -40.0, 0.001, 0.1
"""Below the first the loudest 20 ms are no speech; above the second share of samples at full scale it distorts; a WER
above the measure's by more than the third is told."""
TEXTS = {
    "en": ("The train to the coast leaves at nine, and it is seldom late.", "Could you read that to me once more?"),
    "zh": ("今天下午我们去图书馆看书。", "请再说一遍，我没有听清楚。"),
}

@dataclass
class Known:
    """Codes with the text that they say."""

    text: str
    lang: str
    codes: list[int]


@dataclass
class Heard:
    """What came of the same codes with two speakers: float32, one array per utterance."""

    known: list[Known]
    own: list[np.ndarray]
    """With the speaker who said them."""

    new: list[np.ndarray]
    codec: Codec


def known_codes(model: ModelConfig, speaker: str, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Known]:
    """What the model says of these prompts by one of its speakers; parts are loaded one after the other.

    Raises:
        StageError: none of its samples ended by itself.
    """
    conditionings = load(model, parts=("conditioner",)).condition(prompts)
    requests = [SampleRequest(c, [derive_seed(0, "speaker", speaker, p.text)])
                for c, p in zip(conditionings, prompts, strict=True)]
    with load(model, parts=("talker",)).policy() as policy:
        candidates = policy.sample(requests, sampling)
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


def hear(decoder: Generator, known: list[Known], own: str, new: str, cfg: Token2WavConfig) -> Heard:
    """Decode the codes with both speakers, from the same noise."""
    def said_by(speaker: str) -> list[np.ndarray]:
        return decoder.decode([Utterance(k.codes, speaker, derive_seed(0, "token2wav", k.text)) for k in known], cfg)

    return Heard(known, said_by(own), said_by(new), decoder.codec)


def judge(heard: Heard, asr: Recognizer | None) -> Iterator[Finding]:
    """Findings on the sound.

    Args:
        asr: None leaves the words unchecked.
    """
    from talker_rl.base.sound import peak_level

    codec = heard.codec
    samples = codec.sample_rate / codec.rate
    seconds = sum(codec.seconds(k.codes) for k in heard.known)
    wrong = [k for k, wave in zip(heard.known, heard.new, strict=True) if len(wave) != codec.frames(k.codes) * samples]
    yield ("fail" if wrong else "ok"), (
        f"duration: {len(wrong)} of {count(len(heard.known), 'utterance')} not {samples:g} samples per code" if wrong
        else f"duration: {count(len(heard.known), 'utterance')}, {seconds:.2f} s, exactly {samples:g} samples per code")
    whole = np.concatenate(heard.new)
    if not np.isfinite(whole).all():
        yield "fail", f"samples: {int((~np.isfinite(whole)).sum())} are NaN or infinite"
        return
    level, before = (float(np.mean([peak_level(w, codec.sample_rate) for w in side]))
                     for side in (heard.new, heard.own))
    yield ("ok" if level > QUIET_DBFS else "fail"), (
        f"energy: loudest 20 ms at {level:.1f} dBFS on average, {before:.1f} with the speaker who said the codes")
    clipped = float((np.abs(whole) >= 0.999).mean())
    if clipped > CLIPPED_SHARE:
        yield "warn", f"energy: {clipped:.1%} of the samples are at full scale"
    if asr is not None:
        yield _words(heard, asr)


def word_error_rate(asr: Recognizer, known: Sequence[Known], waves: Sequence[np.ndarray], rate: int) -> float:
    """Corpus WER of speech at ``rate`` Hz; an utterance that is not recognized counts as all deleted."""
    from talker_rl.base.sound import resample
    from talker_rl.base.text.alignment import align, pool
    from talker_rl.base.text.tokens import tokens_of
    from talker_rl.reward.asr.base import SAMPLE_RATE, Failure

    counts = []
    for k, wave in zip(known, waves, strict=True):
        (transcript,) = asr.transcribe([resample(wave, rate, SAMPLE_RATE)], k.lang)
        counts.append(align(tokens_of(k.text), [] if isinstance(transcript, Failure) else transcript.tokens).counts)
    return float(pool(counts).rate or 0.0)


def _words(heard: Heard, asr: Recognizer) -> Finding:
    own, new = (word_error_rate(asr, heard.known, side, heard.codec.sample_rate) for side in (heard.own, heard.new))
    text = f"words: WER {new:.1%}, {own:.1%} with the speaker who said the codes"
    return ("warn", text + ": the entry costs words; try another cond") if new > own + SPARE_WER else ("ok", text)


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
