"""The gate, which shares the engine fairly; keys; quotas; settings."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from welm.serve import Settings
from welm.serve.gate import Full, Gate, Late
from welm.serve.keys import Keys, read_keys
from welm.serve.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


class Crowd:
    """Clients at a gate; each stays inside until it is told to leave."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inside: list[str] = []
        self.came: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, size: int = 1) -> None:
        """Requests named by their client's letter and a number."""
        for name in names:
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.ensure_future(self._stay(name, size))
            await settle()

    async def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
            await settle()

    async def _stay(self, name: str, size: int) -> None:
        async with self.gate.enter(name[0], size):
            self.inside.append(name)
            self.came.append(name)
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def case(run: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(run())

    test.__name__ = run.__name__
    return test


@case
async def test_clients_take_turns() -> None:
    crowd = Crowd(Gate(2, 100))
    await crowd.come("a1", "a2", "a3", "a4", "a5", "b1", "c1", "b2")
    assert (crowd.inside, crowd.gate.waiting) == (["a1", "a2"], 6)
    for name in ("a1", "a2", "a3", "b1", "c1", "a4"):
        await crowd.leave(name)
    assert crowd.came == ["a1", "a2", "a3", "b1", "c1", "a4", "b2", "a5"]
    await crowd.leave("b2", "a5")
    assert (crowd.inside, crowd.gate.waiting) == ([], 0)


@case
async def test_a_large_request_is_not_overtaken_for_ever() -> None:
    crowd = Crowd(Gate(4, 100))
    await crowd.come("a1", "a2")
    await crowd.come("b1", size=4)
    await crowd.come("c1", "a3")
    assert crowd.inside == ["a1", "a2"]  # there would be room for c1
    await crowd.leave("a1", "a2")
    assert crowd.inside == ["b1"]
    await crowd.leave("b1")
    assert crowd.inside == ["c1", "a3"]
    await crowd.leave("c1", "a3")
    # More than everything takes everything.
    await crowd.come("a4", size=100)
    await crowd.come("b2")
    assert crowd.inside == ["a4"]
    await crowd.leave("a4", "b2")
    assert crowd.inside == []


@case
async def test_too_many_are_refused() -> None:
    crowd = Crowd(Gate(1, 2))
    await crowd.come("a1", "a2", "a3", "a4")
    with pytest.raises(Full):
        await crowd.tasks["a4"]
    await crowd.leave("a1")
    await crowd.come("a5")
    assert crowd.gate.waiting == 2
    await crowd.leave("a2", "a3", "a5")
    assert crowd.came == ["a1", "a2", "a3", "a5"]


@case
async def test_the_flood_of_a_client_leaves_room_for_others() -> None:
    crowd = Crowd(Gate(1, 2))
    await crowd.come("a1", "a2", "a3", "a4", "b1", "b2", "b3", "c1", "c2", "d1", "d2", "e1")
    for name in ("a4", "b3", "e1"):  # more than two of a client; more than eight in all
        with pytest.raises(Full):
            await crowd.tasks[name]
    for name in ("a1", "a2", "b1", "c1", "d1", "a3", "b2", "c2", "d2"):
        await crowd.leave(name)
    assert crowd.came == ["a1", "a2", "b1", "c1", "d1", "a3", "b2", "c2", "d2"]


@case
async def test_a_turn_that_does_not_come_in_time() -> None:
    gate = Gate(1, 10)
    async with gate.enter("a", 1):
        with pytest.raises(Late):
            async with gate.enter("b", 1, 0.01):
                pass
        assert gate.waiting == 0
    async with gate.enter("b", -1000):
        with pytest.raises(Late):  # fewer than one is one
            async with gate.enter("c", -1, 0.01):
                pass
    async with gate.enter("c", 1, 0.01):
        pass


@case
async def test_those_who_leave_make_room() -> None:
    crowd = Crowd(Gate(1, 100))
    await crowd.come("a1", "b1", "c1", "b2")
    crowd.tasks["b1"].cancel()
    await settle()
    assert crowd.gate.waiting == 2
    crowd.tasks["a1"].cancel()
    await settle()
    assert crowd.inside == ["b2"] or crowd.inside == ["c1"]
    await crowd.leave("b2", "c1")
    # One is let in and cancelled before it notices.
    await crowd.come("a2", "b3", "c2")
    crowd.tasks["a2"].cancel()
    for _ in range(3):
        await asyncio.sleep(0)
        crowd.tasks["b3"].cancel()
    await settle()
    assert crowd.inside == ["c2"]
    await crowd.leave("c2")
    assert (crowd.inside, crowd.gate.waiting) == ([], 0)
    await crowd.come("a3")
    assert crowd.inside == ["a3"]
    await crowd.leave("a3")


@case
async def test_cancelling_at_any_moment_loses_no_place() -> None:
    import random

    chance = random.Random(1)
    gate = Gate(3, 10_000)

    async def one(client: str) -> None:
        async with gate.enter(client, chance.randint(1, 4)):
            await asyncio.sleep(chance.random() * 0.001)

    tasks = [asyncio.ensure_future(one(chance.choice("abcd"))) for _ in range(600)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
    assert gate.waiting == 0
    assert sum(not task.cancelled() for task in tasks) > 50
    crowd = Crowd(gate)
    await crowd.come("a1", "b1", "c1")
    assert crowd.inside == ["a1", "b1", "c1"]
    await crowd.leave("a1", "b1", "c1")


def test_keys() -> None:
    keys = Keys({"k": "alice", "other": "bob"})
    salts = set()
    for header in ("k", "Bearer k", "bearer k", "BEARER  k "):
        client = keys.client(header, "1.2.3.4")
        assert client is not None
        assert client.name == "alice"
        salts.add(client.salt)
    for wrong in (None, "", "K", "Bearer", "Basic k", "Bearer k k", "k k"):
        assert keys.client(wrong, "1.2.3.4") is None
    other = keys.client("Bearer other", "x")
    assert other is not None
    assert other.name == "bob"
    assert (len(salts), len({*salts, other.salt, None, "k"})) == (1, 4)
    anybody = Keys({}).client("whatever", "1.2.3.4")
    assert anybody is not None
    assert (anybody.name, anybody.salt) == ("1.2.3.4", None)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a alice\n\n# c\n b  bob # x\n", None),
        ("", "expected keys, got none"),
        ("# only\n", "expected keys, got none"),
        ("a alice\nsecret\n", ":2: expected a key and a name, got 1 words"),
        ("a b c\n", ":1: expected a key and a name, got 3 words"),
        ("secret alice\nsecret bob\n", ":2: expected each key once"),
        (
            "geheimnis alice\nschlüssel bob\n",
            ":2: expected a key of ASCII characters, which is what HTTP can carry",
        ),
    ],
)
def test_files_of_keys(tmp_path: Path, text: str, wrong: str | None) -> None:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    if wrong is None:
        assert read_keys(str(path)) == {"a": "alice", "b": "bob"}
        return
    with pytest.raises(ValueError, match="expected") as error:
        read_keys(str(path))
    assert str(error.value) == f"{path}{wrong if wrong[0] == ':' else f': {wrong}'}"


