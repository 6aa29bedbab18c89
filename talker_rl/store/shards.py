"""Parquet shards of a stage folder, each finished by an atomic rename and checked by its hash when read.

``index.json`` in the folder lists the finished shards: SHA-256 of the file (is it intact?) and hash of the rows (is it
the same result?). A shard that is not listed, missing or damaged is made again; nothing else is.
"""

from __future__ import annotations

import io
import logging
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from talker_rl.base.disk import atomic_write, file_hash, read_json, write_json
from talker_rl.base.errors import DataError
from talker_rl.base.ids import stable_hash
from talker_rl.base.lazy import Lazy
from talker_rl.records.rows import JSON_FIELDS, column_of, from_row, hashed, to_row
from talker_rl.records.speech import Speech
from talker_rl.store.records import Records

log = logging.getLogger(__name__)
T = TypeVar("T")

_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(), bytes: pa.binary(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(),
    list[int]: pa.list_(pa.int32()), Speech: pa.list_(pa.int32()),
    list[float]: pa.list_(pa.float32()), list[str]: pa.list_(pa.string()),
}


def schema_of(cls: type) -> pa.Schema:
    """Arrow schema of a record class: explicit, so that a column of nulls keeps its type."""
    hints = typing.get_type_hints(cls)
    columns, codec = [], "codec" in hints
    for f in fields(cls):
        hint = hints[f.name]
        args = typing.get_args(hint)
        kind = next(a for a in args if a is not type(None)) if type(None) in args else hint
        if f.name in JSON_FIELDS or typing.get_origin(kind) is typing.Literal:
            kind = str
        codec = codec or kind is Speech
        columns.append(pa.field(column_of(f), _ARROW[kind]))
    columns += [pa.field(name, _ARROW[kind]) for name, kind in getattr(cls, "COLUMNS", {}).items()]
    if codec and "codec" not in hints:
        columns.append(pa.field("codec", pa.string()))
    return pa.schema(columns)


