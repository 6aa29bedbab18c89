"""Qwen3-Omni as a family (:class:`talker_rl.speech.family.Family`): what is asked before, or without, loading it.

Imports no torch until something is asked that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.qwen3_omni.codec import CODEC as CODEC

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from talker_rl.base.findings import Finding
    from talker_rl.speech.exporting import Exporter
    from talker_rl.speech.family import Encoder
    from talker_rl.speech.protocol import NewSpeaker
    from talker_rl.speech.qwen3_omni.conditioning import Conditioning
    from talker_rl.speech.qwen3_omni.generator import Qwen3Generator
    from talker_rl.speech.shapes import Geometry
    from talker_rl.speech.usage import Usage

NAME, TITLE = "qwen3_omni", "Qwen3-Omni"
PARTS = {"conditioner": "table", "talker": "talker", "decoder": "code2wav"}
"""The house's name of a part -> Qwen3-Omni's; of the Thinker that is its embedding table."""


def part_named(part: str) -> str:
    """Qwen3-Omni's name of a part; ConfigError where there is no such part."""
    if part not in PARTS:
        raise ConfigError(f"There is no part {part!r} of a speech generator", where="parts",
                          fix=f"any of {', '.join(PARTS)}")
    return PARTS[part]


def load(
    settings: ModelConfig, parts: Sequence[str] = tuple(PARTS), *, tokenizer: bool | None = None
) -> Qwen3Generator:
    """The asked parts, frozen and in eval mode.

    Args:
        parts: any of ``conditioner``, ``talker``, ``decoder``; only their tensors are read.
        tokenizer: whether to load the tokenizer; by default with the conditioner.

    Raises:
        CheckpointError: a missing, unreadable or misfitting file, named.
    """
    from talker_rl.speech.qwen3_omni.checkpoint import load_qwen3
    from talker_rl.speech.qwen3_omni.generator import Qwen3Generator

    return Qwen3Generator(load_qwen3(settings, [part_named(part) for part in parts], tokenizer=tokenizer))


def conditioning(
    prompt_id: str, speaker: str, reply_text: str, tensors: Mapping[str, Tensor], codec: str = CODEC.name
) -> Conditioning:
    """The conditioning of one prompt from its stored tensors; KeyError where one is missing."""
    from talker_rl.speech.qwen3_omni.conditioning import Conditioning

    return Conditioning(prompt_id, tensors["marks"], tensors["user"], tensors["reply"], speaker,
                        int(tensors["speaker_id"]), reply_text, codec, tensors.get("heard"),
                        tensors.get("position_ids"))


def identity(settings: ModelConfig, part: str) -> str:
    """Hash of the files that a part depends on.

    Raises:
        CheckpointError: the model or a file of it is not there.
    """
    from talker_rl.speech.qwen3_omni.checkpoint import part_hash

    return part_hash(settings, part_named(part))


def files_identity(settings: ModelConfig, *parts: str) -> str:
    """Content hash of the checkpoint's own files that these parts are read from, whatever the settings put in their
    place."""
    from talker_rl.speech.files import content_hash
    from talker_rl.speech.qwen3_omni.checkpoint import PARTS as PREFIXES

    return content_hash(resolve_model_path(settings.path),
                        [PREFIXES[part_named(part)].removesuffix(".") for part in parts])


def speakers(settings: ModelConfig) -> list[str]:
    """Names of the speakers, sorted, without loading anything else."""
    return sorted({*own_speakers(settings), *_added(settings)})


def own_speakers(settings: ModelConfig) -> list[str]:
    """Names of the speakers of the checkpoint itself, whatever ``settings.speakers`` adds."""
    from talker_rl.speech.qwen3_omni.checkpoint import speaker_rows as rows

    return sorted(rows(_config(settings)))


def speaker_rows(settings: ModelConfig) -> list[dict[str, Any]]:
    """What ``speaker list`` shows of each speaker."""
    from talker_rl.speech.qwen3_omni.checkpoint import speaker_rows as rows

    own = rows(_config(settings)).items()
    added = ((name, voice.row) for name, voice in _added(settings).items())
    return [{"name": name, "codec_row": row, "from": place} for place, found in (("checkpoint", own), ("file", added))
            for name, row in sorted(found)]


