"""Requests over a Ray cluster: an actor with the model on every GPU, or on every node if there are no GPUs.

The model has to lie under the same path on every node. Each actor computes some hundreds of requests at a time, and the
engine gives the same bits for a request whatever else it computes, so the answers are those of one machine of the same
kind.
"""

# Neither Ray nor pyarrow has types that a type checker knows, and they need not be there when it runs.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import welm
from welm._cluster import ClusterError, connect, failure, place
from welm.eval.journal import EvalError
from welm.eval.requests import Answer, Finish, Request, Runner, beginnings, compute

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 512
"""Requests that an actor gets at once."""
WINDOW = 1 << 16
"""Requests of lm-eval that are computed together: for each such window the actors load the model anew."""


def runner(address: str, path: str, options: dict[str, Any]) -> Runner:
    """Connects to a cluster, and gives what computes requests there, with a model and its loading options."""
    try:
        ray = connect(address)
    except ClusterError as error:
        raise EvalError(str(error)) from None
    actors, needs = place(ray, str(options.get("device", "auto")))

    def run(requests: Sequence[Request], finish: Finish) -> None:
        order, _ = beginnings(requests)  # equal beginnings go to the same actor
        rows = [{"index": index, "request": pickle.dumps(requests[index])} for index in order]
        blocks = -(-len(rows) // BATCH)
        answers = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Worker,
            fn_constructor_args=(path, options),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **needs,
        )
        try:
            for row in answers.iter_rows():
                finish(row["index"], pickle.loads(row["answer"]))
        except ray.exceptions.RayError as error:
            raise EvalError(str(failure(error))) from error

    return run


def tokenizer_of(path: str, options: dict[str, Any]) -> welm.Model:
    """The model for its tokenizer and its limits only: with as little memory as the context allows, on the CPU."""
    least: dict[str, Any] = {"device": "cpu", "max_running": 1, "chunk_tokens": 1, "prefix_cache": False}
    return welm.Model(path, **{**options, **least})


class _Worker:
    """An actor: a model, which is loaded once."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.model = welm.Model(path, **options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        requests: list[Request] = [pickle.loads(request) for request in batch["request"]]
        answers: dict[int, Answer] = {}
        compute(self.model, requests, answers.__setitem__)
        each = [pickle.dumps(answers[index]) for index in range(len(requests))]
        return {"index": batch["index"], "answer": each}
