"""Every exception: its class, its bases, its message and its attributes."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import welm

from conftest import FIXTURES, PROMPT, at_rest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, to be damaged."""
    shutil.copytree(FIXTURES / "welm", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("temperature", -1.0, "expected 0 to 100, got -1"),
        ("temperature", float("nan"), "got NaN"),
        ("top_p", 1.5, "expected 0 to 1, got 1.5"),
        ("min_p", 2, "expected 0 to 1, got 2"),
        ("repetition_penalty", 0, "expected 0.01 to 100, got 0"),
        ("frequency_penalty", -101, "expected -100 to 100, got -101"),
        ("presence_penalty", float("nan"), "got NaN"),
        ("logit_bias", {3: float("inf")}, "expected -100 to 100, or -inf, for token 3, got inf"),
        ("logit_bias", {-1: 0}, "expected 0 or more, got -1"),
        ("logit_bias", {7040: 0}, "expected tokens below 7040, got 7040"),
        ("n", 0, "expected 1 to 128, got 0"),
        ("n", 129, "got 129"),
        ("max_tokens", -1, "expected 0 or more, got -1"),
        ("top_k", -5, "got -5"),
        ("logprobs", 101, "expected at most 100"),
        ("logprobs", -1, "got -1"),
        ("seed", -1, "expected 0 or more, got -1"),
        ("seed", 2**64, "expected at most 18446744073709551615, got 18446744073709551616"),
        ("seed", 2**200, "expected at most 18446744073709551615, got an int of 201 bits"),
        ("stop", [""], "expected strings of 1 to 256 bytes, got one of 0"),
        ("stop", "长" * 100, "got one of 300"),
        ("stop", ["a"] * 257, "expected at most 256 strings, got 257"),
        ("deadline", -1, "expected 0 seconds or more, got -1"),
        ("deadline", float("nan"), "expected 0 seconds or more, got nan"),
        ("deadline", timedelta(seconds=-2), "got -2.0"),
    ],
)
def test_options_of_a_request(model: welm.Model, option: str, value: object, reason: str) -> None:
    arguments: dict[str, Any] = {option: value}
    for call in (model.generate, model.stream):
        with pytest.raises(welm.InvalidOption) as raised:
            call(PROMPT, **arguments)
        assert isinstance(raised.value, ValueError)
        assert raised.value.option == option
        assert str(raised.value).startswith(f"option `{option}`: ")
        assert reason in str(raised.value)
    at_rest(model)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", "3"),
        ("max_tokens", None),
        ("max_tokens", 1.5),
        ("temperature", "hot"),
        ("logit_bias", [3]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {1: "a"}),
        ("echo", 1),
        ("stop", 3),
        ("stop", [3]),
        ("logprobs", True),  # as in another API
        ("logprobs", "1"),
        ("n", True),
        ("temperature", True),
        ("deadline", True),
        ("stop_token_ids", [True]),
        ("logit_bias", {True: 1.0}),
        ("deadline", "soon"),
        ("cancel", object()),
        ("seed", 1.0),
        ("stop_token_ids", 5),
        ("stop_token_ids", b"ab"),
        ("cache_salt", b"ab"),
    ],
)
def test_types_of_options(model: welm.Model, option: str, value: object) -> None:
    arguments: dict[str, Any] = {option: value}
    with pytest.raises(TypeError, match=f"argument '{option}'"):
        model.generate(PROMPT, **arguments)


def test_unknown_options(model: welm.Model) -> None:
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'max_token'"):
        model.generate(PROMPT, max_token=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"Model\(\) got an unexpected keyword argument 'gpu'"):
        welm.Model(gpu=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="progress"):
        welm.Model.estimate(progress=print)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("device", "gpu", 'expected auto, cpu, cuda or cuda:N, got "gpu"'),
        ("dtype", "int4", 'got "int4"'),
        ("cache_dtype", "int8", 'got "int8"'),
        ("activations", "int7", 'got "int7"'),
        ("activations", "int8_rotated", "expected auto, int8 or int16 on the cpu"),
        ("threads", 0, "expected 1 to 1024, got 0"),
        ("threads", -1, "got -1"),
        ("context_tokens", 1 << 30, "expected"),
        ("chunk_tokens", 0, "expected 1 to 65536, got 0"),
        ("max_running", 0, "got 0"),
        ("queue_limit", 0, "got 0"),
        ("memory_limit", -1, "got -1"),
    ],
)
def test_options_of_loading(option: str, value: object, reason: str) -> None:
    arguments: dict[str, Any] = {option: value}
    with pytest.raises(welm.InvalidOption) as raised:
        welm.Model(**{"device": "cpu", **arguments})
    assert raised.value.option == option
    assert reason in str(raised.value)


def test_too_long(model: welm.Model) -> None:
    with pytest.raises(welm.TooLong) as raised:
        model.generate("春" * 600, max_tokens=10)
    error = raised.value
    assert isinstance(error, ValueError)
    tokens = len(model.tokenize("春" * 600))
    assert (error.prompt_tokens, error.requested, error.limit) == (tokens, tokens + 10, 512)
    assert error.what == "context"
    with pytest.raises(welm.TooLong, match="KV cache holds 64"):
        welm.Model(cache_tokens=64).generate(PROMPT, max_tokens=100)


def test_tokens_that_are_none(model: welm.Model) -> None:
    with pytest.raises(welm.InvalidOption, match="expected tokens below 7040, got 7040"):
        model.generate([7040])
    for tokens in ([-1], [2**32]):
        with pytest.raises(welm.InvalidOption, match="expected tokens of 0 to 4294967295"):
            model.generate(tokens)


