"""Endpoints that give the engine's own view: tokens of texts, texts of tokens, log-likelihoods of continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import welm
from welm.serve.errors import json_response, timed_out
from welm.serve.fields import Fields
from welm.serve.openai_chat import messages_of, tokens_of, variables_of
from welm.serve.openai_fields import are_tokens, logprob_of, spelling
from welm.serve.wire import unless_gone

if TYPE_CHECKING:
    from starlette.responses import Response

    from welm.serve.service import Job, Service


def _model(service: Service, fields: Fields) -> None:
    if (name := fields.take("model", str)) is not None:
        service.check_model(name)


async def tokenize(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """The tokens of a text (``prompt``) or of a conversation (``messages``).

    Unless ``add_special_tokens`` is false, a text has the tokens of a prompt: where the model wants it, with the one
    that starts a text.
    """
    fields = Fields(body)
    _model(service, fields)
    messages = fields.take("messages", list)
    if messages is None:
        prompt: str = fields.need("prompt", str)
        special: bool = fields.take("parse_special", bool, default=False)
        begin: bool = fields.take("add_special_tokens", bool, default=True)
        fields.end()
        tokens: list[int] = await service.prepare(job, _tokens, service, prompt, special, begin)
    else:
        conversation = messages_of(fields, messages)
        template = {
            "add_generation_prompt": fields.take("add_generation_prompt", bool),
            **variables_of(fields),
        }
        fields.end()
        tokens = await tokens_of(service, job, conversation, template)
    told = {"tokens": tokens, "count": len(tokens), "max_model_len": service.context}
    return json_response(told)


def _tokens(service: Service, prompt: str, special: bool, begin: bool) -> list[int]:
    tokens = service.model.tokenize(prompt, special)
    return [*service.added_tokens, *tokens] if begin else tokens


async def detokenize(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """The text of tokens."""
    fields = Fields(body)
    _model(service, fields)
    tokens: list[int] = fields.need("tokens", list)
    fields.end()
    text = await service.prepare(job, service.model.detokenize, tokens)
    return json_response({"prompt": text})


async def score(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """The log-likelihood of each of ``continuations`` after ``prompt``; both are texts or token ids."""
    fields = Fields(body)
    _model(service, fields)
    prompt: str | list[int] = fields.need("prompt", str, list)
    if not isinstance(prompt, str) and not are_tokens(prompt):
        fields.refuse("prompt", "expected one text, or its token ids")
    continuations: list[str | list[int]] = fields.need("continuations", list)
    fields.end()
    if len(continuations) > service.settings.queue_limit:
        most = service.settings.queue_limit
        fields.refuse("continuations", f"expected at most {most:,}, got {len(continuations):,}")
    await service.charge(job)

    async def work() -> list[welm.Score]:
        async with service.turn(job, max(len(continuations), 1)):
            return await service.model.score_async(prompt, continuations, deadline=job.left, **job.options)

    try:
        scores = await unless_gone(job.http, work())
    except welm.Cancelled:
        raise timed_out(job.timeout) from None
    told = [
        {
            "logprob": one.logprob,
            "tokens": [
                {"id": token.id, "token": spelling(token), "logprob": logprob_of(token)}
                for token in one.tokens
            ],
        }
        for one in scores
    ]
    return json_response({"model": service.name, "scores": told})
