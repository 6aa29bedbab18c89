"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """``count`` items, each made anew whenever it is looked at: nothing is held.

    >>> Lazy(3, lambda i: i * i)[1:]    # [1, 4]
    """

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[T]: ...

    def __getitem__(self, i: int | slice) -> T | Sequence[T]:
        if isinstance(i, slice):
            places = range(*i.indices(self._count))
            return Lazy(len(places), lambda k: self._make(places[k]))
        if not -self._count <= i < self._count:
            raise IndexError(i)
        return self._make(i % self._count)

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Sequence) and len(self) == len(other)
                and all(a == b for a, b in zip(self, other, strict=True)))


def picked(items: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """The items at these places, in their order."""
    return Lazy(len(places), lambda i: items[places[i]])
