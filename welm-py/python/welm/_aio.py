"""Requests for ``asyncio``.

One daemon thread of the process sleeps until an engine has something for one of the open requests, and passes it to the
event loop of that request. The thread ends when no request is open. Engines do not call event loops themselves: their
threads never ask for the GIL, because others may hold it for long, or the interpreter may be gone.

The thread has only weak references. A waiting task is kept alive by its event loop, a stream by the code that iterates
it. A request ends when nobody has a reference to it any more. A loop is called once for all that comes before it looks,
so a loop that has stopped is not called again, and can be collected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from welm._errors import ForkError, QueueFull, Unavailable
from welm._welm import Selector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from welm._output import Generation, Piece, Score
    from welm._welm import Request, Scoring, Submit

_LONG = 1e8
"""Seconds; longer than anybody waits."""


class _Inbox:
    """A request, and the items that have come for it and were not taken yet. The request ends when this is deleted."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.request: Request | None = None
        self._pid = os.getpid()
        self._items: deque[Any] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._told = False

    def append(self, item: object) -> bool:
        """Keeps an item; any thread may call this. Tells whether the loop now has to be called, to :meth:`look`."""
        self._items.append(item)
        told, self._told = self._told, True
        return not told

    def look(self) -> None:
        """Wakes the task that waits, if there is an item. To be called by the loop, as all others are."""
        self._told = False  # first: what is appended from here on has a call of its own
        if self._items and self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def put(self, item: object) -> None:
        self._items.append(item)
        self.look()

    async def get(self) -> Any:
        if self._pid != os.getpid():
            raise ForkError("this was made before os.fork(), and its engine runs in the parent process only")
        if not self._items:
            self._arrival = self.loop.create_future()
            # An event loop keeps a strong reference only to what will wake a task. So a timer keeps this one alive.
            held = self.loop.call_later(_LONG, self.put, None)
            try:
                await self._arrival
            finally:
                held.cancel()
                self._arrival = None
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item

    def abandon(self) -> None:
        if self.request is not None:
            self.request.abandon()


class _Waiter:
    """Starts the thread that waits, and runs in it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._selector = Selector()

    def add(self, request: Request, inbox: _Inbox) -> None:
        number = self._selector.add(request, weakref.ref(inbox))
        if number is None:
            return
        try:
            threading.Thread(target=self._run, args=(number,), name="welm-asyncio", daemon=True).start()
        except BaseException as reason:  # a limit of threads; the interpreter ends; Ctrl-C
            # Other requests may have come since. There are none if the thread has begun.
            self._hand_on([(listener, _no_thread(reason)) for listener in self._selector.give_up(number)])
            if not isinstance(reason, Exception):
                raise

    def _run(self, number: int) -> None:
        while self._wait(number):
            pass

    def _wait(self, number: int) -> bool:
        # A function of its own, so that `events` is freed before the next wait.
        events = self._selector.wait(number)
        if events is None:
            return False
        self._hand_on(events)
        return True

    @staticmethod
    def _hand_on(events: list[tuple[weakref.ref[_Inbox], Any]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[weakref.ref[_Inbox]]] = {}
        for listener, item in events:
            if (inbox := listener()) is not None and inbox.append(item):
                loops.setdefault(inbox.loop, []).append(listener)
        inbox = None
        for loop, listeners in loops.items():
            try:
                loop.call_soon_threadsafe(_each, listeners, _Inbox.look)
            except RuntimeError:  # the loop is closed
                _each(listeners, _Inbox.abandon)


def _each(listeners: list[weakref.ref[_Inbox]], method: Callable[[_Inbox], None]) -> None:
    for listener in listeners:
        if (inbox := listener()) is not None:
            method(inbox)


def _no_thread(reason: BaseException) -> Unavailable:
    error = Unavailable(f"thread is not available: {reason}")
    error.what = "thread"
    return error


_waiter = _Waiter()


async def _send(submit: Submit) -> _Inbox:
    """Sends a request, on a thread of the loop's pool: it may have to tokenize a long text."""
    global _waiter
    inbox = _Inbox()
    try:
        sending = inbox.loop.run_in_executor(None, submit.send)
    except RuntimeError:  # there is no pool any more, for instance because the main thread has ended
        inbox.request = submit.send()
    else:
        inbox.request = await sending
    if _waiter.pid != os.getpid():  # in a forked child there is no such thread
        _waiter = _Waiter()
    _waiter.add(inbox.request, inbox)
    return inbox


