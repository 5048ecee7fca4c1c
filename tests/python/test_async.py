"""`asyncio`: the event loop goes on, cancelled tasks cancel their requests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import pathlib
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import welm

from conftest import PROMPT, at_rest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine


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
        # The prompt is tokenized to the end, because its bytes could fit, but its tokens do not.
        long = "床前明月光，疑是地上霜。\n" * 3_000
        tasks = [asyncio.ensure_future(model.generate_async(long)) for _ in range(100)]
        ticks = 0
        while not all(task.done() for task in tasks):
            ticks += 1
            await asyncio.sleep(0.001)
        for task in tasks:
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
        before = model.stats().completion_tokens
        async with model.stream_async(PROMPT, max_tokens=480, n=8, ignore_eos=True) as stream:
            assert stream.prompt_tokens == 5
            await anext(stream)
            assert model.stats().completion_tokens - before < 480 * 8 / 4
            async for _ in stream:
                pass
        assert model.stats().completion_tokens - before == 480 * 8

    asyncio.run(run())


def nobody_waits() -> None:
    """Waits for the end of the thread that waits for all requests: it may run for a moment after the last of them."""
    until = time.monotonic() + 30
    while any(thread.name == "welm-asyncio" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def waits() -> int:
    """How often the thread that waits for all requests has slept so far."""
    thread = next(thread for thread in threading.enumerate() if thread.name == "welm-asyncio")
    status = pathlib.Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)$", status, re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts how often a thread sleeps")
def test_nothing_wakes_up_for_an_idle_stream() -> None:
    """Not even the thread that waits: the engine wakes it when a piece comes."""
    one_at_a_time = welm.Model(max_running=1)
    nobody_waits()  # so that there is one such thread, whose sleeps are counted

    async def run() -> None:
        running = one_at_a_time.stream(PROMPT, **LONG)  # not a request of that thread
        next(running)
        async with one_at_a_time.stream_async(PROMPT, max_tokens=40, ignore_eos=True) as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.1)
            before = waits()
            await asyncio.sleep(0.5)
            assert waits() - before <= 1
            assert one_at_a_time.stats().queue_depth == 1
            assert not waiting.done()
            running.cancel()
            pieces = [await asyncio.wait_for(waiting, 10), *[piece async for piece in stream]]
            assert sum(len(piece.tokens) for piece in pieces) == 40

    asyncio.run(run())
    at_rest(one_at_a_time)


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

        cancel = welm.CancelToken()
        got = model.generate_async(PROMPT, max_tokens=480, n=16, ignore_eos=True, cancel=cancel)
        asyncio.get_running_loop().call_later(0.03, cancel.cancel)
        assert (await got).choices[0].finish_reason == "cancelled"

    asyncio.run(run())
    at_rest(model)


LONG: dict[str, Any] = {"max_tokens": 480, "n": 64, "ignore_eos": True}
"""A request that takes seconds."""


async def ended(model: welm.Model, before: int) -> None:
    """A request without a listener is not computed to its end.

    One collection may come too early: for a moment the thread of asyncio holds the loop that it hands a piece to.
    """
    until = time.monotonic() + 20
    while model.stats().open > 0 and time.monotonic() < until:
        gc.collect()
        await asyncio.sleep(0.01)
    await asyncio.to_thread(at_rest, model)
    assert model.stats().completion_tokens - before < 64 * 480 / 2


async def begun(model: welm.Model) -> welm.AsyncStream:
    stream = model.stream_async(PROMPT, **LONG)
    await anext(stream)
    return stream


async def drop_deleted(model: welm.Model) -> None:
    stream = await begun(model)
    del stream


async def drop_break(model: welm.Model) -> None:
    async for _ in model.stream_async(PROMPT, **LONG):
        break


async def drop_task_between_pieces(model: welm.Model) -> None:
    async def client() -> None:
        async for _ in model.stream_async(PROMPT, **LONG):
            await asyncio.sleep(60)

    task = asyncio.create_task(client())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])


async def drop_exception(model: welm.Model) -> None:
    async def raises() -> None:
        async for _ in model.stream_async(PROMPT, **LONG):
            raise KeyError

    with pytest.raises(KeyError):
        await raises()


async def drop_cycle(model: welm.Model) -> None:
    holder: dict[str, Any] = {"stream": await begun(model)}
    holder["self"] = holder


async def drop_entered_never_iterated(model: welm.Model) -> None:
    stream = model.stream_async(PROMPT, **LONG)
    await stream.__aenter__()
    assert stream.seed is not None
    del stream


async def drop_generator_around(model: welm.Model) -> None:
    async def texts() -> AsyncGenerator[str, None]:
        async for piece in model.stream_async(PROMPT, **LONG):
            yield piece.text

    generator = texts()
    await anext(generator)
    await generator.aclose()


async def drop_unread_pieces(model: welm.Model) -> None:
    stream = await begun(model)
    await asyncio.sleep(0.05)  # now it has unread pieces
    del stream


async def drop_waiting_task_with_its_loop(model: welm.Model) -> None:
    """A loop that is stopped and deleted, while one of its tasks waits for a piece."""

    class SlowLoop(asyncio.SelectorEventLoop):
        """The thread that hands on the pieces holds it most of the time."""

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
            handle = super().call_soon_threadsafe(*args, **kwargs)
            time.sleep(0.05)
            return handle

    def other() -> None:
        async def forever() -> None:
            async for _ in model.stream_async(PROMPT, **LONG):
                pass

        loop = SlowLoop()
        task = loop.create_task(forever())
        loop.run_until_complete(asyncio.sleep(0.1))
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore

    await asyncio.to_thread(other)


async def drop_closed_loop(model: welm.Model) -> None:
    kept: list[Any] = []

    def other() -> None:
        loop = asyncio.new_event_loop()
        kept.append(loop.run_until_complete(begun(model)))
        loop.close()

    await asyncio.to_thread(other)
    await ended(model, model.stats().completion_tokens)
    kept.clear()


async def drop_coroutine(model: welm.Model) -> None:
    """A generation whose coroutine is closed by hand while it waits."""
    coroutine = model.generate_async(PROMPT, **LONG)
    future: Any = coroutine.send(None)
    await asyncio.sleep(0.05)
    assert future.done()
    coroutine.send(None)
    await asyncio.sleep(0.05)
    assert model.stats().open == 1
    coroutine.close()


DROPS = [value for name, value in list(globals().items()) if name.startswith("drop_")]


@pytest.mark.parametrize("drop", DROPS, ids=[drop.__name__[5:] for drop in DROPS])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_dropped_request_ends(
    model: welm.Model, drop: Callable[[welm.Model], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        before = model.stats().completion_tokens
        await drop(model)
        await ended(model, before)

    asyncio.run(run())


def test_a_task_that_nobody_holds_goes_on(model: welm.Model) -> None:
    """The loop keeps a waiting task alive, as it does for a socket."""
    got: list[str] = []

    async def one() -> None:
        got.append(
            (await model.generate_async(PROMPT, max_tokens=60, ignore_eos=True)).choices[0].finish_reason
        )
        got.append("".join([p.text async for p in model.stream_async(PROMPT, max_tokens=60, temperature=0)]))

    async def run() -> None:
        asyncio.create_task(one())  # noqa: RUF006
        while len(got) < 2:
            gc.collect()
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(run(), 20))
    assert got == ["length", model.generate(PROMPT, max_tokens=60, temperature=0).text]


class SlowPool(concurrent.futures.ThreadPoolExecutor):
    """Returns a result some time after it has come."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        def slow() -> Any:
            result = fn(*args, **kwargs)
            time.sleep(0.1)
            return result

        return super().submit(slow)


