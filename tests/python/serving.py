"""A server in a thread of the test, and requests to it as bytes."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import welm.serve
from welm.serve.server import Server, listen

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    import welm


class Running:
    """Serves a model until the block is left."""

    def __init__(self, model: welm.Model, **settings: Any) -> None:
        self.app = welm.serve.app(model, **settings)
        self.service = self.app.state.service
        self.sock = listen("127.0.0.1", 0)
        self.port: int = self.sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.app, drain=5)
        self._thread = threading.Thread(target=self.server.run, args=([self.sock],))

    def __enter__(self) -> Self:
        self._thread.start()
        until = time.monotonic() + 20
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def raw(self, data: bytes) -> bytes:
        """Sends bytes, and reads until the server closes or a whole answer with a length is there."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_answer(sock)

    def post(
        self, path: str, body: Any, key: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer. A body that is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: localhost",
            f"Content-Length: {len(data)}",
            "Connection: close",
        ]
        lines += [f"Authorization: {key}"] if key else []
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return parse(self.raw("\r\n".join([*lines, "", ""]).encode() + data))

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        more = "".join(
            f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **(headers or {})}.items()
        )
        status, told, body = split(
            self.raw(f"GET {path} HTTP/1.1\r\nConnection: close\r\n{more}\r\n".encode())
        )
        return status, told, body


def request(body: dict[str, Any], *, path: str = "/v1/completions", more: str = "") -> bytes:
    data = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


def read_answer(sock: socket.socket) -> bytes:
    got = b""
    while True:
        head, gap, body = got.partition(b"\r\n\r\n")
        if gap:
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:") and len(body) >= int(line.split(b":")[1]):
                    return got
        part = sock.recv(1 << 16)
        if not part:
            return got
        got += part


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def parse(answer: bytes) -> tuple[int, dict[str, str], Any]:
    status, headers, body = split(answer)
    return status, headers, json.loads(body)
