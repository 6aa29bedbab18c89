"""Training data of the micro Talkers: many sentences, spoken clause by clause, as codes.

Sentences are composed of a pool of clauses, because synthesis is the slow part: a clause is spoken once for each
voice, in a process that has nothing else in memory, and its audio is the same wherever it stands.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.base.disk import atomic_write
from talker_rl.micro.assemble import BUILD_DIR
from talker_rl.micro.corpus import CODE_SAMPLES, SAMPLE_RATE, Renderer, RenderRequest, _split
from talker_rl.micro.lexicon import (
    CHINESE,
    ENGLISH,
    VOICES,
    Clause,
    random_sentence,
    sentence_text,
)
from talker_rl.micro.noise import stumble
from talker_rl.micro.prompts import prompt_texts
from talker_rl.micro.talker import Example

Key = tuple[str, int, tuple[str, ...]]
"""Voice, rate, words of one piece of speech."""
POOL = 1100
"""Clauses of one language, length and speaker."""
SENTENCES = 40_000
HELD_OUT = 300


def pooled_sentence(rng: random.Random, pool: dict[tuple, list[tuple[str, ...]]], speaker: str) -> list[Clause]:
    """A sentence shaped like ``lexicon.random_sentence``, whose clauses come from a pool that grows to ``POOL``."""
    clauses: list[Clause] = []
    last = ""
    for shape in random_sentence(rng):
        kept = pool.setdefault((shape.lang, len(shape.words), speaker), [])
        while True:
            if len(kept) < POOL:
                vocab = ENGLISH if shape.lang == "en" else CHINESE
                words = tuple(rng.choice(vocab) for _ in shape.words)
                if any(a == b for a, b in zip(words, words[1:], strict=False)):
                    continue
                kept.append(words)
            words = rng.choice(kept)
            if words[0] != last:
                break
        last = words[-1]
        clauses.append(Clause(shape.lang, words, shape.mark))
    return clauses


def make_sentences(count: int, seed: int, taken: set[str]) -> list[tuple[list[Clause], str]]:
    """``count`` distinct (clauses, speaker), none of them in ``taken`` or in a prompt set; ``taken`` grows."""
    rng = random.Random(seed)
    pool: dict[tuple, list[tuple[str, ...]]] = {}
    names = sorted(VOICES)
    rows: list[tuple[list[Clause], str]] = []
    while len(rows) < count:
        speaker = names[len(rows) % len(names)]
        clauses = pooled_sentence(rng, pool, speaker)
        text = sentence_text(clauses)
        if text not in taken and text not in prompt_texts():
            taken.add(text)
            rows.append((clauses, speaker))
    return rows


def piece_keys(request: RenderRequest) -> list[Key]:
    """The pieces of speech that a request of one of the two speakers needs."""
    voice = VOICES[request.speaker]
    by_lang = {"en": (voice.en, voice.rate), "zh": (voice.zh, voice.zh_rate)}
    return [(*by_lang[lang], words) for lang, words, _ in _split(request)]


class PieceBank:
    """Synthesized pieces, appended to one file; stands in for ``Espeak`` in a :class:`Renderer`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._espeak: Any = None
        self._index: dict[Key, tuple[int, int, int]] = {}
        """Key -> (offset of the onsets, words, samples)."""
        self._scan()

    def _scan(self) -> None:
        self._index.clear()
        self._data = self.path.read_bytes() if self.path.exists() else b""
        at = 0
        while at < len(self._data):
            try:
                head, samples = struct.unpack_from("<ii", self._data, at)
                voice, rate, words = json.loads(self._data[at + 8 : at + 8 + head])
            except (struct.error, ValueError):
                break  # a writer that was killed; what follows is spoken again
            start = at + 8 + head
            if start + 8 * len(words) + 2 * samples > len(self._data):
                break
            self._index[voice, rate, tuple(words)] = (start, len(words), samples)
            at = start + 8 * len(words) + 2 * samples
        self._good = at

    def add(self, keys: set[Key]) -> None:
        """Speak the pieces that are missing, in a fresh process."""
        missing = sorted(keys - self._index.keys())
        if not missing:
            return
        if self._good < len(self._data):
            os.truncate(self.path, self._good)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        code = "import sys; from talker_rl.micro.espeak_pieces import main; main(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.path)], input=json.dumps(missing), text=True, env=environment
        )
        if done.returncode != 0:
            raise RuntimeError(f"speaking {len(missing)} clauses failed (exit {done.returncode})")
        self._scan()

    def say(self, voice: str, rate: int, words: tuple[str, ...]):
        """As ``Espeak.say``; the few words that calibrate a voice's level are spoken here."""
        from talker_rl.micro.espeak import Espeak, Speech

        if (voice, rate, words) not in self._index:
            self._espeak = self._espeak or Espeak()
            return self._espeak.say(voice, rate, words)
        start, count, samples = self._index[voice, rate, words]
        onsets = list(struct.unpack_from(f"<{count}d", self._data, start))
        return Speech(np.frombuffer(self._data, np.int16, samples, start + 8 * count), onsets)


