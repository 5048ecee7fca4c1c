"""Clients that are slow, broken or hostile: others do not notice them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import re
import resource
import shutil
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

import welm
from welm.serve import connections, wire

from conftest import FIXTURES, PROMPT, at_rest, begun
from serving import Running, parse, read_answer, request, split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

BODY: dict[str, Any] = {"model": "welm", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
LONG: dict[str, Any] = {**BODY, "max_tokens": 480, "ignore_eos": True}
CLOSE = "Connection: close\r\n"


@pytest.fixture
def server(model: welm.Model) -> Iterator[Running]:
    at_rest(model)
    with Running(model, max_body=1 << 20) as running:
        yield running
    at_rest(model)


def well(server: Running, model: welm.Model) -> None:
    """The server answers, correctly and soon."""
    began = time.monotonic()
    status, _, answer = server.post("/v1/completions", BODY)
    assert status == 200
    assert answer["choices"][0]["text"] == model.generate(PROMPT, max_tokens=8, temperature=0).text
    assert time.monotonic() - began < 5


# Bodies.


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "expected a JSON object"),
        (b"[]", "got an array"),
        (b'{"metadata": {"a": -1e999}}', "-1e999 is too large"),
        (b"null", "got null"),
        (b"3", "got a number"),
        (b'"x"', "got a string"),
        (b"{", "expected a JSON object"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": -Infinity}', "Infinity"),
        (b'{"prompt": "\xff"}', "expected UTF-8, got 0xff at byte 12"),
        (b'{"prompt": "\xe5\xba"}', "expected UTF-8"),
        (b"\xff\xfe{\x00}\x00", "expected UTF-8"),
        (b"[" * 100_000, "fewer levels"),
        (b'{"a":' * 100_000, "fewer levels"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "expected a JSON object"),
        (b'{"model": "welm", "prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uD800": 1, "model": "xl"}', "half of a surrogate pair"),
    ],
    ids=range(17),
)
def test_broken_bodies(server: Running, model: welm.Model, body: bytes, told: str) -> None:
    status, _, answer = server.post("/v1/completions", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert told in answer["error"]["message"]
    well(server, model)


def test_a_body_of_very_many_values_is_not_read(model: welm.Model) -> None:
    with Running(model) as server:
        for some, count in ((b"[]", 280_000), (b"{}", 280_000), (b"1", 1_100_000)):
            body = b'{"model": "welm", "metadata": [' + b",".join([some] * count) + b"]}"
            status, _, answer = server.post("/v1/completions", body)
            told = "body: expected at most 262,144 opening brackets and 1,048,576 commas, got "
            assert (status, answer["error"]["message"][: len(told)]) == (413, told)
        # A megabyte of a table, and as many tokens as 64 prompts have, are read.
        table = {"model": "welm", "prompt": "1,2\n" * 300_000}
        ids = {"model": "welm", "prompt": [[7] * 4100] * 64}
        for long in (table, ids):
            assert server.post("/v1/completions", long)[2]["error"]["code"] == "context_length_exceeded"
        well(server, model)


def test_an_answer_that_would_be_large_for_nothing(server: Running, model: welm.Model) -> None:
    echo = {**BODY, "prompt": ["春" * 500] * 24, "echo": True, "max_tokens": 1}
    tokens = 24 * server.service.context  # a prompt has at least one byte for each
    for more, most in (
        ({"logprobs": 20, "n": 128}, 128 * 21 * tokens),
        ({"logprobs": 1, "n": 128}, 256 * tokens),
    ):
        status, _, answer = server.post("/v1/completions", {**echo, **more})
        assert (status, answer["error"]["param"]) == (400, "echo")
        assert f"got {most:,}" in answer["error"]["message"]
    assert server.post("/v1/completions", {**echo, "n": "x"})[0] == 400
    assert server.post("/v1/completions", {**BODY, "echo": True, "n": 2, "logprobs": 20})[0] == 200
    well(server, model)


def test_a_large_body_is_refused_before_it_is_read(server: Running, model: welm.Model) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{"
    status, _, answer = parse(server.raw(head))
    assert (status, answer["error"]["message"]) == (413, "body: expected at most 1,048,576 bytes")
    # Without a length it is refused when it has become too large.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with server.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 200:
                sock.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                sent += 1
            got = read_answer(sock)
        except (BrokenPipeError, ConnectionResetError):
            got = b"HTTP/1.1 413"
    assert b" 413" in got[:20]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    well(server, model)


# Heads.


def test_floods_of_headers(server: Running, model: welm.Model) -> None:
    for flood in (b"a: b\r\n" * 100_000, b"a: " + b"b" * 1_000_000, b"b" * 1_000_000):
        with server.connect() as sock:
            got = b""
            try:
                sock.sendall(b"GET /health HTTP/1.1\r\n" + flood)
                got = read_answer(sock)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was closed before the end was read
        assert got[9:12] in (b"431", b"400", b"")
    well(server, model)


NO_HTTP = (
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"GET /\xff HTTP/1.1\r\n\r\n",
)


@pytest.mark.parametrize("head", NO_HTTP)
def test_no_http(server: Running, model: welm.Model, head: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(head)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000)[9:12] in (b"400", b"404", b"")
    well(server, model)


def test_slow_heads_and_idle_connections_are_closed(
    server: Running, model: welm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with server.connect() as silent, server.connect() as slow:
        ended = False
        for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\n" * 10:
            time.sleep(0.02)
            try:
                slow.sendall(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                ended = True
                break
        assert ended
        assert silent.recv(10) == b""
    well(server, model)


def test_more_connections_than_there_is_room_for(server: Running, model: welm.Model) -> None:
    """Those that wait for a request make room, the oldest first."""
    kind: Any = server.server.config.http_protocol_class
    kind.most = 50
    with server.connect() as busy:
        busy.sendall(request({**LONG, "n": 8}))
        begun(model)
        crowd = [server.connect() for _ in range(200)]
        well(server, model)
        assert len(server.server.server_state.connections) <= 51
        assert crowd[0].recv(10) == b""
        crowd[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert split(read_answer(crowd[-1]))[0] == 200
        assert split(read_answer(busy))[0] == 200
        for sock in crowd:
            sock.close()


def test_endless_trailers_and_half_heads_behind_a_request(server: Running, model: welm.Model) -> None:
    trailers = b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    for begin in (trailers, request({**LONG, "n": 8, "stream": True}) + b"GET /health HTTP/1.1\r\n"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with server.connect() as sock:
            sock.sendall(begin)
            closed = False
            for _ in range(100_000):
                try:
                    sock.sendall(b"a: " + b"b" * 10_000 + b"\r\n")
                except (BrokenPipeError, ConnectionResetError):
                    closed = True
                    break
            assert closed
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
        at_rest(model)
    well(server, model)


def test_half_bodies_make_room_for_others(server: Running, model: welm.Model) -> None:
    kind: Any = server.server.config.http_protocol_class
    kind.most = 20
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    crowd = [server.connect() for _ in range(60)]
    for sock in crowd:
        sock.sendall(head)
    well(server, model)
    assert len(server.server.server_state.connections) <= 21
    for sock in crowd:
        sock.close()


def test_a_body_that_does_not_come(
    server: Running, model: welm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BODY_SECONDS", 0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(head)
        for _ in range(10):  # slowly
            sock.sendall(b" ")
            time.sleep(0.05)
        status, _, answer = parse(read_answer(sock))
    assert (status, answer["error"]["message"]) == (408, "the body did not come in 0.3 s")


def test_those_without_a_key_send_no_bodies(model: welm.Model) -> None:
    with Running(model, keys={"k": "alice"}) as server:
        head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        assert split(server.raw(head.format("/v1/chat/completions").encode()))[0] == 401  # before it came
        # Their key is what is wrong, even where little is read of the body.
        for body in ({"model": "welm", "prompt": "x" * 70_000}, b"{"):
            assert server.post("/v1/completions", body)[0] == 401
            assert server.post("/welm/v1/completions", body)[0] == 403
        assert server.post("/v1/completions", {"model": "welm", "prompt": "x"})[0] == 401
        assert server.post("/v1/completions", {"model": "xl", "prompt": "x"})[0] == 403


def test_an_answer_that_comes_before_the_body_is_read(server: Running) -> None:
    """Many clients read no answer before they have sent all."""
    for path, size, status in (("/v1/embeddings", 1 << 20, 400), ("/v1/completions", 5 << 20, 413)):
        assert server.post(path, b'{"input": "' + b"x" * (size - 100) + b'"}')[0] == status


def test_nothing_is_upgraded(server: Running) -> None:
    """Java's client asks for HTTP/2 with its first request."""
    more = (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    )
    for body in (BODY, {**BODY, "prompt": "\r\nUpgrade: x"}):
        status, _, answer = parse(server.raw(request(body, more=more)))
        assert (status, answer["object"]) == (200, "text_completion")


