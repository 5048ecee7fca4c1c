"""Connections of clients that are slow, or that only come to occupy places.

uvicorn bounds neither the head of a request nor the time that it may take, and keeps a client that does not read. Here
each of these has a bound, and when there are too many connections, those that wait for a request are closed, the
oldest first. So thousands of idle connections keep nobody else out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_SECONDS = 30.0
"""Longest time from a connection, or the last answer, to the end of a request's head."""

HEAD_BYTES = 64 << 10
"""Most bytes of a request's head."""

STALL_SECONDS = 120.0
"""Longest time that a client with an unsent answer may not read at all."""

LINGER_SECONDS = 10.0
"""Longest time that a closed connection may take to send the rest."""


class Connection(HttpToolsProtocol):
    """A connection with bounds."""

    most: ClassVar[int]
    """Most connections."""
    idle: ClassVar[OrderedDict[Connection, None]]
    """Those that wait for a request's head, the oldest first."""

    _head = 0
    """Bytes of the head that is being read; -1 while a request is served."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait_for_head()
        if len(self.connections) > self.most and self.idle:
            next(iter(self.idle))._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._set_timer(None)
        self.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        if self._head >= 0 and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
                self._leave()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head = -1
        self._set_timer(None)
        self.idle.pop(self, None)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The answer is written."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_head()

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come."""
        self._leave()

    def pause_writing(self) -> None:
        """The client does not read what was written."""
        super().pause_writing()
        self._set_timer(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read some."""
        super().resume_writing()
        self._set_timer(None)

    def _wait_for_head(self) -> None:
        self._head = 0
        self.idle[self] = None
        self._set_timer(HEAD_SECONDS)

    def _set_timer(self, seconds: float | None, then: Callable[[], object] | None = None) -> None:
        """After so many seconds the connection ends."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, then or self._leave)

    def _leave(self) -> None:
        """Closes the connection; what is unsent has a while to be read."""
        self.idle.pop(self, None)
        if self.transport.is_closing():
            self.transport.abort()
            return
        self.transport.close()
        self._set_timer(LINGER_SECONDS, self.transport.abort)


def connections(most: int) -> type[Connection]:
    """The class of connections of a server that has so many at most."""
    made: dict[str, Any] = {"most": most, "idle": OrderedDict()}
    return type("Connection", (Connection,), made)
