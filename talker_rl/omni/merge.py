"""A trained Talker goes back into its checkpoint: the original files, with the changed tensors in their places.

Weights are merged in float32 and rounded to the precision in which the original stores them. A shard that holds a
changed tensor is copied and overwritten at that tensor's bytes, so its header, order and size stay what they were; all
other shards are the original files themselves (hard links), or copies of them.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from talker_rl.errors import CheckpointError
from talker_rl.omni.checkpoint import load_omni
from talker_rl.omni.config import ModelConfig
from talker_rl.omni.files import DTYPES, Span, read_spans, require_file, unreadable, weight_files
from talker_rl.omni.lora import load_lora

ADAPTER = "adapter_model.safetensors"
SPEAKERS = "spk_dict.pt"
_KEPT_SUFFIXES = {".json", ".txt", ".jinja", ".model"}
_KEPT_NAMES = {SPEAKERS, "LICENSE", "NOTICE", "LICENSE.md"}
FLOATS = ("F32", "BF16", "F16")
"""safetensors' words for the precisions that a trained tensor may be stored in."""


@dataclass
class Rounding:
    """What storing the merged weights in the checkpoint's precision costs: sums of squares over changed tensors."""

    update: float = 0.0
    """Of merged (float32) minus original."""
    error: float = 0.0
    """Of stored minus merged (float32)."""
    tensors: int = 0
    dtypes: set[str] = field(default_factory=set)
    """Precisions of the changed tensors, in safetensors' words."""

    @property
    def share(self) -> float:
        """Norm of the rounding error over the norm of the update; 0 where nothing was rounded."""
        return math.sqrt(self.error / self.update) if self.update else 0.0


@dataclass(frozen=True)
class Entry:
    """A file of the written checkpoint."""

    name: str
    how: str
    """``merge`` (a copy with changed tensors), ``keep`` (weights as they are) or ``copy`` (small files)."""
    size: int
    """Bytes."""


def is_adapter(weights: Path) -> bool:
    """Whether a folder of trained weights is a PEFT adapter (else it holds full weights)."""
    return (weights / "adapter_config.json").is_file() or (weights / ADAPTER).is_file()


def changed_tensors(base: Path, weights: Path, model: ModelConfig) -> set[str]:
    """Names, as stored, of the tensors that merging changes; only headers are read.

    Args:
        base: the checkpoint's folder.
        weights: an adapter's folder, or one of full Talker weights.
        model: with ``talker``, weights that replace the checkpoint's before the adapter comes.
    """
    if not is_adapter(weights) or model.talker:
        return {name for file in weight_files(base) for name in _spans(file) if name.startswith("talker.")}
    names = set()
    for key in _spans(require_file(weights, ADAPTER, "the adapter's weights")):
        module = key.removeprefix("base_model.model.")
        inside, lora, _ = module.partition(".lora_")
        names.add(f"talker.{inside}.weight" if lora else f"talker.{module}")
    return names


def base_talker(model: ModelConfig) -> torch.nn.Module:
    """The Talker that is merged into: float32, on the CPU."""
    return load_omni(model.model_copy(update={"dtype": "float32", "device": "cpu"}), parts=("talker",)).talker


def merged_talker(weights: Path, model: ModelConfig) -> torch.nn.Module:
    """The Talker with an adapter merged into it, or with trained full weights: float32, on the CPU.

    Raises:
        CheckpointError: files missing or damaged, an adapter of another geometry, or weights that are not finite.
    """
    if not is_adapter(weights):
        return base_talker(model.model_copy(update={"talker": str(weights)}))
    return merge_adapter(load_lora(base_talker(model), weights), weights)


def merge_adapter(model: Any, weights: Path) -> torch.nn.Module:
    """The Talker inside a PeftModel, with the adapter's update added to its weights.

    Raises:
        CheckpointError: the result is not finite.
    """
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise CheckpointError(f"the adapter cannot be merged: {error}", where=str(weights),
                              fix="choose another checkpoint of the training") from error


