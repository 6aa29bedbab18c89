"""``spk_dict.pt``, the speakers of a checkpoint: read as plain tensors, and held against the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError
from talker_rl.speech.files import require_file
from talker_rl.speech.qwen2_5_omni.config_json import read_config


def load_speakers(folder: Path, config: Any = None, other: str | None = None) -> dict[str, dict[str, Any]]:
    """Read ``spk_dict.pt`` and hold it against the model.

    Args:
        folder: the checkpoint's.
        config: its Qwen2_5OmniConfig; by default what `read_config` says.
        other: a file to read in the place of the checkpoint's own (``model.speakers``).

    Returns:
        Speaker -> bos_token (text id), cond (1, enc_emb_dim) and ref_mel (1, frames, mel_dim), finite float32.

    Raises:
        CheckpointError: missing, damaged, or another model's.
    """
    file = Path(other).expanduser() if other else folder / "spk_dict.pt"
    require_file(file.parent, file.name, "the speakers (bos_token, cond, ref_mel)")
    config = config or read_config(folder)
    raw = _read(file)
    if not isinstance(raw, dict) or not raw:
        raise CheckpointError(f"{file.name} holds no speakers", where=str(file), fix="restore the original file")
    speakers: dict[str, dict[str, Any]] = {}
    for name, entry in raw.items():
        problem = speaker_problem(entry, config)
        if problem:
            dit = config.token2wav_config.dit_config
            raise CheckpointError(
                f"{file.name}: speaker {name!r}: {problem}",
                where=str(file),
                fix=f"use this model's own file; needed: bos_token (int), cond [1, {dit.enc_emb_dim}], "
                f"ref_mel [1, frames, {dit.mel_dim}], finite floats",
            )
        speakers[str(name)] = {
            "bos_token": int(entry["bos_token"]),
            "cond": entry["cond"].detach().float(),
            "ref_mel": entry["ref_mel"].detach().float(),
        }
    return speakers


def _read(file: Path) -> Any:
    """What the file holds. torch's own message is not passed on: it advises to let the file run code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats, which the refusal below says better
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here; all mean the same to the user
        raise CheckpointError(
            f"{file.name} cannot be read as plain tensors: it is damaged, or holds more than numbers and tensors",
            where=str(file),
            fix="restore the original file",
        ) from error


def speaker_problem(entry: Any, config: Any) -> str | None:
    """What is wrong with a speaker's entry for a model of this Qwen2_5OmniConfig; None if nothing is."""
    if not isinstance(entry, dict) or {"bos_token", "cond", "ref_mel"} - set(entry):
        return "not a dictionary of bos_token, cond and ref_mel"
    bos, cond, mel = entry["bos_token"], entry["cond"], entry["ref_mel"]
    dit, rows = config.token2wav_config.dit_config, config.thinker_config.text_config.vocab_size
    if not isinstance(bos, int) or isinstance(bos, bool) or not 0 <= bos < rows:
        return f"bos_token {bos!r} is no text id of this model, whose vocabulary has {rows}"
    for key, value in (("cond", cond), ("ref_mel", mel)):
        problem = _not_dense(value)
        if problem:
            return f"{key} {problem}"
    if not (cond.ndim == 2 and cond.shape[0] == 1):
        return f"cond has shape {list(cond.shape)}"
    if cond.shape[1] != dit.enc_emb_dim:
        return f"cond has width {cond.shape[1]}, this model's token2wav takes {dit.enc_emb_dim}"
    if not (mel.ndim == 3 and mel.shape[0] == 1 and mel.shape[1] > 0):
        return f"ref_mel has shape {list(mel.shape)}"
    if mel.shape[2] != dit.mel_dim:
        return f"ref_mel has shape {list(mel.shape)}, this model's mels have {dit.mel_dim} bins"
    if not (torch.isfinite(cond.float()).all() and torch.isfinite(mel.float()).all()):
        return "cond or ref_mel is not finite"
    return None


def _not_dense(value: Any) -> str | None:
    """Why a value is no dense tensor of floats; None if it is one."""
    if not torch.is_tensor(value):
        return f"is of type {type(value).__name__}, not a tensor"
    if value.is_nested or value.layout != torch.strided:
        return "is sparse or nested, not dense"
    if value.is_meta:
        return "has no values (a meta tensor)"
    if not value.is_floating_point():
        return f"is of {str(value.dtype).removeprefix('torch.')}, not of floats"
    return None
