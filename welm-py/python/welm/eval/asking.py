"""Asks a model: answers that the journal has are not computed again, and what is finished is written down."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from welm.eval.requests import Answer, Request, Runner, compute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import welm
    from welm.eval.journal import Journal


class Asker:
    """What computes requests with one model."""

    def __init__(
        self,
        model: welm.Model,
        *,
        journal: Journal | None = None,
        identity: str = "",
        runner: Runner | None = None,
    ) -> None:
        """Answers that ``journal`` has for requests to a model with this ``identity`` are not computed again.

        ``runner`` computes requests elsewhere.
        """
        self.runner: Runner = runner or partial(compute, model)
        self.journal = journal
        self.identity = identity
        self.counts: Counter[str] = Counter()
        """Requests ``computed`` and ``found`` in the journal; ``tokens`` of those computed."""
        self.seconds = 0.0
        """Time that computing took."""
        self.progress: Callable[[int], object] = lambda _: None
        """Is told how many more requests have their answer."""

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers: those that the journal has, and the others computed. Equal requests are computed once."""
        keys = [request.key(self.identity) for request in requests]
        answers: dict[str, Answer] = {}
        todo: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if self.journal and key in self.journal.answers:
                answers[key] = self.journal.answers[key]
            elif request.continuation is not None and not request.continuation:
                answers[key] = Answer([0.0, True], len(request.prompt))
            else:
                todo[key] = request
        self.counts["found"] += len(answers)
        self.progress(len(requests) - len(todo))
        asked = list(todo)

        def finish(index: int, answer: Answer) -> None:
            answers[asked[index]] = answer
            self.counts["computed"] += 1
            self.counts["tokens"] += answer.tokens
            self.progress(1)
            if self.journal:
                self.journal.add(asked[index], answer)

        started = time.perf_counter()
        try:
            if todo:
                self.runner(list(todo.values()), finish)
        finally:
            self.seconds += time.perf_counter() - started
        return [answers[key] for key in keys]
