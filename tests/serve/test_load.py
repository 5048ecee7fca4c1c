"""The server under load, with thousands of idle connections. `WELM_LOAD_SECONDS` makes it longer."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import welm

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
LOAD = ROOT / "benches/serve/load.py"
SHORT = ("--longest", "8")  # the small model's context is 512 tokens
SECONDS = os.environ.get("WELM_LOAD_SECONDS", "20")


class Server:
    """`welm serve` as a process."""

    def __init__(self) -> None:
        line = [
            sys.executable,
            "-m",
            "welm",
            "serve",
            "--port",
            "0",
            "--model-name",
            "nano",
            "--threads",
            "2",
        ]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        self.port = int(first.split(" (")[0].rsplit(":", 1)[1])
        self.process.stderr.close()

    def metric(self, name: str) -> float:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            got = b""
            while part := sock.recv(1 << 16):
                got += part
        found = re.search(rf"^{name}\{{.*\}} (.+)$", got.decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])

    def memory(self) -> int:
        """Kilobytes."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(60) == 0


def test_many_clients_of_whom_a_third_hang_up(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "served.json"
    line = [
        sys.executable,
        str(LOAD),
        "serve",
        f"http://127.0.0.1:{server.port}",
        "--model",
        "nano",
        "--out",
        str(out),
        *SHORT,
    ]
    subprocess.run([*line, "--seconds", "3"], check=True, timeout=120)  # so that caches are full
    before = server.memory()
    subprocess.run([*line, "--seconds", SECONDS], check=True, timeout=600 + float(SECONDS))
    seen = json.loads(out.read_text())["seen"]
    assert sum(one["hung_up"] for one in seen) > len(seen) / 6
    time.sleep(1)
    assert server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.memory() - before < 50_000
    assert (
        subprocess.run(
            [sys.executable, str(LOAD), "check", str(welm.NANO), str(out), *SHORT], timeout=600
        ).returncode
        == 0
    )


def test_ten_thousand_idle_connections(server: Server) -> None:
    """Of another process, because each end of a connection is a file."""
    program = f"""
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
kept = [socket.create_connection(("127.0.0.1", {server.port})) for _ in range(10_000)]
print(len(kept), flush=True)
sys.stdin.read()
"""
    before = server.memory()
    crowd = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == "10000\n"
    body = json.dumps({"model": "nano", "prompt": "春", "max_tokens": 20, "seed": 1}).encode()
    for _ in range(20):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - began < 2
    print(f"{(server.memory() - before) / 10_000:.1f} kB a connection")
    assert server.memory() - before < 300_000
    crowd.communicate("")
