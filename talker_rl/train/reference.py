"""Per-token log-probs of the reference, computed once and cached on disk by content.

The key of a sequence is a hash of everything its log-probs depend on: the weights themselves (not the name of a
checkpoint), the adapter if the reference has one, precision, the conditioning's numbers, and the codes. So a stale
entry cannot be found: change any of these and the key is another. A file is named by its content, so that a damaged one
is known by its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from talker_rl.base.disk import atomic_write
from talker_rl.base.errors import TrainingError
from talker_rl.base.ids import stable_hash
from talker_rl.base.lazy import Lazy
from talker_rl.records.pair import Completion, Pair
from talker_rl.speech.hashes import conditioning_hash
from talker_rl.speech.protocol import Policy, TalkerSequence
from talker_rl.train import processes

_FORMAT = 1
"""Raised whenever the meaning of a stored number changes."""

CHUNK = 256
"""Sequences a file: what an interrupted run loses at most."""


class ReferenceCache:
    """Log-probs by content key, in safetensors files of up to `CHUNK` sequences.

    Args:
        folder: made when the first file is written.
        policy: `Policy.reference_identity`.
        precision: what the forward pass computes in, e.g. "torch.float32" or "autocast-bfloat16".
    """

    def __init__(self, folder: str | Path, policy: str, precision: str) -> None:
        self.name = stable_hash("reference", _FORMAT, policy, precision)[:24]
        self.folder = Path(folder) / self.name
        self._file_of: dict[str, Path] = {}
        self._opened = lru_cache(maxsize=32)(_tensors)
        self.read()

    def read(self) -> None:
        """Take in what lies in the folder, of other processes too."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                blob = path.read_bytes()
                if len(path.stem) == len(_name(b"")) and path.stem != _name(blob):  # (older ones have shorter names)
                    raise OSError("its content is not what was written")
                self._file_of.update(dict.fromkeys(load(blob), path))
            except (SafetensorError, OSError) as error:
                warnings.warn(f"{path} cannot be used ({error}): its log-probs are computed again", stacklevel=2)
                path.unlink(missing_ok=True)

    def key(self, conditioning_key: str, codes: Sequence[int]) -> str:
        """Content key of a sequence under this policy and precision."""
        return stable_hash(self.name, conditioning_key, list(codes))[:40]

    def __getitem__(self, key: str) -> Tensor:
        """(steps,) float32."""
        return self._opened(self._file_of[key])[key]

    def __contains__(self, key: str) -> bool:
        return key in self._file_of

    def add(self, entries: Mapping[str, Tensor]) -> None:
        """Store entries in a file that appears whole or not at all."""
        blob = save({key: value.contiguous() for key, value in entries.items()})
        file = self.folder / f"{_name(blob)}.safetensors"
        atomic_write(file, blob)
        self._file_of.update(dict.fromkeys(entries, file))

    def __len__(self) -> int:
        return len(self._file_of)


def _tensors(file: Path) -> dict[str, Tensor]:
    return load(file.read_bytes())


def _name(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()[:32]


def reference_logps(
    policy: Policy,
    records: Sequence[Pair | Completion],
    conditionings: Mapping[str, Any],
    cache_dir: str | Path,
    *,
    bf16: bool = False,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Sequence[tuple[Tensor, ...]], dict[str, int]]:
    """Reference log-probs of each side of each record. Where several processes train, each computes some whole batches:
    the batches are the same ones, whatever the number of processes.

    Args:
        policy: as training begins.
        records, conditionings: what to score, conditionings by prompt id.
        cache_dir: where results are kept; any number of references may share it.
        bf16: compute under bfloat16 autocast, as the policy will, so that both agree at the first step.
        batch_size: sequences a forward pass.
        on_progress: called with (done, total) sequences that this process had to compute.

    Returns: per record a (steps,) float32 on the CPU for each of its ``sides``, read from the cache when it is looked
        at; and counts {"hit", "computed"}.
    """
    precision = "autocast-bfloat16" if bf16 else str(next(policy.module.parameters()).dtype)
    cache = ReferenceCache(cache_dir, policy.reference_identity(), precision)
    condition_key = {p: conditioning_hash(conditionings[p]) for p in {record.prompt_id for record in records}}
    sides = len(records[0].sides) if records else 0
    keys = np.empty((len(records), sides), dtype="S40")  # of what grows with the records, this alone is held
    for i, record in enumerate(records):
        keys[i] = [cache.key(condition_key[record.prompt_id], speech.ids) for speech in record.sides]
    unique, first = np.unique(keys, return_index=True)
    # What is missing is the main process's word: a later one may find what others have already stored of their share.
    missing = processes.on_main(lambda: [key for key in map(bytes.decode, unique) if key not in cache])

    def wanted(key: str) -> TalkerSequence:
        at, side = divmod(int(first[np.searchsorted(unique, key.encode())]), sides)
        record = records[at]
        return TalkerSequence(conditionings[record.prompt_id], record.sides[side])

    # Sequences of a prompt side by side share its prefix; the hashes make the batches reproducible.
    missing.sort(key=lambda key: (condition_key[wanted(key).conditioning.prompt_id], key))
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    batches = [(i, chunk[at : at + batch_size]) for i, chunk in enumerate(chunks)
               for at in range(0, len(chunk), batch_size)]
    mine = batches[processes.part(len(batches), processes.count(), processes.index())]
    done, total = 0, sum(len(batch_keys) for _, batch_keys in mine)
    with as_reference(policy, bf16):
        for _, chunk_batches in itertools.groupby(mine, key=lambda batch: batch[0]):
            entries: dict[str, Tensor] = {}
            for _, batch_keys in chunk_batches:
                sequences = [wanted(key) for key in batch_keys]
                logps = policy.logps(policy.collate(sequences)).float().cpu()
                for key, sequence, row in zip(batch_keys, sequences, logps, strict=True):
                    entries[key] = row[: sequence.speech.steps].clone()
                    if not bool(torch.isfinite(entries[key]).all()):
                        raise TrainingError(
                            "the reference gives a log-prob that is not finite",
                            where=f"prompt {sequence.conditioning.prompt_id}",
                            fix="check the checkpoint and the conditioning of this prompt for NaN",
                        )
                done += len(batch_keys)
                if on_progress is not None:
                    on_progress(done, total)
            cache.add(entries)
    if missing and processes.count() > 1:
        processes.wait()
        cache.read()
    found = Lazy(len(records), lambda i: tuple(cache[key.decode()] for key in keys[i]))
    return found, {"hit": len(unique) - len(missing), "computed": len(missing)}


@contextlib.contextmanager
def as_reference(policy: Policy, bf16: bool) -> Iterator[None]:
    """The policy as training began; no dropout, no gradients."""
    module = policy.module
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    with policy.as_reference(), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        try:
            yield
        finally:
            module.train(was_training)
