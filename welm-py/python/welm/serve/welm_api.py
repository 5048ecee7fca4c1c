"""WeLM's public API: one request, which continues a text.

Programs that were written for it differ from its documentation, and all of them are served: numbers may be strings,
the key may stand alone in ``Authorization``, ``stop`` may be empty. Some read the answer as a Python literal, and some
take each part that arrives for a whole object. So the answer has no ``null``, ``true`` or ``false``, and is sent in one
write with its length.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import TYPE_CHECKING, Any

from welm.serve.errors import Refusal, json_response, refusal_of
from welm.serve.fields import Fields
from welm.serve.settings import RESERVED

if TYPE_CHECKING:
    from starlette.responses import Response

    from welm.serve.service import Job, Service

_STATUSES = {401: 403, 404: 400, 500: 503}
"""Statuses that WeLM's API does not have, and the one in their place. Bodies that are too large or too slow have 413
and 408 in both APIs: it is not known then which is meant."""


def is_welm(body: dict[str, Any]) -> bool:
    """Whether a completion is meant for this API, which is so if it is for a model of it; others are OpenAI's."""
    return body.get("model") in RESERVED


async def answer(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """Answers a request."""
    try:
        return await _answer(service, job, body)
    except Exception as error:
        raise with_status(refusal_of(error)) from error


def with_status(refusal: Refusal) -> Refusal:
    """The same with a status that this API has."""
    refusal.status = 503 if refusal.code == "queue_full" else _STATUSES.get(refusal.status, refusal.status)
    return refusal


async def _answer(service: Service, job: Job, body: dict[str, Any]) -> Response:
    fields = Fields(body)
    name = fields.need("model", str)
    if name not in RESERVED:
        service.check_model(name)
    prompt: str = fields.take("prompt", str, default="")
    echo = _switch(fields, "echo")
    options: dict[str, Any] = {
        "max_tokens": _number(fields, "max_tokens", 16, whole=True),
        "temperature": _number(fields, "temperature", 0.85),
        "top_p": _number(fields, "top_p", 0.95),
        "top_k": _number(fields, "top_k", 50, whole=True),
        "n": _number(fields, "n", 1, whole=True),
        "stop": sorted(set(fields.take("stop", str, default=""))),
    }
    fields.end()
    await service.charge(job, always=True)
    service.log_texts(job, prompt=prompt)
    (generation,) = await service.whole(job, [prompt], options)
    choices = [
        {
            "text": prompt + choice.text if echo else choice.text,
            "index": index,
            "logprobs": 0,
            "finish_reason": "finished",
        }
        for index, choice in enumerate(generation.choices)
    ]
    told = {
        "id": str(uuid.uuid4()),
        "object": "text_generation",
        "created": int(time.time()),
        "model": name,
        "choices": choices,
    }
    return json_response(told)


def _number(fields: Fields, name: str, default: float, *, whole: bool = False) -> float:
    """A number, which may be written as a string."""
    given = fields.take(name, default=default)
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or (whole and value != int(value)):
        fields.refuse(name, f"expected a {'whole ' * whole}number, got {str(given)[:40]}")
    return int(value) if whole else value


def _switch(fields: Fields, name: str) -> bool:
    """True or false, which may be written as a string or a number."""
    value = fields.take(name, default=False)
    known = {"true": True, "false": False, "1": True, "0": False, "": False}
    if (word := str(value).lower()) not in known:
        fields.refuse(name, f"expected true or false, got {word[:40]!r}")
    return known[word]
