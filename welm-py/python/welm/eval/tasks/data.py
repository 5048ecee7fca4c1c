"""Reads data sets: lines of JSON from a folder, or rows from the Hugging Face hub.

A row knows where it stands. Its getters check the type of a field, and say file, line and field when it is wrong.
"""

# The libraries have no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES = Path(__file__).parent / "samples"


class DataError(ValueError):
    """A data set that is missing, or a line of it that is not what its task expects."""


@dataclass(frozen=True)
class Row:
    """One example as it was published, and its place for error messages."""

    fields: dict[str, Any]
    place: str

    def wrong(self, field: str, expected: str) -> DataError:
        """The error for a field, with what came instead."""
        got = "no such field" if field not in self.fields else repr(self.fields[field])
        short = got if len(got) < 80 else got[:77] + "..."
        return DataError(f"{self.place}: field {field!r}: expected {expected}, got {short}")

    def text(self, *names: str) -> str:
        """The text of the first of these fields that is there. It is not empty."""
        field = next((name for name in names if name in self.fields), names[0])
        value = self.fields.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, "a text that is not empty")
        return value

    def integer(self, field: str, below: int) -> int:
        """A whole number from 0 to ``below - 1``."""
        value = self.fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            raise self.wrong(field, f"a whole number from 0 to {below - 1}")
        return value

    def items(self, field: str, least: int = 1) -> list[Any]:
        """A list with at least so many items."""
        value = self.fields.get(field)
        if not isinstance(value, list) or len(value) < least:
            raise self.wrong(field, f"a list of {least} or more")
        return value

    def texts(self, field: str, least: int = 1) -> list[str]:
        """A list of texts."""
        value = self.items(field, least)
        if not all(isinstance(item, str) and item for item in value):
            raise self.wrong(field, "a list of texts that are not empty")
        return value

    def object(self, field: str, *names: str) -> dict[str, Any]:
        """An object with these fields."""
        value = self.fields.get(field)
        if not isinstance(value, dict) or not all(name in value for name in names):
            raise self.wrong(field, "an object with " + ", ".join(names))
        return value

    def one_of(self, field: str, values: Sequence[str]) -> int:
        """The index of the field's value in ``values``. Numbers count as their digits."""
        value = self.fields.get(field)
        if isinstance(value, bool) or not isinstance(value, str | int) or str(value) not in values:
            raise self.wrong(field, "one of " + ", ".join(values))
        return values.index(str(value))

    def answers(self, field: str = "answers") -> list[str]:
        """Texts, objects with a ``text``, or the hub's object with a list ``text``; equal ones once."""
        value = self.fields.get(field)
        if isinstance(value, dict):
            value = value.get("text")
        items: list[Any] = value if isinstance(value, list) else []
        found: list[Any] = [item.get("text") if isinstance(item, dict) else item for item in items]
        if not found or not all(isinstance(item, str) and item.strip() for item in found):
            raise self.wrong(field, 'a list of texts, or of objects with "text"')
        return list(dict.fromkeys(found))


def read(path: Path) -> list[Row]:
    """The rows of a file with one JSON object a line."""
    rows: list[Row] = []
    try:
        # Not splitlines, which also splits at separators that may stand in a text, such as U+2028.
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, got {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: expected a JSON object, got {error.msg} at column {error.colno}"
            ) from None
        if not isinstance(fields, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(fields).__name__}")
        rows.append(Row(fields, place))
    if not rows:
        raise DataError(f"{path}: expected one JSON object a line, got an empty file")
    return rows


def from_hub(path: str, config: str | None, split: str) -> list[Row]:
    """The rows of a split on the hub. Numbers of labels become their names."""
    import datasets

    loaded = datasets.load_dataset(path, config, split=split)
    names = {k: v.names for k, v in loaded.features.items() if isinstance(v, datasets.ClassLabel)}
    place = f"{path} {config or ''} {split}".replace("  ", " ")
    rows: list[Row] = []
    for number, fields in enumerate(loaded):
        # -1 is the hub's mark for a label that is not published.
        named = {k: names[k][v] if k in names and v >= 0 else v for k, v in dict(fields).items()}
        rows.append(Row(named, f"{place}, row {number}"))
    return rows
