"""Many requests from a file, in the format of OpenAI's batches, on this machine or on a Ray cluster.

Each line of the input is a request: ``{"custom_id": "1", "url": "/v1/chat/completions", "body": {...}}``. Each line of
the output is its answer, with the same ``custom_id``: ``{"id": ..., "custom_id": "1", "response": {"status_code": 200,
"request_id": ..., "body": {...}}, "error": null}``. A request that is wrong has its error in ``body``, with its status.
Lines are written as answers come, so their order is not that of the input.

Answers that are in the output already are kept: after a kill the same call goes on where it was. Only those with a
status of 500 and above, which are no fault of the request, are asked for again. Needs
``pip install "welm[serve]"``; with a cluster, ``"welm[cluster]"``.

.. code-block:: python

    import welm.batch

    welm.batch.run("model.gguf", "questions.jsonl", "answers.jsonl")
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import welm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["BatchError", "run"]

WINDOW = 512
"""Requests that a model works on at once."""

_NUMBER = "batch_req_"
_BEGIN = json.dumps({"id": _NUMBER}).encode()[:-2]
"""How every line of the output begins."""


class BatchError(welm.Error):
    """An input or output that is not what it should be."""


def run(
    path: str | os.PathLike[str] | None,
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> dict[str, int]:
    """Answers the requests of the file ``src`` that ``dst`` has no answer for yet; gives how many there are by status.

    ``path`` and ``options`` are those of :class:`welm.Model`. ``model_name`` is the name that the requests must have;
    by default each may have its own. ``ray`` is the address of a Ray cluster: a model on every GPU, or on every node,
    under the same path. ``progress`` is called with the answers that are there and the requests in all.

    The same requests have the same answers on a cluster of machines of the same kind, if they have a seed or
    temperature 0, apart from ids and times. Raises :class:`BatchError` for files that are wrong, before a model is
    loaded, and :class:`OSError` if the output cannot be written; what was written stays.
    """
    if find_spec("fastapi") is None:
        raise BatchError('fastapi is missing: pip install "welm[serve]"')
    requests = _read(src)
    done = _done(dst, requests)
    statuses: dict[str, int] = {}
    for status in done.values():
        statuses[status] = statuses.get(status, 0) + 1
    left = [line for name, line in requests.items() if name not in done]
    if progress is not None:
        progress(len(done), len(requests))
    if not left:
        return statuses
    place = os.fspath(path or welm.NANO)
    answers = (
        _here(place, left, model_name, options)
        if ray is None
        else _there(ray, place, left, model_name, options)
    )
    written = len(done)
    with open(dst, "ab") as file:
        for answer in answers:
            file.write(answer.encode() + b"\n")
            file.flush()
            status = str(json.loads(answer)["response"]["status_code"])
            statuses[status] = statuses.get(status, 0) + 1
            written += 1
            if progress is not None:
                progress(written, len(requests))
        os.fsync(file.fileno())
    return statuses


def _read(src: str | os.PathLike[str]) -> dict[str, str]:
    """The lines of the input, by their ``custom_id``."""
    lines: dict[str, str] = {}
    with open(src, "rb") as file:
        for number, read in enumerate(file, 1):
            where = f"{os.fspath(src)}:{number}"
            try:
                line = read.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BatchError(f"{where}: expected UTF-8, got {read[error.start]:#04x}") from None
            if not line.strip():
                continue
            try:
                name = json.loads(line)["custom_id"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BatchError(
                    f"{where}: expected a JSON object with a custom_id, got {line[:60]!r}"
                ) from None
            if not isinstance(name, str):
                raise BatchError(f"{where}: custom_id: expected a string, got {str(name)[:40]}")
            if name in lines:
                raise BatchError(f"{where}: custom_id: {name[:40]} is there twice")
            lines[name] = line
    return lines


def _done(dst: str | os.PathLike[str], requests: dict[str, str]) -> dict[str, str]:
    """The statuses of the answers that are there and may stay; the rest is removed.

    Those are answers with a status of 500 and above, and a line that was not written to its end.
    """
    done: dict[str, str] = {}
    if not os.path.exists(dst):
        return done
    kept: list[bytes] = []
    with open(dst, "r+b") as file:
        whole = file.read()
        end = whole.rfind(b"\n") + 1
        lines = whole[:end].splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                answer = json.loads(line)
                name, status = answer["custom_id"], int(answer["response"]["status_code"])
            except (ValueError, KeyError, TypeError):
                raise BatchError(f"{os.fspath(dst)}:{number}: expected an answer of a batch") from None
            if name not in requests:
                raise BatchError(f"{os.fspath(dst)}:{number}: {str(name)[:40]} is an answer of another batch")
            if status < 500:
                done[name] = str(status)
                kept.append(line)
        rest = whole[end:]
        if rest[: len(_BEGIN)] != _BEGIN[: len(rest)]:
            raise BatchError(f"{os.fspath(dst)}: expected answers of a batch, got {rest[:60]!r}")
        file.truncate(end)
    if len(kept) < len(lines):
        place = os.path.realpath(dst)  # a link stays one
        with NamedTemporaryFile(dir=os.path.dirname(place), prefix=".welm-batch-", delete=False) as fewer:
            fewer.writelines(kept)
            fewer.flush()
            os.fsync(fewer.fileno())
        shutil.copymode(place, fewer.name)
        os.replace(fewer.name, place)
    return done


class _Worker:
    """A model that answers lines."""

    def __init__(self, path: str, name: str | None, options: dict[str, Any]) -> None:
        from welm.serve.errors import ENDED
        from welm.serve.inside import Inside
        from welm.serve.settings import name_of

        model = welm.Model(path, **options)
        # No more than the engine takes: a request that it refuses for that would have no answer.
        parallel = min(options.get("max_running", 64), options.get("queue_limit", 1024))
        self._ended = ENDED
        self._inside = Inside(model, name or name_of(path), any_name=name is None, parallel=parallel)

    async def answers(self, lines: Iterable[str]) -> list[str]:
        """The answers of some lines."""
        return await asyncio.gather(*(self.answer(line) for line in lines))

    async def answer(self, line: str) -> str:
        """The answer of a line."""
        request = json.loads(line)
        status, body = await self._inside.ask(request)
        if status == 503 and body["error"]["code"] == self._ended:
            raise BatchError("the model cannot compute any more, see the log; the same command goes on")
        return _line(
            {
                "id": _NUMBER + uuid.uuid4().hex,
                "custom_id": request["custom_id"],
                "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": body},
                "error": None,
            }
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The same for Ray Data."""
        return {"answer": asyncio.run(self.answers(str(line) for line in batch["line"]))}


