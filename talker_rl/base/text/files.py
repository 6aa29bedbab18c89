"""Lines of files that users give: UTF-8, whatever system wrote them."""

from __future__ import annotations

from pathlib import Path

_BOM = b"\xef\xbb\xbf"


def raw_lines(path: Path) -> list[bytes]:
    """The lines of a text file, undecoded (so that one bad line need not spoil the others).

    A byte order mark is no part of a line: not at the beginning, as Notepad and PowerShell write it, nor further down,
    where files with one were put behind each other. Lines end at LF, CRLF or CR, never at U+2028 inside a text.

    Raises:
        OSError: the file cannot be read.
    """
    return [line.removeprefix(_BOM) for line in path.read_bytes().splitlines()]


def text_lines(path: Path) -> list[str]:
    """Likewise, decoded.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read, or is not UTF-8.
    """
    return [line.decode("utf-8") for line in raw_lines(path)]
