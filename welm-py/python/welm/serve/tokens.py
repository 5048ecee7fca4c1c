"""Endpoints that give the engine's own view: tokens of texts, texts of tokens, log-likelihoods of continuations."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

import welm
from welm.serve.errors import timed_out
from welm.serve.fields import Fields
from welm.serve.openai_chat import messages_of, tokens_of
from welm.serve.openai_fields import logprob_of, spelling
from welm.serve.wire import compact, unless_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from welm.serve.service import Service


def _model(service: Service, fields: Fields) -> None:
    if (name := fields.take("model", str)) is not None:
        service.check_model(name)


async def tokenize(service: Service, http: Request, body: dict[str, Any]) -> Response:
    """The tokens of a text (``prompt``) or of a conversation (``messages``).

    Unless ``add_special_tokens`` is false, a text has the tokens of a prompt: where the model wants it, with the one
    that starts a text.
    """
    service.job(http)
    fields = Fields(body)
    _model(service, fields)
    messages = fields.take("messages", list)
    if messages is None:
        prompt: str = fields.need("prompt", str)
        special: bool = fields.take("parse_special", bool, default=False)
        begin: bool = fields.take("add_special_tokens", bool, default=True)
        fields.end()
        if begin:
            # The prompt of a request that computes nothing.
            got = await service.model.generate_async(prompt, max_tokens=0, echo=True, parse_special=special)
            tokens = [token.id for token in got.choices[0].tokens]
        else:
            tokens = await asyncio.to_thread(service.model.tokenize, prompt, special)
    else:
        conversation = messages_of(fields, messages)
        template = {
            "add_generation_prompt": fields.take("add_generation_prompt", bool),
            **fields.take("chat_template_kwargs", dict, default={}),
        }
        fields.end()
        tokens = await tokens_of(service, conversation, template)
    told = {"tokens": tokens, "count": len(tokens), "max_model_len": service.context}
    return Response(compact(told), media_type="application/json")


async def detokenize(service: Service, http: Request, body: dict[str, Any]) -> Response:
    """The text of tokens."""
    service.job(http)
    fields = Fields(body)
    _model(service, fields)
    tokens: list[int] = fields.need("tokens", list)
    fields.end()
    text = await asyncio.to_thread(service.model.detokenize, tokens)
    return Response(compact({"prompt": text}), media_type="application/json")


async def score(service: Service, http: Request, body: dict[str, Any]) -> Response:
    """The log-likelihood of each of ``continuations`` after ``prompt``; both are texts or token ids."""
    job = service.job(http)
    fields = Fields(body)
    _model(service, fields)
    prompt: str | list[int] = fields.need("prompt", str, list)
    continuations: list[str | list[int]] = fields.need("continuations", list)
    fields.end()
    service.charge(job)

    async def work() -> list[welm.Score]:
        async with service.turn(job, max(len(continuations), 1)):
            return await service.model.score_async(prompt, continuations, deadline=job.left)

    try:
        scores = await unless_gone(http, work())
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
    return Response(compact({"model": service.name, "scores": told}), media_type="application/json")