def _line(answer: dict[str, Any]) -> str:
    """An answer as JSON, with escapes if it has strings that are no text, such as half of a surrogate pair."""
    line = json.dumps(answer, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(answer)
    return line


def _here(path: str, lines: list[str], name: str | None, options: dict[str, Any]) -> Iterator[str]:
    """The answers as they come, computed in this process.

    The event loop is on a thread of its own, because that of the caller may have one that runs.
    """
    worker = _Worker(path, name, options)
    loop = asyncio.new_event_loop()
    waiting, rest = set[asyncio.Task[str]](), iter(lines)

    async def step() -> set[asyncio.Task[str]]:
        waiting.update(loop.create_task(worker.answer(line)) for line in islice(rest, WINDOW - len(waiting)))
        if not waiting:
            return set()
        ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        waiting.difference_update(ended)
        return ended

    async def give_up() -> None:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        try:
            while ended := pool.submit(loop.run_until_complete, step()).result():
                for task in ended:
                    yield task.result()
        finally:
            # After Ctrl-C the last step may still run; it ends when its tasks do.
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in waiting])
            pool.submit(loop.run_until_complete, give_up()).result()
            loop.close()


def _there(
    address: str, path: str, lines: list[str], name: str | None, options: dict[str, Any]
) -> Iterator[str]:
    """The answers as they come from a cluster."""
    from welm._cluster import connect, failure, place

    ray: Any = connect(address)
    actors, needs = place(ray, str(options.get("device", "auto")))
    size = min(
        WINDOW, max(-(-len(lines) // (4 * actors)), 1)
    )  # small enough that all actors have work, to the end
    data: Any = ray.data.from_items(
        [{"line": line} for line in lines], override_num_blocks=-(-len(lines) // size)
    )
    answers = data.map_batches(
        _Worker,
        fn_constructor_args=(path, name, options),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **needs,
    )
    try:
        for row in answers.iter_rows():
            yield str(row["answer"])
    except ray.exceptions.RayError as error:
        raise failure(error) from error
