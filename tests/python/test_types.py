"""Types for type checkers. Running this file checks that the values really have these types."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typing_extensions import assert_type

import welm
from welm._options import GenerateOptions, LoadOptions

from conftest import PROMPT

if TYPE_CHECKING:
    from numpy.typing import NDArray


def test_results(model: welm.Model) -> None:
    one = model.generate(PROMPT, max_tokens=2, logprobs=1)
    assert_type(one, welm.Generation)
    assert_type(model.generate([1, 2], max_tokens=1), welm.Generation)
    assert_type(model.generate(np.array([1, 2]), max_tokens=1), welm.Generation)
    many = model.generate([PROMPT, "春"], max_tokens=1)
    assert_type(many, list[welm.Generation])
    assert_type(model.generate([[1, 2], [3]], max_tokens=1), list[welm.Generation])
    mixed: list[str | list[int]] = [PROMPT, [1]]
    assert_type(model.generate(mixed, max_tokens=1), list[welm.Generation])
    assert (type(one), type(many)) == (welm.Generation, list)

    choice = one.choices[0]
    assert_type(choice, welm.Choice)
    assert_type(choice.finish_reason, welm.FinishReason)
    assert_type(one.finish_reason, "welm.FinishReason | None")
    assert_type(choice.tokens[0].logprob, "float | None")
    assert_type(choice.tokens[0].alternatives, tuple[welm.Token, ...])
    assert (type(choice.tokens[0].logprob), type(choice.tokens[0].bytes)) == (float, bytes)

    with model.stream(PROMPT, max_tokens=1) as stream:
        assert_type(stream, welm.Stream)
        for piece in stream:
            assert_type(piece, welm.Piece)
            assert type(piece) is welm.Piece

    logits: NDArray[np.float32] = model.logits(PROMPT)
    assert type(logits) is np.ndarray
    assert_type(model.score(PROMPT, ["a"]), list[welm.Score])
    assert_type(model.score([1, 2], [[3], "a"]), list[welm.Score])
    assert_type(model.score([PROMPT, "春"], ["a"], deadline=60), list[list[welm.Score]])
    assert_type(model.score([PROMPT, "春"], [["a"], ["b", "c"]]), list[list[welm.Score]])
    messages = [{"role": "user", "content": "春"}]
    template = "{{ messages[0].content }}"
    assert_type(model.chat(messages, chat_template=template, max_tokens=1), welm.Generation)
    with model.chat_stream(messages, chat_template=template, max_tokens=1, variables={"a": 1}) as pieces:
        assert_type(pieces, welm.Stream)
    with pytest.raises(welm.ChatTemplateError):
        assert_type(model.generate(messages), welm.Generation)
    with pytest.raises(welm.ChatTemplateError):
        assert_type(model.generate([messages]), list[welm.Generation])
    assert_type(model.tokenize(PROMPT), list[int])
    assert_type(model.token_id("a"), "int | None")
    assert_type(model.stats().time_between_tokens, welm.Histogram)
    assert_type(welm.Model.estimate(), welm.Estimate)


def test_asyncio(model: welm.Model) -> None:
    async def run() -> None:
        assert_type(await model.generate_async(PROMPT, max_tokens=1), welm.Generation)
        assert_type(await model.generate_async([PROMPT], max_tokens=1), list[welm.Generation])
        assert_type(await model.score_async(PROMPT, ["a"]), list[welm.Score])
        assert_type(await model.score_async([PROMPT], ["a"]), list[list[welm.Score]])
        messages, template = [{"role": "user", "content": "春"}], "{{ messages[0].content }}"
        assert_type(
            await model.chat_async(messages, chat_template=template, max_tokens=1, temperature=0),
            welm.Generation,
        )
        assert_type(model.chat_stream_async(messages, chat_template=template), welm.AsyncStream)
        async with model.stream_async(PROMPT, max_tokens=1) as stream:
            assert_type(stream, welm.AsyncStream)
            async for piece in stream:
                assert_type(piece, welm.Piece)

    asyncio.run(run())


def test_options_are_dictionaries() -> None:
    load: welm.LoadOptions = {"device": "cpu", "threads": 1}
    generate: welm.GenerateOptions = {"max_tokens": 2, "temperature": 0}
    assert len(welm.Model(**load).generate(PROMPT, **generate).choices) == 1
    for options, call, others in (
        (LoadOptions, welm.Model, {"path", "progress"}),
        (GenerateOptions, welm.Model.generate, {"self", "prompt"}),
        (GenerateOptions, welm.Model.stream, {"self", "prompt"}),
    ):
        assert set(options.__annotations__) == set(inspect.signature(call).parameters) - others


def test_readme_passes_the_checker(tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "welm-py/README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks), "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
