"""What can be set about a server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from welm.serve.keys import check_keys

RESERVED = ("medium", "large", "xl")
"""The models of WeLM's public API. A completion for one of them is answered as that API answers."""


def name_of(path: str | os.PathLike[str]) -> str:
    """The name that a model has for clients by default: that of its folder, or of its file without ``.gguf``."""
    return Path(os.path.abspath(path)).name.removesuffix(".gguf")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of :func:`welm.serve.app`."""

    model_names: tuple[str, ...] = ("welm",)
    """The names that the model has for clients; the first is the one in answers."""
    keys: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """API keys, each with the name of its owner. Without any, everybody is served."""
    parallel: int = 64
    """Most sequences given to the engine at once; `max_running` of the model is a good value."""
    queue_limit: int = 1024
    """Most requests of a client that wait, and most prompts of a request; further ones are refused with status 429. Of
    all clients together four times as many may wait."""
    timeout: float = 600.0
    """Seconds after which a request ends, waiting included. A client asks for less with `X-Request-Timeout`."""
    max_body: int = 8 << 20
    """Most bytes of a request's body."""
    keep_alive: float = 10.0
    """Seconds without a token after which a stream sends a comment, so that proxies keep the connection."""
    requests_per_minute: int = 30
    """Most requests of a key to WeLM's API in any minute; 0 is no limit."""
    characters_per_day: int = 1_000_000
    """Most characters generated for a key by WeLM's API in a day (UTC); 0 is no limit."""
    quota_everywhere: bool = False
    """Whether both quotas also count and limit the other endpoints."""
    quota_file: str | None = None
    """An SQLite file that keeps the quotas over a restart; without one they begin anew."""
    share_prefixes: bool = False
    """Whether computed beginnings of prompts are shared between keys. Then one client can find out, by the time that
    an answer takes, how another one's prompts begin."""
    origins: tuple[str, ...] = ()
    """Other web sites whose pages may use the server, such as `https://example.org`."""
    hosts: tuple[str, ...] = ()
    """Names by which the server may be addressed; without any, by all."""
    page: bool = True
    """Whether there is a page to try the model at `/`."""
    log_prompts: bool = False
    """Whether the log has prompts and answers."""

    def __post_init__(self) -> None:
        """Checks the values."""
        if not self.model_names or isinstance(self.model_names, str):
            raise ValueError(f"model_names: expected a tuple of one name or more, got {self.model_names!r}")
        check_keys(self.keys)
        for name in self.model_names:
            if name in RESERVED:
                raise ValueError(
                    f"model_names: {name} is a model of WeLM's API, which is always served as well"
                )
        for name in ("parallel", "queue_limit", "max_body"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("timeout", "keep_alive"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected seconds, more than 0, got {getattr(self, name)}")
        for name in ("requests_per_minute", "characters_per_day"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(one.name for one in fields(cls))

    def with_values(self, **values: Any) -> Settings:
        """A copy with other values."""
        return Settings(**{**{name: getattr(self, name) for name in self.names()}, **values})
