"""Requests to the application without a network, for batches."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from welm.serve.application import application
from welm.serve.errors import Refusal
from welm.serve.settings import Settings
from welm.serve.wire import is_object

if TYPE_CHECKING:
    import welm

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/welm/v1/completions", "/v1/score")
"""What a batch may ask for."""


class Inside:
    """A model's application."""

    def __init__(self, model: welm.Model, name: str, *, any_name: bool, parallel: int) -> None:
        """Requests must have the model's name, or may have ``any_name``."""
        self._name = name if any_name else None
        self._app = application(
            model,
            Settings(model_names=(name,), parallel=parallel, queue_limit=1 << 20, timeout=1e7, page=False),
        )

    async def ask(self, request: dict[str, Any]) -> tuple[int, Any]:
        """Answers a line of a batch: the status, and the body."""
        path: Any = request.get("url")
        body: Any = request.get("body")
        try:
            if path not in PATHS or request.get("method", "POST") != "POST":
                raise Refusal(
                    400, f"url: expected POST to one of {', '.join(PATHS)}, got {str(path)[:60]}", param="url"
                )
            if not is_object(body):
                raise Refusal(400, "body: expected an object", param="body")
            if body.get("stream"):
                raise Refusal(400, "stream: an answer of a batch is no stream", param="stream")
        except Refusal as refusal:
            return refusal.status, refusal.body
        return await self._post(path, {**body, "model": self._name} if self._name else body)

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        status, parts = 500, list[bytes]()

        async def receive() -> Any:
            if not sent:
                await asyncio.Event().wait()  # nobody hangs up
            return sent.pop()

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": [],
            "client": ("batch", 0), "server": ("batch", 0), "state": {},
        }  # fmt: skip
        await self._app(scope, receive, send)
        return status, json.loads(b"".join(parts))
