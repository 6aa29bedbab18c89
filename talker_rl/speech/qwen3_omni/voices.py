"""Voices of one's own for Qwen3-Omni: rows of the Talker's codec embedding, in a file beside the checkpoint.

A voice is a row at an id that nothing else uses. A new one is mixed of old ones (``speaker add --cond-from``), and
speaks like them until the Talker is trained on it (stages/3-speakers). The checkpoint is not written to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.findings import Finding
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.speaker_mix import mix_of

ROWS = "talker.model.codec_embedding.weight"
FILE = "voices.safetensors"
FROM_THE_END = 72
"""New rows lie from so many before the vocabulary's end on: at 3000 of the published 3072, where others put theirs."""
SAME = 0.9999
"""Cosine of two rows above which they are one to the Talker."""


@dataclass(frozen=True)
class Voice:
    """A speaker's row and its values."""

    row: int
    values: torch.Tensor
    """(H,) float32."""


def read_voices(file: Path, config: Any) -> dict[str, Voice]:
    """The voices that a file adds to a checkpoint.

    Raises:
        CheckpointError: it is no such file, of a Talker of another width, or a row is not finite, is no row for voices,
            or is another speaker's.
    """
    from safetensors import SafetensorError, safe_open

    from talker_rl.speech.qwen3_omni.checkpoint import speaker_rows

    try:
        with safe_open(str(file), framework="pt") as reader:
            places = json.loads((reader.metadata() or {})["voices"])
            values = reader.get_tensor("rows").float()
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"this is no file of voices ({error})", where=str(file),
                              fix="give one that `talker-rl speaker add` wrote") from error
    if not isinstance(places, dict) or not all(type(row) is int for row in places.values()):
        raise CheckpointError("this is no file of voices (its rows are no numbers by name)", where=str(file),
                              fix="give one that `talker-rl speaker add` wrote")
    if values.shape != (len(places), config.talker_config.text_config.hidden_size):
        raise CheckpointError(f"these voices are of another Talker: {len(places)} of shape {tuple(values.shape)[1:]}",
                              where=str(file), fix="add the speaker to this model")
    own, room = speaker_rows(config), _rows_for_voices(config)
    for (name, row), value in zip(places.items(), values, strict=True):
        others = [other for other, at in (own | places).items() if at == row and other != name]
        fault = (f"is on row {row}, which is none for voices" if row not in room else
                 f"is on row {row}, as {others[0]} is" if others else
                 f"has the name of the checkpoint's own on row {own[name]}" if own.get(name, row) != row else
                 "has values that are not finite" if not bool(torch.isfinite(value).all()) else None)
        if fault:
            raise CheckpointError(f"the voice {name} {fault}", where=str(file),
                                  fix="these voices are of another model: add the speaker to this one")
    return {name: Voice(row, one) for (name, row), one in zip(places.items(), values, strict=True)}


def write_voices(voices: Mapping[str, Voice], file: Path) -> None:
    """Write them; the file appears whole or not at all."""
    from safetensors.torch import save_file

    from talker_rl.base.disk import replacing

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({"rows": torch.stack([voice.values for voice in voices.values()])}, str(temporary),
                  metadata={"voices": json.dumps({name: voice.row for name, voice in voices.items()})})


