"""Chooses one of several options by the probability that a model gives to texts.

A template with an option filled in is a text in four pieces:

    head      all before the option, up to the last end of a sentence
    stem      what is left before the option
    option
    tail      all after the option

The head is the same for all options, so it is scored once. lm-eval takes the tokens of a context away from those of the
context with what follows. If a tokenizer joins the end of one with the beginning of the other, text is lost. Tokenizers
do join a mark with line breaks or quotes after it. So what stands after the last letter of the head is asked for with
the stem, and what stands after the last letter of the examples with the first piece. The sum of the pieces is then the
log-probability of the whole text. The requests of a document are

    head                         after the examples of a few-shot prompt
    stem                         after the examples and the head
    stem + option + tail         the same, for each option
    option                       after nothing, for each option, with the words of the template around it

and four rules rank by them (n: number of tokens, examples are context and do not count):

    whole   (log p(head) + log p(stem + option + tail)) / n, the perplexity of the whole text (PanGu-alpha)
    mean    log p(option + tail) / n
    sum     log p(option + tail) (GLM-130B, where options stand last)
    own     log p(option + tail) - log p(option after nothing) (ERNIE 3.0 Titan)

Where an option stands before the text, ``sum`` has the text too: p(option) p(text | option), and ``own`` is
p(text | option). Everything is the mean or sum of log-probabilities; the largest wins, the first of equal ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RULES = ("whole", "mean", "sum", "own")
MARK = "\ue000"  # stands for the option in a filled template; a private character, which no data has


class LogLikelihood(float):
    """A log-probability that knows of how many tokens it is. Models may return it in place of a float."""

    tokens: int

    def __new__(cls, value: float, tokens: int) -> LogLikelihood:  # noqa: PYI034, Self needs Python 3.11
        """A log-probability of so many tokens."""
        self = super().__new__(cls, value)
        self.tokens = tokens
        return self

    def __reduce__(self) -> tuple[type[LogLikelihood], tuple[float, int]]:
        """For pickle, which lm-eval's cache uses."""
        return LogLikelihood, (float(self), self.tokens)


@dataclass(frozen=True)
class Pieces:
    """A template, filled with each option."""

    head: str
    stem: str
    options: tuple[str, ...]
    tail: str
    # The words of the template next to the option, without anything of the document.
    around: tuple[str, str] = ("", "")

    def scored(self, whole: bool) -> tuple[str, str]:
        """Head and stem as they are scored: cut after a letter. Without ``whole`` the head is not scored."""
        if not whole:
            return "", self.stem.lstrip()
        end = _letters(self.head)
        return self.head[:end], self.head[end:] + self.stem

    def filled(self, option: int) -> str:
        """The whole text with one option."""
        return self.head + self.stem + self.options[option] + self.tail


def _letters(text: str) -> int:
    """The length of a text without what stands after its last letter or digit."""
    return next((at for at in range(len(text), 0, -1) if text[at - 1].isalnum()), 0)


def around(template: str) -> tuple[str, str]:
    """The words before and after ``{{option}}`` that are the same in all documents."""
    before, _, after = template.partition("{{option}}")
    return before.rpartition("}}")[2], "" if "{{" in after else after


def pieces(text: str, options: Sequence[str], around: tuple[str, str] = ("", "")) -> Pieces:
    """Cuts a template that is filled with all but the option, for which it has ``MARK``."""
    before, mark, tail = text.partition(MARK)
    if not mark or MARK in tail:
        raise ValueError(f"expected a template with one {{{{option}}}}, got {text!r}")
    ends = [end.end() for end in re.finditer(r"[。！？]+[”」』）]*(?![。！？”」』）])|(?=\n)", before)]
    cut = max(ends, default=0)
    # A break of lines that nothing stands before is no end of a sentence.
    cut = cut if before[:cut].strip() else 0
    stem = before[cut:]
    # The stem may begin in the middle of these words.
    words = min(around[0], stem, key=len).lstrip("”」』）》，。 \n")
    return Pieces(before[:cut], stem, tuple(options), tail, (words, around[1]))


def requests(parts: Pieces, context: str, between: str, whole: bool = True) -> list[tuple[str, str]]:
    """The requests (context, continuation) of a document.

    ``context`` is the few-shot prompt without white space at its end, and ``between`` what separates it from the text:
    it belongs to the first piece, and so do the marks at the end of the prompt. Without ``whole``, the context is a
    chat whose user said the head, and the model's turn begins with the stem.
    """
    before, lead = context, ""
    if context and whole:
        end = _letters(context)
        before, lead = context[:end], context[end:] + between
    asked: list[tuple[str, str]] = []
    head, stem = parts.scored(whole)
    if head:
        asked.append((before, lead + head))
        before, lead = before + lead + head, ""
    if stem.strip():
        asked.append((before, lead + stem))
    asked += [(before, lead + stem + option + parts.tail) for option in parts.options]
    asked += [("", parts.around[0] + option + parts.around[1]) for option in parts.options]
    return asked


def rank(
    parts: Pieces,
    scores: Sequence[float],
    counts: Sequence[int],
    whole: bool = True,
) -> dict[str, list[float]]:
    """What each rule gives to each option; ``scores`` and ``counts`` are in the order of the requests."""
    pairs = list(zip(scores, counts, strict=True))
    options = len(parts.options)
    head, stem = (0.0, 0), (0.0, 0)
    before, between = parts.scored(whole)
    if before:
        head = pairs.pop(0)
    if between.strip():
        stem = pairs.pop(0)
    if len(pairs) != 2 * options:
        raise ValueError(f"expected the results of {2 * options} requests for the options, got {len(pairs)}")
    rests, alone = pairs[:options], pairs[options:]
    return {
        "whole": [(head[0] + score) / (head[1] + n) for score, n in rests],
        "mean": [(score - stem[0]) / max(1, n - stem[1]) for score, n in rests],
        "sum": [score - stem[0] for score, _ in rests],
        "own": [score - stem[0] - own for (score, _), (own, _) in zip(rests, alone, strict=True)],
    }


def best(values: Sequence[float]) -> int:
    """The index of the largest value, the first of equal ones."""
    return max(range(len(values)), key=values.__getitem__)


def token_counts(
    asked: Sequence[tuple[str, str]],
    scores: Sequence[float],
    count: Callable[[str], int] | None,
) -> list[int]:
    """The tokens of each continuation: as its score says, or by ``count``, a tokenizer's number of tokens of a text."""
    counts: list[int] = []
    for (context, text), score in zip(asked, scores, strict=True):
        if isinstance(score, LogLikelihood):
            counts.append(score.tokens)
        elif count is not None:
            counts.append(max(1, count(context + text) - count(context)))
        else:
            raise ValueError(
                "perplexity needs the number of tokens, which this model does not tell: expected the metadata "
                '"tokenizer" (a name or a folder that transformers knows), or "unit": "byte" to divide by bytes'
            )
    return counts
