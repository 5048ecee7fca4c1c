"""Texts as tokens, and how often each window of n tokens occurs in them.

A window lies within one document. Windows are found by a hash of their tokens, and compared token by token before they
are used, so counts are exact.
"""

from __future__ import annotations

import lzma
import random
from bisect import bisect
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from welm.eval.journal import EvalError
from welm.eval.tasks import data
from welm.eval.tasks.data import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Ids: TypeAlias = "NDArray[np.uint32]"
    Hashes: TypeAlias = "NDArray[np.uint64]"


def documents(path: Path) -> list[str]:
    """The documents of a file: `.jsonl` with a field `text`; else a text, perhaps `.xz`, with empty lines between."""
    try:
        if path.suffix == ".jsonl":
            return [row.text("text") for row in data.read(path)]
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
        found = [text.strip("\n") for text in content.decode().split("\n\n")]
    except (UnicodeDecodeError, lzma.LZMAError) as error:
        expected = "a text in UTF-8, compressed by xz" if path.suffix == ".xz" else "a text in UTF-8"
        raise EvalError(f"{path}: expected {expected}, got {error}") from None
    except DataError as error:
        raise EvalError(str(error)) from None
    found = [text for text in found if text.strip()]
    if not found:
        raise EvalError(f"{path}: expected documents with empty lines between, got an empty file")
    return found


class Tokens(NamedTuple):
    """Documents, one after the other."""

    ids: Ids
    """(n,)"""
    left: Ids
    """(n,): from each token on, the tokens of its document that are left."""

    @staticmethod
    def of(texts: Iterable[str], tokenize: Callable[[str], Sequence[int]]) -> Tokens:
        """Tokenizes documents."""
        each = [np.asarray(tokenize(text), np.uint32) for text in texts]
        left = [np.arange(len(ids), 0, -1, dtype=np.uint32) for ids in each]
        return Tokens(np.concatenate(each), np.concatenate(left))

    def starts(self, length: int) -> NDArray[np.int64]:
        """Where windows of so many tokens begin."""
        return np.flatnonzero(self.left >= length)

    def window(self, start: int, length: int) -> list[int]:
        """The tokens from a place on."""
        found: list[int] = self.ids[start : start + length].tolist()
        return found


def hashes(ids: Ids, length: int) -> Hashes:
    """(n - length + 1,): a hash of each window.

    It is Σ mixed(token_i) P^(length - i) modulo 2⁶⁴. That of two windows side by side is hash(left) P^|right| +
    hash(right), so windows of 1, 2, 4, ... tokens are joined until the length is reached.
    """
    block, blocks = 1, _mixed(ids)
    done, result = 0, np.zeros(len(ids) + 1, np.uint64)
    while done < length:
        if length & block:
            count = max(0, len(ids) - block - done + 1)
            result = blocks[:count] * _power(done) + result[block : block + count]
            done += block
        count = max(0, len(blocks) - block)
        blocks = blocks[:count] * _power(block) + blocks[block : block + count]
        block *= 2
    return result


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(0x9E3779B97F4A7C15, exponent, 1 << 64))


def _mixed(ids: Ids) -> Hashes:
    """A number of 64 bits for each id, by the output function of splitmix64 (G. Steele et al., OOPSLA 2014)."""
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result


class Found(NamedTuple):
    """A window and how often it occurs."""

    start: int
    """Where it occurs first."""
    times: int


class Counts:
    """How often each window of a length occurs."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        """Counts the windows of all documents."""
        self.tokens = tokens
        self.length = length
        starts = tokens.starts(length)
        values = hashes(tokens.ids, length)[starts]
        order = np.argsort(values, kind="stable")
        self._starts = starts[order]
        ordered = values[order]
        self._begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)])
        self._values = ordered[self._begins]
        self._counts = np.diff(np.append(self._begins, len(ordered)))

    def choose(self, least: int, most: int | None, limit: int, seed: str) -> list[Found]:
        """Windows that occur ``least`` to ``most`` times, drawn by a seed, of which no two overlap."""
        wanted = self._counts >= least
        if most is not None:
            wanted &= self._counts <= most
        return self._choose(np.flatnonzero(wanted), limit, seed)

    def choose_new(self, others: Counts, limit: int, seed: str) -> list[Found]:
        """Windows that ``others`` does not have."""
        return self._choose(np.flatnonzero(~np.isin(self._values, others._values)), limit, seed)

    def _choose(self, groups: NDArray[np.int64], limit: int, seed: str) -> list[Found]:
        chosen: list[Found] = []
        taken: list[int] = []
        for at in random.Random(seed).sample(range(len(groups)), min(len(groups), 20 * limit)):
            begin, count = int(self._begins[groups[at]]), int(self._counts[groups[at]])
            places = self._starts[begin : begin + count]
            first = int(places[0])
            at_or_after = bisect(taken, first - self.length)
            is_free = at_or_after == len(taken) or taken[at_or_after] >= first + self.length
            if is_free and self._are_equal(places):
                chosen.append(Found(first, count))
                taken.insert(at_or_after, first)
            if len(chosen) == limit:
                break
        return chosen

    def _are_equal(self, places: NDArray[np.int64]) -> bool:
        """Whether windows with the same hash are the same: two that are not are left out."""
        first = self.tokens.ids[places[0] : places[0] + self.length]
        return all(bool((self.tokens.ids[at : at + self.length] == first).all()) for at in places[1:])
