"""The fields of a request's body: each is taken, refused by name, or ignored by name. None is left over silently."""

from __future__ import annotations

from typing import Any, NoReturn

from welm.serve.errors import Refusal
from welm.serve.wire import is_object, kind_of

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
    int: "an integer",
}


class Fields:
    """The fields that are not taken yet. A field that is `null` counts as absent."""

    def __init__(self, body: dict[str, Any], prefix: str = "") -> None:
        """Takes a body, or an object in it, whose name and a dot are the prefix of its fields in messages."""
        self._left = {name: value for name, value in body.items() if value is not None}
        self._prefix = prefix

    def take(self, name: str, *kinds: type, default: Any = None) -> Any:
        """A field that must be of one of these types; without any, the engine checks it."""
        if name not in self._left:
            return default
        value = self._left.pop(name)
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            self.wrong(name, " or ".join(_KINDS[kind] for kind in kinds), value)
        return value

    def need(self, name: str, *kinds: type) -> Any:
        """As :meth:`take`; the field must be there."""
        if name not in self._left:
            self.refuse(name, "expected a value, got none")
        return self.take(name, *kinds)

    def only(self, name: str, why: str, *allowed: object) -> None:
        """A field that has no effect, because there is only one way: other values than those allowed are refused."""
        value = self._left.pop(name, None)
        if is_object(value):
            value = {key: one for key, one in value.items() if one is not None}
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            self.refuse(name, why, code="unsupported_parameter")

    def ignore(self, *names: str) -> None:
        """Fields that say nothing about the answer."""
        for name in names:
            self._left.pop(name, None)

    def end(self) -> None:
        """Refuses what is left."""
        for name in self._left:
            self.refuse(name[:40], "unknown field", code="unknown_parameter")

    def wrong(self, name: str, expected: str, value: object) -> NoReturn:
        """Refuses a field for its type."""
        self.refuse(name, f"expected {expected}, got {kind_of(value)}")

    def refuse(self, name: str, why: str, *, code: str | None = None) -> NoReturn:
        """Refuses a field."""
        raise Refusal(400, f"{self._prefix}{name}: {why}", param=f"{self._prefix}{name}", code=code)
