"""Qwen2.5-Omni as a family (:class:`talker_rl.speech.family.Family`): what is asked before, or without, loading it.

Imports no torch until something is asked that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.qwen2_5_omni.codec import CODEC as CODEC

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from talker_rl.base.findings import Finding
    from talker_rl.speech.exporting import Exporter
    from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
    from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator
    from talker_rl.speech.qwen2_5_omni.new_speaker import NewSpeaker
    from talker_rl.speech.shapes import Geometry
    from talker_rl.speech.usage import Usage

NAME, TITLE = "qwen2_5_omni", "Qwen2.5-Omni"
PARTS = {"conditioner": "thinker", "talker": "talker", "decoder": "token2wav"}
"""The house's name of a part -> Qwen2.5-Omni's."""


def part_named(part: str) -> str:
    """Qwen2.5-Omni's name of a part; ConfigError where there is no such part."""
    if part not in PARTS:
        raise ConfigError(f"There is no part {part!r} of a speech generator", where="parts",
                          fix=f"any of {', '.join(PARTS)}")
    return PARTS[part]


def load(settings: ModelConfig, parts: Sequence[str] = tuple(PARTS), *, tokenizer: bool | None = None) -> OmniGenerator:
    """The asked parts, frozen and in eval mode.

    Args:
        parts: any of ``conditioner``, ``talker``, ``decoder``; only their tensors are read.
        tokenizer: whether to load the tokenizer; by default with the conditioner.

    Raises:
        CheckpointError: a missing, unreadable or misfitting file, named.
    """
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator

    return OmniGenerator(load_omni(settings, [part_named(part) for part in parts], tokenizer=tokenizer))


def conditioning(
    prompt_id: str, speaker: str, reply_text: str, tensors: Mapping[str, Tensor], codec: str = CODEC.name
) -> Conditioning:
    """The conditioning of one prompt from its stored tensors; KeyError where one is missing."""
    from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning

    return Conditioning(prompt_id, tensors["prefix"], tensors["reply_stream"], speaker, reply_text,
                        tensors.get("position_ids"))


def identity(settings: ModelConfig, part: str) -> str:
    """Hash of the files that a part depends on (the small ones, its own shards, what the settings put in their place);
    shards of other parts alone are not opened.

    Raises:
        CheckpointError: the model or a file of it is not there.
    """
    from talker_rl.speech.qwen2_5_omni.checkpoint import part_hash

    return part_hash(settings, part_named(part))


def files_identity(settings: ModelConfig, *parts: str) -> str:
    """Content hash of the checkpoint's own files that these parts are read from, whatever the settings put in their
    place."""
    from talker_rl.speech.files import content_hash

    return content_hash(resolve_model_path(settings.path), [part_named(part) for part in parts])


def speakers(settings: ModelConfig) -> list[str]:
    """Names of the speakers, sorted, without loading anything else."""
    from talker_rl.speech.qwen2_5_omni.checkpoint import speakers_of

    return sorted(speakers_of(settings))


def encoder(settings: ModelConfig, path: str | None) -> NoReturn:
    """What gives codes of recordings."""
    raise ConfigError("no encoder of Qwen2.5-Omni's codec was released", where="talker-rl encode",
                      fix="imitate the model's own best samples: train.data: best_of_n")


def check_adapter(settings: ModelConfig, folder: Path) -> None:
    """Whether an adapter is whole and of this model's Talker; no weights of the model are read.

    Raises:
        CheckpointError: it is not.
    """
    from talker_rl.speech.qwen2_5_omni.adapters import check_adapter_of
    from talker_rl.speech.qwen2_5_omni.config_json import read_config

    check_adapter_of(read_config(resolve_model_path(settings.path)), folder)


def check_lora(settings: ModelConfig, lora: LoraSettings) -> None:
    """Whether a new adapter of these settings fits this model's Talker; no weights are read.

    Raises:
        ConfigError: ``target_modules`` is no regular expression, or names what cannot be trained.
    """
    from talker_rl.speech.qwen2_5_omni.adapters import check_lora_of
    from talker_rl.speech.qwen2_5_omni.config_json import read_config

    check_lora_of(read_config(resolve_model_path(settings.path)), lora)


def own_speakers(settings: ModelConfig) -> list[str]:
    """Names of the speakers of the checkpoint itself, whatever ``settings.speakers`` adds."""
    return speakers(settings.model_copy(update={"speakers": None}))


def speaker_rows(settings: ModelConfig) -> list[dict[str, Any]]:
    """What ``speaker list`` shows of each speaker."""
    from talker_rl.speech.qwen2_5_omni.new_speaker import speaker_rows as rows

    return rows(settings)


def check_speakers_target(settings: ModelConfig, out: Path, overwrite: bool) -> None:
    """Refuse, before any work, a place where no speakers may be written.

    Raises:
        ConfigError, StageError: it lies in the checkpoint, is there already, or cannot be written.
    """
    from talker_rl.speech.qwen2_5_omni.speaker_store import check_target

    check_target(out, resolve_model_path(settings.path), overwrite)


def new_speaker(settings: ModelConfig, options: argparse.Namespace) -> NewSpeaker:
    """The speaker that the options of ``speaker add`` ask for.

    Raises:
        ConfigError, DataError: an option does not fit, a file holds no such thing.
    """
    from talker_rl.speech.qwen2_5_omni.new_speaker import NewSpeaker

    return NewSpeaker.of(settings, options)


def read_geometry(name: str) -> Geometry:
    """Shapes of a model: as :func:`talker_rl.speech.registry.read_geometry`."""
    from talker_rl.speech.qwen2_5_omni import shapes

    return shapes.read_geometry(name)


def check_model(folder: Path) -> Iterator[Finding]:
    """What can be said of a checkpoint's folder without reading its weights."""
    from talker_rl.speech.qwen2_5_omni import model_check

    return model_check.check_model(folder)


def check_loading(settings: ModelConfig, *, load: bool) -> Iterator[Finding]:
    """Whether the weights can be loaded: by loading them, or by what can be seen without."""
    from talker_rl.speech.qwen2_5_omni import model_check

    return model_check.check_loading(settings, load=load)


def speaking_code(usage: Usage, *, adapter: bool) -> str:
    """A model card's code: speaking without this package."""
    from talker_rl.speech.qwen2_5_omni import speaking_code

    return speaking_code.speaking_code(usage, adapter=adapter)


def exporter() -> Exporter:
    """What puts a trained Talker back into its checkpoint."""
    from talker_rl.speech.qwen2_5_omni.merge import MERGE

    return MERGE
