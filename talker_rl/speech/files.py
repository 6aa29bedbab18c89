"""Files of a checkpoint folder: which weights there are, reading some of them, hashing contents.

Nothing is read that is not asked for: the index says which shards hold a part, and no other shard is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError, told
from talker_rl.base.figures import count
from talker_rl.base.file_hash import cached_hash
from talker_rl.base.ids import Fingerprint, stable_hash
from talker_rl.speech.other_folders import completing

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
HASHED_SUFFIXES = {".json", ".safetensors", ".txt", ".jinja", ".pt"}
CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
           "video_preprocessor_config.json", "generation_config.json")
"""Files in which transformers looks for ``auto_map``."""


def require_file(folder: Path, name: str, purpose: str, fix: str | None = None) -> Path:
    """The file, or a CheckpointError that names it, says what it holds and what to do (``fix``)."""
    file = folder / name
    if not file.is_file():
        raise CheckpointError(
            f"{name} is missing: it holds {purpose}",
            where=str(folder),
            fix=fix or completing(folder),
        )
    return file


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file of a checkpoint holds.

    Raises:
        CheckpointError: the file cannot be read, is no JSON, or holds something else; it is named.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        problem = None if isinstance(found, dict) else f"it holds a {type(found).__name__}, not an object"
    except (OSError, ValueError, RecursionError) as error:
        problem = told(error)
        raise CheckpointError(f"{file.name} cannot be used: {problem}", where=str(file), fix="restore it") from error
    if problem:
        raise CheckpointError(f"{file.name} cannot be used: {problem}", where=str(file), fix="restore it")
    return found


def refuse_code(folder: Path) -> None:
    """Refuse a folder whose configuration asks for classes of its own.

    Nothing here would run them (`trust_remote_code` is False everywhere, and a Qwen2.5-Omni needs none), but a model
    that asks for its own code is not the one that it is taken for.

    Raises:
        CheckpointError: names the file.
    """
    for name in CONFIGS:
        file = folder / name
        try:
            asks = "auto_map" in json.loads(file.read_text()) if file.is_file() else False
        except (OSError, ValueError, TypeError, RecursionError):
            continue  # whoever needs that file says what is wrong with it
        if asks:
            raise CheckpointError(
                f"{name} asks for code of its own (auto_map), which is never run",
                where=str(file),
                fix="use the original checkpoint, or remove auto_map if the folder is one but for that",
            )


def read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> name of the file that holds it, by the folder's index; None where there is none.

    Raises:
        CheckpointError: the index is damaged, or what it names is no file of its folder.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    index = read_json(file).get("weight_map")
    if not isinstance(index, dict):
        raise CheckpointError(f"{INDEX} cannot be used: it has no weight_map", where=str(file), fix="restore it")
    for name, shard in index.items():
        if _is_file_name(shard):
            continue
        outside = isinstance(shard, str) and "/" in shard
        problem = "outside its folder: in" if outside else "in what is no file's name:"
        raise CheckpointError(f"{INDEX} places {name!r} {problem} {shard!r:.80}", where=str(file), fix="restore it")
    return index


def _is_file_name(shard: Any) -> bool:
    """Whether this is a name in its own folder; no path, and none of ``""``, ``.`` and ``..``."""
    return (isinstance(shard, str) and shard.isprintable() and shard != ".." and Path(shard).name == shard != ""
            and len(shard.encode()) < 256)  # the system's limit: to ask for a longer one is an error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, or the single one.

    Raises:
        CheckpointError: none is there, or the index names a file that is not.
    """
    return list(shards_of(folder))


def shards_of(folder: Path, prefix: str = "") -> dict[Path, set[str] | None]:
    """The files that hold the tensors whose name starts with ``prefix``, each with those names.

    Without an index that is the single file, and None: it has to be asked. Files that hold nothing of it are not
    looked at, and need not be there.

    Raises:
        CheckpointError: no weights are there, or the index names a file that is not.
    """
    index = read_index(folder)
    if index is not None:
        shards: dict[Path, set[str] | None] = {}
        names: dict[str, set[str]] = {}
        for name, shard in index.items():
            if name.startswith(prefix):
                names.setdefault(shard, set()).add(name)
        for shard in sorted(names):
            shards[require_file(folder, shard, f"weights that {INDEX} lists")] = names[shard]
        return shards
    if not (folder / SINGLE).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise CheckpointError(
            f"neither {SINGLE} nor {INDEX} is there" + (" (this is a LoRA adapter)" if adapter else ""),
            where=str(folder),
            fix="name the base model here and load the adapter on top" if adapter else completing(folder),
        )
    return {folder / SINGLE: None}


