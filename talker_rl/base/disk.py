"""Files of the house: written whole or not at all, read with an error that says what to do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from talker_rl.base.errors import DataError, disk_full, is_disk_full


def atomic_write(path: Path, data: bytes | str) -> str:
    """Write a file completely or not at all (temporary file, fsync, rename, fsync of the folder).

    Returns:
        The SHA-256 of the content, hex.

    Raises:
        StageError: the disk is full; the temporary file is gone and the old file, if any, is untouched.
    """
    blob = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if is_disk_full(error):
            raise disk_full(path) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return hashlib.sha256(blob).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """JSON of a file of the run.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError("A file of the run is missing", where=str(path), fix="run the stage that writes it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"A file of the run is damaged ({error})", where=str(path),
                        fix="delete it, and run the stage that writes it again") from error
