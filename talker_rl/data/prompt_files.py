"""Where prompts come from: lines, tables and datasets, read as rows that :mod:`talker_rl.data.prompts` checks.

    texts.txt                       one text per line
    texts.jsonl                     one object per line (fields of a prompt), or a bare string
    texts.csv, .tsv, .parquet       a table; other columns than a prompt's fields are left aside
    meta.lst                        a list of seed-tts-eval: its infer_text, under the utterance's name
    saved_dataset[:split]           a folder written by ``datasets.save_to_disk``
    hf:owner/name[@revision][:config][:split]     a dataset of the hub (or a folder of that name); split `train`
    micro:train | micro:dev | micro:eval          the sets that ship with the micro world

``#column`` behind one that has columns (all but .txt and .lst) names that of the texts, and nothing else is read.
"""

from __future__ import annotations

import csv
import json
import os.path
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.errors import PromptError
from talker_rl.base.file_hash import cached_hash
from talker_rl.base.ids import stable_hash
from talker_rl.base.places import micro_dir
from talker_rl.base.text.files import raw_lines
from talker_rl.data.seed_lst import read_lst
from talker_rl.records.checks import why_no_file_name

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".lst")
NO_COLUMNS = (".txt", ".lst")
KINDS = ("a .txt, .jsonl, .csv, .tsv, .parquet or .lst file, a folder of datasets.save_to_disk, hf:owner/name, or "
         "micro:train")
_NUMBERS = ("reference_seconds", "max_seconds")


@dataclass(frozen=True)
class Source:
    """A parsed specification."""

    spec: str
    path: Path | None = None
    """File or folder; None for the hub."""
    name: str | None = None
    """``owner/name`` on the hub."""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    column: str | None = None
    """Of the texts, where ``#column`` names it."""

    @property
    def base(self) -> Path:
        """Folder that paths of sound and images in the rows are relative to."""
        if self.path is None:
            return Path.cwd()
        return self.path if self.is_folder else self.path.parent

    @property
    def is_folder(self) -> bool:
        """Whether its path is a folder that is there."""
        return self.path is not None and os.path.isdir(self.path)  # (Path.is_dir raises where a name is too long)

    @property
    def is_file(self) -> bool:
        """Whether its path is a file that is there."""
        return self.path is not None and os.path.isfile(self.path)

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"hf:{self.name}"

    def content_hash(self) -> str:
        """What the rows depend on: the files' content; of a hub dataset its name alone (pin it by ``@revision``)."""
        if self.path is None:
            return stable_hash("hub", self.name, self.config, self.split, self.revision)
        if self.is_folder:
            files = sorted(p for p in self.path.rglob("*") if p.is_file())
            return stable_hash("folder", self.split, [(str(p.relative_to(self.path)), cached_hash(p)) for p in files])
        return cached_hash(self.path) if self.is_file else "missing"


def parse_source(spec: str) -> Source:
    """Take a specification apart; nothing is opened.

    Raises:
        PromptError: an ``hf:`` that names no dataset.
    """
    if os.path.exists(os.path.expanduser(spec)):  # whatever characters its name has
        return Source(spec, path=Path(os.path.expanduser(spec)))
    place, _, column = spec.partition("#")
    if place.startswith("micro:"):
        path = micro_dir() / "prompts" / f"{place.removeprefix('micro:')}.jsonl"
        return Source(spec, path=path, column=column or None)
    if place.startswith("hf:"):
        name, *rest = place.removeprefix("hf:").split(":")
        name, _, revision = name.partition("@")
        if not name or len(rest) > 2 or not all(rest):
            raise PromptError("This names no hub dataset", where=spec,
                              fix="write hf:owner/name, hf:owner/name:split or hf:owner/name:config:split")
        return Source(spec, name=name, revision=revision or None, config=rest[0] if len(rest) == 2 else None,
                      split=rest[-1] if rest else "train", column=column or None)
    folder, _, split = place.rpartition(":")
    if folder and os.path.isdir(os.path.expanduser(folder)):
        return Source(spec, path=Path(os.path.expanduser(folder)), split=split, column=column or None)
    return Source(spec, path=Path(os.path.expanduser(place)), column=column or None)


@dataclass(frozen=True)
class Unreadable:
    """A line that is no row."""

    reason: str
    """A key of ``texts.REASONS``."""
    shown: str
    """Its beginning."""


@dataclass
class Rows:
    """The rows of a source, and which columns of a table they leave aside."""

    rows: Iterator[tuple[int, Any]]
    """(1-based line, or row of a table; object, string, or Unreadable)."""
    unused: tuple[str, ...] = ()