@case
async def test_quotas() -> None:
    with tempfile.TemporaryDirectory() as folder:
        now = 1_000_000 * 86_400.0
        path = f"{folder}/quota"
        quota = Quota(path, 2, 10, lambda: now)
        assert await quota.admit("a") is None
        now += 20
        assert await quota.admit("a") is None
        told = await quota.admit("a")
        assert told is not None
        assert (told[1], "2 requests" in told[0]) == (41, True)  # the first is forgotten in 40 seconds
        assert await quota.admit("b") is None
        now += 40
        assert await quota.admit("a") is None
        assert await quota.admit("a") is not None
        await quota.add("b", 9)
        now += 60
        assert await quota.admit("b") is None
        await quota.add("b", 1)
        told = await quota.admit("b")
        assert told is not None
        assert told[1] == 86_400 - 120 + 1
        quota.close()
        again = Quota(path, 2, 10, lambda: now)
        assert await again.admit("b") is not None
        assert await again.admit("a") is None
        now += 86_400
        assert await again.admit("b") is None
        # Another process writes: the loop goes on, and the error says what it is.
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(again.admit("b"))
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not waiting.done()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await waiting
            other.execute("ROLLBACK")
        assert await again.admit("b") is None
        again.close()
    free = Quota(None, 0, 0)
    await free.add("a", 10**9)
    assert [await free.admit("a") for _ in range(100)] == [None] * 100
    free.close()


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"model_names": ()}, "model_names: expected a tuple of one name or more"),
        ({"model_names": ("a", "xl")}, "model_names: xl is a model of WeLM's API"),
        ({"model_names": "mine"}, "model_names: expected a tuple"),
        ({"keys": {"": "alice"}}, "keys: expected a key of ASCII characters without spaces for alice"),
        ({"keys": {"a b": "alice"}}, "keys: expected a key"),
        ({"keys": {"钥匙": "alice"}}, "keys: expected a key"),
        ({"parallel": 0}, "parallel: expected 1 or more"),
        ({"queue_limit": 0}, "queue_limit: expected 1 or more"),
        ({"timeout": 0}, "timeout: expected seconds"),
        ({"keep_alive": float("nan")}, "keep_alive: expected seconds"),
        ({"characters_per_day": -1}, "characters_per_day: expected 0 or more"),
    ],
)
def test_wrong_settings(values: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Settings(**values)