def test_nothing_is_upgraded_wherever_the_head_is_cut(server: Running) -> None:
    data = request({**BODY, "max_tokens": 1}, more="Connection: Upgrade\r\nUpgrade: h2c\r\n")
    begin, end = data.index(b"\r\nUpgrade") - 1, data.index(b"\r\n\r\n") + 6
    for cut in (*range(begin, begin + 14), *range(end - 8, end), len(data) - 1):
        with server.connect() as sock:
            sock.sendall(data[:cut])
            time.sleep(0.01)
            sock.sendall(data[cut:])
            assert split(read_answer(sock))[0] == 200, cut
    # Without a body, and with one whose lines are like headers.
    short = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nUser-Agent: u\r\n\r\n"
    for cut in range(1, len(short)):
        with server.connect() as sock:
            sock.sendall(short[:cut])
            time.sleep(0.002)
            sock.sendall(short[cut:])
            assert split(read_answer(sock))[0] == 200, cut
    with server.connect() as sock:
        for at in range(len(short)):
            sock.sendall(short[at : at + 1])
        assert split(read_answer(sock))[0] == 200
    body = json.dumps(BODY, indent=1).encode() + b"\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r".encode()
    with server.connect() as sock:
        sock.sendall(head)
        time.sleep(0.01)
        sock.sendall(b"\n" + body)
        assert split(read_answer(sock))[0] == 200