def test_cancelled_while_it_is_sent(model: welm.Model) -> None:
    async def streamed() -> None:
        await anext(model.stream_async(PROMPT, **LONG))

    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: model.generate_async(PROMPT, **LONG),
        lambda: model.generate_async([PROMPT] * 3, **LONG),
        streamed,
    ]

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(SlowPool(1))
        for call in calls:
            before = model.stats().completion_tokens
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0.05)
            assert model.stats().open == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.1)  # requests that were being sent are sent now
            await ended(model, before)
        # A stream: closed, or cancelled, while it is sent.
        for end in ("aclose", "cancel"):
            before = model.stats().completion_tokens
            stream = model.stream_async(PROMPT, **LONG)
            first = asyncio.ensure_future(anext(stream, None))
            await asyncio.sleep(0.05)
            if end == "aclose":
                await stream.aclose()
                assert await first is None
            else:
                stream.cancel()
                await first
                assert {p.finish.reason async for p in stream if p.finish} == {"cancelled"}
            await ended(model, before)

    asyncio.run(run())


def test_cancelled_before_it_is_sent(model: welm.Model) -> None:
    async def run() -> None:
        stream = model.stream_async(PROMPT, **LONG)
        stream.cancel()
        assert {p.finish.reason async for p in stream if p.finish} == {"cancelled"}
        stream = model.stream_async(PROMPT, **LONG)
        await stream.aclose()
        requests = model.stats().requests
        async with stream:
            assert [p async for p in stream] == []
        assert model.stats().requests == requests

    asyncio.run(run())
    at_rest(model)


