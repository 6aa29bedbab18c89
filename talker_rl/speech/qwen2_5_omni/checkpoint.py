"""Load a Qwen2.5-Omni checkpoint, or only some of its parts, from the shipped model, a folder or a hub name.

Nothing in a checkpoint folder may run code: weights are safetensors, ``spk_dict.pt`` is read with
``weights_only=True``, classes are named here, ``trust_remote_code`` is False, and a folder that asks for its own
classes is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.ids import stable_hash
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.files import content_hash, open_tensors, shards_of
from talker_rl.speech.locate import pick_device, resolve_model_path
from talker_rl.speech.part_files import PartFiles
from talker_rl.speech.placing import WHERE, place
from talker_rl.speech.quantization import four_bit
from talker_rl.speech.quiet import quiet_transformers
from talker_rl.speech.qwen2_5_omni.config_json import read_config
from talker_rl.speech.qwen2_5_omni.published import stored_name
from talker_rl.speech.qwen2_5_omni.speaker_table import load_speakers
from talker_rl.speech.text_tokenizer import load_tokenizer

PARTS = ("thinker", "talker", "token2wav")

_IGNORED_STORED_KEYS = ("rotary_embed.inv_freq",)
"""Stored by the published checkpoints, recomputed by transformers."""


@dataclass
class Omni:
    """The loaded parts; a part that was not asked for is None."""

    settings: ModelConfig
    path: Path
    """The folder that was read."""
    config: Any
    """transformers' Qwen2_5OmniConfig."""
    speakers: dict[str, dict[str, Any]]
    """name -> ``bos_token`` (text id), ``cond`` (1, 192), ``ref_mel`` (1, frames, 80), on the CPU, float32."""
    device: torch.device
    hashes: dict[str, str] = field(default_factory=dict)
    """Loaded part -> hash of what it was loaded from (:func:`part_hash`)."""
    thinker: Any = None
    talker: Any = None
    token2wav: Any = None
    tokenizer: Any = None
    parts: tuple[str, ...] = field(default_factory=tuple)

    def speaker(self, name: str) -> dict[str, Any]:
        """The speaker's entry; CheckpointError with the known names otherwise."""
        if name not in self.speakers:
            raise CheckpointError(
                f"unknown speaker {name!r}",
                where=self.settings.speakers or str(self.path / "spk_dict.pt"),
                fix=f"use one of: {', '.join(sorted(self.speakers))}",
            )
        return self.speakers[name]

    def hash_of(self, part: str) -> str:
        """Hash of the files that a part depends on, whether it was loaded or not (:func:`part_hash`)."""
        return self.hashes[part] if part in self.hashes else part_hash(self.settings, part)

    def need(self, part: str) -> Any:
        """The part, or an error that says that it was not loaded."""
        module = getattr(self, part)
        if module is None:
            raise ConfigError(f"the {part} was not loaded", fix=f'load_omni(..., parts=(..., "{part}"))')
        return module


def part_hash(model: ModelConfig, part: str) -> str:
    """Hash of what a part (thinker, talker, token2wav) depends on: the small files, its own shards, ``model.speakers``
    and, for the Talker, ``model.talker``. Shards of other parts alone are not opened.

    Raises:
        CheckpointError: the model or a file of it is not there.
    """
    found = content_hash(resolve_model_path(model.path), (part,))
    if model.speakers:
        found = stable_hash("speakers", found, content_hash(Path(model.speakers).expanduser()))
    if model.talker and part == "talker":
        found = stable_hash("model", found, content_hash(Path(model.talker).expanduser()))
    return found


def speakers_of(model: ModelConfig) -> dict[str, dict[str, Any]]:
    """The speakers that a model's settings name, without loading anything else."""
    return load_speakers(resolve_model_path(model.path), other=model.speakers)