def read_rows(source: Source, fields: tuple[str, ...], columns: Mapping[str, str] | None = None) -> Rows:
    """Rows of a source, their columns named as the fields of a prompt.

    Args:
        source: what to read.
        fields: the fields of a prompt.
        columns: field -> column of the source; None: columns are named as fields are. ``#column`` of the
            specification goes before ``text``.

    Raises:
        PromptError: no such file or dataset, an unknown kind, a table without the column, ``#column`` where there are
            no columns.
    """
    wanted = dict(columns) if columns else None
    if source.column is not None:
        wanted = {**(wanted or {}), "text": source.column}
    if source.path is None or source.is_folder:
        return _of_dataset(source, fields, wanted)
    if not source.is_file:
        raise PromptError("There is no such prompt file", where=str(source.path), fix=f"give {KINDS}")
    suffix = source.path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PromptError(f"Unknown kind of prompt file: {suffix or 'no suffix'}", where=str(source.path),
                          fix=f"give {KINDS}")
    if suffix in NO_COLUMNS and source.column is not None:
        raise PromptError(f"A {suffix} file has no columns, and #{source.column} names one", where=source.spec,
                          fix=f"leave #{source.column} out, or give a .csv, .tsv, .jsonl or .parquet file")
    if suffix == ".lst":
        return Rows(_of_lst(source.path))
    if suffix == ".parquet":
        return _of_parquet(source.path, fields, wanted)
    if suffix in (".csv", ".tsv"):
        return _of_csv(source.path, fields, wanted, "\t" if suffix == ".tsv" else ",")
    return Rows(_lines(source.path, plain=suffix == ".txt", wanted=wanted))


def count_rows(source: Source) -> int | None:
    """Rows of a source, without reading the texts of a table (a hub dataset is loaded); None where there is no file."""
    if source.path is None or source.is_folder:
        return len(_dataset(source))
    if not source.is_file:
        return None
    suffix = source.path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(source.path).num_rows)
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            raise _damaged(source.path, error) from error
    if suffix in (".csv", ".tsv"):
        return sum(1 for _ in _of_csv(source.path, (), {}, "\t" if suffix == ".tsv" else ",").rows)
    return sum(1 for line in raw_lines(source.path) if line.strip())


def _lines(path: Path, *, plain: bool, wanted: dict[str, str] | None) -> Iterator[tuple[int, Any]]:
    for number, raw in enumerate(raw_lines(path), 1):
        row: Any
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            yield number, Unreadable("not_utf8", repr(raw[:60]))
            continue
        try:
            row = line if plain or not line.strip() else json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or nested deeper than any prompt is
            row = Unreadable("not_json", line[:60])
        yield number, _renamed(row, wanted) if isinstance(row, dict) and wanted is not None else row


def _of_lst(path: Path) -> Iterator[tuple[int, Any]]:
    """An utterance's name is its prompt's id where it can be one."""
    for item in read_lst(path):
        yield item.line, {"text": item.text, **({} if why_no_file_name(item.utt) else {"prompt_id": item.utt})}


def _of_parquet(path: Path, fields: tuple[str, ...], wanted: dict[str, str] | None) -> Rows:
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        used, unused = _choose(names, fields, wanted, str(path))
        table = pq.read_table(path, columns=sorted(set(used.values())))
    except PromptError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a truncated file
        raise _damaged(path, error) from error
    return Rows(enumerate((_renamed(row, used) for row in table.to_pylist()), 1), unused)


def _damaged(path: Path, error: Exception) -> PromptError:
    return PromptError(f"Cannot read the prompt file: {error}", where=str(path), fix="write it again")


def _of_csv(path: Path, fields: tuple[str, ...], wanted: dict[str, str] | None, delimiter: str) -> Rows:
    _, names = next(_cells(path, delimiter), (1, []))
    used, unused = _choose(names, fields, wanted, str(path)) if fields else ({}, ())

    def rows() -> Iterator[tuple[int, Any]]:
        for line, cells in _cells(path, delimiter):
            if line == 1 or not cells:
                continue
            if len(cells) != len(names):
                raise PromptError(f"The row has {len(cells)} cells, the header {len(names)}",
                                  where=f"{path}, line {line}", fix="put texts that hold the separator, a "
                                  'quote or a line break in "double quotes", quotes inside doubled')
            yield line, _typed(_renamed(dict(zip(names, cells, strict=True)), used))

    return Rows(rows(), unused)


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(1-based line that it begins in, cells) of each row.

    Raises:
        PromptError: quotes that do not close, or close before their cell ends (read otherwise, rows would merge and
            texts change without a word); text that is not UTF-8.
    """
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                with _cells_of_any_size():
                    cells = next(reader, None)
            except csv.Error as error:
                raise PromptError(
                    f"Cannot read the row: {error}", where=f"{path}, line {line}" + (
                        f" to {reader.line_num}" if reader.line_num > line else ""), fix=_QUOTES[delimiter]) from error
            except ValueError as error:  # the stream is decoded by blocks, so the line may be a later one
                raise PromptError(f"Cannot read the prompt file: {error}", where=f"{path}, line {line} or after",
                                  fix="save it as UTF-8") from error
            if cells is None:
                return
            yield line, cells


_DOUBLED = ('a cell that begins with a quote mark must end with one, quote marks inside it are doubled: '
            '"""Hello,"" she said."')
