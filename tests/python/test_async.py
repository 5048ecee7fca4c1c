"""`asyncio`: the event loop goes on, cancelled tasks cancel their requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import welm

from conftest import PROMPT, at_rest


def test_a_hundred_requests_at_once(model: welm.Model) -> None:
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.002)

    async def run() -> list[welm.Generation]:
        ticker = asyncio.create_task(tick())
        got = await asyncio.gather(
            *(model.generate_async(PROMPT, max_tokens=40, seed=i, ignore_eos=True) for i in range(100))
        )
        ticker.cancel()
        return got

    threads = threading.active_count()
    started = time.monotonic()
    got = asyncio.run(run())
    took = time.monotonic() - started
    assert [g.text for g in got] == [
        model.generate(PROMPT, max_tokens=40, seed=i, ignore_eos=True).text for i in range(100)
    ]
    assert len(ticks) > took / 0.002 / 10
    assert threading.active_count() <= threads + 1


def test_a_long_prompt_does_not_block_the_loop(model: welm.Model) -> None:
    async def run() -> int:
        task = asyncio.ensure_future(model.generate_async("床前明月光，疑是地上霜。\n" * 30_000))
        ticks = 0
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        with pytest.raises(welm.TooLong):
            await task
        return ticks

    assert asyncio.run(run()) > 20


def test_streams(model: welm.Model) -> None:
    async def run(seed: int) -> str:
        stream = model.stream_async(PROMPT, max_tokens=30, seed=seed)
        assert (stream.seed, stream.prompt_tokens) == (None, None)
        pieces = [piece async for piece in stream]
        assert (stream.seed, stream.prompt_tokens) == (seed, 5)
        assert pieces[-1].finish is not None
        assert [p async for p in stream] == []
        return "".join(piece.text for piece in pieces)

    async def all_() -> list[str]:
        return await asyncio.gather(*map(run, range(100)))

    assert asyncio.run(all_()) == [model.generate(PROMPT, max_tokens=30, seed=i).text for i in range(100)]


def test_pieces_come_as_they_are_made(model: welm.Model) -> None:
    async def run() -> None:
        started = time.monotonic()
        async with model.stream_async(PROMPT, max_tokens=480, n=16, ignore_eos=True) as stream:
            assert stream.prompt_tokens == 5
            await anext(stream)
            first = time.monotonic() - started
            async for _ in stream:
                pass
        assert first < (time.monotonic() - started) / 4

    asyncio.run(run())


def test_batches(model: welm.Model) -> None:
    async def run(model: welm.Model, count: int) -> list[welm.Generation]:
        return await model.generate_async([PROMPT] * count, max_tokens=9, temperature=0)

    want = model.generate(PROMPT, max_tokens=9, temperature=0).text
    assert asyncio.run(run(model, 0)) == []
    assert [g.text for g in asyncio.run(run(model, 5))] == [want] * 5
    small = welm.Model(queue_limit=3, max_running=2)
    assert [g.text for g in asyncio.run(run(small, 40))] == [want] * 40

    async def bad() -> None:
        with pytest.raises(welm.TooLong):
            await model.generate_async([PROMPT, "春" * 600], max_tokens=400, ignore_eos=True)

    asyncio.run(bad())
    at_rest(model)


def test_errors(model: welm.Model) -> None:
    with pytest.raises(TypeError, match=r"generate_async\(\) got an unexpected keyword argument 'x'"):
        model.generate_async(PROMPT, x=1)  # type: ignore[call-overload]

    async def run() -> None:
        with pytest.raises(welm.InvalidOption):
            await model.generate_async(PROMPT, top_p=3)
        with pytest.raises(welm.InvalidOption):
            async for _ in model.stream_async(PROMPT, top_p=3):
                pass

    asyncio.run(run())


def test_cancelled_tasks(model: welm.Model) -> None:
    async def stream() -> None:
        async for _ in model.stream_async(PROMPT, max_tokens=480, n=8, ignore_eos=True):
            pass

    async def run() -> None:
        for delay in (0.0, 0.001, 0.05):
            before = model.stats().completion_tokens
            tasks: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(model.generate_async(PROMPT, max_tokens=480, n=8, ignore_eos=True)),
                asyncio.ensure_future(model.generate_async([PROMPT] * 3, max_tokens=480, ignore_eos=True)),
                asyncio.ensure_future(stream()),
            ]
            await asyncio.sleep(delay)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(at_rest, model)
            assert model.stats().completion_tokens - before < 19 * 480
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.generate_async(PROMPT, max_tokens=480, n=32, ignore_eos=True), 0.05)
        await asyncio.to_thread(at_rest, model)

    asyncio.run(run())


def test_ending_a_stream(model: welm.Model) -> None:
    async def run() -> None:
        stream = model.stream_async(PROMPT, max_tokens=480, ignore_eos=True)
        await anext(stream)
        stream.cancel()
        pieces = [piece async for piece in stream]
        assert pieces[-1].finish is not None
        assert pieces[-1].finish.reason in ("cancelled", "length")

        async with model.stream_async(PROMPT, max_tokens=480, ignore_eos=True) as stream:
            await anext(stream)
        assert [piece async for piece in stream] == []

        stream = model.stream_async(PROMPT, max_tokens=480, ignore_eos=True)
        await anext(stream)
        del stream  # dropped
        await asyncio.to_thread(at_rest, model)

        cancel = welm.CancelToken()
        got = model.generate_async(PROMPT, max_tokens=480, n=16, ignore_eos=True, cancel=cancel)
        asyncio.get_running_loop().call_later(0.03, cancel.cancel)
        assert (await got).choices[0].finish_reason == "cancelled"

    asyncio.run(run())
    at_rest(model)


def test_two_tasks_cannot_wait_for_one_stream(model: welm.Model) -> None:
    async def run() -> None:
        stream = model.stream_async(PROMPT, max_tokens=480, n=8, ignore_eos=True)
        await anext(stream)
        first, second = (asyncio.ensure_future(anext(stream)) for _ in range(2))
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert any(isinstance(r, RuntimeError) for r in results) or all(
            isinstance(r, welm.Piece) for r in results
        )

    asyncio.run(run())
    at_rest(model)


def test_event_loops_in_several_threads(model: welm.Model) -> None:
    got: list[str] = []

    async def one(seed: int) -> str:
        return (await model.generate_async(PROMPT, max_tokens=12, seed=seed)).text

    threads = [threading.Thread(target=lambda i=i: got.append(asyncio.run(one(i % 2)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(got) == {model.generate(PROMPT, max_tokens=12, seed=i).text for i in range(2)}


def test_one_request_after_another() -> None:
    """The thread that waits ends with the last request and begins with the next, also when both are at once."""
    script = """
