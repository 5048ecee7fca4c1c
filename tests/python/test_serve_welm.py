"""WeLM's HTTP API: programs that were written for it are served without a change."""

from __future__ import annotations

import ast
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

import welm

from conftest import PROMPT
from serving import Running, read_answer, split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CAT = (
    "给自己的猫咪取个特色的名字。\n\n描述：美短 动漫角色\n名字：哆啦\n描述：英短 黑色 饮品\n名字：可乐\n"
    "描述：橘猫  黄色  食物\n名字："
)

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: key-a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def server(model: welm.Model) -> Iterator[Running]:
    with Running(model, keys={"key-a": "alice", "key-b": "bob"}, requests_per_minute=0) as running:
        yield running


def ask(server: Running, body: dict[str, Any], key: str = "key-a") -> Any:
    status, _, answer = server.post("/v1/completions", body, key)
    assert status == 200, answer
    return answer


# Clients.


def test_numbers_are_strings(server: Running, model: welm.Model) -> None:
    body = {
        "model": "xl", "prompt": PROMPT, "max_tokens": "24", "temperature": "0", "top_p": "0.0", "top_k": "0",
        "n": "1", "echo": "false", "stop": "",
    }  # fmt: skip
    answer = ask(server, body)
    want = model.generate(PROMPT, max_tokens=24, temperature=0)
    assert answer["choices"] == [{"text": want.text, "index": 0, "logprobs": 0, "finish_reason": "finished"}]
    assert (answer["object"], answer["model"]) == ("text_generation", "xl")
    assert abs(answer["created"] - time.time()) < 60
    assert isinstance(answer["id"], str)
    assert set(answer) == {"id", "object", "created", "model", "choices"}


@pytest.mark.parametrize("key", ["key-a", "Bearer key-a", "bearer  key-a "])
def test_the_key_stands_alone_or_after_bearer(server: Running, key: str) -> None:
    assert ask(server, {"model": "medium", "prompt": "春"}, key)["model"] == "medium"


@pytest.mark.parametrize("key", [None, "", "Bearer", "key-c", "Bearer key-a b", "Basic key-a"])
def test_a_wrong_key_is_403(server: Running, key: str | None) -> None:
    status, _, answer = server.post("/v1/completions", {"model": "large", "prompt": "春"}, key)
    assert status == 403
    assert "API key" in answer["error"]["message"]


def test_an_answer_is_a_python_literal(server: Running) -> None:
    """A program that calls `eval` on the answer."""
    data = json.dumps({"model": "xl", "prompt": CAT, "n": 5, "top_k": 10, "stop": "\n"}).encode()
    _, _, body = split(server.raw(HEAD % len(data) + data))
    answer = ast.literal_eval(body.decode())
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4]
    assert all("\n" not in choice["text"] for choice in answer["choices"])


def test_each_part_that_arrives_is_a_whole_object(server: Running) -> None:
    """A program that parses each chunk of the body as JSON."""
    data = json.dumps({"model": "xl", "prompt": PROMPT, "max_tokens": 200, "n": 4}).encode()
    with server.connect() as sock:
        sock.sendall(HEAD % len(data) + data)
        got = sock.recv(1 << 20)
        if got.endswith(b"\r\n\r\n"):  # the head may come by itself
            got += sock.recv(1 << 20)
    status, headers, body = split(got)
    assert (status, int(headers["content-length"])) == (200, len(body))
    assert "transfer-encoding" not in headers
    assert len(json.loads(body)["choices"]) == 4


def test_a_form_is_400(server: Running) -> None:
    form = b"model=xl&prompt=%E6%98%A5&max_tokens=64"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, answer = server.post("/v1/completions", form, "key-a", headers)
    assert status == 400
    assert "JSON" in answer["error"]["message"]


