"""``POST /v1/chat/completions`` as OpenAI has it: answers a conversation, with the model's own template."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import welm
from welm.serve.errors import json_response
from welm.serve.fields import Fields
from welm.serve.openai_fields import (
    MOST_LOGPROBS,
    logprob_of,
    reason_of,
    sampling,
    spelling,
    streamed,
    usage_of,
)
from welm.serve.wire import DONE, event, is_list, is_object

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from starlette.responses import Response

    from welm.serve.service import Job, Service

NO_TOOLS = "this server calls no tools"
NO_SCHEMA = "answers cannot be held to a schema; only text is given"
NO_REASONING = "reasoning is not told apart from the answer; a model's own switch is in chat_template_kwargs"


async def answer(service: Service, job: Job, body: dict[str, Any]) -> Response:
    """Answers a request."""
    fields = Fields(body)
    service.check_model(fields.need("model", str))
    conversation = messages_of(fields, fields.need("messages", list))
    options = sampling(fields)
    options.update(_logprobs(fields))
    stream, with_usage = streamed(fields)
    limit = fields.take("max_completion_tokens", default=fields.take("max_tokens"))
    template = {
        "add_generation_prompt": fields.take("add_generation_prompt", bool),
        "continue_final_message": fields.take("continue_final_message", bool),
        "documents": fields.take("documents", list),
        **variables_of(fields),
    }
    refuse_the_rest(fields)
    await service.charge(job)
    service.log_texts(job, messages=conversation)
    prompt = await tokens_of(service, job, conversation, template)
    options["max_tokens"] = rest_of_context(service, prompt) if limit is None else limit

    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if stream else "chat.completion",
        "created": int(time.time()),
        "model": service.name,
    }
    if stream:
        return await service.events(job, _events(service, job, prompt, options, head, with_usage))
    (generation,) = await service.whole(job, [prompt], options)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": logprobs_of(choice.tokens) if "logprobs" in options else None,
            "finish_reason": reason_of(choice.finish_reason),
        }
        for index, choice in enumerate(generation.choices)
    ]
    told = {**head, "choices": choices, "usage": usage_of([generation.usage])}
    return json_response(told)


_KEYS = {
    "role", "content", "name", "reasoning_content", "refusal", "annotations", "audio",
    "tool_calls", "function_call", "tool_call_id",
    "type", "id", "status", "phase",
}  # fmt: skip
"""What a message may have. Clients send answers back as they came, with keys that say nothing to a model."""

_NO_VARIABLES = {
    "messages": "the conversation is in messages",
    "tools": NO_TOOLS,
    "chat_template": "the model's own template is used",
}
"""What `chat_template_kwargs` may not have. A template is a program, which a client may not bring."""


def variables_of(fields: Fields) -> dict[str, Any]:
    """The variables of the model's template that a request sets."""
    variables: dict[str, Any] = fields.take("chat_template_kwargs", dict, default={})
    for name, why in _NO_VARIABLES.items():
        if name in variables:
            fields.refuse(f"chat_template_kwargs.{name}", why, code="unsupported_parameter")
    return variables


def messages_of(fields: Fields, given: list[Any], name: str = "messages") -> list[dict[str, Any]]:
    """The messages of a conversation, for the model's template.

    A message's content may be an array of parts, of which only text is known. A message from the `developer` is one
    from the `system`, because that is the role that templates have. `reasoning_content` is for templates that read it.
    """
    messages: list[dict[str, Any]] = []
    for at, one in enumerate(given):
        where = f"{name}[{at}]"
        message = _object(fields, where, one)
        if unknown := {key for key, value in message.items() if value is not None} - _KEYS:
            fields.refuse(f"{where}.{min(unknown)[:40]}", "unknown field", code="unknown_parameter")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            fields.wrong(f"{where}.role", "a string", role)
        if message.get("tool_calls") or message.get("function_call") or role in ("tool", "function"):
            fields.refuse(where, NO_TOOLS, code="unsupported_parameter")
        if is_list(content):
            content = "".join(_text(fields, f"{where}.content[{n}]", part) for n, part in enumerate(content))
        if content is None and role == "assistant" and "content" in message:
            content = ""
        if not isinstance(content, str):
            fields.wrong(f"{where}.content", "a string or an array", content)
        told = {"role": "system" if role == "developer" else role, "content": content}
        more = ("name", "reasoning_content")
        messages.append({**told, **{key: message[key] for key in more if isinstance(message.get(key), str)}})
    if not messages:
        fields.refuse(name, "expected a message, got none")
    return messages


