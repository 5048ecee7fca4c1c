"""Connections of clients that are slow, or that only come to occupy places.

uvicorn bounds neither the head of a request nor the time that it may take, and keeps a client that does not read. Here
each of these has a bound. When there are too many connections, those that have not sent a whole request are closed, the
oldest first. So thousands of connections that are idle, or send slowly, keep nobody else out.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HEAD_SECONDS = 30.0
"""Longest time from a connection, or the last answer, to the end of a request's head."""

HEAD_BYTES = 64 << 10
"""Most bytes of a request that are not its body, beside as many as the body has."""

PIPELINED = 8
"""Most requests of a connection that wait for the answer to an earlier one. More close it."""

STALL_SECONDS = 120.0
"""Longest time that a client with an unsent answer may read nothing."""

_UPGRADE = re.compile(rb"(?i)(?<=\n)upgrade(?=:)")
_CUT = re.compile(rb"(?i)(?<=\n)u(p(g(r(a(de?)?)?)?)?)?\Z")
"""The beginning of one, at the end of a part of a head."""


class Connection(HttpToolsProtocol):
    """A connection with bounds."""

    most: ClassVar[int]
    """Most connections."""
    unfinished: ClassVar[OrderedDict[Connection, None]]
    """Those whose request has not come to its end, the oldest first."""

    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _passed = b""
    """The last bytes of a head that the parser has."""
    _cut = b""
    """What came after them, and may be the beginning of a header that is replaced."""
    _received = _body = _unsent = 0
    _earlier: tuple[RequestResponseCycle, ...] = ()
    """Requests without a whole answer before the last one, the only one that uvicorn tells of a hang-up."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait_for_head()
        if len(self.connections) > self.most and self.unfinished:
            next(iter(self.unfinished))._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self.unfinished.pop(self, None)
        super().connection_lost(exc)
        for request in self._earlier:
            if not request.response_complete:
                request.disconnected = True
            request.message_event.set()

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        self._received += len(data)
        if self._in_head:
            # Nothing is upgraded here. The parser would take the body for that of another protocol.
            known = len(self._passed)
            head, gap, rest = (self._passed + self._cut + data).partition(b"\r\n\r\n")
            cut = None if gap else _CUT.search(head)
            head, self._cut = (head[: cut.start()], cut[0]) if cut else (head, b"")
            data = (_UPGRADE.sub(b"x-not-used", head) + gap + rest)[known:]
            self._passed = head[-3:]
        super().data_received(data)
        if self._cut and not self._in_head:  # it was of the body
            data, self._cut = self._cut, b""
            super().data_received(data)
        if self._received - self._body > HEAD_BYTES + self._body and not self.transport.is_closing():
            if self._in_head:
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
                self._leave()
            else:  # there may be a part of an answer
                self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._received = self._body = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
        before = self.cycle
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED:
            self.transport.abort()
        elif self.pipeline:  # uvicorn then reads nothing, and would not see that the client hangs up
            self._earlier = tuple(one for one in (*self._earlier, before) if not one.response_complete)
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come to its end."""
        self.unfinished.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_unsent()
        elif self.cycle.response_complete:  # no further request has come already
            self._wait_for_head()

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come."""
        self._leave()

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        """It has read most."""
        super().resume_writing()
        if self._stall_timer is not None and not self.transport.is_closing():
            self._stall_timer.cancel()
            self._stall_timer = None

    def _wait_for_head(self) -> None:
        self._in_head, self._passed = True, b""
        self.unfinished[self] = None
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._leave)

    def _watch_unsent(self) -> None:
        """Ends the connection when nothing was read for a while."""
        self._unsent = self.transport.get_write_buffer_size()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._check_unsent)

    def _check_unsent(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_unsent()
        else:
            self.transport.abort()

    def _leave(self) -> None:
        """Closes the connection; what is unsent has a while to be read."""
        self.unfinished.pop(self, None)
        self.transport.close()
        self._watch_unsent()


def connections(most: int) -> type[Connection]:
    """The class of connections of a server that has so many at most."""
    made: dict[str, Any] = {"most": most, "unfinished": OrderedDict()}
    return type("Connection", (Connection,), made)
