"""Speech with known words, onsets and pauses: clauses spoken by espeak-ng, joined with real silences.

Everything lies on the codec's 20 ms grid: each clause starts on it, each silence ends on it, and the
faint dither below everything repeats with its period. So the codes of a clause do not depend on where
in a sentence it stands, and silence always has the same codes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.micro.lexicon import (
    COMMA_SECONDS,
    LEAD_SECONDS,
    STOP_SECONDS,
    STRONG_MARKS,
    TAIL_SECONDS,
    VOICES,
    Clause,
    random_sentence,
    sentence_lang,
    sentence_text,
)

SAMPLE_RATE = 24_000
CODE_SAMPLES = 480
"""Samples of one code: 20 ms at 24 kHz."""
PEAK = 0.7
"""Peak of each voice's calibration words; one gain a voice, never one per utterance."""
DITHER_DBFS = -70.0
_TRIM_DBFS = -55.0
_CACHED_PIECES = 1000
_CALIBRATION = {"en": ("garden", "window", "happy"), "zh": ("老师", "海洋", "太阳")}


@dataclass
class RenderRequest:
    """One sentence to speak.

    ``pauses``: seconds after each clause but the last (None: by its mark). ``extra_pauses``: silence
    after a word (index in the whole sentence), where the clause is split in two. The voice, rate, lead and tail
    can be overridden, e.g. for augmentation with other speakers.
    """

    clauses: list[Clause]
    speaker: str
    pauses: list[float] | None = None
    extra_pauses: dict[int, float] | None = None
    en_voice: str | None = None
    zh_voice: str | None = None
    rate: int | None = None
    zh_rate: int | None = None
    lead: float | None = None
    tail: float | None = None


@dataclass
class WordSpan:
    """A spoken word, in seconds from the start of the audio."""

    word: str
    start: float
    end: float


@dataclass
class Rendered:
    """Speech (float32, 24 kHz, a whole number of codes long) and what is true of it.

    ``pauses``: every inner silence that was put in, as (index of the word before it, seconds).
    """

    audio: np.ndarray
    words: list[WordSpan]
    text: str
    lang: str
    speaker: str
    pauses: list[tuple[int, float]] = field(default_factory=list)


def default_pauses(clauses: list[Clause]) -> list[float]:
    """Seconds after each clause but the last, by its mark."""
    return [STOP_SECONDS if c.mark in STRONG_MARKS.values() else COMMA_SECONDS for c in clauses[:-1]]


def make_requests(n: int, seed: int, speakers: tuple[str, ...] = ("Chelsie", "Ethan")) -> list[RenderRequest]:
    """``n`` random sentences, each by one of ``speakers``."""
    rng = random.Random(seed)
    return [RenderRequest(random_sentence(rng), rng.choice(speakers)) for _ in range(n)]


def _split(request: RenderRequest) -> list[tuple[str, tuple[str, ...], float]]:
    """Pieces (lang, words, seconds of silence after it) of a request; 0 after the last."""
    pauses = default_pauses(request.clauses) if request.pauses is None else request.pauses
    if len(pauses) != len(request.clauses) - 1:
        raise ValueError(f"{len(request.clauses)} clauses need {len(request.clauses) - 1} pauses, got {len(pauses)}")
    extra = request.extra_pauses or {}
    pieces: list[tuple[str, tuple[str, ...], float]] = []
    index = 0
    for clause, pause in zip(request.clauses, [*pauses, 0.0], strict=True):
        words: list[str] = []
        for position, word in enumerate(clause.words):
            words.append(word)
            if position < len(clause.words) - 1 and index in extra:
                pieces.append((clause.lang, tuple(words), extra[index]))
                words = []
            index += 1
        pieces.append((clause.lang, tuple(words), pause))
    return pieces


def dither_tile() -> np.ndarray:
    """One code (480 samples) of faint noise; repeated, it is the same in every silence."""
    noise = np.random.default_rng(20).standard_normal(CODE_SAMPLES)
    return (noise * 10 ** (DITHER_DBFS / 20)).astype(np.float32)


