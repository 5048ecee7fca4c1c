"""Who a client is: API keys."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Client:
    """Who sent a request."""

    name: str
    """The owner of the key, or the address if there are no keys; for logs, and to share the engine fairly."""
    salt: str | None
    """Keeps the beginnings of its prompts apart in the prefix cache; ``None`` if there are no keys."""


def read_keys(path: str) -> dict[str, str]:
    """Reads a file of keys: on each line a key, then the name of its owner. Empty lines and ``#`` comments are skipped.

    Raises :class:`ValueError` with the number of a line that is wrong. A message never has a key in it.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(f"{path}:{number}: expected a key and a name, got {len(words)} words")
        if words[0] in keys:
            raise ValueError(f"{path}:{number}: expected each key once")
        if not words[0].isascii():
            raise ValueError(
                f"{path}:{number}: expected a key of ASCII characters, which is what HTTP can carry"
            )
        keys[words[0]] = words[1]
    if not keys:
        raise ValueError(f"{path}: expected keys, got none")
    return keys


def check_keys(keys: Mapping[str, str]) -> None:
    """Raises :class:`ValueError` for a key that no client can send. The message does not have the key."""
    for key, name in keys.items():
        if not key or not key.isascii() or key != "".join(key.split()):
            raise ValueError(f"keys: expected a key of ASCII characters without spaces for {name}")


class Keys:
    """The API keys of a server. It keeps their hashes only."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """Takes keys, each with the name of its owner."""
        self._clients = {_hash(key): Client(name, _hash(f"salt {key}")) for key, name in keys.items()}

    def client(self, authorization: str | None, address: str) -> Client | None:
        """The client, by the header ``Authorization``: ``Bearer KEY``, or the key alone. ``None`` if it is wrong.

        A hash is looked up, so the time that this takes tells nothing about the keys.
        """
        if not self._clients:
            return Client(address, None)
        kind, _, key = (authorization or "").strip().partition(" ")
        if kind.lower() != "bearer":
            kind, key = "", f"{kind} {key}"
        return self._clients.get(_hash(key.strip()))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
