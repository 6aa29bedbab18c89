"""Writing files of the micro world so that a reader never sees half of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from talker_rl.base.disk import atomic_write, replacing


def save_tensors(tensors: dict[str, Tensor], path: str | Path) -> None:
    """safetensors, through a temporary name and an atomic rename."""
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # views of one tensor are refused
    with replacing(Path(path)) as temporary:
        save_file(whole, str(temporary), metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes private files


def save_torch(value: Any, path: str | Path) -> None:
    """torch.save of plain tensors and numbers, atomically; loads with weights_only=True."""
    with replacing(Path(path)) as temporary:
        torch.save(value, temporary)


def save_json(value: Any, path: str | Path) -> None:
    atomic_write(Path(path), json.dumps(value, indent=2, ensure_ascii=False) + "\n")