def load_omni(model: ModelConfig, parts: Sequence[str] = PARTS, *, tokenizer: bool | None = None) -> Omni:
    """Load the asked parts, frozen and in eval mode.

    Args:
        model: which checkpoint and how.
        parts: any of ``thinker``, ``talker``, ``token2wav``; only their tensors are read.
        tokenizer: whether to load the tokenizer; by default with the Thinker.

    Raises:
        CheckpointError: a missing, unreadable or misfitting file, named.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ConfigError(f"unknown model part {sorted(unknown)[0]!r}", fix=f"use any of {', '.join(PARTS)}")
    if model.residual_weight:
        raise ConfigError("this family says one code a frame, there are no residual ones to weigh",
                          where="model.residual_weight", fix="leave it 0")
    if model.replay_experts:
        raise ConfigError("this family's Talker has no experts", where="model.replay_experts", fix="leave it false")
    folder = resolve_model_path(model.path)
    config = read_config(folder)
    device = pick_device(model.device)
    speakers = load_speakers(folder, config, model.speakers)
    omni = Omni(
        settings=model,
        path=folder,
        config=config,
        speakers=speakers,
        device=device,
        parts=tuple(parts),
    )
    replaced = Path(model.talker).expanduser() if model.talker else None
    if replaced is not None:
        if not replaced.exists():
            raise CheckpointError("no such Talker weights", where=model.talker, fix="give a folder or safetensors file")
    for part in parts:
        omni.hashes[part] = part_hash(model, part)  # before it is read: what is written meanwhile is told later
        module = _load_part(part, folder, config, model, device, replaced if part == "talker" else None)
        setattr(omni, part, module)
    if tokenizer if tokenizer is not None else "thinker" in parts:
        omni.tokenizer = load_tokenizer(folder)
    return omni


def part_class(part: str) -> tuple[type, str]:
    """transformers' class of a part and the attribute of Qwen2_5OmniConfig that configures it."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as qwen

    return {
        "thinker": (qwen.Qwen2_5OmniThinkerForConditionalGeneration, "thinker_config"),
        "talker": (qwen.Qwen2_5OmniTalkerForConditionalGeneration, "talker_config"),
        "token2wav": (qwen.Qwen2_5OmniToken2WavModel, "token2wav_config"),
    }[part]


def _load_part(
    part: str, folder: Path, config: Any, model: ModelConfig, device: torch.device, replaced: Path | None
) -> Any:
    """One part on its device. Its tensors go from disk to the module one by one; no other part's are read."""
    cls, attribute = part_class(part)
    speech = part == "token2wav"
    options: dict[str, Any] = {}
    if part == "thinker" and model.thinker_quantization:
        if model.thinker_device_map is not None:
            raise ConfigError("a 4-bit Thinker lies on one GPU", where=WHERE, fix="leave it null: it needs 8 GiB")
        options = {"quantization_config": four_bit(model, device), "device_map": {"": device}}
    source = replaced or folder
    shards = talker_shards(source) if replaced else shards_of(folder, f"{part}.")
    files = PartFiles(part, source, shards, stored_name)
    with open_tensors(shards) as found, quiet_transformers():
        inside = {name.removeprefix(f"{part}."): x for name, x in found.items() if name.startswith(f"{part}.")}
        state = inside or (found if replaced else {})  # a replacement Talker's names may lack the prefix
        state = {k: v for k, v in state.items() if not k.endswith(_IGNORED_STORED_KEYS)}
        files.check_floats({k: str(v.get_dtype()) for k, v in state.items()})
        module = files.load(
            cls, getattr(config, attribute), state, model,
            dtype=torch.float32 if speech else getattr(torch, model.dtype),
            attn_implementation="sdpa" if speech else model.attn_implementation, **options)
    if not options:
        module = place(module, model.thinker_device_map if part == "thinker" else None, device)
    return module.eval().requires_grad_(False)


def talker_shards(path: Path) -> dict[Path, set[str] | None]:
    """Files of a replacement Talker: a safetensors file or a folder of them, names with or without ``talker.``."""
    return {path: None} if path.is_file() else shards_of(path, "talker.") or shards_of(path)
