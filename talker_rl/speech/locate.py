"""Where a model lies and where it is put: folders, hub names, devices. Imports no torch until a device is picked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.places import SHIPPED_MODELS, micro_dir
from talker_rl.base.processes import device_name
from talker_rl.speech.other_folders import refuse_other

if TYPE_CHECKING:
    import torch

HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "spk_dict.pt"]


def resolve_model_path(path: str, patterns: Sequence[str] = HUB_PATTERNS) -> Path:
    """``"micro"``, ``"micro-qwen3"`` -> a shipped model; a folder -> itself; ``owner/name`` -> its hub snapshot
    (downloaded).

    Args:
        patterns: the files of a snapshot that are needed.

    Raises:
        CheckpointError: there is none.
    """
    if path in SHIPPED_MODELS:
        folder = micro_dir() / SHIPPED_MODELS[path]
        if not (folder / "config.json").is_file():
            which = "" if path == "micro" else " --family qwen3_omni"
            raise CheckpointError(f"the model {path} is not there", where=str(folder),
                                  fix=f"run `talker-rl micro build{which}`")
        return folder
    if not path.strip():  # pathlib takes it for the working directory
        raise CheckpointError("the model's path is empty", where="model.path",
                              fix='give a folder, "micro" or a hub name owner/name')
    folder = Path(path).expanduser()
    refuse_other(folder)
    if folder.is_dir():
        return folder
    looks_like_hub_name = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_hub_name:
        raise CheckpointError("no such model folder", where=path, fix='give a folder, "micro" or a hub name owner/name')
    return _hub_snapshot(path, tuple(patterns))


@lru_cache
def _hub_snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    """A hub model's files: asked for once per process, since each worker resolves its model for every task."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"neither a folder nor a model that the hub gives: {type(error).__name__}: {error}",
            where=name,
            fix="check the name and the network, or download the model and give its folder",
        ) from error


def pick_device(name: str) -> torch.device:
    """The device of a name, ``auto`` resolved; ConfigError where it is not there."""
    import torch

    name = device_name(name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}", where="model.device", fix="auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is there", where="model.device", fix="use device: cpu or auto")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"there is no device {name!r}: {torch.cuda.device_count()} are there", where="model.device",
                          fix=f"use auto, cuda or cuda:{torch.cuda.device_count() - 1}")
    return device
