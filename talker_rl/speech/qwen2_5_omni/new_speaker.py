"""A speaker of one's own for Qwen2.5-Omni: its entry of spk_dict.pt made, looked at, heard and written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import ConfigError
from talker_rl.base.figures import written
from talker_rl.base.findings import Finding
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.mel import HOP, SAMPLE_RATE, log_mel
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni, speakers_of
from talker_rl.speech.qwen2_5_omni.config_json import read_config
from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator
from talker_rl.speech.qwen2_5_omni.speaker import speaker_embedding
from talker_rl.speech.qwen2_5_omni.speaker_entry import (
    ENOUGH_SECONDS,
    BosChoice,
    Entry,
    Reference,
    choose_bos,
    cond_from_file,
    mixed_cond,
    reference_from_file,
    reference_from_wav,
)
from talker_rl.speech.qwen2_5_omni.speaker_store import save
from talker_rl.speech.text_tokenizer import load_tokenizer


@dataclass
class NewSpeaker:
    """A speaker that is to be added (:class:`talker_rl.speech.protocol.NewSpeaker`)."""

    settings: ModelConfig
    name: str
    speakers: dict[str, Entry]
    """The checkpoint's own, and the new one."""
    reference: Reference
    bos: BosChoice | None
    """None where an old speaker's bos token is shared."""

    @classmethod
    def of(cls, settings: ModelConfig, options: argparse.Namespace) -> NewSpeaker:
        """The speaker that the verb's options ask for.

        Raises:
            ConfigError, DataError: an option does not fit, a file holds no such thing.
        """
        folder, speakers = resolve_model_path(settings.path), speakers_of(settings)
        if options.name in speakers:
            raise ConfigError(f"There is a speaker {options.name!r} already", where="--name", fix="choose another name")
        entry, reference, bos = new_entry(options, folder, speakers)
        return cls(settings, options.name, {**speakers, options.name: entry}, reference, bos)

    @property
    def trained(self) -> bool:
        """Whether the Talker must be trained on it before it speaks like it."""
        return self.bos is not None

    @property
    def names(self) -> list[str]:
        """All speakers, the new one among them."""
        return sorted(self.speakers)

    def lenders(self, options: argparse.Namespace) -> list[str]:
        """Old speakers that lend a part of the voice, in the order of the options."""
        found = [part if part in self.speakers else part.rpartition(":")[0] for part in options.cond_from or ()]
        return [name for name in found if name in self.speakers]

    def look(self) -> Iterator[Finding]:
        """Findings on the entry's shape and numbers."""
        old = {name: entry for name, entry in self.speakers.items() if name != self.name}
        return _shape_findings(self.speakers[self.name], self.reference, self.bos, old)

    def decoder(self) -> OmniGenerator:
        """The loaded decoder, which knows the new speaker as well."""
        omni = load_omni(self.settings, parts=("token2wav",))
        omni.speakers = self.speakers
        return OmniGenerator(omni)

    def likeness(self, decoder: OmniGenerator, sounds: Sequence[np.ndarray]) -> Iterator[Finding]:
        """Findings on whose voice the sounds have."""
        return _likeness(sounds, decoder.omni.need("token2wav"), self.name, self.speakers)

    def save(self, out: Path) -> str:
        """Write all speakers there; returns the setting that uses them."""
        save(self.speakers, out, resolve_model_path(self.settings.path))
        return f"model.speakers={out}" if out.suffix == ".pt" else f"model.path={out}"


def speaker_rows(settings: ModelConfig) -> list[dict[str, Any]]:
    """What ``speaker list`` shows of each speaker."""
    return [
        {"name": name, "bos_token": e["bos_token"], "cond": list(e["cond"].shape), "ref_mel": list(e["ref_mel"].shape),
         "ref_seconds": e["ref_mel"].shape[1] * HOP / SAMPLE_RATE, "cond_norm": round(float(e["cond"].norm()), 3)}
        for name, e in sorted(speakers_of(settings).items())
    ]