def encode_requests(
    requests: list[RenderRequest], bank: PieceBank, encode: Callable[[np.ndarray], list[int]], grid: int = CODE_SAMPLES
) -> list[list[int]]:
    """Codes of each request."""
    bank.add({key for r in requests for key in piece_keys(r)})
    renderer = Renderer(bank, grid)
    codes, began = [], time.time()
    for i, request in enumerate(requests):
        audio = renderer.render(request).audio
        # Quantized as files and other rooms' renderings are.
        audio = (np.clip(audio, -1, 1) * 32767).round().astype(np.int16).astype(np.float32) / 32768
        codes.append(encode(audio))
        renderer._pieces.clear()
        if i % 2000 == 1999:
            print(f"codes {i + 1}/{len(requests)} {time.time() - began:.0f} s", flush=True)
    return codes


def word_starts(requests: list[RenderRequest], bank: PieceBank, grid: int = CODE_SAMPLES) -> list[list[int]]:
    """The code (of several books: the frame) at which each spoken word begins."""
    renderer = Renderer(bank, grid)
    starts = []
    for request in requests:
        starts.append([int(w.start * SAMPLE_RATE / grid) for w in renderer.render(request).words])
        renderer._pieces.clear()
    return starts


def data_path(build: Path, which: str) -> Path:
    return build / "talker_data" / f"{which}.jsonl"


def load_examples(build: Path, which: str) -> list[Example]:
    """``clean``, ``noisy`` or ``held_out`` examples; made first if the file is not there."""
    path = data_path(build, which)
    if not path.exists():
        make_data(build)
    return [Example(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, rows: list[Example]) -> None:
    atomic_write(path, "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in rows))


PARTS = ("clean", "held_out", "noisy")


def make_data(
    build: Path = BUILD_DIR,
    seed: int = 1,
    sentences: int = SENTENCES,
    only_speak: bool = False,
    parts: Sequence[str] = PARTS,
    encode: Callable[[np.ndarray], list[int]] | None = None,
    grid: int = CODE_SAMPLES,
    groups: int = 1,
) -> None:
    """Write clean, held-out and noisy examples. ``only_speak`` fills the piece bank (it needs no codec).

    Args:
        encode: codes of 24 kHz audio; None is the build's own codec's, of one book.
        grid, groups: samples of a frame, and its codes.
    """
    taken: set[str] = set()
    train = make_sentences(sentences, seed, taken)
    held_out: list[tuple[list[Clause], str]] = []
    rng = random.Random(seed + 1)
    names = sorted(VOICES)
    while len(held_out) < HELD_OUT:  # not from the pool: its clauses are new too
        clauses = random_sentence(rng)
        if (text := sentence_text(clauses)) not in taken and text not in prompt_texts():
            taken.add(text)
            held_out.append((clauses, names[len(held_out) % 2]))
    noise = random.Random(seed + 2)
    spoken = [stumble(clauses, speaker, noise) for clauses, speaker in train]
    clean = [RenderRequest(clauses, speaker) for clauses, speaker in train]
    fresh = [RenderRequest(clauses, speaker) for clauses, speaker in held_out]
    bank = PieceBank(build / "talker_data" / "pieces.bin")
    if only_speak:
        for requests in (clean, fresh, [s.request for s in spoken]):
            keys = {key for r in requests for key in piece_keys(r)}
            print(f"{len(keys)} pieces", flush=True)
            bank.add(keys)
        return
    if encode is None:
        from talker_rl.micro.codec import Codec

        encode = Codec.load(build / "codec.safetensors").encode
    for which, requests, rows in (("clean", clean, train), ("held_out", fresh, held_out)):
        if which in parts and not data_path(build, which).exists():
            codes = encode_requests(requests, bank, encode, grid)
            starts = word_starts(requests, bank, grid)
            spoken_words = [[w for clause in c for w in clause.words] for c, _ in rows]
            examples = [
                Example(sentence_text(c), s, k, w, at)
                for (c, s), k, w, at in zip(rows, codes, spoken_words, starts, strict=True)
            ]
            _write(data_path(build, which), examples)
    if "noisy" in parts and not data_path(build, "noisy").exists():
        codes = encode_requests([s.request for s in spoken], bank, encode, grid)
        starts = word_starts([s.request for s in spoken], bank, grid)
        examples = []
        for (clauses, speaker), s, k, at in zip(train, spoken, codes, starts, strict=True):
            cut = round(s.cut_seconds * SAMPLE_RATE / grid) * groups
            said = [w for clause in s.request.clauses for w in clause.words]
            examples.append(Example(sentence_text(clauses), speaker, k[: len(k) - cut], said, at))
        _write(data_path(build, "noisy"), examples)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    make_data(only_speak="speak" in arguments, parts=[p for p in PARTS if p in arguments] or PARTS)