def entries(base: Path, changed: set[str]) -> list[Entry]:
    """The files of the checkpoint to be written, weights first.

    Raises:
        CheckpointError: the checkpoint lacks a tensor that is to be changed.
    """
    found, left = [], set(changed)
    for file in weight_files(base):
        mine = left & _spans(file).keys()
        left -= mine
        found.append(Entry(file.name, "merge" if mine else "keep", file.stat().st_size))
    if left:
        raise CheckpointError(f"{len(left)} trained tensors are not in the checkpoint, the first is {min(left)!r}",
                              where=str(base), fix="export onto the model that was trained (--model)")
    shards = {entry.name for entry in found}
    for file in sorted(base.iterdir()):
        if file.is_file() and file.name not in shards and _is_kept(file.name):
            found.append(Entry(file.name, "copy", file.stat().st_size))
    return found


def _is_kept(name: str) -> bool:
    """Configurations, tokenizer, speakers, licence. No code, no pickles, nothing hidden, no card of another model."""
    return name in _KEPT_NAMES or (Path(name).suffix in _KEPT_SUFFIXES and not name.startswith("."))


def left_out(base: Path, written: list[Entry]) -> list[str]:
    """What lies in the checkpoint's folder and is not taken over: code, other formats, folders, its own card."""
    names = {entry.name for entry in written}
    return sorted(f.name + "/" * f.is_dir() for f in base.iterdir()
                  if f.name not in names and not f.name.startswith("."))


def bytes_needed(base: Path, folder: Path, written: list[Entry], link: bool) -> int:
    """Bytes that the checkpoint takes on the disk of an existing folder."""
    linked = link and _same_disk(base, folder)
    return sum(entry.size for entry in written if not (linked and entry.how == "keep"))


def _same_disk(base: Path, folder: Path) -> bool:
    file = weight_files(base)[0].resolve()  # the hub's cache links to its blobs
    return file.stat().st_dev == folder.stat().st_dev


def write_checkpoint(
    base: Path, target: Path, written: list[Entry], changed: set[str], talker: Mapping[str, torch.Tensor],
    *, link: bool = True,
) -> Rounding:
    """Write every entry into the existing, empty folder ``target``.

    Args:
        changed: names, as stored, of the tensors to overwrite.
        talker: the merged Talker's tensors by their name in it, float32.
        link: keep unchanged shards as hard links where the file system allows it.

    Returns: the cost of rounding.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is stored in a precision that is not known.
        OSError: the disk is full.
    """
    rounding = Rounding()
    for entry in written:
        source, copy = (base / entry.name).resolve(), target / entry.name
        if entry.how == "keep" and link:
            try:
                os.link(source, copy)
                continue
            except OSError:  # another file system, or one without hard links: a copy; a full disk is told there
                pass
        shutil.copyfile(source, copy)
        if entry.how == "merge":
            _overwrite(copy, changed, talker, rounding)
    return rounding


def _overwrite(file: Path, changed: set[str], talker: Mapping[str, torch.Tensor], rounding: Rounding) -> None:
    """Put the changed tensors into a safetensors file, each at its own bytes."""
    with open(file, "r+b") as stream:
        for name, span in _spans(file).items():
            if name not in changed:
                continue
            value = talker.get(name.removeprefix("talker."))
            if span.dtype not in FLOATS:
                raise CheckpointError(f"{name} is stored as {span.dtype}", where=str(file),
                                      fix=f"export onto the unquantised checkpoint ({', '.join(FLOATS)})")
            if value is None or list(value.shape) != span.shape:
                raise CheckpointError(f"{name} has shape {span.shape}, the trained one "
                                      f"{None if value is None else list(value.shape)}", where=str(file),
                                      fix="export onto the model that was trained (--model)")
            value, dtype = value.detach().float().contiguous(), DTYPES[span.dtype]
            stream.seek(span.begin)
            held = bytearray(stream.read(span.end - span.begin))
            before = torch.frombuffer(held, dtype=dtype).reshape(span.shape).float()
            stored = value.to(dtype)
            stream.seek(span.begin)
            stream.write(stored.reshape(-1).view(torch.uint8).numpy().data)
            rounding.update += float((value - before).square().sum(dtype=torch.float64))
            rounding.error += float((stored.float() - value).square().sum(dtype=torch.float64))
            rounding.tensors += 1
            rounding.dtypes.add(span.dtype)
        stream.flush()
        os.fsync(stream.fileno())


def _spans(file: Path) -> dict[str, Span]:
    """:func:`read_spans`, or a CheckpointError that names the file."""
    try:
        return read_spans(file)
    except (ValueError, OSError) as error:
        raise unreadable(file, error) from error
