"""A trained Talker goes back into its checkpoint: the original files, with the changed tensors in their places.

Weights are merged in float32 and rounded to the precision in which the original stores them. A shard that holds a
merged tensor is copied and overwritten at that tensor's bytes, so its header, order and size stay what they were; all
other shards are the original files themselves (hard links), or copies of them. Where the merged tensors are to stay
float32, such a shard gets a new header, and the index another total size.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError
from talker_rl.base.figures import count
from talker_rl.base.names import model_name
from talker_rl.speech.adapter_files import PREFIX, adapter_weights, is_adapter
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.exporting import Entry, Rounding
from talker_rl.speech.files import DTYPES, INDEX, Span, read_spans, unreadable, weight_files
from talker_rl.speech.lora import load_lora

_KEPT_SUFFIXES = {".json", ".txt", ".jinja", ".model"}
_KEPT_NAMES = {"LICENSE", "NOTICE", "LICENSE.md"}
FLOATS = ("F32", "BF16", "F16")
"""safetensors' words for the precisions that a trained tensor may be stored in."""


class Merge:
    """A family's way back into its checkpoint (:class:`talker_rl.speech.exporting.Exporter`).

    Args:
        load: a Talker, from the settings of its model.
        loads_with: what loads the written checkpoint.
        speakers: name of the checkpoint's file of speakers; None: it has none.
        stored: the Talker's tensors as the checkpoint holds them, by their names in it without ``talker.``.
    """

    def __init__(
        self, load: Callable[[ModelConfig], Any], loads_with: str, speakers: str | None = None,
        stored: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict,
    ) -> None:
        self._load, self._stored = load, stored
        self.LOADS_WITH, self._speakers = loads_with, speakers or ""

    def merged_tensors(self, base: Path, weights: Path, model: ModelConfig) -> set[str]:
        """Names, as stored, of the tensors that merging may change; only headers are read.

        Args:
            base: the checkpoint's folder.
            weights: an adapter's folder, or one of full Talker weights.
            model: with ``talker``, weights that replace the checkpoint's before the adapter comes.
        """
        if not is_adapter(weights) or model.talker:
            return {name for file in weight_files(base) for name in _spans(file) if name.startswith("talker.")}
        names = set()
        for key in _spans(adapter_weights(weights)):
            module = key.removeprefix(PREFIX)
            inside, lora, _ = module.partition(".lora_")
            if ".base_layer." not in module:  # (the base's own, which stays)
                names.add(f"talker.{inside}.weight" if lora else f"talker.{module}")
        return names

    def base_talker(self, model: ModelConfig) -> Any:
        """The Talker that is merged into: float32, on the CPU."""
        return self._load(model.model_copy(update={"dtype": "float32", "device": "cpu"}))

    def merged_talker(self, weights: Path, model: ModelConfig) -> Any:
        """The Talker with an adapter merged into it, or with trained full weights: float32, on the CPU.

        Raises:
            CheckpointError: files missing or damaged, an adapter of another geometry, or weights that are not finite.
        """
        if not is_adapter(weights):
            return self.base_talker(model.model_copy(update={"talker": str(weights)}))
        return merge_adapter(load_lora(self.base_talker(model), weights), weights)

    def entries(self, base: Path, merged: set[str], *, widen: bool = False) -> list[Entry]:
        """The files of the checkpoint to be written, weights first.

        Args:
            widen: as for `write_checkpoint`.

        Raises:
            CheckpointError: the checkpoint lacks a tensor that is to be merged.
        """
        found, left = [], set(merged)
        for file in weight_files(base):
            spans = _spans(file)
            mine = left & spans.keys()
            left -= mine
            held = file.stat().st_size
            if widen and mine:
                header, sizes = _wide_header(file, spans, mine)
                held = len(header) + sum(sizes.values())
            found.append(Entry(file.name, "merge" if mine else "keep", held))
        if left:
            raise CheckpointError(f"{count(len(left), 'trained tensor is', 'trained tensors are')} not in the "
                                  f"checkpoint, the first is {min(left)!r}",
                                  where=str(base), fix="export onto the model that was trained (--model)")
        shards = {entry.name for entry in found}
        for file in sorted(base.iterdir()):
            if file.is_file() and file.name not in shards and (file.name == self._speakers or _is_kept(file.name)):
                found.append(Entry(file.name, "copy", file.stat().st_size))
        return found

    def left_out(self, base: Path, written: list[Entry]) -> list[str]:
        """What lies in the checkpoint's folder and is not taken over: code, other formats, folders, its own card."""
        names = {entry.name for entry in written}
        return sorted(f.name + "/" * f.is_dir() for f in base.iterdir()
                      if f.name not in names and not f.name.startswith("."))

    def bytes_needed(self, base: Path, folder: Path, written: list[Entry], link: bool) -> int:
        """Bytes that the checkpoint takes on the disk of an existing folder."""
        linked = link and _same_disk(base, folder)
        return sum(entry.size for entry in written if not (linked and entry.how == "keep"))

    def write_checkpoint(
        self, base: Path, target: Path, written: list[Entry], merged: set[str], talker: Mapping[str, torch.Tensor],
        *, link: bool = True, widen: bool = False,
    ) -> Rounding:
        """Write every entry into the existing, empty folder ``target``.

        Args:
            merged: names, as stored, of the tensors to write anew.
            talker: the merged Talker's tensors by their name in it, float32.
            link: keep unchanged shards as hard links where the file system allows it.
            widen: store the merged tensors in float32, whatever the checkpoint stores them in.

        Returns: the cost of rounding.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or is stored in a precision that is not known.
            OSError: the disk is full.
        """
        rounding, added = Rounding(), 0
        talker = self._stored(talker)
        for entry in written:
            source, copy = (base / entry.name).resolve(), target / entry.name
            if entry.how == "keep" and link:
                try:
                    os.link(source, copy)
                    continue
                except OSError:  # another file system, or one without hard links: a copy; a full disk is told there
                    pass
            if entry.how == "merge" and widen:
                added += _write_wide(source, copy, merged, talker, rounding)
                continue
            shutil.copyfile(source, copy)
            if entry.how == "copy" and copy.suffix == ".json":
                _forget_place(copy)
            if entry.how == "merge":
                _overwrite(copy, merged, talker, rounding)
        if added:
            _grow_index(target / INDEX, added)
        return rounding

    def add_speakers(self, file: Path, folder: Path) -> None:
        """Put speakers of one's own into an exported folder, in the place of the checkpoint's."""
        shutil.copyfile(file, folder / self._speakers)


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


