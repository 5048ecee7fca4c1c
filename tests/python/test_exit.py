"""The end of the interpreter while daemon threads are in the package. Each test runs in processes of its own."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time

import pytest

RUNS = 3

HEAD = """
import asyncio, random, sys, threading, time, welm
PROMPT = "床前明月光，"
model = welm.Model(threads=1)

def daemons(work, count=4):
    def forever():
        while True:
            work()
    for _ in range(count):
        threading.Thread(target=forever, daemon=True).start()
    time.sleep(random.uniform(0.05, 0.2))
"""

WORK = {
    "loading": "daemons(welm.Model)",
    "loading_with_progress": "daemons(lambda: welm.Model(progress=lambda done, total: None))",
    "loading_with_slow_progress": "daemons(lambda: welm.Model(progress=lambda done, total: time.sleep(0.01)))",
    "estimating": "daemons(welm.Model.estimate)",
    "generating": "daemons(lambda: model.generate(PROMPT, max_tokens=4, logprobs=5))",
    "generating_long": "daemons(lambda: model.generate(PROMPT, max_tokens=480, ignore_eos=True, n=16))",
    "streaming": "daemons(lambda: list(model.stream(PROMPT, max_tokens=40, logprobs=5)))",
    "dropped_streams": "daemons(lambda: next(model.stream(PROMPT, max_tokens=400, ignore_eos=True)))",
    "scoring": "daemons(lambda: model.score(PROMPT, ['疑', '霜']))",
    "tokenizing": "daemons(lambda: model.detokenize(model.tokenize(PROMPT * 500)))",
    "counters": "daemons(lambda: (model.stats(), model.config, model.memory, repr(model)))",
    "errors": """
def wrong():
    try:
        model.generate([5] * 600)
    except welm.TooLong:
        pass
daemons(wrong)
""",
    "asyncio": """
async def one():
    for _ in range(1000):
        await asyncio.gather(*(model.generate_async(PROMPT, max_tokens=4, logprobs=5) for _ in range(8)))
daemons(lambda: asyncio.run(one()), 2)
""",
    "asyncio_streams": """
async def pieces():
    async for _ in model.stream_async(PROMPT, max_tokens=400, ignore_eos=True):
        pass
daemons(lambda: asyncio.run(pieces()), 3)
""",
    # No piece comes: the thread that waits sleeps without the GIL, and is not woken any more.
    "asyncio_idle": """
blocked = welm.Model(threads=1, max_running=1)
busy = blocked.stream(PROMPT, max_tokens=480, n=64, ignore_eos=True)
next(busy)
async def idle():
    async for _ in blocked.stream_async(PROMPT, max_tokens=4):
        pass
daemons(lambda: asyncio.run(idle()), 2)
""",
    "the_log": """
import logging
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
class Slow(logging.Handler):
    def emit(self, record):
        self.format(record)
        time.sleep(0.001)
logging.getLogger("welm").addHandler(Slow())
daemons(lambda: welm.Model(threads=1))
""",
}


def run(script: str) -> tuple[int, str, float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.mark.parametrize("work", WORK)
def test_daemon_threads(work: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(run, [WORK[work]] * RUNS))
    assert [(status, error) for status, error, _ in ends] == [(0, "")] * RUNS


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "raise SystemExit(3)", "import os, signal; os.kill(os.getpid(), 15)"]
)
def test_other_ends(end: str) -> None:
    status, error, _ = run(f"{WORK['generating']}\n{end}")
    assert (status, error) == (-15 if "kill" in end else 3, "")


def test_a_callback_that_hangs_does_not_hold_the_process() -> None:
    status, error, took = run("daemons(lambda: welm.Model(progress=lambda *_: time.sleep(3600)))")
    assert (status, error) == (0, "")
    assert took < 20


def test_exit_handlers_may_use_the_package() -> None:
    """Other exit handlers may run after the package's own, and may wait for threads that use the package."""
    script = """
import atexit, threading
results = []
def early():  # runs last
    thread = threading.Thread(target=lambda: results.append(model.generate("春", max_tokens=4)))
    thread.start()
    thread.join()
    running.join()
    results.append(model.generate("春", max_tokens=4))
    print(len(results))
atexit.register(early)
import welm
model = welm.Model()
atexit.register(lambda: results.append(model.generate("春", max_tokens=4)))
running = threading.Thread(
    target=lambda: results.append(model.generate("春", max_tokens=200, n=8, ignore_eos=True)), daemon=True
)
running.start()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def test_a_forked_child_waits_for_no_thread_of_its_parent() -> None:
    status, error, took = run("""
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
daemons(lambda: welm.Model(progress=lambda *_: time.sleep(0.05)))
started = time.monotonic()
pid = os.fork()
if pid == 0:
    sys.exit(7)
status = os.waitpid(pid, 0)[1]
assert os.waitstatus_to_exitcode(status) == 7, status
assert time.monotonic() - started < 1.5
""")
    assert (status, error) == (0, ""), error
    assert took < 20
