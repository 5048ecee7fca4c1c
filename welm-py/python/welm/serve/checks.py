"""Before all endpoints: `Host` and `Origin` are checked, requests get a number, and a line in the log."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from welm.serve.errors import Refusal, log

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from welm.serve.settings import Settings

QUIET = ("/health", "/ready", "/metrics")
"""Asked for every few seconds, and not logged."""

_CUT = Refusal(503, "the server has ended before the request was finished", code="draining")


class Checks:
    """A layer around the application. Its log has one line of JSON for each request."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Takes the application inside."""
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        number = uuid.uuid4().hex
        fields: dict[str, Any] = {}  # of the line in the log; others add to them
        scope.setdefault("state", {})["log_fields"] = fields
        status = 0
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        allowed = self._origin(headers)

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", number.encode())]
                if allowed:
                    more += [
                        (b"access-control-allow-origin", allowed.encode()),
                        (b"access-control-expose-headers", b"retry-after, x-request-id, x-should-retry"),
                        (b"vary", b"Origin"),
                    ]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            refusal = self._refusal(headers, allowed)
            if refusal:
                await refusal.response()(scope, receive, send_and_look)
            elif allowed and scope["method"] == "OPTIONS":
                await _preflight(send_and_look)
            else:
                await self._app(scope, receive, send_and_look)
        except asyncio.CancelledError:
            if not scope["app"].state.service.draining:
                raise
            fields["error"] = _CUT.message
            if not status:
                await _CUT.response()(scope, receive, send_and_look)
        finally:
            if scope["path"].removeprefix(scope.get("root_path", "")) not in QUIET:
                line = {
                    "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                    "request": number,
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status or None,  # null: the client hung up before there was one
                    "seconds": round(time.monotonic() - began, 4),
                    **fields,
                }
                log.info("%s", json.dumps(line, ensure_ascii=False))

    def _origin(self, headers: dict[bytes, str]) -> str | None:
        """The other site whose page sends the request, if the settings allow that site."""
        origin = headers.get(b"origin")
        return origin if origin is not None and ({origin, "*"} & {*self._settings.origins}) else None

    def _refusal(self, headers: dict[bytes, str], allowed: str | None) -> Refusal | None:
        """Why a request is not let in. A browser may have been sent here by a page of somebody else."""
        host = headers.get(b"host", "")
        if self._settings.hosts and _name(host).lower() not in self._settings.hosts:
            return Refusal(403, f"Host: expected {', '.join(self._settings.hosts)}, got {_name(host)[:80]}")
        origin = headers.get(b"origin")
        if origin is not None and allowed is None and origin.partition("://")[2] != host:
            return Refusal(403, f"Origin: pages of {origin[:80]} may not use this server")
        return None


def _name(host: str) -> str:
    """The name in a header ``Host``, without the port."""
    return host.rsplit(":", 1)[0] if not host.endswith("]") else host


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"*, authorization"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
