"""``POST /v1/responses`` as OpenAI has it, without state: nothing is stored, and nothing stored is continued."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import welm
from welm.serve.errors import json_response
from welm.serve.fields import Fields
from welm.serve.openai_chat import (
    NO_REASONING,
    NO_SCHEMA,
    NO_TOOLS,
    messages_of,
    rest_of_context,
    tokens_of,
)
from welm.serve.openai_fields import sampling
from welm.serve.wire import event, is_object

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.responses import Response

    from welm.serve.errors import Refusal
    from welm.serve.service import Job, Service

NO_STATE = "nothing is stored here; send the whole conversation as input"


async def answer(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """Answers a request."""
    fields = Fields(body)
    service.check_model(fields.need("model", str))
    given = fields.need("input", str, list)
    items: list[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for at, item in enumerate(items):
        kind = item.get("type", "message") if is_object(item) else "message"
        if kind != "message":
            fields.refuse(f"input[{at}]", f"expected a message, got {str(kind)[:40]}")
    instructions = fields.take("instructions", str)
    first = [] if instructions is None else [{"role": "system", "content": instructions}]
    conversation = first + messages_of(fields, items, "input")
    fields.only("n", "a response is one answer", 1)
    metadata, user = fields.take("metadata", dict), fields.take("user", str)
    options = sampling(fields)
    stream: bool = fields.take("stream", bool, default=False)
    no_change: tuple[dict[str, bool], ...] = (
        {},
        {"include_obfuscation": True},
        {"include_obfuscation": False},
    )
    fields.only("stream_options", "there is nothing to choose", *no_change)
    limit = fields.take("max_output_tokens", int)
    fields.only("previous_response_id", NO_STATE)
    fields.only("conversation", NO_STATE)
    fields.only("prompt", NO_STATE)
    fields.only("background", NO_STATE, False)
    fields.only("tools", NO_TOOLS, [])
    fields.only("tool_choice", NO_TOOLS, "none", "auto")
    fields.only("max_tool_calls", NO_TOOLS)
    fields.ignore("parallel_tool_calls")
    plain, usual = {"format": {"type": "text"}}, {"verbosity": "medium"}
    fields.only("text", f"{NO_SCHEMA}, nor to a length", {}, plain, usual, {**plain, **usual})
    fields.only("reasoning", NO_REASONING, {}, {"effort": "none"})
    fields.only("include", "there is nothing more to include", [])
    fields.only("truncation", "a conversation that is too long is refused, not cut", "disabled")
    fields.only("top_logprobs", "log-probabilities are given by /v1/chat/completions", 0)
    fields.end()
    await service.charge(job)
    service.log_texts(job, messages=conversation)
    prompt = await tokens_of(service, job, conversation, {})
    options["max_tokens"] = rest_of_context(service, prompt) if limit is None else limit
    told: dict[str, Any] = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": instructions,
        "max_output_tokens": limit,
        "metadata": metadata or {},
        "model": service.name,
        "output": [],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": options["temperature"],
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": options["top_p"],
        "truncation": "disabled",
        "usage": None,
        "user": user,
    }
    if stream:
        number = _Numbers()
        events = _events(service, job, prompt, options, told, number)
        return await service.events(job, events, lambda refusal: number.event("error", **_error(refusal)))
    (generation,) = await service.whole(job, [prompt], options)
    item = _item(_item_id(), generation.text, "completed")
    _finish(told, item, generation.choices[0].finish_reason, generation.usage)
    return json_response(told)


def _error(refusal: Refusal) -> dict[str, Any]:
    return {"code": refusal.code or "server_error", "message": refusal.message, "param": refusal.param}


def _item_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(number: str, text: str, status: str) -> dict[str, Any]:
    content = [] if status == "in_progress" else [_part(text)]
    return {"id": number, "type": "message", "role": "assistant", "status": status, "content": content}


def _finish(told: dict[str, Any], item: dict[str, Any], reason: str, used: welm.Usage) -> None:
    """Completes a response."""
    cut = reason == "length"
    item["status"] = told["status"] = "incomplete" if cut else "completed"
    told["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
    told["output"] = [item]
    told["usage"] = {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


class _Numbers:
    """Writes events, with their numbers."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **values: Any) -> bytes:
        number, self._next = self._next, self._next + 1
        return event({"type": kind, "sequence_number": number, **values}, kind)


async def _events(
    service: Service,
    job: Job,
    prompt: list[int],
    options: dict[str, Any],
    told: dict[str, Any],
    number: _Numbers,
) -> AsyncGenerator[bytes, None]:
    used: list[welm.Usage] = []
    item = _item(_item_id(), "", "in_progress")
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    text, reason = "", "stop"
    begun = False
    async for _, piece in service.pieces(job, [prompt], options, used):
        if not begun:
            begun = True
            yield number.event("response.created", response=told)
            yield number.event("response.in_progress", response=told)
            yield number.event("response.output_item.added", output_index=0, item=item)
            yield number.event("response.content_part.added", **where, part=_part(""))
        if piece.text:
            text += piece.text
            yield number.event("response.output_text.delta", **where, delta=piece.text, logprobs=[])
        if piece.finish:
            reason = piece.finish.reason
    item = _item(item["id"], text, "completed")
    _finish(told, item, reason, used[0])
    yield number.event("response.output_text.done", **where, text=text, logprobs=[])
    yield number.event("response.content_part.done", **where, part=item["content"][0])
    yield number.event("response.output_item.done", output_index=0, item=item)
    yield number.event(f"response.{told['status']}", response=told)
