"""Which example of which task comes when, and with which template."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

T = TypeVar("T")


def shares(sizes: Mapping[str, int], cap: int, smoothing: float) -> dict[str, float]:
    """Which part of the rows each task has: in proportion to its size, at most ``cap``, to the power of ``smoothing``.

    1 is in proportion, 0 gives every task the same.
    """
    weights = {name: min(size, cap) ** smoothing for name, size in sizes.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def interleaved(parts: Mapping[str, float], rows: int) -> Iterator[str]:
    """Names so that any stretch of rows has all of them nearly in their parts.

    The next name is always the one that lacks most.
    """
    given = dict.fromkeys(parts, 0)
    for row in range(1, rows + 1):
        name = max(parts, key=lambda one: parts[one] * row - given[one])
        given[name] += 1
        yield name


class Deck(Generic[T]):
    """Gives things in a random order, all once before one comes again, in another order then."""

    def __init__(self, things: Sequence[T], seed: str) -> None:
        """``seed`` decides on the orders."""
        self._things, self._random = list(things), random.Random(seed)
        self._left: list[T] = []

    def draw(self) -> T:
        """The next one."""
        if not self._left:
            self._left = list(self._things)
            self._random.shuffle(self._left)
        return self._left.pop()
