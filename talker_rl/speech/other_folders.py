"""What is given as a model and is another folder: the hub cache's own, one too high, an adapter, other formats.

Told in one message that names what to give, before each missing file is told by itself. Only names, sizes and
``config.json`` are looked at: every verb asks this of its model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from talker_rl.base.errors import CheckpointError
from talker_rl.base.figures import count
from talker_rl.base.names import hub_name

OMNI = "qwen2_5_omni"
_OTHER_MODELS = {
    "qwen3_omni_moe_": "a part of a Qwen3-Omni alone", "qwen2_5_omni_": "a part of one alone",
    "qwen2_audio": "Qwen2-Audio, which has no Talker", "qwen2_vl": "Qwen2-VL, which has no Talker",
    "qwen2_5_vl": "Qwen2.5-VL, which has no Talker", "qwen3_vl": "Qwen3-VL, which has no Talker",
    "qwen": "a text-only Qwen, which has no Talker", "whisper": "a recognizer",
}
"""Beginning of a model_type -> what it is; the first that fits."""
_OTHER_WEIGHTS = (".gguf", ".ggml", ".onnx", ".bin", ".pth", ".pt", ".ckpt", ".msgpack", ".h5", ".engine", ".mnn")
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp", ".download")
_POINTER = b"version https://git-lfs"
_MOST = 200
"""Folders that are looked into below one that is no model."""


def refuse_other(path: Path) -> None:
    """Refuse a path that is no Qwen2.5-Omni's folder, where it can be said what it is.

    Raises:
        CheckpointError: names what was found and what to give. What is not recognized passes: whoever needs a file
            says which is missing.
    """
    if path.is_file():
        raise _file(path)
    if not path.is_dir():
        return
    pointers = [f.name for f in path.iterdir() if f.suffix in (".safetensors", ".json", ".pt") and _is_pointer(f)]
    if pointers:
        raise CheckpointError(
            f"{count(len(pointers), 'file is a Git LFS pointer', 'files are Git LFS pointers')}, without contents "
            f"({', '.join(sorted(pointers)[:3])})",
            where=str(path), fix=f"fetch the contents: git -C {path} lfs pull (with git-lfs installed)")
    if not (path / "config.json").is_file():
        found = _hub_cache(path) or _another_kind(path) or _too_high(path) or _other_format(path)
        if found is not None:
            raise found
        return
    if not any(path.glob("*.safetensors*")) and (found := _other_format(path)) is not None:
        raise found


def other_model(kind: object) -> str:
    """What a model_type that is not Qwen2.5-Omni's is, in a few words; empty where it is not known."""
    if not isinstance(kind, str):
        return ""
    return next((what for start, what in _OTHER_MODELS.items() if kind.startswith(start)), "")


def completing(folder: Path) -> str:
    """What to do about a file of a checkpoint that is missing: a download that goes on, or was cut, says so itself."""
    if unfinished := next(_unfinished(folder), None):
        return (f"the download is not finished ({unfinished.name} is there): wait for it, or start it again, which "
                "goes on where it stopped")
    return "complete the folder (download the checkpoint again, or copy the file there)"


def _unfinished(folder: Path) -> Iterator[Path]:
    """Files that a download has begun and not ended: in the folder, or where the hub's tools keep them."""
    places = [folder, *(folder / ".cache/huggingface").glob("download")]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    yield from (f for place in places if place.is_dir() for f in place.rglob("*") if f.suffix in _UNFINISHED)


def _is_pointer(file: Path) -> bool:
    try:
        if file.stat().st_size > 1024:
            return False
        with open(file, "rb") as stream:
            return stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _file(path: Path) -> CheckpointError:
    fix = "give the folder of a Qwen2.5-Omni checkpoint (config.json, model*.safetensors, ...)"
    if (path.parent / "config.json").is_file():
        fix = f"give its folder: {path.parent}"
    elif path.suffix in _OTHER_WEIGHTS:
        fix = f"{path.suffix} files cannot be trained or read here: {fix}"
    elif path.suffix in (".zip", ".tar", ".gz", ".tgz", ".zst"):
        fix = f"unpack it, and {fix}"
    return CheckpointError("a file is given where a model's folder is asked for", where=str(path), fix=fix)


def hub_folder(path: Path) -> CheckpointError | None:
    """What to say of a folder that the hub's cache keeps of one model, models--OWNER--NAME/{blobs,refs,snapshots};
    None for any other, and for snapshots/HASH, which is the model."""
    model = next((f for f in (path, *path.parents[:2]) if f.name.startswith("models--")), None)
    if model is not None and path.parent.name != "snapshots":
        return _hub_model(path, model)
    if model is None and (path / "snapshots").is_dir() and ((path / "blobs").is_dir() or (path / "refs").is_dir()):
        return _hub_model(path, path)
    return None


