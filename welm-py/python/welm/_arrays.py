"""Converts arrays of any kind to lists and back: nested lists, numpy's arrays, torch's tensors, importing neither.

Anything else than an array of whole numbers is :class:`welm.InvalidOption` with the argument's name, whatever the
object raises.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from welm._errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Sequence

# Most rows, and most numbers of a row, which is more than any model's context. Most numbers of all rows together.
MOST = 1 << 22
MOST_OF_ALL = 1 << 26

# Most characters of a value in a message.
_SHOWN = 60


def refuse(option: str, reason: str) -> InvalidOption:
    """The error for an argument."""
    error = InvalidOption(f"option `{option}`: {reason}")
    error.option = option
    return error


def shown(value: Any) -> str:
    """A value in a message, with its type unless that is plain."""
    try:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    except Exception:
        text = "a value"
    text = " ".join(text.split())
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return (
        text
        if isinstance(value, (str, int, float, list, tuple, dict))
        else f"{text} ({type(value).__name__})"
    )


def whole(option: str, value: Any, expected: str) -> int:
    """A whole number, also one of numpy or torch. ``True`` and ``1.0`` are refused."""
    try:
        if not (isinstance(value, bool) or type(value).__name__ == "bool"):  # numpy's, too
            return operator.index(value)
    except Exception:  # an object may raise what it likes
        pass
    raise refuse(option, f"expected {expected}, got {shown(value)}")


def rows_of(option: str, value: Any, expected: str) -> tuple[list[list[Any]], bool]:
    """Rows, and whether just one was given; ``expected`` says what they contain."""
    listed = list_of(option, value, f"rows of {expected}, or one row")
    plain: list[Any] = []
    count = 0
    for item in listed:
        plain.append(_plain(option, item))
        count += len(plain[-1]) if isinstance(plain[-1], list) else 1  # pyright: ignore[reportUnknownArgumentType]
        if count > MOST_OF_ALL:
            raise refuse(option, f"expected at most {MOST_OF_ALL} {expected}, got more")
    is_row = [isinstance(item, list) for item in plain]
    if any(is_row) and not all(is_row):
        raise refuse(option, f"expected rows of {expected}, or one row, got both: {shown(listed)}")
    is_one = bool(plain) and not any(is_row)
    rows = cast("list[list[Any]]", [plain] if is_one else plain)
    for row in rows:
        for at, item in enumerate(row):
            row[at] = item = _plain(option, item)
            if isinstance(item, list):
                raise refuse(option, f"expected one or two dimensions of {expected}, got three or more")
    return rows, is_one


def list_of(option: str, value: Any, expected: str) -> list[Any]:
    """An array of whatever kind as a list."""
    plain = _plain(option, value)
    if type(plain) is not list:
        raise refuse(option, f"expected {expected}, got {shown(value)}")
    return plain  # pyright: ignore[reportUnknownVariableType]


def is_array(value: Any) -> bool:
    """Whether it means several values, and not one."""
    return isinstance(_plain("", value), list)


def _plain(option: str, value: Any) -> Any:
    """A list if the value is an array or sequence, or else the value itself.

    Nothing is allocated by the length that an object claims to have.
    """
    if isinstance(value, (int, float, str, bytes, bytearray, Mapping, AbstractSet)) or value is None:
        return cast("Any", value)  # text and mappings are iterable, but no sequences of numbers
    try:
        if hasattr(value, "tolist"):
            count = math.prod(getattr(value, "shape", ()))
            if count > MOST_OF_ALL:
                raise refuse(option, f"expected at most {MOST_OF_ALL} elements, got {count}")
            return value.tolist()  # one number, of an array without dimensions
        if not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
            return value
        listed: list[Any] = list(islice(value, MOST + 1))
    except InvalidOption:
        raise
    except Exception as error:
        got = f"{type(value).__name__}, which says: {' '.join(str(error).split())}"
        raise refuse(option, f"expected an array that can be read, got {got}") from error
    if len(listed) > MOST:
        raise refuse(option, f"expected at most {MOST} elements, got more")
    return listed


def as_kind(option: str, like: Any, rows: Sequence[Any]) -> Any:
    """Converts lists to the type of ``like``. A number that its elements cannot hold is an error; it is not changed."""
    try:
        array = _as_kind(like, rows)
        if array is rows or array.tolist() == rows:
            return array
    except Exception:  # of numpy or torch
        pass
    dtype = getattr(like, "dtype", type(like).__name__)
    raise refuse(option, f"expected elements that hold every id, as those of int64 do, got {dtype}")


def _as_kind(like: Any, rows: Sequence[Any]) -> Any:
    if hasattr(like, "new_tensor"):  # of torch: the same type of number, on the same device
        return like.new_tensor(rows)
    import sys

    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(like, numpy.ndarray):
        return numpy.array(rows, dtype=like.dtype)
    return rows
