"""Code that the tests share: the small model of the repository, and where its fixtures are."""

from __future__ import annotations

import collections.abc
import json
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import welm

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIXTURES = Path(__file__).parent.parent / "fixtures"
# The first pinned text, which is the same for all languages: a prompt, and its greedy tokens with the end token
# ignored.
_FIRST = json.loads((FIXTURES / "nano_greedy.json").read_text("utf-8"))[0]
PROMPT: str = _FIRST["prompt"]
GREEDY: list[int] = _FIRST["ids"] + _FIRST["beyond"]


HUGE = 2**36


class Liar(collections.abc.Sequence[Any]):
    """A sequence that claims to be longer than it is."""

    def __init__(self, *items: Any, claims: int = HUGE) -> None:
        self.items = items
        self.claims = claims

    def __len__(self) -> int:
        return self.claims

    def __getitem__(self, at: Any) -> Any:
        return self.items[at]


class Endless(Liar):
    """A sequence that never ends, whatever length it claims."""

    def __getitem__(self, at: Any) -> Any:
        return self.items[0]


def with_template(folder: Path, template: str) -> Path:
    """Makes the folder a copy of the small model, with a chat template."""
    for file in Path(welm.NANO).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


@pytest.fixture(scope="session")
def model() -> welm.Model:
    # On one thread: threads that wait for work take it from the tests beside these.
    return welm.Model(threads=1)


@pytest.fixture(scope="session")
def bare() -> welm.Model:
    """A model without a tokenizer."""
    return welm.Model(FIXTURES / "welm")


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file, integers and floats."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = {"I64": np.int64, "I32": np.int32, "F32": np.float32}[entry["dtype"]]
            tensors[name] = np.frombuffer(data[8 + size + start : 8 + size + end], dtype).reshape(
                entry["shape"]
            )
    return tensors


def begun(model: welm.Model) -> None:
    """Waits until a request is open."""
    until = time.monotonic() + 20
    while not model.stats().open:
        assert time.monotonic() < until, "no request has come, or it has ended already"
        time.sleep(0.001)


def at_rest(model: welm.Model) -> welm.Stats:
    """Waits until nothing is open any more, and gives the counters."""
    until = time.monotonic() + 20
    while True:
        stats = model.stats()
        if (stats.open, stats.blocks_used, stats.running) == (0, 0, 0) or time.monotonic() > until:
            assert (stats.open, stats.blocks_used, stats.running, stats.queue_depth) == (0, 0, 0, 0)
            return stats
        time.sleep(0.001)