_QUOTES = {
    ",": f"write it as CSV: {_DOUBLED}",
    "\t": f"write it as quoted TSV: {_DOUBLED}. If the file's quote marks are plain marks (as Common Voice's are), "
    "write it again with csv.writer from csv.reader(stream, delimiter='\\t', quoting=csv.QUOTE_NONE)",
}
"""Separator -> what to do about wrong quotes."""


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per cell, which is the whole process's, for one row."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """Cells as values: an empty one is absent, seconds are numbers where they look like one."""
    out = {}
    for name, cell in row.items():
        if name in _NUMBERS:
            try:
                out[name] = float(cell) if cell.strip() else None
            except ValueError:
                out[name] = cell  # told with its line by the check of prompts
        else:
            out[name] = cell if name == "text" else cell.strip() or None
    return out


def _of_dataset(source: Source, fields: tuple[str, ...], wanted: dict[str, str] | None) -> Rows:
    dataset = _dataset(source)
    used, unused = _choose(list(dataset.column_names), fields, wanted, str(source))
    chosen = dataset.select_columns(sorted(set(used.values())))  # so that no sound or image is decoded
    return Rows(enumerate((_renamed(row, used) for row in chosen), 1), unused)


def _dataset(source: Source) -> Any:
    """A ``datasets.Dataset``.

    Raises:
        PromptError: it cannot be had, or holds several splits and none is named.
    """
    import datasets

    try:
        if source.path is not None:
            found = datasets.load_from_disk(str(source.path))
        else:
            found = datasets.load_dataset(str(source.name), source.config, split=source.split, revision=source.revision)
    except Exception as error:  # the hub, the network, a wrong config or split: each raises its own kind
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise PromptError(f"Cannot load the dataset: {told[0]}", where=source.spec,
                          fix="check name, config, split and network; a local folder must come from save_to_disk"
                          ) from error
    if isinstance(found, dict):
        if source.split not in found:
            raise PromptError("The folder holds several splits" if source.split is None else
                              f"The folder has no split {source.split!r}", where=str(source),
                              fix=f"write {source.path}:SPLIT with one of {', '.join(found)}")
        found = found[source.split]
    return found


def _choose(
    names: list[str], fields: tuple[str, ...], wanted: dict[str, str] | None, where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(field -> column, columns left aside) of a table; PromptError where a column is not there, or there twice."""
    used = wanted if wanted is not None else {name: name for name in fields if name in names}
    missing = [column for column in ({"text": "text"} | used).values() if column not in names]
    if missing:
        raise PromptError(f"The table has no column `{missing[0]}`", where=f"{where}, columns {sorted(names)}",
                          fix=_why_no_column(names) or "name the column of the texts: prompts.columns.text=COLUMN, "
                          "or #COLUMN behind the file")
    twice = [column for column in used.values() if names.count(column) > 1]
    if twice:
        raise PromptError(f"The table has {names.count(twice[0])} columns named `{twice[0]}`",
                          where=f"{where}, columns {sorted(names)}", fix="give each column a name of its own")
    return used, tuple(sorted(set(names) - set(used.values())))


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}


def _why_no_column(names: list[str]) -> str | None:
    """What to do where a header cannot be one: another separator (spreadsheets of many countries write semicolons), or
    a table that begins with its first text."""
    if len(names) == 1 and (found := next((mark for mark in _SEPARATORS if mark in names[0]), None)):
        return (f"the columns are separated by {found!r} ({_SEPARATORS[found]}): write the table with commas as .csv, "
                "or with tabs as .tsv")
    if all(" " in name.strip() or not name.isascii() for name in names):
        return "the first line must name the columns: write one above it with `text` for that of the texts"
    return None


def _renamed(row: dict[str, Any], used: Mapping[str, str]) -> dict[str, Any]:
    return {name: row.get(column) for name, column in used.items()}