async def _receive(inbox: _Inbox) -> Generation:
    try:
        generation: Generation = await inbox.get()
        return generation
    finally:
        inbox.abandon()


async def generate(submit: Submit) -> Generation:
    """One prompt."""
    return await _receive(await _send(submit))


async def generate_all(submits: Sequence[Submit]) -> list[Generation]:
    """A batch. When the engine's queue is full, the next prompt waits until another one of the batch has ended."""
    tasks: list[asyncio.Task[Generation]] = []
    try:
        for submit in submits:
            while True:
                try:
                    inbox = await _send(submit)
                    break
                except QueueFull:
                    open_ = [task for task in tasks if not task.done()]
                    if not open_:
                        raise
                    await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
            tasks.append(asyncio.create_task(_receive(inbox)))
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def score(scoring: Scoring) -> list[Score] | list[list[Score]]:
    """One scoring, on a thread of its own, because it may take too long for the loop's pool."""
    inbox = _Inbox()

    def work() -> None:
        try:
            item: object = scoring.run()
        except BaseException as error:
            item = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            inbox.loop.call_soon_threadsafe(inbox.put, item)

    try:
        threading.Thread(target=work, name="welm-score", daemon=True).start()
    except Exception as reason:  # a limit of threads; the interpreter ends
        raise _no_thread(reason) from None
    try:
        scores: list[Score] | list[list[Score]] = await inbox.get()
        return scores
    finally:
        scoring.cancel()


class AsyncStream:
    """The pieces of a request, which :meth:`Model.stream_async` returns.

    Cancelling the task that iterates, leaving an ``async with`` block, or deleting the stream cancels the request.
    """

    def __init__(self, submit: Submit) -> None:
        """Makes a stream of a request that is not sent yet."""
        self._submit = submit
        self._inbox: _Inbox | None = None
        self._busy = False
        self._cancelled = False
        self._ended = False

    @property
    def _request(self) -> Request | None:
        return self._inbox.request if self._inbox else None

    @property
    def seed(self) -> int | None:
        """The seed that is used; ``None`` before the request is sent."""
        return self._request and self._request.seed

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; ``None`` before the request is sent."""
        return self._request and self._request.prompt_tokens

    def cancel(self) -> None:
        """Ends the request; pieces that are already generated still come, and then the last ones."""
        self._cancelled = True
        if self._request:
            self._request.cancel()

    async def aclose(self) -> None:
        """Ends the request; no piece comes any more. For a task that waits for one, the iteration ends."""
        self._ended = True
        if self._inbox:
            self._inbox.abandon()
            self._inbox.put(None)

    async def _next(self, wanted: bool) -> Piece | None:
        """Sends the request if it is not sent yet; gives the next piece, if it is wanted."""
        if self._busy:
            raise RuntimeError("another task waits for this stream")
        self._busy = True
        try:
            if not self._inbox:
                self._inbox = await _send(self._submit)
                if self._cancelled:
                    self.cancel()
            piece: Piece | None = await self._inbox.get() if wanted and not self._ended else None
        except BaseException:
            self._ended = True
            raise
        finally:
            self._busy = False
            if self._ended and self._inbox:
                self._inbox.abandon()
        return None if self._ended else piece

    async def __aenter__(self) -> Self:
        """Sends the request."""
        if not self._inbox and not self._ended:
            await self._next(wanted=False)
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
        piece = None if self._ended else await self._next(wanted=True)
        if piece is None:
            self._ended = True
            raise StopAsyncIteration
        return piece