def _hub_cache(path: Path) -> CheckpointError | None:
    """The cache of one model, or of all."""
    if (found := hub_folder(path)) is not None:
        return found
    root = path / "hub" if (path / "hub").is_dir() else path
    kept = sorted(islice(root.glob("models--*"), _MOST))
    if not kept:
        return None
    omni = [s for f in kept if (s := _snapshot(f)) and model_type(s) == OMNI]
    return CheckpointError(
        f"this is the hub's cache of {len(kept)} models, not a model", where=str(path),
        fix=f"name one: {', '.join(map(str, omni))}" if omni else "it holds no Qwen2.5-Omni: give the name on the hub, "
        "owner/name, which is downloaded there")


def _hub_model(path: Path, model: Path) -> CheckpointError:
    name = hub_name(f"{model}/snapshots/x") or "a model"
    what = f"this is the hub cache's folder of {name}" + (f" ({path.name})" if path != model else "")
    snapshot = _snapshot(model)
    if snapshot is None:
        every = sorted(str(f) for f in (model / "snapshots").glob("*"))
        return CheckpointError(
            f"{what}, which holds {'several snapshots' if every else 'no snapshot'}", where=str(path),
            fix=f"give one of them: {', '.join(every)}" if every else f"download it first (give {name} with a network)")
    return CheckpointError(f"{what}; the model is in its snapshots", where=str(path), fix=f"give {snapshot}"
                           + (f", or the name {name}" if "/" in name else ""))


def _snapshot(model: Path) -> Path | None:
    """The snapshot that the ref ``main`` names, or the only one."""
    try:
        named = model / "snapshots" / (model / "refs/main").read_text().strip()
    except OSError:
        named = model
    if named != model and named.parent.name == "snapshots" and named.is_dir():
        return named
    every = [f for f in (model / "snapshots").glob("*") if f.is_dir()]
    return every[0] if len(every) == 1 else None


def _another_kind(path: Path) -> CheckpointError | None:
    """Folders of this package's, or of peft's, that are no checkpoint."""
    if (path / "adapter_config.json").is_file():
        try:
            base = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
        return CheckpointError("this is a LoRA adapter, not a model", where=str(path),
                               fix=f"name its base as model.path ({base or 'it names none'}), this as model.adapter")
    if (path / "manifest.json").is_file() or (path / "sweep.json").is_file():
        return CheckpointError("this is a run's folder, not a model", where=str(path),
                               fix="name its base as model.path and this as model.adapter; or merge both: talker-rl "
                               f"export --run-dir {path} --merge OUT")
    return None


def _too_high(path: Path) -> CheckpointError | None:
    """A folder that holds a model's folder."""
    below = list(islice((f for f in path.iterdir() if f.is_dir() and not f.is_symlink()), _MOST))
    deeper = islice(chain.from_iterable(_folders(f) for f in below), _MOST)
    inside = sorted(f for f in chain(below, deeper) if model_type(f) == OMNI)
    if not inside:
        return None
    return CheckpointError(
        f"the model is in a folder inside this one ({inside[0].relative_to(path)})" if len(inside) == 1 else
        f"{len(inside)} models are in folders inside this one", where=str(path),
        fix=f"give {' or '.join(map(str, inside[:5]))}")


def _folders(path: Path) -> list[Path]:
    try:
        return [f for f in path.iterdir() if f.is_dir()]
    except OSError:
        return []


def _other_format(path: Path) -> CheckpointError | None:
    """Weights in a format that is not read here."""
    if any(path.glob("*.safetensors*")):
        return None
    other = sorted(f.name for f in path.iterdir() if f.suffix in _OTHER_WEIGHTS and f.name != "spk_dict.pt")
    if not other:
        return None
    pickled = not any(name.endswith((".gguf", ".ggml", ".onnx", ".engine", ".mnn")) for name in other)
    return CheckpointError(
        f"the weights are there only as {other[0]}{' and the like' if len(other) > 1 else ''}, "
        + ("pickles, which are never opened here" if pickled else "which cannot be trained here"), where=str(path),
        fix="give the original checkpoint, with model*.safetensors" + (
            ": its publisher's, or saved again by save_pretrained where the pickles are trusted" if pickled else ""))


def model_type(folder: Path) -> str | None:
    """What config.json says that the model is; None where it says nothing, or cannot be read."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