def test_two_tasks_cannot_wait_for_one_stream(model: welm.Model) -> None:
    async def run() -> None:
        # At the beginning, both tasks would send the request.
        stream = model.stream_async(PROMPT, max_tokens=40, ignore_eos=True)
        requests = model.stats().requests
        first, second = (asyncio.ensure_future(anext(stream)) for _ in range(2))
        with pytest.raises(RuntimeError, match="another task waits for this stream"):
            await second
        assert (await first).index == 0
        # The task that was first is not affected.
        assert sum(len(p.tokens) for p in [p async for p in stream]) >= 38
        assert model.stats().requests == requests + 1

        blocked = welm.Model(max_running=1)
        busy = await begun(blocked)
        stream = blocked.stream_async(PROMPT, max_tokens=4)
        await stream.__aenter__()
        waits = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="another task waits for this stream"):
            await anext(stream)
        await stream.aclose()  # ends the iteration of the waiting task
        assert await asyncio.wait_for(waits, 5) is None
        await busy.aclose()

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
    """The waiting thread ends with the last request and starts with the next one, even if both happen at the same
    time."""
    script = """
import asyncio, time, welm
model = welm.Model(threads=1)
async def run():
    for i in range(400):
        task = asyncio.ensure_future(model.generate_async("春", max_tokens=500, ignore_eos=True))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        until = time.monotonic() + i % 8 * 0.0004  # that thread ends about now
        while time.monotonic() < until:
            pass
        assert (await model.generate_async("春", max_tokens=1)).usage.completion_tokens == 1
asyncio.run(run())
"""
    # In a process of its own, which can be killed if it hangs.
    subprocess.run([sys.executable, "-c", script], timeout=100, check=True)


@pytest.mark.parametrize("end", ["loop.close()", "sys.exit(0)", "1 / 0"])
def test_an_exit_with_open_requests(end: str) -> None:
    """A loop that is still running at the end: the process ends soon."""
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


def run_script(script: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_main_thread_may_end_first() -> None:
    """A loop in a thread that is not a daemon goes on: its waiting requests, and those that it sends later."""
    out = run_script("""
import asyncio, threading, time, welm
model = welm.Model()

async def main():
    print((await model.generate_async("春", max_tokens=100, ignore_eos=True)).usage.completion_tokens)
    while threading.main_thread().is_alive():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # the thread that waits ends, and begins again
    print((await model.generate_async("春", max_tokens=7, ignore_eos=True)).usage.completion_tokens)
    print(sum([len(p.tokens) async for p in model.stream_async("春", max_tokens=8, ignore_eos=True)]))
    print(len(await model.generate_async(["春", "夏"], max_tokens=8)))

threading.Thread(target=lambda: asyncio.run(main())).start()
time.sleep(0.01)
print("the main thread ends", flush=True)
""")
    assert sorted(out.splitlines()) == sorted(["the main thread ends", "100", "7", "8", "2"])


def test_no_thread_can_be_started(model: welm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(None, int)  # the loop's pool has its thread
        for kind in (RuntimeError, MemoryError):
            # The waiting thread of earlier requests would serve these, too.
            await asyncio.to_thread(nobody_waits)

            def fails(thread: threading.Thread, kind: type[Exception] = kind) -> None:
                if thread.name == "welm-asyncio":
                    raise kind("can't start new thread")
                start(thread)

            monkeypatch.setattr(threading.Thread, "start", fails)
            for _ in range(3):
                results = await asyncio.gather(
                    model.generate_async(PROMPT, max_tokens=4),
                    anext(model.stream_async(PROMPT)),
                    model.generate_async([PROMPT] * 2),
                    return_exceptions=True,
                )
                for error in results:
                    assert isinstance(error, welm.Unavailable)
                    assert (error.what, str(error)) == (
                        "thread",
                        "thread is not available: can't start new thread",
                    )
            monkeypatch.undo()
            answer = await asyncio.wait_for(model.generate_async(PROMPT, max_tokens=4, ignore_eos=True), 5)
            assert answer.usage.completion_tokens == 4

    asyncio.run(run())
    at_rest(model)


def test_no_pool(model: welm.Model) -> None:
    """Without a pool, the loop's own thread sends a request."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        pool = concurrent.futures.ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        pool.shutdown()
        assert (
            await model.generate_async(PROMPT, max_tokens=4, ignore_eos=True)
        ).usage.completion_tokens == 4

    asyncio.run(run())


def test_a_stream_in_a_forked_child() -> None:
    run_script("""
import asyncio, os, warnings, welm
warnings.simplefilter("ignore", DeprecationWarning)
model = welm.Model()

async def run():
    stream = model.stream_async("春", max_tokens=400, ignore_eos=True)
    await anext(stream)
    pid = os.fork()
    if pid == 0:
        try:
            await anext(stream)
        except welm.ForkError as error:
            assert "os.fork()" in str(error)
            os._exit(7)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 7, status
    assert sum([len(p.tokens) async for p in stream]) == 399

asyncio.run(run())
""")


def test_a_subinterpreter_is_told() -> None:
    """Only one interpreter of a process can import the package; a second one gets an ImportError."""
    out = run_script('''
import asyncio, welm
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
model = welm.Model()
other = interpreters.create()
script = """
try:
    import welm
except ImportError:
    print("refused", flush=True)
"""
interpreters.run_string(other, script)
interpreters.destroy(other)
print(asyncio.run(model.generate_async("春", max_tokens=4, ignore_eos=True)).usage.completion_tokens)
''')
    assert out == "refused\n4\n"
