"""Frames between the service and a worker process: a JSON header and raw bytes. Nothing that runs code when read.

    length of the header (8 bytes, big-endian) | header | blob | blob | ...

The header's ``blobs`` holds the blobs' lengths.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

_LENGTH = struct.Struct(">Q")
MAX_HEADER = 1 << 28
MAX_BLOB = 1 << 30

Frame = tuple[dict[str, Any], list[bytes]]


class FrameError(Exception):
    """The other side ended, or does not speak frames."""


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """One frame. ValueError for a header with NaN in it: no fault may look like a number."""
    head = json.dumps(header | {"blobs": [len(b) for b in blobs]}, allow_nan=False).encode()
    return b"".join((_LENGTH.pack(len(head)), head, *blobs))


def read(stream: BinaryIO) -> Frame | None:
    """The next frame (blocking); None at the end of the stream."""
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    header = _header(stream.read(_header_size(length)))
    return header, [stream.read(size) for size in _sizes(header)]


async def read_async(stream: asyncio.StreamReader) -> Frame:
    """The next frame.

    Raises:
        FrameError: the stream ended, or what came is no frame.
    """
    try:
        header = _header(await stream.readexactly(_header_size(await stream.readexactly(_LENGTH.size))))
        return header, [await stream.readexactly(size) for size in _sizes(header)]
    except (asyncio.IncompleteReadError, OSError) as error:
        raise FrameError("the worker ended") from error


def _header_size(raw: bytes) -> int:
    size: int = _LENGTH.unpack(raw)[0]
    if size > MAX_HEADER:
        raise FrameError(f"a header of {size} bytes")
    return size


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise FrameError(f"no JSON in a header: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("blobs"), list):
        raise FrameError("a header without blobs")
    return header


def _sizes(header: dict[str, Any]) -> list[int]:
    sizes = header.pop("blobs")
    if not all(isinstance(size, int) and 0 <= size <= MAX_BLOB for size in sizes):
        raise FrameError("blobs of impossible size")
    return sizes
