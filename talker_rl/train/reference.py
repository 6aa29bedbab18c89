"""Per-token log-probs of the reference, computed once and cached on disk by content.

The key of a sequence is a hash of everything its log-probs depend on: the weights themselves (not the name of a
checkpoint), the adapter if the reference has one, precision, the conditioning's numbers, and the codes. So a stale
entry cannot be found: change any of these and the key is another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from talker_rl.base.errors import TrainingError
from talker_rl.base.ids import stable_hash
from talker_rl.records.pair import Pair
from talker_rl.speech.lora import REFERENCE
from talker_rl.speech.lora import reference_logps as reference_adapter
from talker_rl.speech.protocol import TalkerSequence
from talker_rl.speech.qwen2_5_omni.layout import collate, unwrap_talker
from talker_rl.speech.qwen2_5_omni.logps import token_logps

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning

_FORMAT = 1
"""Raised whenever the meaning of a stored number changes."""

CHUNK = 256
"""Sequences a file: what an interrupted run loses at most."""


def tensor_hash(*tensors: Tensor) -> str:
    """Hex digest of dtypes, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.view(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def reference_hash(model: nn.Module) -> str:
    """Hash of the weights that the reference computes with.

    A training that began at the base hashes alike whether LoRA layers are attached or not, since its reference has
    them switched off; one that began at an adapter hashes the frozen copy of it as well.
    """
    inner = unwrap_talker(model)
    parts: dict[str, str] = {}
    for name, tensor in inner.state_dict().items():
        if ".lora_" not in name or f".{REFERENCE}." in name:
            parts[name.replace(".base_layer.", ".")] = tensor_hash(tensor)
    scaling = {n: m.scaling[REFERENCE] for n, m in inner.named_modules() if REFERENCE in getattr(m, "lora_A", ())}
    return stable_hash("policy", _FORMAT, parts, scaling)


def conditioning_hash(conditioning: Conditioning) -> str:
    """Hash of the numbers that the Talker reads."""
    placed = [] if conditioning.position_ids is None else [conditioning.position_ids]
    return tensor_hash(conditioning.prefix, conditioning.reply_stream, *placed)


class ReferenceCache:
    """Log-probs by content key, in safetensors files of up to `CHUNK` sequences.

    Args:
        folder: made when the first file is written.
        policy: `reference_hash` of the model.
        precision: what the forward pass computes in, e.g. "torch.float32" or "autocast-bfloat16".
    """

    def __init__(self, folder: str | Path, policy: str, precision: str) -> None:
        self.name = stable_hash("reference", _FORMAT, policy, precision)[:24]
        self.folder = Path(folder) / self.name
        self._known: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    self._known.update({key: file.get_tensor(key) for key in file.keys()})
            except (SafetensorError, OSError) as error:
                warnings.warn(f"{path} cannot be read ({error}): its log-probs are computed again", stacklevel=2)
                path.unlink()

    def key(self, conditioning_key: str, codes: Sequence[int]) -> str:
        """Content key of a sequence under this policy and precision."""
        return stable_hash(self.name, conditioning_key, list(codes))[:40]

    def get(self, key: str) -> Tensor | None:
        """(len(codes),) float32, or None."""
        return self._known.get(key)

    def add(self, entries: Mapping[str, Tensor]) -> None:
        """Store entries in a file that appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{stable_hash(sorted(entries))[:16]}.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({key: value.contiguous() for key, value in entries.items()}, temporary)
        os.replace(temporary, path)
        self._known.update(entries)

    def __len__(self) -> int:
        return len(self._known)


def reference_logps(
    talker: nn.Module,
    pairs: Sequence[Pair],
    conditionings: Mapping[str, Conditioning],
    cache_dir: str | Path,
    *,
    bf16: bool = False,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, int]]:
    """Reference log-probs of the chosen and the rejected of each pair.

    Args:
        talker: PEFT-wrapped, or bare with the weights that training begins with.
        pairs, conditionings: what to score, conditionings by prompt id.
        cache_dir: where results are kept; any number of references may share it.
        bf16: compute under bfloat16 autocast, as the policy will, so that both agree at the first step.
        batch_size: sequences a forward pass.
        on_progress: called with (done, total) sequences that had to be computed.

    Returns: per pair ((T_chosen,), (T_rejected,)) float32 on the CPU, T_rejected 0 for a completion; and counts
        {"hit", "computed"}.
    """
    precision = "autocast-bfloat16" if bf16 else str(next(talker.parameters()).dtype)
    cache = ReferenceCache(cache_dir, reference_hash(talker), precision)
    condition_key = {p: conditioning_hash(conditionings[p]) for p in {pair.prompt_id for pair in pairs}}
    wanted: dict[str, TalkerSequence] = {}
    keys: list[tuple[str, str]] = []
    for pair in pairs:
        sides = (pair.chosen, pair.rejected)
        key_pair = tuple(cache.key(condition_key[pair.prompt_id], speech.ids) for speech in sides)
        keys.append(key_pair)  # type: ignore[arg-type]
        for key, speech in zip(key_pair, sides, strict=True):
            if speech.steps:  # a completion has no rejected
                wanted.setdefault(key, TalkerSequence(conditionings[pair.prompt_id], speech))
    missing = [key for key in wanted if cache.get(key) is None]
    # Sequences of a prompt side by side share its prefix; the hashes make the batches reproducible.
    missing.sort(key=lambda key: (condition_key[wanted[key].conditioning.prompt_id], key))
    done = 0
    with _as_reference(talker, bf16):
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            entries: dict[str, Tensor] = {}
            for at in range(0, len(chunk), batch_size):
                batch_keys = chunk[at : at + batch_size]
                logps = token_logps(talker, collate([wanted[key] for key in batch_keys])).float().cpu()
                for key, row in zip(batch_keys, logps, strict=True):
                    entries[key] = row[: wanted[key].speech.steps].clone()
                    if not bool(torch.isfinite(entries[key]).all()):
                        raise TrainingError(
                            "the reference gives a log-prob that is not finite",
                            where=f"prompt {wanted[key].conditioning.prompt_id}",
                            fix="check the checkpoint and the conditioning of this prompt for NaN",
                        )
                done += len(batch_keys)
                if on_progress is not None:
                    on_progress(done, len(missing))
            cache.add(entries)
    found = [(cache.get(chosen), cache.get(rejected) if pair.rejected.steps else torch.zeros(0))
             for pair, (chosen, rejected) in zip(pairs, keys, strict=True)]  # fmt: skip
    return found, {"hit": len(wanted) - len(missing), "computed": len(missing)}  # type: ignore[return-value]


@contextlib.contextmanager
def _as_reference(talker: Any, bf16: bool) -> Iterator[None]:
    """The policy as training began: adapter off, or the starting adapter's copy on; no dropout, no gradients."""
    was_training = talker.training
    talker.eval()
    device = next(talker.parameters()).device
    with contextlib.ExitStack() as stack:
        if hasattr(talker, "peft_config"):
            stack.enter_context(reference_adapter(talker))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=bf16))
        try:
            yield
        finally:
            talker.train(was_training)
