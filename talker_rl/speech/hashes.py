"""Content hashes of tensors, and which sequences may share a prefix."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from talker_rl.speech.protocol import TalkerSequence


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


def by_conditioning(sequences: Sequence[TalkerSequence]) -> list[list[int]]:
    """Indices of the sequences of each prompt, in order of first appearance. A prompt is its id and its content: two
    conditionings of one id with other numbers are two, and objects do not count."""
    groups: list[list[int]] = []
    of_id: dict[str, list[list[int]]] = {}
    for i, sequence in enumerate(sequences):
        spoken = sequence.conditioning
        known = of_id.setdefault(spoken.prompt_id, [])
        for group in known:
            other = sequences[group[0]].conditioning
            if spoken is other or conditioning_hash(spoken) == conditioning_hash(other):
                group.append(i)
                break
        else:
            known.append([i])
            groups.append(known[-1])
    return groups