def new_entry(
    args: argparse.Namespace, folder: Path, speakers: dict[str, Entry]
) -> tuple[Entry, Reference, BosChoice | None]:
    """The entry that the options ask for; the look of its bos token, where that is not an old speaker's."""
    for options, what in ((("wav", "ref_mel"), "a recording"), (("cond_from", "cond"), "a cond")):
        if not any(getattr(args, option) for option in options):
            names = " or ".join(f"--{option.replace('_', '-')}" for option in options)
            raise ConfigError(f"A speaker needs {what}", where=names, fix="see talker-rl speaker add --help")
    reference = (reference_from_wav(args.wav, list(speakers.values()), args.seconds) if args.wav
                 else reference_from_file(args.ref_mel))
    old = next(iter(speakers.values()))["cond"]
    if args.cond_from:
        cond = mixed_cond(speakers, args.cond_from)
    else:
        cond = old * 0 if args.cond == "zero" else cond_from_file(args.cond, old.shape[1])
    if args.bos_from:
        if args.bos_from not in speakers:
            raise ConfigError(f"Unknown speaker {args.bos_from!r}", where="--bos-from",
                              fix=f"this checkpoint has: {', '.join(sorted(speakers))}")
        shared = speakers[args.bos_from]["bos_token"]
        return {"bos_token": shared, "cond": cond, "ref_mel": reference.mel}, reference, None
    taken = [e["bos_token"] for e in speakers.values()]
    bos = choose_bos(folder, read_config(folder), len(load_tokenizer(folder)), taken, args.bos_token)
    return {"bos_token": bos.token, "cond": cond, "ref_mel": reference.mel}, reference, bos


def _shape_findings(
    entry: Entry, reference: Reference, bos: BosChoice | None, speakers: dict[str, Entry]
) -> Iterator[Finding]:
    mel, cond = entry["ref_mel"], entry["cond"]
    yield ("ok" if reference.seconds >= ENOUGH_SECONDS else "warn"), (
        f"ref_mel {list(mel.shape)}: {reference.seconds:.2f} s of speech"
        + (f", amplified by {written(reference.gain_db, '{:+.1f}')} dB to the level of the model's own"
           if reference.gain_db else "")
        + ("" if reference.seconds >= ENOUGH_SECONDS else f"; {ENOUGH_SECONDS:g} s or more describe a voice better"))
    yield from _range_finding(mel, speakers)
    norms = sorted(float(e["cond"].norm()) for e in speakers.values())
    norm = float(cond.norm())
    usual = 0.5 * norms[0] <= norm <= 2 * norms[-1]
    yield ("ok" if usual else "warn"), (
        f"cond {list(cond.shape)}: norm {norm:.2f}, the model's own {norms[0]:.2f} to {norms[-1]:.2f}"
        + ("" if usual else ": listen to the words"))
    if bos is None:
        yield "ok", f"bos_token {entry['bos_token']}: shared with an old speaker, so there is nothing to train"
    else:
        yield ("warn" if bos.faint else "ok"), (
            f"bos_token {bos.token}: its row is {bos.norm:.2f} times as long as the old speakers', cosine to the "
            f"nearest {bos.nearest:.2f}" + (": the Talker hardly sees it: try another" if bos.faint else ""))


def _range_finding(mel: Any, speakers: dict[str, Entry]) -> Iterator[Finding]:
    lows = [float(e["ref_mel"].min()) for e in speakers.values()]
    highs = [float(e["ref_mel"].max()) for e in speakers.values()]
    low, high = float(mel.min()), float(mel.max())
    strange = low < min(lows) - 3 or high > max(highs) + 3 or high < min(highs) - 3
    yield ("warn" if strange else "ok"), (
        f"ref_mel lies in {low:.1f} .. {high:.1f} nats, the model's own in {min(lows):.1f} .. {max(highs):.1f}"
        + (": is it a natural-log amplitude mel?" if strange else ""))


def _likeness(
    sounds: Sequence[np.ndarray], token2wav: Any, name: str, speakers: dict[str, Entry]
) -> Iterator[Finding]:
    mel = speakers[name]["ref_mel"][0]
    references = {n: speaker_embedding(token2wav, entry["ref_mel"][0]) for n, entry in speakers.items()}
    voices = torch.stack([speaker_embedding(token2wav, log_mel(torch.from_numpy(w))) for w in sounds])

    def cosines(x: torch.Tensor) -> dict[str, float]:
        return {n: float(torch.cosine_similarity(x, r[None]).mean()) for n, r in references.items()}

    half = len(mel) // 2
    itself = float(torch.cosine_similarity(speaker_embedding(token2wav, mel[:half]),
                                           speaker_embedding(token2wav, mel[half:]), dim=0))
    found = cosines(voices)
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
