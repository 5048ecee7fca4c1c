"""Who is computed next: the engine is shared fairly among clients.

The engine computes requests in the order in which they come. So a client that sends a thousand of them would hold up
all others. The gate lets in only as many sequences as the engine runs at once. When one ends, the next request is that
of another client: clients take turns, whatever the length of their queues.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Full(Exception):
    """Too many requests wait."""


class Late(Exception):
    """The turn of a request did not come in time."""


TOTAL = 4
"""How many times the limit of one client may wait in all."""


class Gate:
    """Lets in requests, at most ``parallel`` sequences at once; at most ``limit`` requests of each client wait."""

    def __init__(self, parallel: int, limit: int) -> None:
        """Makes a gate that is open."""
        self._free = self._parallel = parallel
        self._limit = limit
        self._queues: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()
        self.waiting = 0
        """Requests that wait."""

    @contextlib.asynccontextmanager
    async def enter(
        self, client: str, sequences: int, seconds: float | None = None
    ) -> AsyncGenerator[None, None]:
        """Waits for the turn of a client's request of so many sequences.

        Raises :class:`Full`, or :class:`Late` after so many seconds.
        """
        size = max(1, min(sequences, self._parallel))
        if self._queues or size > self._free:
            await self._wait(client, size, seconds)
        else:
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._let_in()

    async def _wait(self, client: str, size: int, seconds: float | None) -> None:
        if len(self._queues.get(client, ())) >= self._limit or self.waiting >= TOTAL * self._limit:
            raise Full
        turn = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(client, deque())
        queue.append((size, turn))
        self.waiting += 1
        try:
            # Not `wait_for`: it may swallow a cancellation that comes with the turn.
            await asyncio.wait({turn}, timeout=seconds)
            if not turn.done():
                raise Late
        except BaseException:
            if turn.done():  # it was let in at the same moment
                self._free += size
            else:
                queue.remove((size, turn))
                if not queue:
                    del self._queues[client]
            self._let_in()
            raise
        finally:
            self.waiting -= 1

    def _let_in(self) -> None:
        """Lets in the first requests of the clients, one after another, as long as there is room for the next."""
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            if queue[0][0] > self._free:
                return
            size, turn = queue.popleft()
            self._free -= size
            turn.set_result(None)
            del self._queues[client]
            if queue:
                self._queues[client] = queue  # its next turn comes after those of all others
