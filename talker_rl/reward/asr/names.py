"""Recognizers by name, and where their folders are. Imports no model library.

A configured ``path`` is ``micro:reward`` or ``micro:eval``, a folder, or one of the names of :data:`KNOWN`. A name is
looked for in ``./<name>``, in each folder of the variable ``TALKER_RL_MODELS``, in ``./models`` and in the hub's cache;
only where it is nowhere is it downloaded.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talker_rl.base.errors import CheckpointError
from talker_rl.base.file_hash import cached_hash
from talker_rl.base.places import micro_dir

MODELS_VARIABLE = "TALKER_RL_MODELS"

_FUNASR_FILES = ("config.yaml", "configuration.json", "model.pt", "am.mvn", "tokens.json", "seg_dict", "*.bpe.model")
REQUIRED = {"funasr": ("config.yaml", "model.pt"), "whisper": ("config.json", "preprocessor_config.json"),
            "aligner": ("config.yaml", "model.pt")}
"""Type -> the files without which no folder of it is opened."""

_WHISPER_FILES = ("*.json", "merges.txt", "model.safetensors")


@dataclass(frozen=True)
class KnownModel:
    """A published model: what a name stands for."""

    type: str
    """``funasr``, ``whisper`` or ``aligner``."""
    hub: str
    """Repository on the Hugging Face hub."""
    languages: tuple[str, ...]
    """Of zh, en, mixed: what it was trained to hear."""
    times: str
    """Where its token times come from."""
    files: tuple[str, ...]
    """Patterns of the files that are needed; a repository holds more."""


KNOWN: dict[str, KnownModel] = {
    "paraformer-zh": KnownModel("funasr", "funasr/paraformer-zh", ("zh", "mixed"), "the predictor's second firing",
                                _FUNASR_FILES),
    "SenseVoiceSmall": KnownModel("funasr", "FunAudioLLM/SenseVoiceSmall", ("zh", "en", "mixed"),
                                  "CTC alignment, in steps of 60 ms", _FUNASR_FILES),
    "whisper-large-v3": KnownModel("whisper", "openai/whisper-large-v3", ("zh", "en", "mixed"), "cross-attention",
                                   _WHISPER_FILES),
    "fa-zh": KnownModel("aligner", "funasr/fa-zh", ("zh",), "alignment of the given text", _FUNASR_FILES),
}


def same_model(one: str, other: str) -> bool:
    """Whether two configured paths mean one model: the same path, or a known name and a folder called so."""
    return one == other or (Path(one).name == Path(other).name and Path(one).name in KNOWN)


def resolve(path: str) -> Path:
    """The folder that a configured path means, without the network; it may not exist."""
    if path.startswith("micro:"):
        return (micro_dir() / "asr" / path.removeprefix("micro:")).absolute()
    plain = Path(path).expanduser().absolute()
    if path not in KNOWN or plain.is_dir():
        return plain
    places = [p for p in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if p] + ["models"]
    for place in places:
        folder = Path(place).expanduser().absolute() / path
        if folder.is_dir():
            return folder
    return _cached(path) or plain


def _cached(name: str) -> Path | None:
    """The folder of a known model in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    known = KNOWN[name]
    try:
        return Path(snapshot_download(known.hub, allow_patterns=list(known.files), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def obtain(path: str) -> Path:
    """:func:`resolve`; a known model that is nowhere on this machine is downloaded.

    Raises:
        CheckpointError: it cannot be downloaded.
    """
    folder = resolve(path)
    if folder.is_dir() or path not in KNOWN:
        return folder
    from huggingface_hub import snapshot_download

    known = KNOWN[path]
    try:
        return Path(snapshot_download(known.hub, allow_patterns=list(known.files)))
    except Exception as error:  # no network, a proxy, a full disk: whatever the hub's client raises
        raise CheckpointError(
            f"{path} is not on this machine, and cannot be downloaded: {type(error).__name__}: {error}".splitlines()[0],
            where=f"hub repository {known.hub}",
            fix=f"copy that repository's files to models/{path}, or set {MODELS_VARIABLE} to the folder that holds "
            f"{path}, or name another folder by path",
        ) from error


def model_folder(path: str, required: Sequence[str]) -> Path:
    """The absolute folder of a model, with names resolved.

    Libraries take a path that does not exist for the name of a model on a hub, so it is checked before they see it.

    Raises:
        CheckpointError: the folder is missing (or a known name's cannot be downloaded), or a `required` file is.
    """
    return _complete(path, obtain(path), required)


def local_folder(path: str, required: Sequence[str]) -> Path | None:
    """:func:`model_folder` without the network; None where a known model is not here yet and would be downloaded.

    Raises:
        CheckpointError: the folder is missing, or a `required` file is.
    """
    folder = resolve(path)
    return None if path in KNOWN and not folder.is_dir() else _complete(path, folder, required)


def _complete(path: str, folder: Path, required: Sequence[str]) -> Path:
    if not folder.is_dir():
        near = difflib.get_close_matches(path, KNOWN, n=1)
        raise CheckpointError(
            f"the recognizer folder {path!r} does not exist",
            where=str(folder),
            fix=(f"did you mean {near[0]}? " if near else "")
            + f"give a local folder, or one of micro:reward, micro:eval, {', '.join(KNOWN)}",
        )
    for name in required:
        if not (folder / name).is_file():
            from talker_rl.speech.other_folders import hub_folder

            if (found := hub_folder(folder)) is not None:
                raise found
            raise CheckpointError(
                f"the recognizer folder {path!r} is incomplete: {name} is missing",
                where=str(folder / name),
                fix="copy the whole folder again",
            )
    return folder


def hash_files(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's files; each is read once (`talker_rl.base.file_hash`)."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(bytes.fromhex(cached_hash(file)))
    return digest.hexdigest()
