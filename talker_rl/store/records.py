"""Records of many shards as one sequence, of which little is in memory at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from talker_rl.base.lazy import picked
from talker_rl.records.rows import from_row

if TYPE_CHECKING:
    from talker_rl.store.shards import ShardFolder

T = TypeVar("T")


class Records(Sequence[T]):
    """The records of a folder as a sequence that holds few of them: a row group is read when one of its rows is looked
    at, and the last ones stay, as Arrow tables."""

    KEPT: ClassVar = 64
    """Row groups."""

    def __init__(self, folder: ShardFolder, cls: type[T], shards: Sequence[int]) -> None:
        self._folder, self._cls, self._shards = folder, cls, shards
        sizes = {i: folder.groups(i) for i in shards}
        self._places = [(i, k) for i in shards for k in range(len(sizes[i]))]
        self._ends = list(accumulate(rows for i in shards for rows in sizes[i]))
        self._group = lru_cache(maxsize=self.KEPT)(folder.group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[T]: ...

    def __getitem__(self, i: int | slice) -> T | Sequence[T]:
        if isinstance(i, slice):
            return picked(self, range(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        at = bisect_right(self._ends, i)
        row = i - (self._ends[at - 1] if at else 0)
        record: T = from_row(self._cls, self._group(*self._places[at]).slice(row, 1).to_pylist()[0])
        return record

    def __iter__(self) -> Iterator[T]:
        for place in self._places:
            for row in self._folder.group(*place).to_pylist():
                yield from_row(self._cls, row)

    def column(self, name: str) -> list[Any]:
        """One column of all records."""
        return [row[name] for i in self._shards for row in self._folder.rows(i, [name])]
