"""Other libraries that speak OpenAI's API, one request or more each, and lm-eval."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import welm

from conftest import with_template
from serving import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
TEMPLATE = "{% for m in messages %}{{ m.role }}：{{ m.content }}\n{% endfor %}"
MESSAGES: list[Any] = [{"role": "system", "content": "作诗"}, {"role": "user", "content": "床前明月光"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> welm.Model:
    return welm.Model(with_template(tmp_path_factory.mktemp("chat"), TEMPLATE), threads=1)


@pytest.fixture(scope="module")
def server(model: welm.Model) -> Iterator[Running]:
    with Running(model, model_names=("nano",), keys={"sk-a": "alice"}) as running:
        yield running


@pytest.fixture(scope="module")
def answer(model: welm.Model) -> str:
    return model.generate(model.chat_tokens(MESSAGES), temperature=0, max_tokens=12).text


def test_litellm(server: Running, answer: str) -> None:
    import litellm

    options: dict[str, Any] = {
        "model": "openai/nano", "api_base": f"{server.url}/v1", "api_key": "sk-a", "messages": MESSAGES,
        "temperature": 0, "max_tokens": 12,
    }  # fmt: skip
    assert litellm.completion(**options).choices[0].message.content == answer
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**options, stream=True)]
    assert "".join(parts) == answer


def test_langchain(server: Running, model: welm.Model, answer: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAI

    options: dict[str, Any] = {
        "model": "nano",
        "base_url": f"{server.url}/v1",
        "api_key": "sk-a",
        "temperature": 0,
    }
    chat = ChatOpenAI(**options, max_tokens=12)
    messages = [(message["role"], message["content"]) for message in MESSAGES]
    assert chat.invoke(messages).content == answer
    assert "".join(str(chunk.content) for chunk in chat.stream(messages)) == answer
    text = OpenAI(**options, max_tokens=12).invoke("床前明月光，")
    assert text == model.generate("床前明月光，", temperature=0, max_tokens=12).text


def test_llama_index(server: Running, answer: str) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model="nano",
        api_base=f"{server.url}/v1",
        api_key="sk-a",
        temperature=0,
        max_tokens=12,
        is_chat_model=True,
    )
    messages = [ChatMessage(**message) for message in MESSAGES]
    assert llm.chat(messages).message.content == answer
    assert "".join(chunk.delta or "" for chunk in llm.stream_chat(messages)) == answer


def test_openai_for_node(server: Running, model: welm.Model, answer: str) -> None:
    node, folder = shutil.which("node"), os.environ.get("WELM_NODE_MODULES")
    if node is None or folder is None:
        pytest.skip("needs node, and WELM_NODE_MODULES")
    work = Path(folder).parent
    shutil.copy(HERE / "client.mjs", work)
    line = [node, str(work / "client.mjs"), f"{server.url}/v1", "sk-a"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["chat"], told["streamed"], told["response"]) == (answer, answer, answer)
    want = model.generate("床前明月光，", temperature=0, max_tokens=8, n=2, logprobs=2, stop="。")
    assert told["texts"] == [choice.text for choice in want.choices]
    assert told["logprobs"] == [token.logprob for token in want.choices[0].tokens]
    assert told["usage"] == want.usage.prompt_tokens
    assert told["errors"] == {
        "key": 401, "model": 404, "temperature": 400, "tools": "tools", "schema": "response_format",
        "embeddings": 400, "cancelled": "APIUserAbortError",
    }  # fmt: skip


def test_lm_eval_has_the_same_figures(server: Running, tmp_path: Path) -> None:
    """`local-completions` of lm-eval beside `welm.eval` in this process, to 1e-6."""
    tasks, limit = ["c3", "ocnli"], 10
    program = HERE / "compare_lm_eval.py"
    line = [sys.executable, str(program), server.url, "nano", "sk-a", ",".join(tasks), str(limit)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["values"] > 30
    assert told["largest"] < 1e-6
    assert told["choices"] == told["same"]
