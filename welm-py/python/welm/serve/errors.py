"""Errors as clients see them: statuses, and a body in the shape of OpenAI's."""

from __future__ import annotations

import json
import logging
import sqlite3
from typing import Any

from starlette.responses import Response

import welm

log = logging.getLogger("welm.serve")

ENDED = "engine_stopped"
"""The code of an error after which no request has an answer any more."""


def compact(value: Any) -> bytes:
    """JSON without spaces. What came from a client, such as a name that is unknown, may not be text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        errors="replace"
    )


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with JSON."""
    return Response(compact(value), status, headers, "application/json")


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        again: bool = True,
    ) -> None:
        """Makes one.

        ``param`` is the field of the request that is wrong, ``retry_after`` is in seconds. Without ``again``, OpenAI's
        clients do not send the request once more, as they do after most errors of a server.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.again = retry_after, again

    @property
    def body(self) -> dict[str, Any]:
        """The body, as OpenAI has it."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(
                    self.status, "server_error" if self.status >= 500 else "invalid_request_error"
                ),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The whole response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if not self.again:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response(self.body, self.status, headers)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an exception. Faults of the server go to the log, and a client learns no details."""
    refusal = error if isinstance(error, Refusal) else _refusal(error)
    if refusal is not error and refusal.status >= 500:
        log.error("a request failed", exc_info=error)
    return refusal


def _refusal(error: BaseException) -> Refusal:
    match error:
        case welm.TooLong():
            return _too_long(error)
        case welm.InvalidOption():
            return Refusal(400, str(error), param=error.option)
        case welm.EmptyPrompt() | welm.ChatTemplateError() | welm.TokenizerError():
            return Refusal(400, str(error))
        case welm.QueueFull():
            return Refusal(429, str(error), code="queue_full", retry_after=1)
        case welm.EngineStopped() | welm.DeviceLost() | welm.InvalidFile():
            # The last one: the file of the weights was cut short.
            return Refusal(503, "the model cannot serve any more; the server has to be restarted", code=ENDED)
        case welm.Unavailable():  # no thread could be started
            return Refusal(503, str(error), retry_after=1)
        case welm.OutOfMemory():
            return Refusal(503, "there is not enough memory for this answer", retry_after=1)
        case welm.NotFinite() | welm.DeviceError():
            return Refusal(500, str(error))
        case sqlite3.Error():
            return Refusal(503, "the quotas cannot be read", retry_after=1)
        case TypeError() if str(error).startswith("argument '"):  # the engine's own check of a type
            return Refusal(400, str(error), param=str(error).split("'")[1])
        case _:
            return Refusal(500, "an internal error")


def _too_long(error: welm.TooLong) -> Refusal:
    """In OpenAI's words, by which programs such as litellm know this error."""
    answer = error.requested - error.prompt_tokens
    message = (
        f"This model's maximum context length is {error.limit} tokens. However, you requested {error.requested} tokens "
        f"({error.prompt_tokens} in the prompt, {answer} in the completion)."
    )
    param = "max_tokens" if error.prompt_tokens < error.limit else None
    return Refusal(400, message, param=param, code="context_length_exceeded")


def timed_out(seconds: float) -> Refusal:
    """A request that took too long. It would take as long again."""
    return Refusal(504, f"the request was not finished in {seconds:g} s", code="timeout", again=False)
