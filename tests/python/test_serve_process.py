"""``welm serve`` as a process: options, signals, a kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import welm

from conftest import PROMPT
from serving import parse, read_answer, request, split

if TYPE_CHECKING:
    from pathlib import Path

LONG: dict[str, Any] = {
    "model": "welm-nano",
    "prompt": PROMPT,
    "max_tokens": 480,
    "temperature": 0,
    "ignore_eos": True,
}


class Process:
    """`welm serve` as a process."""

    def __init__(self, *args: str, env: dict[str, str] | None = None) -> None:
        line = [sys.executable, "-m", "welm", "serve", "--port", "0", "--threads", "1", *args]
        self.process = subprocess.Popen(
            line, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()
        self.port = int(self.first.split(" (")[0].rsplit(":", 1)[1])

    def post(self, body: dict[str, Any], more: str = "") -> int:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            sock.sendall(request(body, more=more))
            return split(read_answer(sock))[0]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


def test_quotas_outlive_a_kill(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a alice\n", "utf-8")
    args = (
        "--api-keys",
        str(tmp_path / "keys"),
        "--quota-file",
        str(tmp_path / "quota"),
        "--requests-per-minute",
        "2",
    )
    body, key = {"model": "xl", "prompt": "春", "max_tokens": 1}, "Authorization: a\r\n"
    first = Process(*args)
    assert first.post(body, key) == 200
    assert first.end(signal.SIGKILL) == -9
    second = Process(*args)
    assert [second.post(body, key) for _ in range(2)] == [200, 429]
    assert second.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: int) -> None:
    process = Process()
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        sock.sendall(request({**LONG, "n": 4, "stream": True}))
        got = sock.recv(100)
        process.process.send_signal(number)
        time.sleep(0.3)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", process.port), timeout=20)
        while part := sock.recv(1 << 16):
            got += part
    assert b"data: [DONE]" in got
    assert process.process.wait(20) == 0
    process.process.communicate()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_cut_is_no_success(stream: bool) -> None:
    process = Process("--drain", "1")
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        sock.sendall(request({**LONG, "n": 64, "stream": stream, "prompt": [PROMPT] * 40}))
        begin = sock.recv(100) if stream else b""
        time.sleep(0.5)
        process.process.send_signal(signal.SIGTERM)
        _, log = process.process.communicate(timeout=30)
        got = read_answer(sock)
    assert process.process.returncode == 1
    assert "Traceback" not in log
    assert '"error": "the server has ended before' in log
    if stream:
        assert begin.startswith(b"HTTP/1.1 200")
        assert not got.endswith(b"0\r\n\r\n")  # a client sees that it is not whole
    else:
        status, _, answer = parse(got)
        assert (status, answer["error"]["code"]) == (503, "draining")


def test_options_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "welm.toml").write_text('model-name = ["a", "b"]\nmax_body = 1000\nthreads = 1\n', "utf-8")
    # Kubernetes sets such variables for a service of this name.
    kubernetes = {
        "WELM_SERVE_SERVICE_HOST": "10.0.0.1",
        "WELM_SERVE_PORT": "tcp://10.0.0.1:80",
        "WELM_SERVE_PORT_80_TCP": "x",
    }
    env = {"WELM_SERVE_MAX_BODY": "40", "WELM_SERVE_CONFIG": "/nowhere", **kubernetes}
    process = Process("--config", str(tmp_path / "welm.toml"), env=env)
    assert process.first.startswith("a at http://127.0.0.1:")
    assert process.post({"model": "b", "prompt": "x" * 100}) == 413
    assert process.post({"model": "b", "prompt": "x"}) == 200
    assert process.end(signal.SIGTERM) == 0


def test_one_sequence_at_once_and_one_that_waits() -> None:
    process = Process("--max-running", "1", "--queue-limit", "1", "--drain", "0")
    assert process.post({"model": "welm-nano", "prompt": "x", "max_tokens": 1, "n": 5}) == 200
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        sock.sendall(request({**LONG, "n": 128, "stream": True}))
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        process.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.process.communicate(timeout=30)
        assert time.monotonic() - began < 5
    assert process.process.returncode == 1


def test_a_model_has_the_name_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "Qwen2.5-0.5B").symlink_to(welm.NANO, target_is_directory=True)
    # The environment's model is not the one of the command line.
    process = Process(str(tmp_path / "Qwen2.5-0.5B"), env={"WELM_SERVE_MODEL": "/nowhere"})
    assert process.first.startswith("Qwen2.5-0.5B at ")
    assert process.post({"model": "Qwen2.5-0.5B", "prompt": "x", "max_tokens": 1}) == 200
    assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("args", "env", "code", "told"),
    [
        (["--host", "0.0.0.0"], {}, 2, "expected --api-keys, or --without-keys"),
        (["--api-keys", "/nowhere"], {}, 1, "/nowhere: No such file"),
        (["--api-keys", os.devnull], {}, 1, "--api-keys: /dev/null: expected keys, got none\n"),
        (["--model-name", "xl"], {}, 1, "xl is a model of WeLM's API"),
        (["--port", "70000"], {}, 2, "--port: expected 0 to 65535"),
        ([], {"WELM_SERVE_PROT": "1"}, 1, "WELM_SERVE_PROT: unknown option, did you mean port?"),
        (["--host", "no such host", "--without-keys"], {}, 1, "cannot listen at no such host"),
        (["--drain", "inf"], {}, 2, "--drain: expected 0 to 86400"),
        (["--quota-file", "/nowhere/quota"], {}, 1, "--quota-file: /nowhere/quota: unable to open"),
        ([], {"WELM_SERVE_PORT": "x"}, 1, "WELM_SERVE_PORT: expected a whole number"),
        ([], {"WELM_SERVE_LOG_PROMPTS": "yes"}, 1, "WELM_SERVE_LOG_PROMPTS: expected true or false"),
        (["--config", "/nowhere.toml"], {}, 1, "/nowhere.toml"),
        (["nowhere.gguf"], {}, 1, "nowhere.gguf"),
    ],
)
def test_wrong_options(args: list[str], env: dict[str, str], code: int, told: str) -> None:
    line = [sys.executable, "-m", "welm", "serve", *args]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **env}, timeout=60)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = [sys.executable, "-m", "welm", "serve", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("python -m welm: cannot listen at 127.0.0.1:")
