"""Bodies of requests, and answers as server-sent events."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from welm.serve.errors import Refusal, compact

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

BODY_SECONDS = 120.0
"""Longest time in which a body has to come."""

DRAIN_BYTES, DRAIN_SECONDS = 64 << 20, 5.0
"""How much of a body that is refused is still read: a client that is still sending could not read the answer."""

MOST_BRACKETS, MOST_COMMAS = 1 << 18, 1 << 20
"""Most opening brackets and most commas of a body, also those in texts. They tell how many values it has, and so how
long the server needs to parse it, in which time it does nothing else: measured were 0.05 s for as many empty arrays,
0.07 s for as many whole numbers, and 0.35 s for as many others."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json(request: Request, most: int) -> dict[str, Any]:
    """The JSON object in a request's body, whatever its ``Content-Type``, of at most so many bytes."""
    try:
        body = await asyncio.wait_for(_read(request, most), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body did not come in {BODY_SECONDS:g} s") from None
    brackets, commas = body.count(b"[") + body.count(b"{"), body.count(b",")
    if brackets > MOST_BRACKETS or commas > MOST_COMMAS:
        bounds = f"{MOST_BRACKETS:,} opening brackets and {MOST_COMMAS:,} commas"
        raise Refusal(
            413, f"body: expected at most {bounds}, got {brackets:,} and {commas:,}; send less at once"
        )
    try:
        text = body.decode("utf-8")
        value: object = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        got = f"{body[error.start]:#04x} at byte {error.start}"
        raise Refusal(400, f"body: expected UTF-8, got {got}") from None
    except UnicodeEncodeError:
        raise Refusal(400, "body: expected text, got half of a surrogate pair") from None
    except RecursionError:
        raise Refusal(400, "body: expected JSON with fewer levels") from None
    except ValueError as error:
        raise Refusal(400, f"body: expected a JSON object, got something else: {error}") from None
    if not is_object(value):
        raise Refusal(400, f"body: expected a JSON object, got {kind_of(value)}")
    return value


async def _read(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        if "expect" not in request.headers:  # else nothing was sent yet
            await drain(request)
        raise _too_large(most)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            await drain(request)
            raise _too_large(most)
    return bytes(body)


async def drain(request: Request) -> None:
    """Reads the rest of a body and forgets it, within bounds, and only as long as something comes."""
    parts, left, until = request.stream(), DRAIN_BYTES, time.monotonic() + DRAIN_SECONDS
    while left > 0 and time.monotonic() < until:
        try:
            left -= len(await asyncio.wait_for(anext(parts), 0.5))
        except (StopAsyncIteration, asyncio.TimeoutError):
            return


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"body: expected at most {most:,} bytes")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def kind_of(value: object) -> str:
    """The type of a JSON value, as JSON calls it."""
    kinds: dict[type, str] = {
        list: "an array",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
        dict: "an object",
    }
    return kinds.get(type(value), "a number")


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """Waits for work. If the client hangs up before it is done, the work is cancelled: raises `ClientDisconnect`.

    The body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """A response of server-sent events.

    When nothing comes for a while, a comment is sent. When the client hangs up, the iterator is closed.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], keep_alive: float) -> None:
        """Takes the events, each as its bytes, and the seconds after which a comment is sent."""
        super().__init__()
        self._events, self._keep_alive = events, keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of them."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for one in (sending, gone):
                one.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the events back
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        coming = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait([coming], timeout=self._keep_alive)
                part = coming.result() if done else b": keep-alive\n\n"
                if part is None:
                    break
                await send({"type": "http.response.body", "body": part, "more_body": True})
                if done:
                    coming = asyncio.ensure_future(anext(self._events, None))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(value: Any, name: str | None = None) -> bytes:
    """One event with JSON."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + compact(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
