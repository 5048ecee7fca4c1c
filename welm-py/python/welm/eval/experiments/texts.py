"""Asks a model in texts: how likely answers are after a text, and how it goes on.

Texts are tokenized whole. Where a tokenizer joins the end of a text and the beginning of an answer into one token, that
token counts to the answer, for all answers alike.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, TypeAlias

from welm._prompts import added_tokens
from welm.eval.asking import Asker
from welm.eval.journal import EvalError
from welm.eval.requests import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import welm

    Progress: TypeAlias = "Callable[[str, int, int], object]"
    """Takes what is computed, how many of it are finished, and how many there are."""


class Texts:
    """A model that is asked in texts."""

    def __init__(self, model: welm.Model, asker: Asker, progress: Progress | None = None) -> None:
        """``model`` is that of ``asker``."""
        self.model = model
        self.asker = asker
        self.progress: Progress = progress or (lambda _what, _done, _total: None)
        self.room = min(model.memory.context_tokens, model.memory.cache_tokens)
        """Tokens of the context."""
        self.shortened = 0
        """Texts that were longer than the context, and lost their beginning."""
        self.added = added_tokens(model)
        """Tokens that the tokenizer adds in front of a text."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [*self.added, *self.model.tokenize(text)]

    def logprobs(self, what: str, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """For each text the log-probability of each of its answers."""
        requests: list[Request] = []
        for text, answers in asked:
            wholes = [self.encode(text + answer) for answer in answers]
            same = common([self.encode(text), *wholes])
            rests = [whole[same:] for whole in wholes]
            prompt = self._prompt(wholes[0][:same], self.room - max(map(len, rests)))
            requests += [Request(prompt, array("I", rest), {}) for rest in rests]
        results = iter(self.answers(what, requests))
        return [[next(results).result[0] for _ in answers] for _, answers in asked]

    def continuations(
        self, what: str, asked: Sequence[str], max_tokens: int, stop: Sequence[str] = ("\n",)
    ) -> list[str]:
        """How the model goes on after each text, by greedy decoding, without white space around."""
        options = {"max_tokens": max_tokens, "temperature": 0.0, "stop": list(stop)}
        room = self.room - 1 - max_tokens
        requests = [Request(self._prompt(self.encode(text), room), None, options) for text in asked]
        return [answer.result.strip() for answer in self.answers(what, requests)]

    def answers(self, what: str, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests."""
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            self.progress(what, done, len(requests))

        self.asker.progress = more
        return self.asker.answers(requests)

    def _prompt(self, tokens: list[int], room: int) -> array[int]:
        if room < 1:
            raise EvalError(
                f"expected a model with a context that has room for the answers, got {self.room} tokens"
            )
        self.shortened += len(tokens) > room
        return array("I", tokens[-room:])

    def remarks(self) -> list[str]:
        """A paragraph about shortened texts, if there were any."""
        if not self.shortened:
            return []
        return [
            f"{self.shortened:,} of the prompts were longer than the model's context of {self.room:,} tokens and lost "
            "their beginning, examples first. Figures of such a model say little."
        ]


def common(sequences: Sequence[Sequence[int]]) -> int:
    """How many items all begin with."""
    for at, items in enumerate(zip(*sequences, strict=False)):
        if len(set(items)) > 1:
            return at
    return min(map(len, sequences))