class Renderer:
    """Renders requests; make it early in a process without threads, since espeak is forked. Clauses are cached.

    Args:
        source: what speaks a clause (``say(voice, rate, words) -> Speech``); None starts espeak-ng.
        grid: samples on whose multiples clauses begin and silences end; a multiple of a code's.
    """

    def __init__(self, source: Any = None, grid: int = CODE_SAMPLES) -> None:
        from talker_rl.micro.espeak import Espeak

        self._espeak = Espeak() if source is None else source
        self._pieces: dict[tuple, tuple[np.ndarray, list[float]]] = {}
        self._gains: dict[tuple[str, str], float] = {}
        self._dither, self._grid = dither_tile(), grid

    def _speak(self, voice: str, rate: int, words: tuple[str, ...]) -> tuple[np.ndarray, list[float]]:
        """24 kHz float32 without the silence around it, and the word onsets in seconds."""
        import soxr

        from talker_rl.micro.espeak import ESPEAK_RATE

        speech = self._espeak.say(voice, rate, words)
        audio = soxr.resample(speech.samples.astype(np.float32) / 32768, ESPEAK_RATE, SAMPLE_RATE)
        loud = np.nonzero(np.abs(audio) > 10 ** (_TRIM_DBFS / 20))[0]
        first, last = max(int(loud[0]) - 48, 0), int(loud[-1]) + 48
        audio = audio[first : last + 1].copy()
        ramp = min(120, len(audio))  # 5 ms: no click where the cut is not at zero
        audio[-ramp:] *= np.linspace(1.0, 0.0, ramp, dtype=np.float32)
        return audio, [max(t - first / SAMPLE_RATE, 0.0) for t in speech.onsets]

    def _gain(self, voice: str, lang: str) -> float:
        if (voice, lang) not in self._gains:
            audio, _ = self._speak(voice, 190, _CALIBRATION[lang])
            self._gains[voice, lang] = PEAK / float(np.abs(audio).max())
        return self._gains[voice, lang]

    def _piece(self, voice: str, lang: str, rate: int, words: tuple[str, ...]) -> tuple[np.ndarray, list[float]]:
        key = (voice, rate, words)
        if key not in self._pieces:
            if len(self._pieces) >= _CACHED_PIECES:
                self._pieces.clear()
            audio, onsets = self._speak(voice, rate, words)
            self._pieces[key] = (np.clip(audio * self._gain(voice, lang), -0.99, 0.99), onsets)
        return self._pieces[key]

    def render(self, request: RenderRequest) -> Rendered:
        """Speak one request. Raises ValueError where pauses and clauses do not fit."""
        speaker = VOICES.get(request.speaker, VOICES["Chelsie"])
        voices = {"en": request.en_voice or speaker.en, "zh": request.zh_voice or speaker.zh}
        rates = {"en": request.rate or speaker.rate, "zh": request.zh_rate or speaker.zh_rate}
        lead = LEAD_SECONDS if request.lead is None else request.lead
        tail = TAIL_SECONDS if request.tail is None else request.tail

        cursor = _to_grid(lead, self._grid)
        placed: list[tuple[int, np.ndarray]] = []
        words: list[WordSpan] = []
        pauses: list[tuple[int, float]] = []
        pieces = _split(request)
        for number, (lang, piece_words, pause) in enumerate(pieces):
            audio, onsets = self._piece(voices[lang], lang, rates[lang], piece_words)
            placed.append((cursor, audio))
            start, end = cursor / SAMPLE_RATE, (cursor + len(audio)) / SAMPLE_RATE
            starts = [start + t for t in onsets]
            words += [
                WordSpan(w, s, e) for w, s, e in zip(piece_words, starts, [*starts[1:], end], strict=True)
            ]
            last = number == len(pieces) - 1
            silence = tail if last else pause
            cursor = _to_grid(end + silence, self._grid)
            if not last:
                pauses.append((len(words) - 1, cursor / SAMPLE_RATE - end))
        full = np.tile(self._dither, cursor // CODE_SAMPLES)
        for position, audio in placed:
            full[position : position + len(audio)] += audio
        text, lang = sentence_text(request.clauses), sentence_lang(request.clauses)
        return Rendered(full, words, text, lang, request.speaker, pauses)


def _to_grid(seconds: float, grid: int) -> int:
    """Samples of ``seconds``, rounded up to the grid."""
    return -(-round(seconds * SAMPLE_RATE) // grid) * grid


def render_all(
    requests: list[RenderRequest], progress: bool = True, grid: int = CODE_SAMPLES
) -> list[Rendered]:
    """Render in a fresh process (no threads, no torch: espeak is forked there). Audio is 16-bit quantized.

    Raises RuntimeError with espeak's message if the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="render-") as folder:
        here = Path(folder)
        (here / "requests.json").write_text(json.dumps([asdict(r) for r in requests], ensure_ascii=False), "utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "talker_rl.micro.corpus", folder, str(int(progress)), str(grid)]
        done = subprocess.run(command, env=environment, stderr=None if progress else subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"rendering failed (exit {done.returncode}): {(done.stderr or '')[-2000:]}")
        samples = np.fromfile(here / "audio.i16", np.int16)
        out: list[Rendered] = []
        position = 0
        for line in (here / "rendered.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            audio = samples[position : position + row["samples"]].astype(np.float32) / 32768
            position += row["samples"]
            spans = [WordSpan(*w) for w in row["words"]]
            pauses = [(int(i), float(s)) for i, s in row["pauses"]]
            out.append(Rendered(audio, spans, row["text"], row["lang"], row["speaker"], pauses))
    return out


def _request_from_dict(row: dict) -> RenderRequest:
    clauses = [Clause(c["lang"], tuple(c["words"]), c["mark"]) for c in row.pop("clauses")]
    extra = row.pop("extra_pauses")
    return RenderRequest(clauses, extra_pauses=extra and {int(k): v for k, v in extra.items()}, **row)


def _main(folder: str, progress: bool, grid: int) -> None:
    from talker_rl.base.progress import bar

    here = Path(folder)
    rows = json.loads((here / "requests.json").read_text("utf-8"))
    renderer = Renderer(grid=grid)
    with open(here / "audio.i16", "wb") as audio, open(here / "rendered.jsonl", "w", encoding="utf-8") as out:
        for row in bar(rows, desc="espeak", disable=not progress, mininterval=2.0):
            r = renderer.render(_request_from_dict(row))
            audio.write((np.clip(r.audio, -1, 1) * 32767).round().astype(np.int16).tobytes())
            spans = [[w.word, w.start, w.end] for w in r.words]
            kept = {"samples": len(r.audio), "words": spans, "text": r.text, "lang": r.lang}
            out.write(json.dumps({**kept, "speaker": r.speaker, "pauses": r.pauses}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]))
