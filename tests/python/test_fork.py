"""Processes: a forked child has no engine, and gets that error; it may load a model of its own."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest

import welm

from conftest import PROMPT

FORK = """
import asyncio, gc, os, signal, sys, threading, time, warnings, welm
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of fork with threads
PROMPT = "床前明月光，"
model = welm.Model()
stream = model.stream(PROMPT, max_tokens=400, ignore_eos=True)
next(stream)
busy = threading.Thread(target=lambda: model.generate([PROMPT] * 8, max_tokens=200, ignore_eos=True))
busy.start()

async def whole():
    return await model.generate_async(PROMPT, max_tokens=400, ignore_eos=True)

def child():
    global model, stream
    async_stream = welm.AsyncStream
    calls = {
        "generate": lambda: model.generate(PROMPT),
        "batch": lambda: model.generate([PROMPT, PROMPT]),
        "stream": lambda: model.stream(PROMPT),
        "generate_async": lambda: asyncio.run(whole()),
        "stream_async": lambda: model.stream_async(PROMPT),
        "score": lambda: model.score(PROMPT, ["a"]),
        "score_async": lambda: model.score_async(PROMPT, ["a"]),
        "chat": lambda: model.chat([]),
        "chat_stream": lambda: model.chat_stream([]),
        "chat_async": lambda: model.chat_async([]),
        "chat_stream_async": lambda: model.chat_stream_async([]),
        "logits": lambda: model.logits(PROMPT),
        "tokenize": lambda: model.tokenize(PROMPT),
        "detokenize": lambda: model.detokenize([5]),
        "token_bytes": lambda: model.token_bytes(5),
        "token_id": lambda: model.token_id("a"),
        "is_special": lambda: model.is_special(5),
        "chat_prompt": lambda: model.chat_prompt([]),
        "chat_tokens": lambda: model.chat_tokens([]),
        "has_chat_template": lambda: model.has_chat_template,
        "check_health": lambda: model.check_health(),
        "stats": lambda: model.stats(),
        "config": lambda: model.config,
        "memory": lambda: model.memory,
        "backend": lambda: model.backend,
        "repr": lambda: repr(model),
        "next": lambda: next(stream),
        "cancel": lambda: stream.cancel(),
        "exit": lambda: stream.__exit__(None, None, None),
    }
    public = {name for name in dir(welm.Model) if not name.startswith("_")} - {"estimate", "describe"}
    assert public <= set(calls), public - set(calls)
    for name, call in calls.items():
        try:
            call()
        except welm.ForkError as error:
            assert "os.fork()" in str(error), error
        else:
            raise AssertionError(name)
    del calls
    model = stream = None  # must neither hang nor crash
    gc.collect()
    own = welm.Model()
    text = own.generate(PROMPT, max_tokens=10, temperature=0).text
    assert asyncio.run(own.generate_async(PROMPT, max_tokens=10, temperature=0)).text == text
    assert [p.text for p in own.stream(PROMPT, max_tokens=1, temperature=0)] == [text[0]]

# Also while the thread of asyncio waits.
async def run():
    task = asyncio.ensure_future(whole())
    await asyncio.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            threading.Thread(target=lambda: None).start()
            done = []
            worker = threading.Thread(target=lambda: (child(), done.append(True)))
            worker.start()
            worker.join()
            code = 0 if done else 1
        finally:
            os._exit(code)
    return pid, await task

pid, got = asyncio.run(run())
until = time.monotonic() + 60
while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
    time.sleep(0.01)
if status == (0, 0):
    os.kill(pid, signal.SIGKILL)
    sys.exit("the child hangs")
assert os.waitstatus_to_exitcode(status[1]) == 0, status
busy.join()
assert got.usage.completion_tokens == 400
assert sum(len(piece.tokens) for piece in stream) == 399
assert model.generate(PROMPT, max_tokens=5, ignore_eos=True).usage.completion_tokens == 5
"""


def test_a_forked_child() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_child_may_exit_as_usual() -> None:
    """The inherited model is dropped with the interpreter."""
    script = """
import os, warnings, welm
warnings.simplefilter("ignore", DeprecationWarning)
model = welm.Model()
stream = model.stream("春", max_tokens=300, ignore_eos=True)
pid = os.fork()
if pid:
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 7, status
else:
    raise SystemExit(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def load_and_generate(prompt: str) -> welm.Generation:
    return welm.Model().generate(prompt, max_tokens=8, temperature=0)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing(model: welm.Model, method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        got = pool.map_async(load_and_generate, [PROMPT, "春"]).get(60)
    assert [g.text for g in got] == [
        model.generate(p, max_tokens=8, temperature=0).text for p in (PROMPT, "春")
    ]


def test_exceptions_cross_processes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(welm.TooLong) as raised:
        pool.apply_async(load_and_generate, ("春" * 600,)).get(60)
    assert raised.value.limit == 512
