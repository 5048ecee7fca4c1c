"""Quotas: requests in a minute and generated characters in a day, for each owner of a key."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_TABLES = """
CREATE TABLE IF NOT EXISTS requests (owner TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS requests_of ON requests (owner, at);
CREATE TABLE IF NOT EXISTS characters (
    owner TEXT NOT NULL, day INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (owner, day)
);
"""

MINUTE, DAY = 60.0, 86_400


class Quota:
    """Counts what clients use.

    An SQLite file with a write-ahead log (WAL): what is counted outlives the process, also one that is killed. Several
    processes may share the file. A thread of its own waits for the file, so that the event loop does not.
    """

    def __init__(
        self,
        path: str | None,
        per_minute: int,
        per_day: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens or makes the file; without ``path`` it is in memory. A limit of 0 is none.

        Raises :class:`OSError` if the file cannot be used. The methods raise :class:`sqlite3.Error`.
        """
        self._per_minute, self._per_day, self._clock = per_minute, per_day, clock
        try:
            self._base = _open(path or ":memory:")
            self._base.execute("DELETE FROM requests WHERE at <= ?", (clock() - MINUTE,))
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error
        self._thread = ThreadPoolExecutor(1, "welm-quota")

    async def admit(self, owner: str) -> tuple[str, int] | None:
        """Counts a request. If a quota is used up, it is not counted: gives why, and after how many seconds to ask."""
        if not self._per_minute and not self._per_day:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._admit, owner)

    async def add(self, owner: str, characters: int) -> None:
        """Counts generated characters."""
        if self._per_day and characters:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._add, owner, characters)

    def _admit(self, owner: str) -> tuple[str, int] | None:
        now = self._clock()
        with self._transaction():
            if self._per_minute:
                self._base.execute("DELETE FROM requests WHERE owner = ? AND at <= ?", (owner, now - MINUTE))
                count, first = self._base.execute(
                    "SELECT count(*), min(at) FROM requests WHERE owner = ?", (owner,)
                ).fetchone()
                if count >= self._per_minute:
                    return f"{self._per_minute} requests a minute are used up", int(first + MINUTE - now) + 1
            if self._per_day:
                used = self._base.execute(
                    "SELECT n FROM characters WHERE owner = ? AND day = ?", (owner, now // DAY)
                ).fetchone()
                if used and used[0] >= self._per_day:
                    return f"{self._per_day:,} characters a day are used up", int(DAY - now % DAY) + 1
            if self._per_minute:
                self._base.execute("INSERT INTO requests VALUES (?, ?)", (owner, now))
        return None

    def _add(self, owner: str, characters: int) -> None:
        day = self._clock() // DAY
        with self._transaction():
            self._base.execute("DELETE FROM characters WHERE day < ?", (day,))
            self._base.execute(
                "INSERT INTO characters VALUES (?, ?, ?) ON CONFLICT (owner, day) DO UPDATE SET n = n + excluded.n",
                (owner, day, characters),
            )

    def close(self) -> None:
        """Closes the file."""
        self._thread.shutdown()
        self._base.close()

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def _open(path: str) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
    try:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        base.executescript(_TABLES)
    except BaseException:
        base.close()
        raise
    return base
