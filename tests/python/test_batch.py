"""Batches: the answers are those of the server, wrong files are errors, a batch that was ended goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import welm
import welm.batch as batch
from welm.serve.service import Service

from conftest import PROMPT

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, *requests: Any) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests), "utf-8")
    return path


def request(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def read(path: Path) -> dict[str, tuple[int, Any]]:
    answers = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({answer["id"] for answer in answers}) == len(answers)
    assert all(answer["error"] is None for answer in answers)
    return {a["custom_id"]: (a["response"]["status_code"], a["response"]["body"]) for a in answers}


def test_answers_and_errors(model: welm.Model, tmp_path: Path) -> None:
    src = write(
        tmp_path / "in",
        request("a", model="any", prompt=PROMPT, max_tokens=8, seed=3),
        request("b", "/welm/v1/completions", model="xl", prompt=PROMPT, max_tokens="8", temperature="0"),
        request("c", "/v1/score", prompt=PROMPT, continuations=["月"]),
        request("d", prompt=PROMPT, top_p=9),
        request("e", "/v1/embeddings", input="x"),
        request("f", prompt=PROMPT, stream=True),
        request("g", "/v1/chat/completions", messages=[{"role": "user", "content": "x"}]),
        {"custom_id": "h", "url": "/v1/completions"},
    )
    seen: list[tuple[int, int]] = []
    statuses = batch.run(None, src, tmp_path / "out", threads=1, progress=lambda *given: seen.append(given))
    assert statuses == {"200": 3, "400": 5}
    got = read(tmp_path / "out")
    want = model.generate(PROMPT, max_tokens=8, seed=3, temperature=1, top_p=1, top_k=0)
    assert got["a"][1]["choices"][0]["text"] == want.text
    assert got["a"][1]["model"] == "welm-nano"
    assert got["b"][1]["choices"][0]["text"] == model.generate(PROMPT, max_tokens=8, temperature=0).text
    assert got["c"][1]["scores"][0]["logprob"] == model.score(PROMPT, ["月"])[0].logprob
    params = [got[name][1]["error"]["param"] for name in "defgh"]
    assert params == ["top_p", "url", "stream", None, "body"]
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)
    # Asked again, nothing is computed or written.
    before = (tmp_path / "out").read_bytes()
    assert batch.run("/nowhere", src, tmp_path / "out") == statuses
    assert (tmp_path / "out").read_bytes() == before


def test_a_name_may_be_asked_for(tmp_path: Path) -> None:
    src = write(
        tmp_path / "in", request("a", model="mine", prompt="春"), request("b", model="other", prompt="春")
    )
    assert batch.run(None, src, tmp_path / "out", model_name="mine", threads=1) == {"200": 1, "404": 1}


def test_more_requests_than_are_worked_on_at_once(
    model: welm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "WINDOW", 7)
    src = write(
        tmp_path / "in", *(request(f"{n}", prompt=PROMPT, max_tokens=n, seed=n) for n in range(1, 40))
    )
    assert batch.run(None, src, tmp_path / "out", threads=1) == {"200": 39}
    for name, (_, body) in read(tmp_path / "out").items():
        n = int(name)
        want = model.generate(PROMPT, max_tokens=n, seed=n, temperature=1, top_p=1, top_k=0)
        assert body["choices"][0]["text"] == want.text


def test_it_can_be_called_where_a_loop_runs(tmp_path: Path) -> None:
    src = write(tmp_path / "in", request("a", prompt="春"))

    async def main() -> dict[str, int]:
        return batch.run(None, src, tmp_path / "out", threads=1)

    assert asyncio.run(main()) == {"200": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x\n", ":1: expected a JSON object with a custom_id"),
        ('\n{"url": "x"}\n', ":2: expected a JSON object with a custom_id"),
        ("[1]\n", ":1: expected a JSON object"),
        ('{"custom_id": 3}\n', ":1: custom_id: expected a string, got 3"),
        ('{"custom_id": "a"}\n{"custom_id": "a"}\n', ":2: custom_id: a is there twice"),
    ],
)
def test_wrong_inputs(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "in").write_text(text, "utf-8")
    with pytest.raises(batch.BatchError) as error:
        batch.run("/nowhere", tmp_path / "in", tmp_path / "out")
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_outputs(tmp_path: Path) -> None:
    src = write(tmp_path / "in", request("a", prompt="春"))
    for text, told in (
        ("x\n", ":1: expected an answer of a batch"),
        ('{"custom_id": "b", "response": {"status_code": 200}}\n', ":1: b is an answer of another batch"),
        ('{"a file": "of somebody else, without an end of line"}', "out: expected answers of a batch"),
    ):
        (tmp_path / "out").write_text(text, "utf-8")
        with pytest.raises(batch.BatchError) as error:
            batch.run(None, src, tmp_path / "out")
        assert told in str(error.value)
        assert (tmp_path / "out").read_text("utf-8") == text
    with pytest.raises(FileNotFoundError):
        batch.run(None, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        batch.run(None, src, tmp_path / "nowhere" / "out", threads=1)


def test_nothing_is_written_after_the_engine_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = write(tmp_path / "in", *(request(f"{n}", prompt="春", max_tokens=1) for n in range(5)))
    whole, asked = Service.whole, itertools.count()

    async def ended(self: Service, *given: Any) -> list[welm.Generation]:
        if next(asked) >= 2:
            raise welm.EngineStopped("a fault of the device")
        return await whole(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Service, "whole", ended)
        patch.setattr(batch, "WINDOW", 1)
        with pytest.raises(batch.BatchError, match="the same command goes on"):
            batch.run(None, src, tmp_path / "out", threads=1)
    assert {status for status, _ in read(tmp_path / "out").values()} == {200}
    assert batch.run(None, src, tmp_path / "out", threads=1) == {"200": 5}


def test_what_may_be_answered_later_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = write(
        tmp_path / "in",
        *(request(f"{n}", prompt="春", max_tokens=1) for n in range(5)),
        request("wrong", prompt="春", top_p=9),
    )
    whole, asked = Service.whole, itertools.count()

    async def fails(self: Service, *given: Any) -> list[welm.Generation]:
        if next(asked) in (1, 3):
            raise welm.DeviceError("for now")
        return await whole(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Service, "whole", fails)
        assert batch.run(None, src, tmp_path / "out", threads=1) == {"200": 3, "400": 1, "500": 2}
    before = read(tmp_path / "out")
    assert batch.run(None, src, tmp_path / "out", threads=1) == {"200": 5, "400": 1}
    after = read(tmp_path / "out")
    assert {name: after[name] for name, (status, _) in before.items() if status < 500} == {
        name: answer for name, answer in before.items() if answer[0] < 500
    }
    assert {*tmp_path.iterdir()} == {src, tmp_path / "out"}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    src = write(tmp_path / "in", request("\ud800", prompt="春", max_tokens=1), request("b", "\ud801"))
    for _ in range(2):
        assert batch.run(None, src, tmp_path / "out", threads=1) == {"200": 1, "400": 1}
    assert {*read(tmp_path / "out")} == {"\ud800", "b"}
    src.write_bytes(b'{"custom_id": "a"}\n\xff\n')
    with pytest.raises(batch.BatchError, match="in:2: expected UTF-8, got 0xff"):
        batch.run(None, src, tmp_path / "new", threads=1)


def test_a_small_queue_refuses_nothing(tmp_path: Path) -> None:
    src = write(tmp_path / "in", *(request(f"{n}", prompt=PROMPT, max_tokens=20) for n in range(30)))
    assert batch.run(None, src, tmp_path / "out", threads=1, queue_limit=2) == {"200": 30}


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    src = write(tmp_path / "in", *(request(f"{n}", prompt=PROMPT, max_tokens=4, seed=n) for n in range(50)))
    line = [sys.executable, "-m", "welm", "batch", str(src), str(tmp_path / "out"), "--threads", "1"]
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *line]  # blocks of 1,024 bytes
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # compiled modules would be cut, too, and stay so
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 12
    assert "File too large" in done.stderr
    kept = (tmp_path / "out").read_bytes().count(b"\n")
    assert 0 < kept < 50
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "status 200: 50\n")
    assert len(read(tmp_path / "out")) == 50


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_was_ended_goes_on(tmp_path: Path, number: int) -> None:
    src = write(
        tmp_path / "in", *(request(f"{n}", prompt=PROMPT, max_tokens=400, seed=n) for n in range(200))
    )
    line = [sys.executable, "-m", "welm", "batch", str(src), str(tmp_path / "out"), "--threads", "1"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while (
        not (os.path.exists(tmp_path / "out") and (tmp_path / "out").stat().st_size)
        and time.monotonic() < until
    ):
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert 0 < (tmp_path / "out").read_bytes().count(b"\n") < 200
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == {"200": 200}
    assert len(read(tmp_path / "out")) == 200
