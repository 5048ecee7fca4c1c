"""How well probabilities of being right agree with being right.

``confidences`` are probabilities, ``right`` says for each answer whether it was right.
"""

from __future__ import annotations

import random
from math import exp, log
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BINS = 10


class Bin(NamedTuple):
    """The answers whose confidence is within a range."""

    confidence: float
    """The mean of their confidences."""
    accuracy: float
    """The share of them that is right."""
    size: int


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """The points of a reliability diagram: answers in bins of equal width, empty ones left out.

    Bin i of m has the confidences from i / m up to, but without, (i + 1) / m; the last has 1, too. Source: C. Guo et
    al., "On calibration of modern neural networks", ICML 2017, section 2.
    """
    each: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for pair in zip(confidences, right, strict=True):
        each[min(int(pair[0] * bins), bins - 1)].append(pair)
    return [
        Bin(sum(p for p, _ in pairs) / len(pairs), sum(r for _, r in pairs) / len(pairs), len(pairs))
        for pairs in each
        if pairs
    ]


def ece(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float:
    """The expected calibration error: Σ_b n_b / n |accuracy_b - confidence_b|, over bins of equal width.

    Source: M. P. Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; Guo et al.
    2017, equation 3.
    """
    found = reliability(confidences, right, bins)
    return sum(b.size * abs(b.accuracy - b.confidence) for b in found) / len(confidences)


def brier(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """The Brier score of "the answer is right": the mean of (confidence - right)², where right is 1 or 0.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78
    (1950). His own sum over both outcomes is twice this.
    """
    return sum((p - r) ** 2 for p, r in zip(confidences, right, strict=True)) / len(confidences)


def auroc(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """The probability that a right answer has a larger confidence than a wrong one; equal ones count half.

    It is the area under the ROC curve, and 0.5 by chance. Source: J. A. Hanley, B. J. McNeil, "The meaning and use of
    the area under a receiver operating characteristic (ROC) curve", Radiology 143 (1982). ``None`` if all answers are
    right or all wrong.
    """
    order = sorted(zip(confidences, right, strict=True))
    ranks, at = 0.0, 0
    while at < len(order):
        end = at
        while end < len(order) and order[end][0] == order[at][0]:
            end += 1
        # Equal values share the mean of their ranks, which begin with 1.
        ranks += (at + 1 + end) / 2 * sum(r for _, r in order[at:end])
        at = end
    ones = sum(right)
    zeros = len(order) - ones
    return (ranks - ones * (ones + 1) / 2) / (ones * zeros) if ones and zeros else None


def selective(confidences: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """(coverage, accuracy) of answering only where the confidence is at least t, for each t that occurs.

    Source: R. El-Yaniv, Y. Wiener, "On the foundations of noise-free selective classification", JMLR 11 (2010); the
    risk there is 1 - accuracy.
    """
    order = sorted(zip(confidences, right, strict=True), reverse=True)
    points: list[tuple[float, float]] = []
    correct = 0
    for count, (value, is_right) in enumerate(order, 1):
        correct += is_right
        if count == len(order) or order[count][0] != value:
            points.append((count / len(order), correct / count))
    return points


class Choice(NamedTuple):
    """An answer among some, with the logits of all."""

    logits: Sequence[float]
    """Log-probabilities, up to a constant."""
    chosen: int
    gold: int
    """The index of the right one; -1 if there is none."""

    @property
    def right(self) -> bool:
        """Whether the right one was chosen."""
        return self.chosen == self.gold

    def confidence(self, temperature: float = 1.0) -> float:
        """The probability of the one that was chosen: softmax of logits / temperature."""
        return softmax(self.logits, temperature)[self.chosen]


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """exp(l / T) / Σ exp(l / T)."""
    most = max(logits)
    each = [exp((logit - most) / temperature) for logit in logits]
    total = sum(each)
    return [value / total for value in each]


def fitted_temperature(choices: Sequence[Choice], least: float = 0.01, most: float = 100.0) -> float:
    """The temperature T with the least -Σ log softmax(logits / T)[gold]. Source: Guo et al. 2017, section 4.2.

    In 1 / T this is convex, with the slope Σ (Σ_i p_i l_i - l_gold), so T is found by halving where that is zero. It
    stays between ``least`` and ``most``: if all are right, or none better than chance, there is no zero.
    """

    def slope(inverse: float) -> float:
        total = 0.0
        for choice in choices:
            each = softmax(choice.logits, 1 / inverse)
            total += sum(p * logit for p, logit in zip(each, choice.logits, strict=True))
            total -= choice.logits[choice.gold]
        return total

    low, high = log(1 / most), log(1 / least)
    for _ in range(60):
        middle = (low + high) / 2
        if slope(exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return exp(-(low + high) / 2)


def halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """The numbers below ``count`` in two halves, drawn by a seed: one to fit on, one to test on."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[: count // 2]), sorted(order[count // 2 :])