def test_json_of_any_content_type_is_read(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body = json.dumps({"model": "xl", "prompt": "春"}).encode()
        assert server.post("/v1/completions", body, "key-a", {"Content-Type": kind})[0] == 200


def test_one_connection_for_many_requests(server: Running) -> None:
    data = json.dumps({"model": "xl", "prompt": "春"}).encode()
    with server.connect() as sock:
        for _ in range(3):
            sock.sendall(HEAD % len(data) + data)
            assert split(read_answer(sock))[0] == 200


# The fields.


def test_defaults(server: Running, model: welm.Model) -> None:
    """16 tokens, sampled."""
    texts = {ask(server, {"model": "xl", "prompt": PROMPT})["choices"][0]["text"] for _ in range(6)}
    assert len(texts) > 1
    assert all(len(model.tokenize(text)) <= 18 for text in texts)


def test_any_character_of_stop_stops(server: Running, model: welm.Model) -> None:
    body = {"model": "xl", "prompt": PROMPT, "max_tokens": 64, "temperature": 0}
    whole = ask(server, body)["choices"][0]["text"]
    assert whole == model.generate(PROMPT, max_tokens=64, temperature=0).text
    for stop in ("，", "，。", "。\n，", "♥，"):
        got = ask(server, {**body, "stop": stop})["choices"][0]["text"]
        assert got == whole[: min(whole.index(c) for c in stop if c in whole)], stop
    assert ask(server, {**body, "stop": None})["choices"][0]["text"] == whole
    assert ask(server, {**body, "stop": ","})["choices"][0]["text"] == whole  # half-width


def test_echo(server: Running) -> None:
    body = {"model": "xl", "prompt": PROMPT, "temperature": 0}
    text = ask(server, body)["choices"][0]["text"]
    yes: tuple[Any, ...] = (True, "true", "True", 1, "1")
    no: tuple[Any, ...] = (False, "false", 0, "", None)
    for echo in yes:
        assert ask(server, {**body, "echo": echo})["choices"][0]["text"] == PROMPT + text
    for echo in no:
        assert ask(server, {**body, "echo": echo})["choices"][0]["text"] == text


def test_no_prompt_is_an_empty_one(server: Running) -> None:
    assert ask(server, {"model": "xl", "max_tokens": 4})["choices"][0]["text"]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "inf"}, "max_tokens"),
        ({"max_tokens": "nan"}, "max_tokens"),
        ({"max_tokens": "1e999"}, "max_tokens"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": "1.5"}, "top_p"),
        ({"top_k": "-1"}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": "1000000"}, "n"),
        ({"echo": "maybe"}, "echo"),
        ({"stop": 3}, "stop"),
        ({"stop": ["。"]}, "stop"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"best_of": 2}, "best_of"),
    ],
    ids=str,
)
def test_wrong_values_are_400_and_named(server: Running, more: dict[str, Any], name: str) -> None:
    status, _, answer = server.post("/v1/completions", {"model": "xl", "prompt": "春", **more}, "key-a")
    assert status == 400, answer
    assert answer["error"]["param"] == name
    assert name in answer["error"]["message"] or name == "max_tokens"


def test_it_also_has_a_path_of_its_own(server: Running) -> None:
    """There the model may also have the name that OpenAI's clients use."""
    for name in ("xl", "welm"):
        status, _, answer = server.post("/welm/v1/completions", {"model": name, "prompt": "春"}, "key-a")
        assert (status, answer["object"], answer["model"]) == (200, "text_generation", name)
    for body in ({"model": "other", "prompt": "春"}, {"prompt": "春"}):
        assert server.post("/welm/v1/completions", body, "key-a")[0] == 400
    assert server.post("/v1/completions", {"model": "welm", "prompt": "春"}, "key-a")[2]["object"] == (
        "text_completion"
    )


# Quotas.


def test_requests_a_minute(model: welm.Model) -> None:
    with Running(model, keys={"a": "alice", "b": "bob"}, requests_per_minute=3) as server:
        body = {"model": "xl", "prompt": "春", "max_tokens": 1}
        assert server.post("/v1/completions", {**body, "top_p": "x"}, "a")[0] == 400  # not counted
        assert [server.post("/v1/completions", body, "a")[0] for _ in range(4)] == [200, 200, 200, 429]
        status, headers, answer = server.post("/v1/completions", body, "a")
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(headers["retry-after"]) <= 60
        assert server.post("/v1/completions", body, "b")[0] == 200
        # OpenAI's API has no quota unless it is asked for.
        assert server.post("/v1/completions", {**body, "model": "welm"}, "a")[0] == 200
    with Running(model, keys={"a": "alice"}, requests_per_minute=1, quota_everywhere=True) as server:
        body = {"model": "welm", "prompt": "春", "max_tokens": 1}
        assert [server.post("/v1/completions", body, "a")[0] for _ in range(2)] == [200, 429]


def test_what_is_echoed_is_not_charged(model: welm.Model) -> None:
    keys = {"a": "alice"}
    with Running(
        model, keys=keys, characters_per_day=40, requests_per_minute=0, quota_everywhere=True
    ) as server:
        for stream in (False, True):
            for prompt in (PROMPT * 4, model.tokenize(PROMPT * 4)):
                body = {
                    "model": "welm",
                    "prompt": prompt,
                    "max_tokens": 4,
                    "n": 2,
                    "echo": True,
                    "temperature": 0,
                }
                data = json.dumps({**body, "stream": stream}).encode()
                head = HEAD.replace(b"key-a", b"a") % len(data)
                with server.connect() as sock:
                    sock.sendall(head.replace(b"Host", b"Connection: close\r\nHost") + data)
                    got = b""
                    while part := sock.recv(1 << 16):
                        got += part
                assert split(got)[0] == 200
        assert (
            server.post("/v1/completions", {"model": "xl", "prompt": "春", "max_tokens": 20}, "a")[0] == 200
        )
        assert server.post("/v1/completions", {"model": "xl", "prompt": "春"}, "a")[0] == 429


def test_characters_a_day_and_a_restart(model: welm.Model, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "keys": {"a": "alice"}, "characters_per_day": 40, "requests_per_minute": 0,
        "quota_file": str(tmp_path / "quota.sqlite"),
    }  # fmt: skip
    body = {"model": "xl", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "echo": True}
    with Running(model, **settings) as server:
        assert [server.post("/v1/completions", body, "a")[0] for _ in range(3)] == [200, 200, 429]
        _, headers, answer = server.post("/v1/completions", body, "a")
        assert "characters a day" in answer["error"]["message"]
        assert 1 <= int(headers["retry-after"]) <= 86_400
    with Running(model, **settings) as server:
        assert server.post("/v1/completions", body, "a")[0] == 429
