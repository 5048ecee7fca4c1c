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


class Gate:
    """Lets in requests, at most ``parallel`` sequences at once; at most ``limit`` requests wait."""

    def __init__(self, parallel: int, limit: int) -> None:
        """Makes a gate that is open."""
        self._free = self._parallel = parallel
        self._limit = limit
        self._queues: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()
        self.waiting = 0
        """Requests that wait."""

    @contextlib.asynccontextmanager
    async def enter(self, client: str, sequences: int) -> AsyncGenerator[None, None]:
        """Waits for the turn of a client's request of so many sequences. Raises :class:`Full`."""
        size = min(sequences, self._parallel)
        if self._queues or size > self._free:
            await self._wait(client, size)
        else:
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._let_in()

    async def _wait(self, client: str, size: int) -> None:
        if self.waiting >= self._limit:
            raise Full
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append((size, turn))
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in at the same moment
                self._free += size
            self._let_in()
            raise
        finally:
            self.waiting -= 1

    def _let_in(self) -> None:
        """Lets in the first requests of the clients, one after another, as long as there is room for the next."""
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            while queue and queue[0][1].cancelled():
                queue.popleft()
            if queue and queue[0][0] > self._free:
                return
            del self._queues[client]
            if queue:
                size, turn = queue.popleft()
                self._free -= size
                turn.set_result(None)
            if queue:
                self._queues[client] = queue  # its next turn comes after those of all others