def test_an_empty_prompt(model: welm.Model, bare: welm.Model) -> None:
    assert model.generate("", max_tokens=1).usage.prompt_tokens == 1
    with pytest.raises(welm.EmptyPrompt) as raised:
        bare.generate((), max_tokens=1)
    assert isinstance(raised.value, ValueError)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for load in (welm.Model, welm.Model.estimate):
        with pytest.raises(welm.IoError) as raised:
            load(tmp_path / "nowhere")
        assert isinstance(raised.value, OSError)
        assert raised.value.path.startswith(str(tmp_path / "nowhere"))
        assert str(raised.value).startswith(raised.value.path)


def test_a_damaged_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(welm.InvalidFile) as raised:
        welm.Model(folder)
    assert raised.value.path == str(folder / "model.safetensors")


def test_an_unknown_setting(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(welm.ConfigError, match="mamba") as raised:
        welm.Model(folder)
    assert raised.value.setting == "model_type"


def test_a_tensor_of_another_shape(folder: Path) -> None:
    shutil.copy(FIXTURES / "neox_odd" / "model.safetensors", folder)
    with pytest.raises(welm.TensorError) as raised:
        welm.Model(folder)
    assert f"tensor `{raised.value.tensor}`" in str(raised.value)


def test_a_tensor_that_nothing_reads(folder: Path) -> None:
    path = folder / "model.safetensors"
    file = path.read_bytes()
    length = int.from_bytes(file[:8], "little")
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    header["score.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data + bytes(4))
    with pytest.raises(welm.TensorError, match="nothing reads it") as raised:
        welm.Model(folder)
    assert raised.value.tensor == "score.weight"
    with pytest.raises(welm.TensorError, match="nothing reads it"):
        welm.Model.estimate(folder)
    assert welm.Model.estimate(folder, allow_unread_tensors=True).total_bytes > 0
    assert welm.Model(folder, allow_unread_tensors=True).config.dim > 0


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises((welm.TokenizerError, welm.InvalidFile), match="tokenizer"):
        welm.Model(folder)


def test_out_of_memory() -> None:
    with pytest.raises(welm.OutOfMemory) as raised:
        welm.Model(memory_limit=20_000_000, device="cpu")
    error = raised.value
    assert isinstance(error, MemoryError)
    assert error.weights is not None
    assert error.cache is not None
    assert error.scratch is not None
    assert error.available == 20_000_000
    assert error.required == error.weights + error.cache + error.scratch > error.available
    assert error.fitting_cache_tokens is not None
    assert welm.Model(memory_limit=20_000_000, device="cpu", cache_tokens=error.fitting_cache_tokens)


def test_queue_full() -> None:
    model = welm.Model(queue_limit=4, max_running=1)
    streams = [model.stream(PROMPT, max_tokens=400, ignore_eos=True) for _ in range(2)]
    next(streams[0])
    with pytest.raises(welm.QueueFull) as raised:
        streams.extend(model.stream(PROMPT, max_tokens=400, ignore_eos=True) for _ in range(8))
    assert (raised.value.limit, raised.value.waiting) == (4, 4)
    assert model.stats().rejected == 1
    del streams
    at_rest(model)


def test_unavailable() -> None:
    with pytest.raises(welm.Unavailable) as raised:
        welm.Model(isa="neon" if "avx" in welm.Model().backend else "avx2")
    assert raised.value.what
    with pytest.raises(welm.Unavailable) as raised:
        welm.Model(device="cuda:99")
    assert raised.value.what == "cuda device"
    assert welm.Model(device="cpu").backend.startswith("cpu")
    assert welm.Model(device="auto").generate(PROMPT, max_tokens=1).usage.completion_tokens == 1


def test_a_progress_callback_ends_the_loading() -> None:
    reports: list[tuple[int, int]] = []
    welm.Model(progress=lambda *report: reports.append(report))  # None goes on
    assert reports[-1][0] == reports[-1][1] > 0
    assert [r[0] for r in reports] == sorted(r[0] for r in reports)
    welm.Model(progress=lambda *_: 0)  # so does any other value, such as that of a progress bar's update
    with pytest.raises(welm.Cancelled, match="loading was cancelled"):
        welm.Model(progress=lambda *_: False)

    def fail(done: int, total: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        welm.Model(progress=fail)
    with pytest.raises(TypeError):
        welm.Model(progress=3)  # type: ignore[arg-type]


def test_one_base() -> None:
    classes = [c for _, c in inspect.getmembers(welm, inspect.isclass) if issubclass(c, BaseException)]
    assert len(classes) == 20
    for c in classes:
        assert issubclass(c, welm.Error)
        assert c.__doc__
    for base, derived in (
        (RuntimeError, welm.ForkError),
        (welm.DeviceError, welm.DeviceLost),
    ):
        assert issubclass(derived, base)


def test_exceptions_travel_between_processes(model: welm.Model) -> None:
    with pytest.raises(welm.TooLong) as raised:
        model.generate("春" * 600)
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), str(again), again.limit) == (welm.TooLong, str(raised.value), 512)
    with pytest.raises(welm.IoError) as io:
        welm.Model("/nowhere")
    again = pickle.loads(pickle.dumps(io.value))
    assert (type(again), str(again), again.path) == (welm.IoError, str(io.value), io.value.path)