@dataclass
class NewSpeaker:
    """A voice that is to be added (:class:`talker_rl.speech.protocol.NewSpeaker`)."""

    settings: ModelConfig
    name: str
    old: dict[str, Voice]
    """The checkpoint's, and those that were added before."""
    added: dict[str, Voice]
    """Those that were added before, and the new one."""

    @classmethod
    def of(cls, settings: ModelConfig, options: argparse.Namespace) -> NewSpeaker:
        """The speaker that the verb's options ask for.

        Raises:
            ConfigError: an option does not fit.
        """
        from talker_rl.speech.files import open_tensors, shards_of
        from talker_rl.speech.locate import resolve_model_path
        from talker_rl.speech.qwen3_omni.checkpoint import speaker_rows
        from talker_rl.speech.qwen3_omni.config_json import read_config

        for option in ("wav", "ref_mel", "cond", "bos_token", "bos_from"):
            if getattr(options, option, None) is not None:
                raise ConfigError("a voice of this family is a row of the Talker, mixed of old ones and then trained",
                                  where=f"--{option.replace('_', '-')}", fix="give --cond-from SPEAKER[:WEIGHT] alone")
        if not options.cond_from:
            raise ConfigError("Whose voice does it begin with?", where="--cond-from", fix="name one speaker, or a mix")
        folder = resolve_model_path(settings.path)
        config = read_config(folder)
        before = read_voices(Path(settings.speakers).expanduser(), config) if settings.speakers else {}
        with open_tensors(shards_of(folder, ROWS), ROWS) as found:
            table = found[""][...].float()
        old = {name: Voice(row, table[row]) for name, row in speaker_rows(config).items()} | before
        if options.name in old:
            raise ConfigError(f"There is a speaker {options.name!r} already", where="--name", fix="choose another name")
        if options.name != (spelled := options.name[:1].upper() + options.name[1:].lower()):
            raise ConfigError("The checkpoint's config.json keeps names in small letters, and they are told so",
                              where="--name", fix=f"write {spelled}")
        row = _free_row(config, {voice.row for voice in old.values()})
        return cls(settings, options.name, old, before | {options.name: Voice(row, _mixed(old, options.cond_from))})

    @property
    def trained(self) -> bool:
        """Whether the Talker must be trained on it before it speaks like it."""
        return True

    @property
    def names(self) -> list[str]:
        """All speakers, the new one among them."""
        return sorted([*self.old, self.name])

    def lenders(self, options: argparse.Namespace) -> list[str]:
        """Old speakers that lend a part of the voice, in the order of the options."""
        found = [part if part in self.old else part.rpartition(":")[0] for part in options.cond_from or ()]
        return [name for name in found if name in self.old]

    def look(self) -> Iterator[Finding]:
        """Findings on the row."""
        new = self.added[self.name]
        norms = sorted(float(voice.values.norm()) for voice in self.old.values())
        alike = {name: float(torch.cosine_similarity(new.values, voice.values, dim=0))
                 for name, voice in self.old.items()}
        nearest = max(alike, key=lambda name: alike[name])
        norm = float(new.values.norm())
        usual = 0.5 * norms[0] <= norm <= 2 * norms[-1]
        yield ("ok" if usual else "warn"), (
            f"row {new.row} of the codec embedding: norm {norm:.2f}, the model's own {norms[0]:.2f} to {norms[-1]:.2f};"
            f" nearest is {nearest} (cosine {alike[nearest]:.2f}), whom it speaks like until it is trained")
        if alike[nearest] > SAME:
            yield "warn", (f"the Talker cannot tell {self.name} from {nearest}: an adapter leaves rows as they are, so "
                           "what is trained for one changes the other; mix of two or more, or train full weights")

    def decoder(self) -> Any:
        """The loaded decoder, which knows the new speaker as well."""
        from talker_rl.speech.qwen3_omni.checkpoint import load_qwen3
        from talker_rl.speech.qwen3_omni.generator import Qwen3Generator

        model = load_qwen3(self.settings, ("code2wav",))
        model.voices = self.added
        return Qwen3Generator(model)

    def likeness(self, decoder: Any, sounds: Sequence[np.ndarray]) -> Iterator[Finding]:
        """Findings on whose voice the sounds have."""
        yield "ok", "likeness: decoding knows no speakers, who speaks is in the codes"

    def save(self, out: Path) -> str:
        """Write all added speakers there; returns the setting that uses them."""
        write_voices(self.added, out)
        return f"model.speakers={out}"


def check_target(out: Path, folder: Path, overwrite: bool) -> None:
    """Refuse, before any work, what must not be written.

    Raises:
        ConfigError: it lies in the checkpoint, is there already, or is no .safetensors file.
        StageError: nothing can be written there.
    """
    from talker_rl.base.places import check_writable_file

    if out.suffix != ".safetensors":
        raise ConfigError("Voices of this family are written to a .safetensors file", where=str(out),
                          fix="-o voices.safetensors, used with model.speakers=voices.safetensors")
    check_writable_file(out)
    if folder.resolve() in out.resolve().parents:
        raise ConfigError("The new speaker would be written into the checkpoint itself", where=str(out),
                          fix="give a file elsewhere")
    if out.exists() and not overwrite:
        raise ConfigError("This is there already", where=str(out), fix="name another, or add --overwrite")


def _rows_for_voices(config: Any) -> list[int]:
    """Rows at the vocabulary's end that are no mark."""
    talker = config.talker_config
    marks = {value for name, value in vars(talker).items() if name.startswith("codec_") and isinstance(value, int)}
    size = talker.text_config.vocab_size
    return [row for row in range(max(0, size - FROM_THE_END), size) if row not in marks]


def _free_row(config: Any, taken: set[int]) -> int:
    for row in _rows_for_voices(config):
        if row not in taken:
            return row
    raise ConfigError("No row of the codec embedding is free", where="speaker add", fix="start from fewer speakers")


def _mixed(old: Mapping[str, Voice], parts: Sequence[str]) -> torch.Tensor:
    """The weighted mean of old speakers' rows."""
    weights = mix_of(old, parts)
    return torch.stack([old[name].values * weight for name, weight in weights.items()]).sum(0)