import asyncio, time, welm
model = welm.Model()
async def run():
    for i in range(1000):
        task = asyncio.ensure_future(model.generate_async("春", max_tokens=500, ignore_eos=True))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        until = time.monotonic() + i % 8 * 0.0004  # that thread looks every 2 ms
        while time.monotonic() < until:
            pass
        assert (await model.generate_async("春", max_tokens=1)).usage.completion_tokens == 1
asyncio.run(run())
"""
    # In a process of its own, which can be killed if no thread can go on.
    subprocess.run([sys.executable, "-c", script], timeout=100, check=True)


@pytest.mark.parametrize("end", ["loop.close()", "sys.exit(0)", "1 / 0"])
def test_an_exit_with_open_requests(end: str) -> None:
    """A loop that is left behind; the process ends, and soon."""
    script = f"""
import asyncio, sys, welm
model = welm.Model()
async def run():
    tasks.extend(asyncio.ensure_future(model.generate_async("春", max_tokens=500, n=64, ignore_eos=True))
        for _ in range(8))
    await asyncio.sleep(0.1)
    print(sum(task.done() for task in tasks), flush=True)
tasks = []
loop = asyncio.new_event_loop()
loop.run_until_complete(run())
{end}
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "0\n", done.stderr
    assert done.returncode == (1 if "1 / 0" in end else 0), done.stderr
    assert time.monotonic() - started < 10
