"""Writing files of the micro world so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: str | Path) -> None:
    """safetensors, through a temporary name and an atomic rename."""
    temporary = _temporary(path)
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # views of one tensor are refused
    save_file(whole, str(temporary), metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes private files
    os.replace(temporary, path)


def save_torch(value: Any, path: str | Path) -> None:
    """torch.save of plain tensors and numbers, atomically; loads with weights_only=True."""
    temporary = _temporary(path)
    torch.save(value, temporary)
    os.replace(temporary, path)


def save_json(value: Any, path: str | Path) -> None:
    temporary = _temporary(path)
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def _temporary(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
