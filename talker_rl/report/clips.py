"""The speech of pairs: read where the run kept it, decoded again from the codes where it did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import soundfile as sf

from talker_rl.base.errors import TalkerRLError
from talker_rl.base.ids import stable_hash
from talker_rl.base.names import without_paths
from talker_rl.base.seals import is_intact
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import codec_named
from talker_rl.records.rows import from_row
from talker_rl.report.audio import data_uri, file_uri
from talker_rl.report.collect import PairToHear, Run
from talker_rl.report.html import embedded
from talker_rl.report.strip import Strip, Wave, strip_of, wave_of
from talker_rl.reward.config import PauseConfig

T = TypeVar("T")

KEPT = ("opus", "flac")
"""What kept speech ends in (audio.format)."""


def spaced(items: Sequence[T], count: int) -> list[T]:
    """``count`` items at even distances."""
    if count >= len(items):
        return list(items)
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


@dataclass
class Speech:
    """Clips, each once."""

    clips: dict[str, str] = field(default_factory=dict)
    """:func:`key_of` of a candidate -> data URI."""
    strips: dict[Place, Strip] = field(default_factory=dict)
    """:func:`place_of` of a candidate -> its strip: one clip may have been heard in two ways."""
    notes: list[str] = field(default_factory=list)


Place = tuple[str, str, str]


def place_of(run: Run, item: PairToHear, candidate_id: str) -> Place:
    """Where a candidate was judged: arm, round, id."""
    return run.arm, item.stage, candidate_id


def key_of(run: Run, candidate: dict[str, Any]) -> str:
    """What decides how a candidate sounds: the same codes in two arms of a sweep are one clip."""
    model, token2wav, seed = (run.config.get(name) for name in ("model", "token2wav", "seed"))
    return stable_hash(model, token2wav, seed, candidate["prompt_id"], candidate["speaker"], candidate["codes"])[:16]


def speech_of(pairs: Sequence[tuple[Run, PairToHear]], *, audio_format: str, max_bytes: int) -> Speech:
    """Clips of the pairs in their order, until the next pair would not fit.

    Speech that cannot be had (the model is not on this machine, say) is a note on the page and not an error: the page
    has more to show than that.
    """
    speech = Speech()
    decoded = _decode_missing(pairs, speech.notes)
    waves: dict[str, Wave] = {}
    size = 0
    for at, (run, item) in enumerate(pairs):
        new: dict[str, str] = {}
        strips: dict[Place, Strip] = {}
        for candidate in item.candidates.values():
            key, name = key_of(run, candidate), candidate["candidate_id"]
            if key not in waves:
                kept = _kept(run, item, name)
                if kept is not None:
                    new[key], waves[key] = file_uri(kept, audio_format), wave_of(*sf.read(kept, dtype="float32"))
                elif key in decoded:
                    rate = codec_named(candidate.get("codec")).sample_rate
                    new[key], waves[key] = data_uri(decoded[key], rate, audio_format), wave_of(decoded[key], rate)
            if key in waves:
                strips[place_of(run, item, name)] = _strip(run, item, name, waves[key])
        size += sum(map(len, new.values())) + len(embedded([strip.data for strip in strips.values()]).encode())
        if size > max_bytes:
            speech.notes.append(f"Only {at} of {len(pairs)} pairs can be heard: more would make the page too large.")
            break
        speech.clips |= new
        speech.strips |= strips
    return speech


def _strip(run: Run, item: PairToHear, candidate_id: str, wave: Wave) -> Strip:
    pauses = PauseConfig(**run.config.get("reward", {}).get("pauses", {}))
    score = item.scores.get(candidate_id)
    return strip_of(wave, item.pair.text, score.transcript if score else [], score.spans if score else [], pauses)


def _kept(run: Run, item: PairToHear, candidate_id: str) -> Path | None:
    folder = run.path / "audio" / f"{item.stage}scores"
    files = (folder / f"{candidate_id}.{kind}" for kind in KEPT)
    return next((file for file in files if is_intact(file)), None)


def _decode_missing(pairs: Sequence[tuple[Run, PairToHear]], notes: list[str]) -> dict[str, Any]:
    """Decoded speech by key: same codes, same seeds, same sound as what was judged."""
    missing: dict[str, tuple[Run, dict[str, Any]]] = {}
    for run, item in pairs:
        for candidate in item.candidates.values():
            if _kept(run, item, candidate["candidate_id"]) is None:
                missing.setdefault(key_of(run, candidate), (run, candidate))
    found: dict[str, Any] = {}
    for run in {id(run): run for run, _ in missing.values()}.values():
        mine = [(key, candidate) for key, (owner, candidate) in missing.items() if owner is run]
        try:
            found |= _decode(run, mine)
        except TalkerRLError as error:
            told = without_paths(f"{error.what} ({error.where})")  # a page is made to be shared
            notes.append(f"The speech of {run.arm} cannot be decoded here: {told}.")
    return found


def _decode(run: Run, candidates: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    # Drawing needs no torch; only decoding does.
    from talker_rl.base.processes import one_thread
    from talker_rl.speech.candidates import decode_candidates
    from talker_rl.speech.config import ModelConfig, Token2WavConfig
    from talker_rl.speech.registry import load

    cfg = run.config
    records = [from_row(Candidate, {**row, "candidate_id": key}) for key, row in candidates]
    generator = load(ModelConfig(**cfg["model"]), parts=("decoder",))
    with one_thread():
        return decode_candidates(generator, records, Token2WavConfig(**cfg["token2wav"]), cfg["seed"])
