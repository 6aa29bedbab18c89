"""Where a new speaker goes: a spk_dict.pt of its own, or a copy of the checkpoint folder that shares its weights.

The checkpoint that was added to is never written to. Files are plain tensors, loadable with ``weights_only=True``,
in the published layout: transformers' ``load_speakers`` reads them as well.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import torch

from talker_rl.base.disk import replacing
from talker_rl.base.errors import ConfigError, StageError, is_disk_full
from talker_rl.base.places import check_writable_file, check_writable_folder
from talker_rl.speech.qwen2_5_omni.speaker_entry import Entry

SPEAKER_FILE = "spk_dict.pt"


def check_target(out: Path, folder: Path, overwrite: bool) -> None:
    """Refuse, before any work, what must not be written.

    Raises:
        ConfigError: it lies in the checkpoint, or is there already.
        StageError: nothing can be written there.
    """
    if out.suffix == ".pt":
        check_writable_file(out)
    else:  # a checkpoint that is there is replaced whole
        check_writable_folder(out.parent if os.path.exists(out) else out)
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise ConfigError("The new speaker would be written into the checkpoint itself", where=str(out),
                          fix="give a file or a folder elsewhere")
    if out.exists() and not overwrite:
        raise ConfigError("This is there already", where=str(out), fix="name another, or add --overwrite")
    if out.is_dir() and out.suffix != ".pt" and not (out / "config.json").is_file():
        raise ConfigError("This folder is no checkpoint: it is not replaced", where=str(out), fix="name another one")


def save(speakers: dict[str, Entry], out: Path, folder: Path) -> None:
    """Write all speakers to ``out``: a file if it ends in .pt, else a copy of the checkpoint ``folder`` with them.

    Both appear whole or not at all.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if out.suffix == ".pt":
            with replacing(out) as temporary:
                _write(speakers, temporary)
            return
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
            whole = Path(made) / "checkpoint"
            share_files(folder, whole)
            _write(speakers, whole / SPEAKER_FILE)
            if out.exists():
                os.replace(out, Path(made) / "before")
            os.replace(whole, out)
    except OSError as error:
        if is_disk_full(error):
            raise StageError("The disk is full", where=str(out), fix="free some space and run again") from error
        raise ConfigError(f"Cannot write there: {error.strerror or error}", where=str(out),
                          fix="name a place that can be written") from error


def _write(speakers: dict[str, Entry], file: Path) -> None:
    plain = {
        name: {"bos_token": int(entry["bos_token"]), **{k: entry[k].float().clone() for k in ("cond", "ref_mel")}}
        for name, entry in speakers.items()
    }
    torch.save(plain, file)


def share_files(folder: Path, copy: Path) -> None:
    """A folder with the same files but the speakers': hard links, which take no space; across disks symbolic ones.

    A file of the hub's cache is linked to by name, since its name is its hash (``omni.files.content_hash``).
    """
    copy.mkdir()
    for item in sorted(folder.iterdir()):
        target = copy / item.name
        if item.is_dir():
            if not item.name.startswith("."):
                share_files(item, target)
        elif item.name != SPEAKER_FILE:
            _link(item.resolve(), target, symbolic=item.is_symlink())


def _link(source: Path, target: Path, symbolic: bool) -> None:
    if not symbolic:
        try:
            os.link(source, target)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
