"""The server on a local Ray cluster with two copies of the model, and batches on Ray Data."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["RAY_SERVE_SESSION_ID_HEADER_KEY"] = "authorization"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

import welm
import welm.serve.ray

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BODY: dict[str, Any] = {"model": "nano", "max_tokens": 24, "top_p": 1.0}


@pytest.fixture(scope="module")
def model() -> welm.Model:
    return welm.Model(threads=1)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": number})
    app = welm.serve.ray.deployment(
        None, num_replicas=2, options={"threads": 1}, model_names=("nano",), queue_limit=64
    )
    serve.run(app, name="welm", route_prefix="/")
    yield number
    serve.shutdown()
    ray.shutdown()


def post(port: int, body: dict[str, Any], key: str = "k") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": key})
    response = connection.getresponse()
    data = response.read()
    return response.status, data.decode() if body.get("stream") else json.loads(data)


def alone(model: welm.Model, prompt: str, seed: int, **options: Any) -> str:
    return model.generate(
        prompt, seed=seed, temperature=1, top_p=1, top_k=0, **{"max_tokens": 24, **options}
    ).text


def test_answers_are_those_of_one_machine(port: int, model: welm.Model) -> None:
    for seed in range(20):
        status, answer = post(port, {**BODY, "prompt": f"第{seed}首：", "seed": seed}, f"key-{seed}")
        assert (status, answer["choices"][0]["text"]) == (200, alone(model, f"第{seed}首：", seed))
    status, told = post(port, {**BODY, "prompt": "春", "seed": 1, "stream": True})
    parts = [
        json.loads(line[6:])["choices"][0]["text"] for line in told.splitlines() if line.startswith("data: {")
    ]
    assert (status, "".join(parts)) == (200, alone(model, "春", 1))
    assert told.endswith("data: [DONE]\n\n")
    assert post(port, {**BODY, "prompt": "春", "top_p": 3})[0] == 400


def test_a_client_comes_back_to_the_same_copy(port: int) -> None:
    """Which has the beginning of its prompt."""
    for number in range(16):
        prompt = f"{number}号：" + "海内存知己，天涯若比邻。" * 6
        used = [
            post(port, {**BODY, "prompt": prompt, "max_tokens": 1}, f"client-{number}")[1]["usage"]
            for _ in range(2)
        ]
        assert [one["prompt_tokens_details"]["cached_tokens"] > 0 for one in used] == [False, True]


def replicas() -> list[int]:
    done = subprocess.run(
        ["pgrep", "-f", "ray::ServeReplica:welm:welm"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in done.stdout.split()]


def test_a_copy_that_is_killed_loses_no_finished_answer(port: int, model: welm.Model) -> None:
    assert len(replicas()) == 2
    began, killed = time.monotonic(), False
    finished = broken = after = 0

    def one(number: int) -> tuple[int, bool, str]:
        """A request; whether its answer has an end, and its text."""
        body = {**BODY, "prompt": f"{number % 50}：", "seed": number % 50, "max_tokens": 200, "stream": True}
        try:
            status, told = post(port, {**body, "ignore_eos": True}, f"k{number}")
        except (http.client.HTTPException, OSError):
            return number, False, ""
        parts = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
        whole = (
            status == 200 and told.endswith("data: [DONE]\n\n") and not any("error" in part for part in parts)
        )
        return number, whole, "".join(part["choices"][0]["text"] for part in parts) if whole else ""

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        pending = {pool.submit(one, number) for number in range(16)}
        number, victim = 16, replicas()[0]
        while time.monotonic() - began < 40:
            done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                seed, whole, text = future.result()
                if whole:
                    finished += 1
                    after += killed
                    assert text == alone(model, f"{seed % 50}：", seed % 50, max_tokens=200, ignore_eos=True)
                else:
                    broken += 1
                pending.add(pool.submit(one, number))
                number += 1
            if not killed and time.monotonic() - began > 4:
                os.kill(victim, signal.SIGKILL)
                killed = True
    print(f"{finished} finished, {broken} broken, {after} after the kill")
    assert finished > 20
    assert after > 10
    assert broken <= 32
    until = time.monotonic() + 60
    while (len(replicas()) != 2 or victim in replicas()) and time.monotonic() < until:
        time.sleep(0.5)
    assert len(replicas()) == 2
    assert all(one(number)[1] for number in range(10))


def test_the_examples_can_be_read() -> None:
    """They name arguments that there are; neither Kubernetes nor Docker is here to run them."""
    import inspect

    folder = ROOT / "examples/ray"
    config = yaml.safe_load((folder / "serve.yaml").read_text())
    kube = yaml.safe_load((folder / "rayservice.yaml").read_text())
    assert kube["kind"] == "RayService"
    known = {
        *inspect.signature(welm.serve.ray.deployment).parameters,
        *welm.serve.Settings.names(),
        "api_keys",
    }
    loading = inspect.signature(welm.Model).parameters
    for read in (config, yaml.safe_load(kube["spec"]["serveConfigV2"])):
        (app,) = ServeDeploySchema.model_validate(read).applications
        assert app.import_path == "welm.serve.ray:build"
        assert set(app.args) - known == set()
        assert set(app.args["options"]) - set(loading) == set()


# Batches.


def lines(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for n in range(count):
            body = {
                "model": "nano",
                "prompt": f"第{n}首：",
                "max_tokens": 4 + n % 24,
                "seed": n,
                "logprobs": 1,
            }
            file.write(
                json.dumps({"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": body})
                + "\n"
            )
    return path


def answers(path: Path) -> dict[str, Any]:
    """Without ids and times."""
    found = {}
    for line in path.read_text().splitlines():
        answer = json.loads(line)
        body = answer["response"]["body"]
        usage = {**body["usage"], "prompt_tokens_details": None}  # what is cached depends on what came before
        assert answer["custom_id"] not in found
        found[answer["custom_id"]] = (answer["response"]["status_code"], body["choices"], usage)
    return found


def batch(*args: str | Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "welm", "batch", *map(str, args), "--threads", "1"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_a_batch_on_a_cluster_is_that_of_one_machine(port: int, tmp_path: Path) -> None:
    src = lines(tmp_path / "in.jsonl", 1000)
    assert whole(batch(src, tmp_path / "here.jsonl", "--json")) == '{"200": 1000}\n'
    address = ray.get_runtime_context().gcs_address
    assert whole(batch(src, tmp_path / "there.jsonl", "--json", "--ray", address)) == '{"200": 1000}\n'
    assert answers(tmp_path / "there.jsonl") == answers(tmp_path / "here.jsonl")
    # Killed in the middle, twice, and continued.
    dst = tmp_path / "killed.jsonl"
    for _ in range(2):
        before = dst.stat().st_size if dst.exists() else 0
        process = batch(src, dst, "--ray", address)
        until = time.monotonic() + 120
        while (not dst.exists() or dst.stat().st_size <= before) and time.monotonic() < until:
            time.sleep(0.002)
        process.kill()
        process.communicate()
    with dst.open("ab") as file:
        file.write(b'{"id": "batch_req_half a li')
    there = dst.read_bytes().count(b"\n")
    assert 0 < there < 1000
    assert whole(batch(src, dst, "--json", "--ray", address)) == '{"200": 1000}\n'
    assert answers(dst) == answers(tmp_path / "here.jsonl")
