"""Requests over a Ray cluster: an actor with the model on every GPU, or on every node if there are no GPUs.

The model has to lie under the same path on every node. Each actor computes some hundreds of requests at a time, and the
engine gives the same bits for a request whatever else it computes, so the answers are those of one machine of the same
kind.
"""

# Neither Ray nor pyarrow has types that a type checker knows, and they need not be there when it runs.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import logging
import pickle
import socket
from typing import TYPE_CHECKING, Any

import welm
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
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise EvalError(f'--ray needs Ray ({error}): pip install "welm[ray]"') from None
    if not ray.is_initialized():
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="welm")
        except (OSError, ValueError, RuntimeError) as error:
            raise EvalError(f"expected a Ray cluster at {address}: {error}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors, needs = _place(ray, str(options.get("device", "auto")))

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
            cause = error.__cause__ or error
            raise EvalError(f"on the Ray cluster: {type(cause).__name__}: {cause}") from error

    return run


def _reach(address: str) -> None:
    """Raises :class:`OSError` if nothing answers there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def tokenizer_of(path: str, options: dict[str, Any]) -> welm.Model:
    """The model for its tokenizer and its limits only: with as little memory as the context allows, on the CPU."""
    least: dict[str, Any] = {"device": "cpu", "max_running": 1, "chunk_tokens": 1, "prefix_cache": False}
    return welm.Model(path, **{**options, **least})


def _place(ray: Any, device: str) -> tuple[int, dict[str, float]]:
    """How many actors there are, and what each needs, so that two never share a GPU or a node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if device != "cpu" else 0
    if gpus:
        return gpus, {"num_gpus": 1}
    # More than half of a node's CPUs; the rest is for Ray's own tasks.
    cpus = min(node.get("CPU", 0) for node in nodes if node.get("CPU", 0))
    return sum(node.get("CPU", 0) >= cpus for node in nodes), {"num_cpus": cpus // 2 + 1}


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
