"""Files of a checkpoint folder: which weights there are, reading tensors by prefix, hashing contents."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterable
from pathlib import Path

import torch

from talker_rl.data.records import stable_hash
from talker_rl.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
HASHED_SUFFIXES = {".json", ".safetensors", ".txt", ".jinja", ".pt"}


def require_file(folder: Path, name: str, purpose: str) -> Path:
    """The file, or a CheckpointError that names it and says what it holds."""
    file = folder / name
    if not file.is_file():
        raise CheckpointError(
            f"{name} is missing: it holds {purpose}",
            where=str(folder),
            fix="complete the folder (download the checkpoint again, or copy the file there)",
        )
    return file


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, or the single one.

    Raises:
        CheckpointError: none is there, or the index names a file that is not.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{INDEX} cannot be read: {error}", where=str(index), fix="restore it") from error
        escaping = [name for name in names if Path(name).name != name]
        if escaping:
            raise CheckpointError(f"{INDEX} points outside its folder: {escaping[0]!r}", where=str(index))
        return [require_file(folder, name, f"weights that {INDEX} lists") for name in names]
    if not (folder / SINGLE).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise CheckpointError(
            f"neither {SINGLE} nor {INDEX} is there" + (" (this is a LoRA adapter)" if adapter else ""),
            where=str(folder),
            fix="name the base model here and load the adapter on top" if adapter else "complete the folder",
        )
    return [folder / SINGLE]


def read_tensors(files: Iterable[Path], prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors whose name starts with ``prefix``, by their name without it. Only these are read.

    Raises:
        CheckpointError: a file is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    out: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as reader:
                for name in reader.keys():
                    if name.startswith(prefix):
                        out[name[len(prefix) :]] = reader.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file.name} cannot be read ({error}); it may be truncated", where=str(file), fix="download it again"
            ) from error
    return out


def map_tensors(file: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file that stay on disk: pages are read when they are looked at, and given back to the
    system where memory is short. (``safe_open`` copies.) Changes to them stay in this process.

    Raises:
        ValueError, OSError, KeyError: the file is truncated, is no safetensors file, or lacks a name.
    """
    with open(file, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(mapped[:8], "little")
    if not 8 < start <= len(mapped):
        raise ValueError("its header is longer than the file")
    header = json.loads(mapped[8:start])
    out = {}
    for name in names:
        entry = header[name]
        dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        count = math.prod(entry["shape"])
        if not 0 <= begin <= end <= len(mapped) - start or end - begin != count * dtype.itemsize:
            raise ValueError(f"{name} lies outside the file")
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start + begin) if count else torch.empty(0)
        out[name] = flat.to(dtype).reshape(entry["shape"])
    return out


def content_hash(path: Path) -> str:
    """Hash of a weights file, or of every config, tokenizer, speaker and weights file at the top of a folder.

    A file in the hub's cache is a link to a blob that is named by its own hash, which is taken as it is; others
    are read. Names count, times do not.
    """
    if path.is_file():
        return _file_hash(path)
    if not path.is_dir():
        raise CheckpointError("no such file or folder", where=str(path), fix="check the path")
    names = sorted(p.name for p in path.iterdir() if p.is_file() and p.suffix in HASHED_SUFFIXES)
    return stable_hash("content", [(name, _file_hash(path / name)) for name in names])


_hashes: dict[tuple[str, int, int], str] = {}


def _file_hash(file: Path) -> str:
    blob = file.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name  # the hub names large files by their SHA-256
    stat = blob.stat()
    key = (str(blob), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with open(blob, "rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]
