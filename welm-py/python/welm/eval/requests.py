"""What the engine computes for an evaluation: requests, their keys, and how a model computes many of them.

The engine shares the keys and values of equal beginnings, but only once they are computed. So requests are sorted by
their tokens, and each waits for the first one that has the same beginning as it, in whole blocks. With four answers to
each of many questions after the same examples, one request is computed alone, then one of each question, then the other
answers. Of those that may go, the ones whose beginning was just computed come first, then the longest: the longest at
the end would be computed alone.

A beginning that nobody uses is forgotten when the cache needs room. So the requests to score that are with the engine
have a quarter of the cache's tokens at most: a beginning is still there when those that waited for it have their turn.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import welm

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence

CALLS = 64
"""Calls of the engine at the same time."""
REQUESTS_OF_CALL = 4
"""Most requests of one call. What is unfinished when a run is killed is computed again, so there are few."""
BLOCK = 16
"""Tokens of a block of the KV cache; only whole blocks are shared."""

COUNTED = {"counted": True}
"""Options of a request to score whose result has a third item: how many tokens greedy decoding gives before the first
that differs."""

Scored: TypeAlias = "tuple[float, bool]"
"""A log-likelihood, and whether greedy decoding would have given the same tokens."""


class Request(NamedTuple):
    """Tokens to score or to continue."""

    prompt: array[int]
    """The ids of the tokens before."""
    continuation: array[int] | None
    """The ids whose log-likelihood is asked for; ``None`` if the prompt is to be continued."""
    options: dict[str, Any]
    """Those of :meth:`welm.Model.generate`. For scoring none, or :data:`COUNTED`."""

    def key(self, identity: str) -> str:
        """A hash of the request and of what else its answer depends on."""
        digest = hashlib.blake2b(identity.encode(), digest_size=16)
        for ids in (self.prompt, self.continuation):
            digest.update(b"none" if ids is None else len(ids).to_bytes(8, "little") + ids.tobytes())
        digest.update(json.dumps(self.options, sort_keys=True).encode())
        return digest.hexdigest()


class Answer(NamedTuple):
    """What the engine gave."""

    result: Any
    """:data:`Scored` as a list, as JSON has it, or the generated text."""
    tokens: int
    """Tokens of the request and of the answer, also those whose keys and values were in the cache."""


Finish: TypeAlias = "Callable[[int, Answer], object]"
"""Takes the answer to the request with this index; it is called by the thread that waits."""
Runner: TypeAlias = "Callable[[Sequence[Request], Finish], None]"
"""Computes requests, and passes on each answer when it is there."""


def compute(model: welm.Model, requests: Sequence[Request], finish: Finish) -> None:
    """Computes requests, some hundreds at a time, and passes on each answer when it is there.

    An exception, such as that of Ctrl-C, ends what is being computed. Answers that are there are passed on before it
    is raised again.
    """
    order, parents = beginnings(requests)
    children: list[list[int]] = [[] for _ in requests]
    ready: list[tuple[int, int, int]] = []
    for index in order:
        if (parent := parents[index]) is None:
            heapq.heappush(ready, _place(requests, index, 0))
        else:
            children[parent].append(index)
    cancel = welm.CancelToken()
    open_: dict[Future[list[Answer]], list[int]] = {}
    depth = [0] * len(requests)
    sizes = [_size(requests, index, parent) for index, parent in enumerate(parents)]
    room = model.memory.cache_tokens // 4

    def free() -> int:
        """Tokens that are left of the room."""
        return room - sum(sizes[index] for batch in open_.values() for index in batch)

    def take(done: Future[list[Answer]]) -> None:
        for index, answer in zip(open_.pop(done), done.result(), strict=True):
            finish(index, answer)
            for child in children[index]:
                depth[child] = depth[index] + 1
                heapq.heappush(ready, _place(requests, child, depth[child]))

    with ThreadPoolExecutor(CALLS, "welm-eval") as pool:
        try:
            while ready or open_:
                # If nothing is with the engine, the next request goes, however large it is.
                while ready and len(open_) < CALLS and (not open_ or sizes[ready[0][2]] <= free()):
                    batch = _batch(requests, ready, sizes, free())
                    call = pool.submit(_call, model, [requests[index] for index in batch], cancel)
                    open_[call] = batch
                for done in wait(open_, return_when=FIRST_COMPLETED).done:
                    take(done)
        except BaseException:
            cancel.cancel()
            for done in [call for call in open_ if call.done() and not call.exception()]:
                take(done)
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def beginnings(requests: Sequence[Request]) -> tuple[list[int], list[int | None]]:
    """The order of the requests by their tokens, and for each the request that it waits for.

    That is the first in this order of those with which it shares most blocks.
    """
    order = sorted(range(len(requests)), key=lambda index: _tokens(requests[index]))
    parents: list[int | None] = [None] * len(requests)
    # The first request of each beginning that the last one has, by the beginning's length in blocks.
    firsts: list[tuple[int, int]] = []
    last, tokens = -1, None
    for index in order:
        before, tokens = tokens, _tokens(requests[index])
        common = 0 if before is None else common_blocks(before, tokens)
        first = last
        while firsts and firsts[-1][0] >= common:
            first = firsts.pop()[1]
        if common:
            firsts.append((common, first))
            parents[index] = first
        last = index
    return order, parents


def common_blocks(a: array[int], b: array[int]) -> int:
    """Whole blocks at the beginning of both."""
    most = min(len(a), len(b)) // BLOCK
    for block in range(most):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        if a[part] != b[part]:
            return block
    return most


def _tokens(request: Request) -> array[int]:
    return request.prompt if request.continuation is None else request.prompt + request.continuation


def _place(requests: Sequence[Request], index: int, depth: int) -> tuple[int, int, int]:
    """The smallest goes first."""
    return -depth, -len(_tokens(requests[index])), index


def _size(requests: Sequence[Request], index: int, parent: int | None) -> int:
    """Tokens of the cache that a request takes beside the beginning that it shares; 0 if it is not for scoring."""
    if requests[index].continuation is None:
        return 0
    tokens = _tokens(requests[index])
    shared = 0 if parent is None else common_blocks(_tokens(requests[parent]), tokens)
    return len(tokens) - BLOCK * shared


def _batch(
    requests: Sequence[Request], ready: list[tuple[int, int, int]], sizes: Sequence[int], room: int
) -> list[int]:
    """Requests for one call: those that come next, as long as they have the same options and the cache has room."""
    batch = [heapq.heappop(ready)[2]]
    first = requests[batch[0]]
    while ready and len(batch) < REQUESTS_OF_CALL:
        other = requests[ready[0][2]]
        alike = (other.continuation is None, other.options) == (first.continuation is None, first.options)
        if not alike or sum(sizes[index] for index in (*batch, ready[0][2])) > room:
            break
        batch.append(heapq.heappop(ready)[2])
    return batch


def _call(model: welm.Model, requests: list[Request], cancel: welm.CancelToken) -> list[Answer]:
    """Computes requests that have the same options."""
    prompts = [request.prompt for request in requests]
    if requests[0].continuation is not None:
        continuations = [[request.continuation or ()] for request in requests]
        scores = model.score(prompts, continuations, logprobs=1, cancel=cancel)
        return [
            Answer(_scored(score, **request.options), len(request.prompt) + len(score.tokens))
            for request, (score,) in zip(requests, scores, strict=True)
        ]
    generations = model.generate(prompts, **requests[0].options, cancel=cancel)
    if cancel.cancelled:
        raise welm.Cancelled("it was cancelled")  # the texts may have been cut off
    return [
        Answer(generation.text, generation.usage.prompt_tokens + generation.usage.completion_tokens)
        for generation in generations
    ]


def _scored(score: welm.Score, counted: bool = False) -> list[float | bool]:
    """See :data:`Scored` and :data:`COUNTED`. The alternative is the likeliest token."""
    differs = (at for at, token in enumerate(score.tokens) if token.alternatives[0].id != token.id)
    greedy = next(differs, len(score.tokens))
    scored = [score.logprob, greedy == len(score.tokens)]
    return [*scored, greedy] if counted else scored