@contextmanager
def open_tensors(shards: Mapping[Path, set[str] | None], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Tensors by their name without ``prefix``, as safetensors' slices.

    ``get_shape()`` is known from the file's header, and ``[...]`` reads the values, inside the context.

    Args:
        shards: file -> names to take (`shards_of`); None takes all that start with ``prefix``.

    Raises:
        CheckpointError: a file is truncated or no safetensors file, or lacks what the index says that it holds.
    """
    from safetensors import SafetensorError, safe_open

    out: dict[str, Any] = {}
    with ExitStack() as stack:
        for file, names in shards.items():
            try:
                reader = stack.enter_context(safe_open(str(file), framework="pt"))
                held = {name for name in reader.keys() if name.startswith(prefix)}
            except (SafetensorError, OSError) as error:
                raise unreadable(file, error) from error
            absent = sorted(names - held) if names is not None else []
            if absent:
                raise CheckpointError(
                    f"{file.name} does not hold {absent[0]!r}, which {INDEX} places there"
                    + (f" ({count(len(absent), 'such tensor')})" if len(absent) > 1 else ""),
                    where=str(file),
                    fix=f"restore {file.name} and {INDEX}; they must be of one checkpoint",
                )
            wanted = held if names is None else names
            out.update({name[len(prefix) :]: reader.get_slice(name) for name in sorted(wanted)})
        yield out


def read_headers(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (safetensors' word for the type, shape) of a file's tensors; no values are read.

    Raises:
        CheckpointError: the file is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as reader:  # checks that the file is as long as its header says
            slices = {name: reader.get_slice(name) for name in reader.keys()}
            return {name: (str(x.get_dtype()), tuple(x.get_shape())) for name, x in slices.items()}
    except (SafetensorError, OSError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """What to say of a safetensors file that cannot be opened."""
    return CheckpointError(
        f"{file.name} cannot be read ({error}); it may be truncated", where=str(file), fix="download it again"
    )


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    """safetensors' word for the type."""
    shape: list[int]
    begin: int
    end: int
    """Bytes of the file, the last one exclusive."""


def read_spans(file: Path) -> dict[str, Span]:
    """Where each tensor of a safetensors file lies, for whoever overwrites its bytes.

    Raises:
        ValueError, OSError: the file is truncated or no safetensors file.
    """
    with open(file, "rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        total = os.fstat(stream.fileno()).st_size
        if not 8 < start <= total:
            raise ValueError("its header is longer than the file")
        header = json.loads(stream.read(start - 8))
    try:
        spans = {name: Span(entry["dtype"], list(entry["shape"]), *(start + at for at in entry["data_offsets"]))
                 for name, entry in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is none of safetensors: {error}") from error
    outside = [name for name, span in spans.items() if not start <= span.begin <= span.end <= total]
    if outside:
        raise ValueError(f"{outside[0]} lies outside the file")
    return spans


def read_tensors(files: Iterable[Path], prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors whose name starts with ``prefix``, by their name without it. They stay on disk until they are looked at.

    Raises:
        CheckpointError: a file is truncated or no safetensors file.
    """
    with open_tensors(dict.fromkeys(files), prefix) as found:
        return {name: tensor[...] for name, tensor in found.items()}


def map_tensors(file: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file that stay on disk: pages are read when they are looked at, and given back to the
    system where memory is short. Changes to them stay in this process.

    Raises:
        ValueError, OSError: the file is truncated, is no safetensors file, or lacks a name.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as reader:
            return {name: reader.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def content_hash(path: Path, parts: Sequence[str] = ()) -> str:
    """Hash of a weights file, or of every config, tokenizer, speaker and weights file at the top of a folder.

    Names and contents count, times do not. Each file is read once (`talker_rl.base.file_hash` says the rule).

    Args:
        parts: of a folder whose weights have an index only the shards that hold these parts (thinker, talker,
            token2wav): no other shard is opened, nor need it be there. Without an index the one file holds all parts.

    Raises:
        CheckpointError: the path is not there, or a shard of the parts is not.
    """
    if path.is_file():
        return cached_hash(path)
    if not path.is_dir():
        raise CheckpointError("no such file or folder", where=str(path), fix="check the path")
    names = {p.name for p in path.iterdir() if p.is_file() and p.suffix in HASHED_SUFFIXES}
    index = read_index(path) if parts else None
    if index is not None:
        needed = {file.name for part in parts for file in shards_of(path, f"{part}.")}
        names -= {name for name in names if name.endswith(".safetensors") and name not in needed}
    files = {name: cached_hash(path / name) for name in sorted(names)}
    return Fingerprint(stable_hash("content", list(files.items())), {name: h[:12] for name, h in files.items()})


def stored_as_floats(dtype: str) -> bool:
    """Whether weights can be of this type (safetensors' word); of any other they are not a model's, or quantized."""
    return dtype in ("F64", "F32", "F16", "BF16")