def table_of(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> pa.Table:
    """An Arrow table; without a schema the columns are those of all rows, and a column of nulls is float64."""
    if schema is not None:
        return pa.Table.from_pylist(rows, schema=schema)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    for i, column in enumerate(table.schema):
        if pa.types.is_null(column.type):
            table = table.set_column(i, column.name, table.column(i).cast(pa.float64()))
    return table


GROUP = 64
"""Rows that can be read without the others of their shard."""


def parquet_bytes(table: pa.Table) -> bytes:
    """The file's content, in memory: what goes to disk goes there at once."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=GROUP)
    return sink.getvalue()


class ShardFolder:
    """The shards of one stage.

    Args:
        path: the stage's folder.
        key: the stage's key; shards of another key are not taken. None opens a folder for reading.
        source: folder that each shard is made from, shard by shard. With it a shard counts only while the shard that
            it was made from has the same rows.
        early_key: a key that shards may have as well: of a stage that had begun before its source was finished.
        beside: folder whose shards are made with these, one with one. With it a shard counts only while that one does.
    """

    def __init__(
        self, path: Path, key: str | None = None, *, source: ShardFolder | None = None, early_key: str | None = None,
        beside: ShardFolder | None = None,
    ) -> None:
        self.path, self.key, self._source, self._beside = path, key, source, beside
        index = path / "index.json"
        if key is None and not index.exists() and any(path.glob("shard-*")):
            raise DataError("The list of the shards is missing", where=str(index), fix="run its stage again")
        found = read_json(index) if index.exists() else {"key": key, "shards": {}}
        if key is not None and found["key"] not in (key, early_key):
            found = {"key": key, "shards": {}}
        if key is not None:
            found["key"] = key
        self._index: dict[str, Any] = found
        self._intact: set[str] = set()

    @staticmethod
    def name(i: int) -> str:
        """File name of shard ``i``."""
        return f"shard-{i:05d}.parquet"

    def __len__(self) -> int:
        return len(self._index["shards"])

    def has(self, i: int) -> bool:
        """Whether shard ``i`` is finished and intact; a damaged one is told and counts as missing."""
        name = self.name(i)
        if name not in self._index["shards"] or (self._beside is not None and not self._beside.has(i)):
            return False
        noted = self._index["shards"][name].get("source")
        if self._source is not None and noted not in (None, self._source_content(i)):
            return False  # none noted: the key alone vouches for it
        try:
            self._check(name)
        except DataError as error:
            log.warning("%s: it is made again", error.what)
            return False
        return True

    def missing(self, count: int) -> list[int]:
        """Shards of ``range(count)`` that are still to be made."""
        return [i for i in range(count) if not self.has(i)]

    def write(self, i: int, records: Sequence[Any], cls: type | None = None) -> None:
        """Write shard ``i``: records of a class, or plain rows."""
        rows = [to_row(r) for r in records] if cls is not None else list(records)
        name = self.name(i)
        sha = atomic_write(self.path / name, parquet_bytes(table_of(rows, schema_of(cls) if cls else None)))
        entry = {"sha256": sha, "rows": len(rows), "content": stable_hash([hashed(row) for row in rows])}
        if self._source is not None:
            entry["source"] = self._source_content(i)
        self._index["shards"][name] = entry
        self._index["shards"] = dict(sorted(self._index["shards"].items()))
        write_json(self.path / "index.json", self._index)
        self._intact.add(name)

    def _source_content(self, i: int) -> str | None:
        """Hash of the rows that shard ``i`` is made from; None where they are not there, or not asked for."""
        if self._source is None:
            return None
        entry: dict[str, Any] = self._source._index["shards"].get(self.name(i), {})
        return entry.get("content")

    def row_count(self, i: int) -> int:
        """Rows of a finished shard."""
        return int(self._index["shards"][self.name(i)]["rows"])

    def _check(self, name: str) -> None:
        if name in self._intact:
            return
        file = self.path / name
        if not file.exists():
            raise DataError(f"Shard {name} is missing", where=str(self.path), fix="run its stage again")
        if file_hash(file) != self._index["shards"][name]["sha256"]:
            raise DataError(f"Shard {name} is damaged or truncated", where=str(file),
                            fix="run its stage again: only this shard is made again")
        self._intact.add(name)

    def rows(self, i: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Rows of shard ``i``.

        Args:
            columns: no others are read; None: all.

        Raises:
            DataError: missing, truncated or changed since it was written.
        """
        rows: list[dict[str, Any]] = self._opened(i).read(columns=columns).to_pylist()
        return rows

    def all_rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of all shards in order; ``columns`` as in :meth:`rows`."""
        for i in range(len(self)):
            yield from self.rows(i, columns)

    def column(self, name: str) -> list[Any]:
        """One column of all rows, in order."""
        return [row[name] for row in self.all_rows([name])]

    def read(self, i: int, cls: type[T]) -> list[T]:
        """Records of shard ``i``."""
        return [from_row(cls, row) for row in self.rows(i)]

    def read_all(self, cls: type[T]) -> list[T]:
        """Records of all shards in order, all in memory: for what does not grow with a run's prompts."""
        return [from_row(cls, row) for row in self.all_rows()]

    def where(self, name: str, among: Collection[Any], cls: type[T]) -> list[T]:
        """Records whose column ``name`` is one of these, in order; of the others nothing is made."""
        found: list[T] = []
        for i in range(len(self) if among else 0):
            self._opened(i)
            table = pq.read_table(self.path / self.name(i), filters=pc.field(name).isin(list(among)))
            found += [from_row(cls, row) for row in table.to_pylist()]
        return found

    def records(self, cls: type[T], shard: int | None = None) -> Records[T]:
        """Records of all shards in order, or of one, each read when it is looked at."""
        return Records(self, cls, range(len(self)) if shard is None else [shard])

    def group(self, i: int, k: int) -> pa.Table:
        """Row group ``k`` of shard ``i``, verified once."""
        return self._opened(i).read_row_group(k)

    def groups(self, i: int) -> list[int]:
        """Rows of each row group of shard ``i``."""
        meta = self._opened(i).metadata
        return [meta.row_group(k).num_rows for k in range(meta.num_row_groups)]

    def _opened(self, i: int) -> pq.ParquetFile:
        """Shard ``i``, whose content is what was written.

        Raises:
            DataError: it is not, or the shard is not finished.
        """
        name = self.name(i)
        if name not in self._index["shards"]:
            raise DataError(f"Shard {name} is not finished", where=str(self.path), fix="run its stage again")
        self._check(name)
        return pq.ParquetFile(self.path / name, memory_map=True)

    def content(self) -> str:
        """Hash of all rows, in order: equal for equal results, however the work was interrupted or spread."""
        return stable_hash([entry["content"] for entry in self._index["shards"].values()])


def chunks(items: Sequence[T], size: int) -> Sequence[list[T]]:
    """Consecutive parts of at most ``size``: the shards of a list, each made when it is looked at."""
    return Lazy(-(-len(items) // size), lambda i: list(items[i * size : (i + 1) * size]))