def _is_kept(name: str) -> bool:
    """Configurations, tokenizer, speakers, license. No code, no pickles, nothing hidden, no card of another model."""
    return name in _KEPT_NAMES or (Path(name).suffix in _KEPT_SUFFIXES and not name.startswith("."))


def _same_disk(base: Path, folder: Path) -> bool:
    file = weight_files(base)[0].resolve()  # the hub's cache links to its blobs
    return file.stat().st_dev == folder.stat().st_dev


def _forget_place(file: Path) -> None:
    """Where a configuration or tokenizer was once loaded from is of no use to others, and tells of a machine."""
    if b"name_or_path" not in (content := file.read_bytes()):
        return
    try:
        held = json.loads(content)
    except ValueError:  # (as it is: nothing here reads it)
        return
    places = {key: value for key in ("_name_or_path", "name_or_path")
              if isinstance(held, dict) and isinstance(value := held.get(key), str) and value}
    named = {key: model_name(value) for key, value in places.items()}
    if named != places:
        file.write_text(json.dumps(held | named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _overwrite(file: Path, merged: set[str], talker: Mapping[str, torch.Tensor], rounding: Rounding) -> None:
    """Put the merged tensors into a safetensors file, each at its own bytes."""
    with open(file, "r+b") as stream:
        for name, span in _spans(file).items():
            if name not in merged:
                continue
            stream.seek(span.begin)
            held = stream.read(span.end - span.begin)
            stream.seek(span.begin)
            stream.write(_stored(file, name, span, span.dtype, held, talker, rounding))
        stream.flush()
        os.fsync(stream.fileno())


def _write_wide(
    source: Path, copy: Path, merged: set[str], talker: Mapping[str, torch.Tensor], rounding: Rounding
) -> int:
    """A safetensors file with the merged tensors in float32 and all others as they are; returns the bytes of tensors
    that it has more than the original."""
    spans = _spans(source)
    header, sizes = _wide_header(source, spans, merged)
    with open(source, "rb") as old, open(copy, "wb") as new:
        new.write(header)
        for name in sizes:
            span = spans[name]
            old.seek(span.begin)
            held = old.read(span.end - span.begin)
            new.write(_stored(source, name, span, "F32", held, talker, rounding) if name in merged else held)
        new.flush()
        os.fsync(new.fileno())
    return sum(sizes.values()) - sum(span.end - span.begin for span in spans.values())


def _stored(
    file: Path, name: str, span: Span, dtype: str, held: bytes, talker: Mapping[str, torch.Tensor], rounding: Rounding
) -> memoryview:
    """A merged tensor's bytes in a precision; ``held`` are the original's, for what is noted in ``rounding``."""
    value = talker.get(name.removeprefix("talker."))
    if span.dtype not in FLOATS:
        raise CheckpointError(f"{name} is stored as {span.dtype}", where=str(file),
                              fix=f"export onto the unquantized checkpoint ({', '.join(FLOATS)})")
    if value is None or list(value.shape) != span.shape:
        raise CheckpointError(f"{name} has shape {span.shape}, the trained one "
                              f"{None if value is None else list(value.shape)}", where=str(file),
                              fix="export onto the model that was trained (--model)")
    value = value.detach().float().contiguous()
    before = torch.frombuffer(bytearray(held), dtype=DTYPES[span.dtype]).reshape(span.shape).float()
    stored = value.to(DTYPES[dtype])
    rounding.update += float((value - before).square().sum(dtype=torch.float64))
    rounding.error += float((stored.float() - value).square().sum(dtype=torch.float64))
    rounding.merged += 1
    rounding.changed += not torch.equal(stored.float(), before)
    rounding.dtypes.add(dtype)
    return memoryview(stored.reshape(-1).view(torch.uint8).numpy().data)


def _wide_header(file: Path, spans: Mapping[str, Span], merged: set[str]) -> tuple[bytes, dict[str, int]]:
    """The head of a file whose merged tensors are float32, and its tensors' bytes by name in the order of the file.

    As safetensors itself does, the widest precisions come first, so that each tensor begins at a multiple of its own.
    """
    counts = {name: math.prod(span.shape) for name, span in spans.items()}
    sizes = {name: 4 * counts[name] if name in merged else span.end - span.begin for name, span in spans.items()}
    order = sorted(spans, key=lambda name: (-sizes[name] // max(counts[name], 1), spans[name].begin))
    with open(file, "rb") as stream:
        held = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header, at = {"__metadata__": held["__metadata__"]} if "__metadata__" in held else {}, 0
    for name in order:
        dtype = "F32" if name in merged else spans[name].dtype
        header[name] = {"dtype": dtype, "shape": spans[name].shape, "data_offsets": [at, at := at + sizes[name]]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: sizes[name] for name in order}


def _grow_index(file: Path, added: int) -> None:
    """Note in an index, where it says so, that the tensors have more bytes."""
    index = json.loads(file.read_text()) if file.is_file() else {}
    facts = index.get("metadata")
    if isinstance(facts, dict) and isinstance(facts.get("total_size"), int):
        facts["total_size"] += added
        file.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")


def _spans(file: Path) -> dict[str, Span]:
    """:func:`read_spans`, or a CheckpointError that names the file."""
    try:
        return read_spans(file)
    except (ValueError, OSError) as error:
        raise unreadable(file, error) from error
