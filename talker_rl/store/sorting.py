"""Records in an order that their making does not have: parted by rank on disk, and each part sorted in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from talker_rl.records.rows import from_row, to_row
from talker_rl.store.shards import ShardFolder, schema_of, table_of

T = TypeVar("T")

SHARD = 2048
"""Records a shard."""
RANKS = 1024
"""Ranks a part, at least."""
PARTS = 256
"""Parts, at most: so many files are open."""


class Sorted(Generic[T]):
    """Takes records as they come, and gives them back by rank; those of a rank in the order that they came in.

    Args:
        cls: of the records.
        rank: of a record, in ``range(ranks)``.
        folder: a temporary folder lies in it until the block ends.
    """

    def __init__(self, cls: type[T], rank: Callable[[T], int], ranks: int, folder: Path) -> None:
        self._cls, self._rank, self._schema = cls, rank, schema_of(cls)
        self._width = max(RANKS, -(-ranks // PARTS))
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=".sorting-", dir=folder)
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def __enter__(self) -> Sorted[T]:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        self._folder.cleanup()

    def add(self, records: Iterable[T]) -> None:
        """Take in some."""
        parts: dict[int, list[T]] = {}
        for record in records:
            parts.setdefault(self._rank(record) // self._width, []).append(record)
        for part, mine in parts.items():
            if part not in self._writers:
                self._writers[part] = pa.ipc.new_stream(self._file(part), self._schema)
            self._writers[part].write_table(table_of([to_row(record) for record in mine], self._schema))

    def parts(self) -> Iterator[list[T]]:
        """All of them in order, some at a time. Nothing can be added any more."""
        for part in sorted(self._writers):
            self._writers[part].close()
            with pa.ipc.open_stream(self._file(part)) as reader:
                records = [from_row(self._cls, row) for row in reader.read_all().to_pylist()]
            yield sorted(records, key=self._rank)
        self._writers.clear()

    def _file(self, part: int) -> str:
        return str(Path(self._folder.name) / f"{part}.arrow")


def write(folder: ShardFolder, parts: Iterable[Sequence[T]], cls: type[T]) -> int:
    """Write the records of all parts, one after the other, in shards of ``SHARD``; returns how many there are."""
    count = 0
    for i, records in enumerate(_batches(parts)):
        folder.write(i, records, cls)
        count += len(records)
    return count


def _batches(parts: Iterable[Sequence[T]]) -> Iterator[list[T]]:
    waiting: list[T] = []
    for part in parts:
        waiting += part
        while len(waiting) >= SHARD:
            yield waiting[:SHARD]
            waiting = waiting[SHARD:]
    if waiting:
        yield waiting
