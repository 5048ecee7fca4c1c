"""Quotas: requests in a minute and generated characters in a day, for each key."""

from __future__ import annotations

import contextlib
import sqlite3
import time
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

    An SQLite file in its mode for journals ahead of writing (WAL): what is counted outlives the process, also one that
    is killed, and a request costs some 20 microseconds. Several processes may share the file.
    """

    def __init__(
        self,
        path: str | None,
        per_minute: int,
        per_day: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens or makes the file; without ``path`` it is in memory. A limit of 0 is none."""
        self._per_minute, self._per_day, self._clock = per_minute, per_day, clock
        self._base = sqlite3.connect(
            path or ":memory:", isolation_level=None, check_same_thread=False, timeout=5
        )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = NORMAL")
        self._base.executescript(_TABLES)

    def admit(self, owner: str) -> tuple[str, int] | None:
        """Counts a request. If a quota is used up, it is not counted: gives why, and after how many seconds to ask."""
        now = self._clock()
        with self._transaction():
            if self._per_minute:
                self._base.execute("DELETE FROM requests WHERE at <= ?", (now - MINUTE,))
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
            self._base.execute("INSERT INTO requests VALUES (?, ?)", (owner, now))
        return None

    def add(self, owner: str, characters: int) -> None:
        """Counts generated characters."""
        day = self._clock() // DAY
        with self._transaction():
            self._base.execute("DELETE FROM characters WHERE day < ?", (day,))
            self._base.execute(
                "INSERT INTO characters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
                (owner, day, characters),
            )

    def close(self) -> None:
        """Closes the file."""
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