def _added(settings: ModelConfig) -> dict[str, Any]:
    if not settings.speakers:
        return {}
    from talker_rl.speech.qwen3_omni.voices import read_voices

    return dict(read_voices(Path(settings.speakers).expanduser(), _config(settings)))


def check_speakers_target(settings: ModelConfig, out: Path, overwrite: bool) -> None:
    """Refuse, before any work, a place where no speakers may be written.

    Raises:
        ConfigError, StageError: it lies in the checkpoint, is there already, or cannot be written.
    """
    from talker_rl.speech.qwen3_omni.voices import check_target

    check_target(out, resolve_model_path(settings.path), overwrite)


def new_speaker(settings: ModelConfig, options: argparse.Namespace) -> NewSpeaker:
    """The speaker that the options of ``speaker add`` ask for.

    Raises:
        ConfigError: an option does not fit.
    """
    from talker_rl.speech.qwen3_omni.voices import NewSpeaker

    return NewSpeaker.of(settings, options)


def encoder(settings: ModelConfig, path: str | None) -> Encoder:
    """What gives codes of recordings: a Mimi, or a file of books; None is the model's usual one.

    Raises:
        CheckpointError: it is not there, or of another codec.
    """
    from talker_rl.base.places import micro_dir
    from talker_rl.speech.qwen3_omni.encoder import load_encoder
    from talker_rl.speech.registry import codec_of

    if path is None and settings.path == "micro-qwen3":
        path = str(micro_dir() / "qwen3-books.safetensors")
    return load_encoder(settings, codec_of(settings), path)


def check_adapter(settings: ModelConfig, folder: Path) -> None:
    """Whether an adapter is whole and of this model's Talker; no weights of the model are read.

    Raises:
        CheckpointError: it is not.
    """
    from talker_rl.speech.adapter_check import check_adapter_of_class
    from talker_rl.speech.qwen3_omni.checkpoint import part_class

    check_adapter_of_class(part_class("talker")[0], _config(settings).talker_config, folder)


def check_lora(settings: ModelConfig, lora: LoraSettings) -> None:
    """Whether a new adapter of these settings fits this model's Talker; no weights are read.

    Raises:
        ConfigError: ``target_modules`` is no regular expression, or names what cannot be trained.
    """
    import torch

    from talker_rl.speech.adapter_check import on_meta
    from talker_rl.speech.lora import attach_lora
    from talker_rl.speech.qwen3_omni.checkpoint import part_class
    from talker_rl.speech.qwen3_omni.policy import adapted

    with torch.device("meta"):
        talker = on_meta(part_class("talker")[0], _config(settings).talker_config)
        attach_lora(talker, adapted(lora, settings.residual_weight), base_model="")


def read_geometry(name: str) -> Geometry:
    """Shapes of a model: as :func:`talker_rl.speech.registry.read_geometry`."""
    from talker_rl.speech.qwen3_omni import shapes

    return shapes.read_geometry(name)


def check_model(folder: Path) -> Iterator[Finding]:
    """What can be said of a checkpoint's folder without reading its weights."""
    from talker_rl.speech.qwen3_omni import model_check

    return model_check.check_model(folder)


def check_loading(settings: ModelConfig, *, load: bool) -> Iterator[Finding]:
    """Whether the weights can be loaded: by loading them, or by what can be seen without."""
    from talker_rl.speech.qwen3_omni import model_check

    return model_check.check_loading(settings, load=load)


def speaking_code(usage: Usage, *, adapter: bool) -> str:
    """A model card's code: speaking without this package."""
    from talker_rl.speech.qwen3_omni import speaking_code

    return speaking_code.speaking_code(usage, adapter=adapter)


def exporter() -> Exporter:
    """What puts a trained Talker back into its checkpoint."""
    from talker_rl.speech.qwen3_omni.merge import MERGE

    return MERGE


def _config(settings: ModelConfig) -> Any:
    from talker_rl.speech.qwen3_omni.config_json import read_config

    return read_config(resolve_model_path(settings.path))