# Clients that do not read.


def test_a_slow_reader_keeps_nobody_waiting(server: Running, model: welm.Model) -> None:
    with server.connect() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.sendall(request({**LONG, "n": 16, "stream": True, "logprobs": 20}))
        for _ in range(20):
            assert slow.recv(1)
            well(server, model)
        at_rest(model)  # it was computed to its end, although nothing is read
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert len(read_answer_to_end(slow)) > 1_000_000


def read_answer_to_end(sock: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        part = sock.recv(1 << 20)
        assert part
        got += part
    return got


def test_a_reader_that_has_stopped_is_dropped(
    server: Running, model: welm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.2)
    with server.connect() as stopped:
        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        stopped.sendall(request({**LONG, "n": 32, "stream": True, "logprobs": 20}))
        until = time.monotonic() + 20
        while server.server.server_state.connections and time.monotonic() < until:
            time.sleep(0.01)
        assert not server.server.server_state.connections
    at_rest(model)
    well(server, model)


def test_a_reader_that_is_slow_but_reads_is_kept(
    server: Running, model: welm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.3)
    with server.connect() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(request({**LONG, "n": 8, "stream": True, "logprobs": 20}, more="Connection: close\r\n"))
        got, until = b"", time.monotonic() + 1.5
        while time.monotonic() < until:
            got += slow.recv(8000)
            time.sleep(0.01)
        while part := slow.recv(1 << 20):
            got += part
    assert b"data: [DONE]" in got
    at_rest(model)


def test_an_answer_that_is_not_fetched(
    server: Running, model: welm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is small enough to be written at once, after which the server wants to close."""
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.3)
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        body = {**LONG, "max_tokens": 200, "n": 8, "logprobs": 5}
        sock.sendall(request(body, more="Connection: close\r\n"))
        until = time.monotonic() + 20
        time.sleep(0.2)
        while server.server.server_state.connections and time.monotonic() < until:
            time.sleep(0.01)
        assert not server.server.server_state.connections


def test_hanging_up_at_once_computes_nothing(server: Running, model: welm.Model) -> None:
    before = model.stats()
    for _ in range(40):
        with server.connect() as sock:
            sock.sendall(request(LONG))
    at_rest(model)
    time.sleep(0.1)
    at_rest(model)
    assert model.stats().completion_tokens - before.completion_tokens < 40 * 480 / 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/welm/v1/completions", "/score"])
def test_hanging_up_cancels(server: Running, model: welm.Model, path: str, stream: bool) -> None:
    body = {**LONG, "n": 64, **({"stream": True} if stream else {})}
    if path == "/score":
        body = {"prompt": PROMPT, "continuations": [[7] * 400] * 60}
    elif path != "/v1/completions":
        body = {"model": "xl", "prompt": PROMPT, "max_tokens": 480, "n": 64}
    before = model.stats()
    with server.connect() as sock:
        sock.sendall(request(body, path=path))
        begun(model)
    at_rest(model)
    after = model.stats()
    assert after.completion_tokens - before.completion_tokens < 64 * 480 / 2
    well(server, model)


def test_hanging_up_ends_requests_before_the_last(server: Running, model: welm.Model) -> None:
    before = model.stats()
    with server.connect() as sock:
        sock.sendall(request({**LONG, "n": 64}) + request({**LONG, "n": 64}) * 2)
        begun(model)
    at_rest(model)
    assert model.stats().completion_tokens - before.completion_tokens < 64 * 480 / 2
    # Whoever stays gets all answers, in order.
    with server.connect() as sock:
        sock.sendall(
            b"".join(request({**BODY, "max_tokens": n}) for n in (8, 1, 4))
            + request({}, more="Connection: close\r\n")
        )
        got = b""
        while part := sock.recv(1 << 16):
            got += part
    tokens = re.findall(rb'"completion_tokens":(\d+)', got)
    assert tokens == [b"8", b"1", b"4"]
    assert got.count(b"HTTP/1.1 400") == 1
    with server.connect() as sock, contextlib.suppress(ConnectionResetError):
        sock.sendall(request(LONG) * 20)
        assert read_answer(sock) == b""
    at_rest(model)


def test_hanging_up_while_waiting(model: welm.Model) -> None:
    with Running(model, parallel=1) as server:
        sockets = [server.connect() for _ in range(20)]
        for sock in sockets:
            sock.sendall(request(LONG))
        while server.service.gate.waiting < 19:
            time.sleep(0.001)
        for sock in sockets:
            sock.close()
        at_rest(model)
        until = time.monotonic() + 10
        while server.service.gate.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert server.service.gate.waiting == 0
        well(server, model)


def test_many_prompts_are_one_request(model: welm.Model) -> None:
    with Running(model, parallel=2, queue_limit=8) as server:
        status, _, answer = server.post("/v1/completions", {**BODY, "prompt": [PROMPT] * 8})
        assert status == 200
        want = model.generate(PROMPT, max_tokens=8, temperature=0).text
        assert [choice["text"] for choice in answer["choices"]] == [want] * 8
        for count in (9, 100_000):
            began = time.monotonic()
            status, _, answer = server.post("/v1/completions", {**BODY, "prompt": [[1]] * count})
            assert (status, answer["error"]["param"]) == (400, "prompt")
            assert time.monotonic() - began < 3
        # While one such request runs, another client does not meet a full queue.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = pool.submit(server.post, "/v1/completions", {**LONG, "prompt": [PROMPT] * 8})
            begun(model)
            assert server.post("/v1/completions", BODY)[0] == 200
            assert first.result()[0] == 200
        for n in (-1_000_000, 0):
            assert server.post("/v1/completions", {**BODY, "n": n})[0] == 400
            assert server.post("/v1/completions", {"model": "xl", "prompt": "x", "n": n})[0] == 400
        well(server, model)


def test_long_texts_to_tokenize_keep_nobody_waiting(model: welm.Model) -> None:
    keys = {"a": "alice", "b": "bob"}
    with Running(model, keys=keys) as server, concurrent.futures.ThreadPoolExecutor(20) as pool:
        long = {"prompt": "床前明月光，疑是地上霜。\n" * 20_000, "add_special_tokens": False}
        flood = [pool.submit(server.post, "/tokenize", long, "a") for _ in range(20)]
        time.sleep(0.3)
        began = time.monotonic()
        assert server.post("/v1/completions", BODY, "b")[0] == 200
        assert server.post("/tokenize", {"prompt": "春"}, "b")[0] == 200
        assert time.monotonic() - began < 3
        assert not all(one.done() for one in flood)
        assert {one.result()[0] for one in flood} == {200}


def test_a_full_queue(model: welm.Model) -> None:
    with (
        Running(model, parallel=1, queue_limit=2) as server,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        first = pool.submit(server.post, "/v1/completions", LONG)
        begun(model)
        waiting = [pool.submit(server.post, "/v1/completions", BODY) for _ in range(2)]
        while server.service.gate.waiting < 2:
            time.sleep(0.001)
        status, headers, answer = server.post("/v1/completions", BODY)
        assert (status, headers["retry-after"], answer["error"]["code"]) == (429, "1", "queue_full")
        assert server.post("/v1/completions", {"model": "xl", "prompt": "春"})[0] == 503
        assert server.post("/v1/completions", {**BODY, "stream": True})[0] == 429
        status, _, answer = server.post("/v1/completions", BODY, headers={"X-Request-Timeout": "0.01"})
        assert [one.result()[0] for one in [first, *waiting]] == [200] * 3
        # A request that waits has a deadline, too.
        first = pool.submit(server.post, "/v1/completions", {**LONG, "n": 8})
        begun(model)
        assert server.post("/v1/completions", BODY, headers={"X-Request-Timeout": "0.01"})[0] == 504
        assert first.result()[0] == 200
        well(server, model)


def test_a_flood_of_one_client_does_not_starve_another(model: welm.Model) -> None:
    keys = {"a": "alice", "b": "bob"}
    with Running(model, keys=keys, parallel=4) as server, concurrent.futures.ThreadPoolExecutor(60) as pool:
        flood = [
            pool.submit(server.post, "/v1/completions", {**LONG, "max_tokens": 200, "n": 4}, "a")
            for _ in range(60)
        ]
        while server.service.gate.waiting < 50:
            time.sleep(0.001)
        assert server.post("/v1/completions", BODY, "b")[0] == 200
        assert server.service.gate.waiting > 40  # bob did not wait for alice's requests
        assert {one.result()[0] for one in flood} == {200}


def test_beginnings_are_shared_within_a_key_only(model: welm.Model) -> None:
    prompt = "海内存知己，天涯若比邻。" * 8

    def cached(server: Running, key: str) -> int:
        usage = server.post("/v1/completions", {**BODY, "prompt": prompt}, key)[2]["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    keys = {"a": "alice", "b": "bob"}
    with Running(model, keys=keys) as server:
        assert cached(server, "a") == 0
        assert cached(server, "b") == 0
        assert cached(server, "a") > 0
    with Running(model, keys=keys, share_prefixes=True) as server:
        cached(server, "a")
        assert cached(server, "b") > 0


def test_a_poisoned_request_ends_alone(tmp_path: Path) -> None:
    """The embedding of one token is no number, so requests with it fail in the engine."""
    for file in (FIXTURES / "llama_mha").iterdir():
        shutil.copy(file, tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    begin = json.loads(data[8 : 8 + size])["model.embed_tokens.weight"]["data_offsets"][0]
    struct.pack_into("<f", data, 8 + size + begin + 4 * 32 * 96, float("nan"))
    (tmp_path / "model.safetensors").write_bytes(data)
    broken, sound = welm.Model(tmp_path, dtype="f32"), welm.Model(FIXTURES / "llama_mha", dtype="f32")
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    body = {"model": "welm", **options, "logit_bias": {"96": -100}}
    with Running(broken) as server, concurrent.futures.ThreadPoolExecutor(20) as pool:
        asked = [
            pool.submit(server.post, "/v1/completions", {**body, "prompt": [n, 5, 96 if n % 3 == 0 else 7]})
            for n in range(20)
        ]
        for n, one in enumerate(asked):
            status, _, answer = one.result()
            if n % 3 == 0:
                assert (status, "expected finite numbers" in answer["error"]["message"]) == (500, True), (
                    answer
                )
                continue
            want = sound.generate([n, 5, 7], **options, logit_bias={96: -100})
            assert status == 200
            assert answer["choices"][0]["logprobs"]["token_logprobs"] == [
                t.logprob for t in want.choices[0].tokens
            ]
        assert server.get("/health")[0] == 200
    at_rest(broken)


# Browsers.


def test_pages_of_others_are_refused(model: welm.Model) -> None:
    with Running(model, origins=("https://mine.example",), hosts=("localhost", "127.0.0.1")) as server:
        for headers, want in (
            ({}, 200),
            ({"Host": "127.0.0.1:8000"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Host": "LOCALHOST"}, 200),
            ({"Origin": "http://localhost"}, 200),
            ({"Origin": "https://mine.example"}, 200),
        ):
            status, told, _ = server.get("/v1/models", headers)
            assert status == want, headers
            allowed = told.get("access-control-allow-origin")
            assert allowed == (headers["Origin"] if "mine" in headers.get("Origin", "") else None)
            exposed = told.get("access-control-expose-headers")
            assert exposed == ("retry-after, x-request-id, x-should-retry" if allowed else None)
        lines = (
            "OPTIONS /v1/models HTTP/1.1",
            "Host: localhost",
            "Origin: https://mine.example",
            "Connection: close",
        )
        status, told, _ = split(server.raw("\r\n".join([*lines, "", ""]).encode()))
        assert (status, told["access-control-allow-methods"]) == (204, "GET, POST")


# The log.


def test_the_log_has_no_prompts(model: welm.Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "welm.serve")
    for prompts in (False, True):
        caplog.clear()
        with Running(model, keys={"k": "alice"}, log_prompts=prompts) as server:
            server.post("/v1/completions", BODY, "k")
            server.post("/v1/completions", {**BODY, "model": "xl"}, "k")
            server.post("/v1/completions", {**BODY, "top_p": 9}, "k")
            server.get("/health")
        lines = [json.loads(record.message) for record in caplog.records if record.name == "welm.serve"]
        assert [line["status"] for line in lines] == [200, 200, 400]
        assert (lines[0]["client"], lines[0]["completion_tokens"], lines[0]["path"]) == (
            "alice",
            8,
            "/v1/completions",
        )
        assert "top_p" in lines[2]["error"]
        assert (PROMPT in caplog.text) == prompts


class FaultyStream:
    """A stream that fails after two pieces."""

    def __init__(self, stream: welm.AsyncStream, error: welm.Error) -> None:
        self._stream, self._error, self._left = stream, error, 2

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> welm.Piece:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return await anext(self._stream)


class Faulty:
    """A model whose requests fail, streams after two pieces."""

    def __init__(self, model: welm.Model, error: welm.Error) -> None:
        self._model, self._error = model, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def generate_async(self, *_: Any, **__: Any) -> None:
        raise self._error

    def check_health(self) -> None:
        if isinstance(self._error, (welm.DeviceLost, welm.EngineStopped)):
            raise self._error

    def stream_async(self, *given: Any, **named: Any) -> FaultyStream:
        return FaultyStream(self._model.stream_async(*given, **named), self._error)


def test_the_log_has_prompts_and_answers_of_streams(
    model: welm.Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "welm.serve")
    body = {**BODY, "n": 3, "seed": 1, "temperature": 1}
    with Running(model, log_prompts=True) as server:
        for stream in (False, True):
            server.raw(request({**body, "stream": stream}, more=CLOSE))
        server.service.model = Faulty(model, welm.NotFinite("position 7"))
        server.raw(request({**BODY, "stream": True}, more=CLOSE))
    lines = [json.loads(record.message) for record in caplog.records if record.levelname == "INFO"]
    answers = [line["answers"] for line in lines]
    assert [line["prompt"] for line in lines] == [[PROMPT]] * 3
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]
    assert len(answers[2][0]) > 0
    assert (lines[2]["status"], lines[2]["error"]) == (200, "position 7")


@pytest.mark.parametrize("stream", [False, True])
def test_an_operator_is_told_that_the_engine_ended(model: welm.Model, stream: bool) -> None:
    with Running(model) as server:
        for error, status, health in ((welm.NotFinite("x"), 500, 200), (welm.DeviceLost("x"), 503, 503)):
            server.service.model = Faulty(model, error)
            got = split(server.raw(request({**BODY, "stream": stream}, more=CLOSE)))[0]
            assert got == (200 if stream else status)
            assert [server.get(path)[0] for path in ("/health", "/ready")] == [health, health]


def test_a_file_that_is_cut_short_ends_the_server(tmp_path: Path) -> None:
    shutil.copytree(welm.NANO, tmp_path / "model")
    model = welm.Model(tmp_path / "model", threads=1)
    with Running(model) as server:
        assert server.post("/v1/completions", BODY)[0] == 200
        model.check_health()
        with open(tmp_path / "model" / "model.safetensors", "r+b") as file:
            file.truncate(1 << 16)
        for _ in range(2):
            status, _, answer = server.post("/v1/completions", BODY)
            assert (status, answer["error"]["code"]) == (503, "engine_stopped")
        with pytest.raises(welm.InvalidFile, match="truncated"):
            model.check_health()
        assert [server.get(path)[0] for path in ("/health", "/ready")] == [503, 503]


def test_a_template_that_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    shutil.copytree(welm.NANO, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_bytes(b"\xff")
    with Running(welm.Model(tmp_path / "model", threads=1)) as server:
        body = {"model": "welm", "messages": [{"role": "user", "content": "x"}]}
        status, _, answer = server.post("/v1/chat/completions", body)
        assert (status, "chat_template.jinja" in answer["error"]["message"]) == (400, True)
        assert server.post("/v1/completions", BODY)[0] == 200
        assert [server.get(path)[0] for path in ("/health", "/ready")] == [200, 200]


def test_a_thread_that_cannot_be_started_is_asked_for_again(model: welm.Model) -> None:
    with Running(model) as server:
        server.service.model = Faulty(model, welm.Unavailable("thread is not available: for now"))
        status, headers, _ = server.post("/v1/completions", BODY)
        assert (status, headers["retry-after"]) == (503, "1")
        server.service.model = model
        well(server, model)
        assert [server.get(path)[0] for path in ("/health", "/ready")] == [200, 200]


def test_an_internal_error_tells_nothing(
    model: welm.Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    with Running(model) as server:
        monkeypatch.setattr(server.service, "whole", broken)
        status, _, answer = server.post("/v1/completions", BODY)
        assert (status, answer["error"]["message"]) == (500, "an internal error")
        assert caplog.text.count("ZeroDivisionError: a secret") == 1  # in the log it is
        assert server.post("/v1/completions", {**BODY, "model": "xl"})[0] == 503
        assert caplog.text.count("ZeroDivisionError: a secret") == 2
        monkeypatch.setattr(server.service, "_each", broken)
        assert server.post("/v1/completions", {**BODY, "stream": True})[0] == 500
        assert caplog.text.count("ZeroDivisionError: a secret") == 3