def _object(fields: Fields, where: str, value: Any) -> dict[str, Any]:
    if not is_object(value):
        fields.wrong(where, "an object", value)
    return value


def _text(fields: Fields, where: str, part: Any) -> str:
    """The text of a part of a message."""
    part = _object(fields, where, part)
    text = part.get("text")
    if part.get("type") not in ("text", "input_text", "output_text") or not isinstance(text, str):
        kind = str(part.get("type"))[:40]
        fields.refuse(where, f"expected text, got {kind}", code="unsupported_parameter")
    return text


def refuse_the_rest(fields: Fields) -> None:
    """Refuses by name what the engine lacks."""
    fields.only("tools", NO_TOOLS, [])
    fields.only("tool_choice", NO_TOOLS, "none", "auto")
    fields.only("functions", NO_TOOLS, [])
    fields.only("function_call", NO_TOOLS, "none", "auto")
    fields.ignore("parallel_tool_calls")
    fields.only("response_format", NO_SCHEMA, {"type": "text"})
    fields.only("reasoning_effort", NO_REASONING, "none")
    fields.only("verbosity", "the length of answers cannot be asked for", "medium")
    fields.only("modalities", "answers are text", ["text"])
    fields.only("audio", "answers are text")
    fields.only("prediction", "predicted text does not speed anything up")
    fields.only("web_search_options", NO_TOOLS)
    fields.only("moderation", "there is no moderation")
    fields.end()


async def tokens_of(
    service: Service, job: Job, messages: list[dict[str, Any]], template: dict[str, Any]
) -> list[int]:
    """The tokens of a conversation."""
    given = {name: value for name, value in template.items() if value is not None}
    tokens: list[int] = await service.prepare(job, service.model.chat_tokens, messages, **given)
    return tokens


def rest_of_context(service: Service, prompt: Sequence[int]) -> int:
    """As many tokens as fit after a prompt."""
    return max(service.context - len(prompt), 1)


def _logprobs(fields: Fields) -> dict[str, int]:
    wanted = fields.take("logprobs", bool, default=False)
    top = fields.take("top_logprobs", int, default=0)
    if not wanted:
        if top:
            fields.refuse("top_logprobs", "expected logprobs to be true as well")
        return {}
    if not 0 <= top <= MOST_LOGPROBS:
        fields.refuse("top_logprobs", f"expected 0 to {MOST_LOGPROBS}, got {top}")
    return {"logprobs": top}


def logprobs_of(tokens: Sequence[welm.Token]) -> dict[str, Any]:
    """The log-probabilities of an answer's tokens."""
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(one) for one in token.alternatives]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(token: welm.Token) -> dict[str, Any]:
    return {"token": spelling(token), "logprob": logprob_of(token), "bytes": list(token.bytes)}


async def _events(
    service: Service,
    job: Job,
    prompt: list[int],
    options: dict[str, Any],
    head: dict[str, Any],
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    used: list[welm.Usage] = []
    begun: set[int] = set()
    more = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: dict[str, str], logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**head, "choices": [choice], **more})

    async for _, piece in service.pieces(job, [prompt], options, used):
        if piece.index not in begun:
            begun.add(piece.index)
            yield chunk(piece.index, {"role": "assistant", "content": ""})
        told = logprobs_of(piece.tokens) if "logprobs" in options and piece.tokens else None
        if piece.text or told:
            yield chunk(piece.index, {"content": piece.text}, told)
        if piece.finish:
            yield chunk(piece.index, {}, None, reason_of(piece.finish.reason))
    if with_usage:
        yield event({**head, "choices": [], "usage": usage_of(used)})
    yield DONE
