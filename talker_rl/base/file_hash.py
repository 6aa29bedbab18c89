"""SHA-256 of a model's files, each read once. Imports no torch.

The rule: a file's hash is kept with its path, size, inode and times of change (mtime and ctime: no write, copy or
rename leaves both as they were); while these stay, the file is not read again. This process remembers all files; those
of ``LARGE`` bytes and more are remembered on disk, too, in ``$XDG_CACHE_HOME/talker-rl/file_hashes.json``, so that the
tens of GB of a checkpoint are read at their first start on a machine, and by none of the workers and later starts.
In the hub's cache a large file is a link to a blob that is named by its SHA-256: that one is not read at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import string
from contextlib import suppress
from pathlib import Path

from talker_rl.base.disk import atomic_write
from talker_rl.base.errors import StageError

LARGE = 64 * 2**20
"""Bytes from which a hash is worth a line on disk: below, reading takes less than a tenth of a second."""
_CHUNK = 8 * 2**20
_KEPT = 1000
"""Files remembered on disk."""

_known: dict[str, tuple[list[int], str]] = {}


def cached_hash(file: Path) -> str:
    """Hex SHA-256 of a file's content, by the rule above. Raises OSError where it cannot be read."""
    path = file.resolve()
    if path.parent.name == "blobs" and len(path.name) == 64 and set(path.name) <= set(string.hexdigits):
        return path.name
    identity = _identity(path)
    large = identity[0] >= LARGE
    for known in (_known, _stored()) if large and str(path) not in _known else (_known,):
        if known.get(str(path), ([], ""))[0] == identity:
            return known[str(path)][1]
    digest = _read(path, identity[0] if large else None)
    if _identity(path) == identity:  # not written to in the meantime
        _known[str(path)] = (identity, digest)
        if large:
            _store(str(path), identity, digest)
    return digest


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read(path: Path, told: int | None) -> str:
    """Hash the content; ``told``: bytes of a file that takes long enough for a progress bar."""
    with open(path, "rb") as stream:
        if told is None:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        from talker_rl.base.progress import bar

        digest = hashlib.sha256()
        with bar(total=told, desc=f"hashing {path.name}, once", unit="B", unit_scale=True, leave=False) as shown:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                shown.update(len(chunk))
        return digest.hexdigest()


def _memory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "talker-rl" / "file_hashes.json"


def _stored() -> dict[str, tuple[list[int], str]]:
    """What is remembered on disk; nothing where that file is not there or damaged: then files are read again."""
    try:
        found = json.loads(_memory().read_text())
        return {str(path): ([int(n) for n in identity], str(digest)) for path, (identity, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _store(path: str, identity: list[int], digest: str) -> None:
    """Remember on disk. Two processes that do so at once may lose a line, which costs one more reading."""
    file = _memory()
    entries = _stored()
    entries.pop(path, None)
    entries[path] = (identity, digest)
    with suppress(OSError, StageError):  # a home that cannot be written to: hashes are computed at every start
        atomic_write(file, json.dumps(dict(list(entries.items())[-_KEPT:])))
