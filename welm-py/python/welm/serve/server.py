"""Runs an application: sockets, signals, limits of the process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from welm.serve.connections import connections

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from fastapi import FastAPI

MOST_CONNECTIONS = 20_000

BACKLOG = 2048
"""Connections that wait to be accepted."""

_SPARE_FILES = 128
"""Files that are not connections: the model, the quotas, what is opened for a moment."""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises :class:`OSError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise OSError(f"cannot listen at {host}: {error}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}") from None
    return sock


class Server(uvicorn.Server):
    """A server that says when it is about to end, and whose end by a signal is no error."""

    def __init__(self, app: FastAPI, *, drain: float = 30.0) -> None:
        """Serves an application; its open requests have ``drain`` seconds to end after the first signal."""
        self._app = app
        self.cut = 0
        """Requests that were open at the end, and had no answer."""
        config = uvicorn.Config(
            app,
            http=connections(_most_connections()),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(drain, 0.01),  # type: ignore[arg-type]  # fractions work as well
            backlog=BACKLOG,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self._app.state.service.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends; requests that are open have a while."""
        await super().shutdown(sockets)
        cut = self.server_state.tasks
        self.cut = len(cut)
        if cut:  # they are cancelled; a moment to tell their clients
            await asyncio.wait(cut, timeout=1)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handles signals; uvicorn would raise them again at its end."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def run(app: FastAPI, sock: socket.socket, *, drain: float = 30.0) -> int:
    """Serves until SIGTERM or Ctrl-C; gives the exit code, 0 if all open requests had their answers.

    From then on no connection is accepted, and the requests that are open have ``drain`` seconds to end. A second
    Ctrl-C ends the server at once. The log goes to stderr.
    """
    log = logging.getLogger("welm.serve")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    server = Server(app, drain=drain)
    server.run([sock])
    if server.cut and not server.force_exit:
        log.error("%d requests were not finished in %g s", server.cut, drain)
    return 130 if server.force_exit else int(server.cut > 0)


def _most_connections() -> int:
    """As many as the process may have open, which is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max((wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)) - _SPARE_FILES, 16)
