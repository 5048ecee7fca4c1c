"""Intervals and tests of scores, as reports and experiments show them.

A score is either the share of questions that were answered right, or a function of sums over the questions (a mean,
macro-F1, BLEU). For shares there are formulas:

    interval of a share            Wilson's score interval (Wilson 1927)
    interval of a difference       Newcombe's method 10 for paired shares (Newcombe 1998)
    test of a difference           McNemar's test in its exact form: of the questions that only one answered right, is
                                   half by either, the binomial distribution of that?

For sums, questions are drawn again: with replacement for an interval (percentile bootstrap), and the two sides of each
question exchanged at random for a test (paired permutation). The numbers are drawn by a fixed seed, so that the same
samples give the same figures. All intervals are of 95 %, all tests two-sided.

Questions about one passage are easy or hard together, so they are drawn and exchanged together, and the formulas are
those for as many questions as would give the same variance if each had a passage of its own (the effective sample size
of Kish 1965; for Wilson's interval, Dean and Pagano 2015). With fewer than about ten passages, intervals are still too
narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""
RESAMPLES = 2000
SEED = 1234
_NUMBERS = 1 << 22
"""Most random numbers in memory at once."""


class Interval(NamedTuple):
    """From, to."""

    low: float
    high: float


def wilson(right: float, total: float) -> Interval:
    """The interval of a share; of no question at all, from 0 to 1."""
    if not total:
        return Interval(0.0, 1.0)
    share = right / total
    middle = share + Z * Z / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    # At the ends the formula gives 0 and 1, but for rounding.
    low = 0.0 if right == 0 else (middle - half) / scale
    return Interval(low, 1.0 if right == total else (middle + half) / scale)


def newcombe(both: float, only_first: float, only_second: float, neither: float) -> Interval:
    """The interval of (share of the second - share of the first), by how many questions each answered right."""
    total = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p, q = second / total, first / total
    of_p, of_q = wilson(second, total), wilson(first, total)
    product = first * (total - first) * second * (total - second)
    cross = both * neither - only_first * only_second
    corrected = max(cross - total / 2, 0) if cross > 0 else cross
    phi = corrected / math.sqrt(product) if product else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0.0))

    low = p - q - reach(p - of_p.low, of_q.high - q)
    return Interval(low, p - q + reach(of_p.high - p, q - of_q.low))


def mcnemar(only_first: int, only_second: int) -> float:
    """The probability of a difference at least as large, if neither were better."""
    total, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return min(1.0, 2 * tail / (1 << total))


def mcnemar_of(before: Sequence[bool], after: Sequence[bool]) -> float:
    """:func:`mcnemar` of two ways to answer the same questions, each answer right or not."""
    pairs = list(zip(before, after, strict=True))
    return mcnemar(sum(b and not a for b, a in pairs), sum(a and not b for b, a in pairs))


@dataclass(frozen=True)
class Sums:
    """A score that is a function of sums over the questions."""

    rows: Floats
    """(questions, numbers): what each question adds."""
    function: Callable[[Floats], Floats]
    """(resamples, numbers) sums to (resamples,) scores."""
    passages: tuple[int, ...] = ()
    """The number of each question's passage, from 0 on without gaps; nothing if each question has its own."""

    @cached_property
    def drawn(self) -> Floats:
        """(passages, numbers): what the questions about each passage add."""
        if not self.passages:
            return self.rows
        sums = np.zeros((1 + max(self.passages), self.rows.shape[1]))
        np.add.at(sums, list(self.passages), self.rows)
        return sums

    @property
    def score(self) -> float:
        """Of all questions."""
        return float(self.function(self.rows.sum(0, keepdims=True))[0])


def effective(values: Floats, passages: Sequence[int]) -> float:
    """How many values with passages of their own would give a mean with the same variance.

    As few as if all values of a passage were equal, at least. If all values are equal, nothing shows how passages
    differ, and they count as independent.
    """
    if not passages:
        return len(values)
    apart = values - values.mean()
    sizes, sums = np.bincount(passages), np.bincount(passages, apart)
    least = len(values) ** 2 / float(sizes @ sizes)
    if len(sizes) == 1:
        return least
    alone, between = float(apart @ apart), float(sums @ sums) * len(sizes) / (len(sizes) - 1)
    return max(least, min(len(values) * alone / between, len(values))) if between else len(values)


def bootstrap(sums: Sums) -> Interval:
    """The interval of a score."""
    drawn = [sums.function(weights @ sums.drawn) for weights in _weights(len(sums.drawn))]
    return _percentiles(np.concatenate(drawn))


def bootstrap_difference(first: Sums, second: Sums) -> Interval:
    """The interval of (score of the second - score of the first), for the same questions in the same order."""
    drawn = [
        second.function(weights @ second.drawn) - first.function(weights @ first.drawn)
        for weights in _weights(len(first.drawn))
    ]
    return _percentiles(np.concatenate(drawn))


def permutation(first: Sums, second: Sums) -> float:
    """The probability of a difference at least as large, if the two sides of each passage were exchangeable."""
    source = np.random.Generator(np.random.PCG64(SEED))
    seen = abs(second.score - first.score)
    step = second.drawn - first.drawn
    of_first, of_second = first.rows.sum(0), second.rows.sum(0)
    extreme = 0
    for size in _sizes(len(step)):
        moved = source.integers(0, 2, (size, len(step))).astype(np.float64) @ step
        found = np.abs(second.function(of_second - moved) - first.function(of_first + moved))
        extreme += int(np.count_nonzero(found >= seen - 1e-12))
    return (1 + extreme) / (1 + RESAMPLES)


def _sizes(questions: int) -> Iterator[int]:
    """Parts of the resamples that fit into memory."""
    most = max(1, _NUMBERS // questions)
    for start in range(0, RESAMPLES, most):
        yield min(most, RESAMPLES - start)


def _weights(questions: int) -> Iterator[Floats]:
    """How often each question is drawn, (resamples, questions), some resamples at a time."""
    for part, size in enumerate(_sizes(questions)):
        yield _drawn(questions, part, size)


@lru_cache(maxsize=1)  # the metrics of a task ask for the same
def _drawn(questions: int, part: int, size: int) -> Floats:
    source = np.random.Generator(np.random.PCG64([SEED, part]))
    # Each resample counts in a place of its own.
    places = source.integers(0, questions, (size, questions)) + questions * np.arange(size)[:, None]
    counts = np.bincount(places.ravel(), minlength=size * questions)
    return counts.reshape(size, questions).astype(np.float64)


def _percentiles(drawn: Floats) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high))
