"""Content hashes of tensors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def tensor_hash(*tensors: Tensor) -> str:
    """Hex digest of dtypes, shapes and bytes."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.view(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def conditioning_hash(conditioning: Any) -> str:
    """Hash of the numbers that the Talker reads."""
    return tensor_hash(*conditioning.tensors().values())
