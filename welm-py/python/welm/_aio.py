"""Requests for ``asyncio``.

One thread of the process waits for all open requests, and hands what comes to their event loops; it ends when none
is open. It is no daemon: at exit the interpreter waits for it, and it cancels what is still open.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from welm._errors import QueueFull
from welm._welm import Selector

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from welm._output import Generation, Piece
    from welm._welm import Request, Submit


class _Inbox:
    """What has come for one request and was not taken yet."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._arrival: asyncio.Future[None] | None = None

    def put(self, item: object) -> None:
        self._items.append(item)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def get(self) -> Any:
        if self._arrival is not None:
            raise RuntimeError("another task waits for the next piece of this stream")
        if not self._items:
            self._arrival = self.loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item


class _Waiter:
    """Starts and is the thread that waits."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._selector = Selector()

    def add(self, request: Request, inbox: _Inbox) -> None:
        if self._selector.add(request, (request.abandon, inbox)):
            threading.Thread(target=self._run, name="welm-asyncio").start()

    def _run(self) -> None:
        while (events := self._selector.wait()) is not None:
            if not threading.main_thread().is_alive():
                self._selector.clear()
                continue
            loops: dict[asyncio.AbstractEventLoop, list[Any]] = {}
            for event in events:
                loops.setdefault(event[0][1].loop, []).append(event)
            for loop, arrivals in loops.items():
                try:
                    loop.call_soon_threadsafe(_deliver, arrivals)
                except RuntimeError:  # the loop is closed
                    for (abandon, _), _ in arrivals:
                        abandon()


def _deliver(arrivals: list[Any]) -> None:
    for (_, inbox), item in arrivals:
        inbox.put(item)


_waiter = _Waiter()


async def _send(submit: Submit) -> tuple[Request, _Inbox]:
    """Sends a request, on a thread of the loop's pool: it may have to tokenize a long text."""
    global _waiter
    inbox = _Inbox()
    request = await inbox.loop.run_in_executor(None, submit.send)
    if _waiter.pid != os.getpid():  # in a forked child there is no such thread
        _waiter = _Waiter()
    _waiter.add(request, inbox)
    return request, inbox


async def _receive(request: Request, inbox: _Inbox) -> Generation:
    try:
        generation: Generation = await inbox.get()
        return generation
    finally:
        request.abandon()


async def generate(submit: Submit) -> Generation:
    """One prompt."""
    return await _receive(*await _send(submit))


async def generate_all(submits: Sequence[Submit]) -> list[Generation]:
    """A batch: when the engine's queue is full, its next prompt waits until one of it has ended."""
    tasks: list[asyncio.Task[Generation]] = []
    try:
        for submit in submits:
            while True:
                try:
                    request, inbox = await _send(submit)
                    break
                except QueueFull:
                    open_ = [task for task in tasks if not task.done()]
                    if not open_:
                        raise
                    await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
            tasks.append(asyncio.create_task(_receive(request, inbox)))
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class AsyncStream:
    """Pieces of a request as they come; what :meth:`Model.stream_async` returns.

    Cancelling the task that iterates, leaving an ``async with`` block, or dropping the stream cancels the request.
    """

    def __init__(self, submit: Submit) -> None:
        """Of a request that is not sent yet."""
        self._submit = submit
        self._sent: tuple[Request, _Inbox] | None = None
        self._ended = False

    @property
    def seed(self) -> int | None:
        """The seed that is used; ``None`` before the request is sent."""
        return self._sent and self._sent[0].seed

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; ``None`` before the request is sent."""
        return self._sent and self._sent[0].prompt_tokens

    def cancel(self) -> None:
        """Ends the request; pieces that are under way still come, and then the last ones."""
        if self._sent:
            self._sent[0].cancel()

    async def aclose(self) -> None:
        """Ends the request; no piece comes any more."""
        self._ended = True
        if self._sent:
            self._sent[0].abandon()

    async def __aenter__(self) -> Self:
        """Sends the request."""
        if not self._sent:
            self._sent = await _send(self._submit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the request."""
        await self.aclose()

    def __aiter__(self) -> Self:
        """Iterates itself."""
        return self

    async def __anext__(self) -> Piece:
        """Waits for the next piece."""
        if self._ended:
            raise StopAsyncIteration
        try:
            if not self._sent:
                self._sent = await _send(self._submit)
            piece: Piece | None = await self._sent[1].get()
        except BaseException:
            await self.aclose()
            raise
        if piece is None:
            self._ended = True
            raise StopAsyncIteration
        return piece
