"""``POST /v1/completions`` as OpenAI has it: continues texts."""

from __future__ import annotations

import codecs
import time
import uuid
from typing import TYPE_CHECKING, Any

import welm
from welm.serve.errors import json_response
from welm.serve.fields import Fields
from welm.serve.openai_fields import (
    MOST_LOGPROBS,
    are_tokens,
    logprob_of,
    reason_of,
    sampling,
    spelling,
    streamed,
    usage_of,
)
from welm.serve.wire import DONE, event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from starlette.responses import Response

    from welm.serve.service import Job, Service


async def answer(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """Answers a request."""
    fields = Fields(body)
    service.check_model(fields.need("model", str))
    prompts = _prompts(fields)
    options = {**sampling(fields), "max_tokens": fields.take("max_tokens", default=16)}
    options["echo"] = fields.take("echo", bool, default=False)
    if (logprobs := fields.take("logprobs", int)) is not None:
        if not 0 <= logprobs <= MOST_LOGPROBS:
            fields.refuse("logprobs", f"expected 0 to {MOST_LOGPROBS}, got {logprobs}")
        options["logprobs"] = logprobs
    stream, with_usage = streamed(fields)
    fields.only("suffix", "text is only continued at its end; there is no text after the gap")
    fields.only("best_of", "as many sequences are generated as are returned, n", options["n"])
    fields.end()
    if options["echo"]:
        _expect_echo_fits(fields, prompts, options, service.context)
    await service.charge(job)
    service.log_texts(job, prompt=prompts)

    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }
    if stream:
        events = _events(service, job, prompts, options, head, with_usage)
        return await service.events(job, events)
    generations = await service.whole(job, prompts, options)
    choices = [
        {
            "text": choice.text,
            "index": index,
            "logprobs": Logprobs().of(choice.tokens) if "logprobs" in options else None,
            "finish_reason": reason_of(choice.finish_reason),
        }
        for index, choice in enumerate(c for generation in generations for c in generation.choices)
    ]
    usage = usage_of([generation.usage for generation in generations])
    return json_response({**head, "choices": choices, "usage": usage})


def _prompts(fields: Fields) -> list[str | list[int]]:
    """One prompt or several, as text or as token ids."""
    given: str | list[Any] = fields.need("prompt", str, list)
    if isinstance(given, str) or are_tokens(given):
        return [given]
    if not given:
        fields.refuse("prompt", "expected a prompt, got an empty array")
    for one in given:
        if not isinstance(one, str) and not are_tokens(one):
            fields.wrong("prompt", "text, token ids, or an array of these", one)
    return given


MOST_ECHOED = 1 << 21
"""Most log-probabilities, or tokens, of prompts that are repeated in an answer; in memory some 150 bytes each."""


def _expect_echo_fits(
    fields: Fields, prompts: list[str | list[int]], options: dict[str, Any], context: int
) -> None:
    """Refuses what would make an answer large that costs nothing to ask for. A token has a byte or more."""
    sizes = (
        len(prompt.encode(errors="replace") if isinstance(prompt, str) else prompt) for prompt in prompts
    )
    each = options["n"] if type(options["n"]) is int else 1
    echoed = sum(min(size, context) for size in sizes) * each * (1 + options.get("logprobs", 0))
    if echoed > MOST_ECHOED:
        what = "the bytes or tokens of prompts, times n, times logprobs + 1"
        fields.refuse(
            "echo", f"expected at most {MOST_ECHOED:,} for {what}, got {echoed:,}; send fewer at once"
        )


async def _events(
    service: Service,
    job: Job,
    prompts: Sequence[str | list[int]],
    options: dict[str, Any],
    head: dict[str, Any],
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    used: list[welm.Usage] = []
    n = options["n"]
    logprobs: dict[int, Logprobs] = {}
    async for number, piece in service.pieces(job, prompts, options, used):
        told = None
        index = number * n + piece.index
        if "logprobs" in options:
            told = logprobs.setdefault(index, Logprobs()).of(piece.tokens)
        elif not piece.text and not piece.finish:
            continue
        choice = {
            "text": piece.text,
            "index": index,
            "logprobs": told,
            "finish_reason": piece.finish and reason_of(piece.finish.reason),
        }
        yield event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})
    if with_usage:
        yield event({**head, "choices": [], "usage": usage_of(used)})
    yield DONE


class Logprobs:
    """The log-probabilities of a sequence, which may come in pieces.

    The offset of a token that begins inside a character is that of the character.
    """

    def __init__(self) -> None:
        """Begins at the start of the text."""
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Sequence[welm.Token]) -> dict[str, Any]:
        """Those of the next tokens.

        The token itself is among the alternatives. Of others that are written alike the likeliest is there.
        """
        offsets: list[int] = []
        for token in tokens:
            begun = self._decoder.decode(token.bytes[:1])
            # Of a character that stayed incomplete the replacement comes only now, before the token's own.
            own = 0 if self._decoder.getstate()[0] else 1
            offsets.append(self._offset + max(len(begun) - own, 0))
            self._offset += len(begun) + len(self._decoder.decode(token.bytes[1:]))
        return {
            "tokens": [spelling(token) for token in tokens],
            "token_logprobs": [logprob_of(token) for token in tokens],
            "top_logprobs": [
                {spelling(one): logprob_of(one) for one in (*reversed(token.alternatives), token)}
                if token.logprob is not None
                else None
                for token in tokens
            ],
            "text_offset": offsets,
        }
