"""The plugin for ``llm``, called as ``llm`` calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import welm

from conftest import FIXTURES, PROMPT

if TYPE_CHECKING:
    import llm

    from welm.llm_plugin import Welm
else:
    llm = pytest.importorskip("llm")


@pytest.fixture(scope="module")
def plugin() -> Welm:
    from welm.llm_plugin import register_models

    registered: list[llm.Model] = []
    register_models(registered.append)
    (model,) = registered
    return model  # type: ignore[return-value]


def test_a_model_without_a_template_continues_the_text(plugin: Welm, model: welm.Model) -> None:
    want = model.generate(PROMPT, seed=7, max_tokens=24)
    for stream in (True, False):
        response = plugin.prompt(PROMPT, stream=stream, seed=7, max_tokens=24)
        assert response.text() == want.text
        assert (response.input_tokens, response.output_tokens) == (5, want.usage.completion_tokens)
    assert response.response_json == {"seed": 7, "finish_reason": want.choices[0].finish_reason}
    pieces = list(plugin.prompt(PROMPT, seed=7, max_tokens=24))
    assert len(pieces) > 5

    talk = plugin.conversation()
    first = talk.prompt(PROMPT, seed=7, max_tokens=4).text()
    assert first == model.generate(PROMPT, seed=7, max_tokens=4).text
    second = talk.prompt("，", seed=7, max_tokens=4).text()
    assert second == model.generate(PROMPT + first + "，", seed=7, max_tokens=4).text


def test_a_chat_template_has_the_conversation(plugin: Welm, tmp_path: Path) -> None:
    folder = tmp_path / "talker"
    shutil.copytree(welm.NANO, folder)
    template = json.loads((FIXTURES / "chat.json").read_text("utf-8"))["templates"]["nano"]
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    model = welm.Model(folder)
    messages = [{"role": "system", "content": "诗"}, {"role": "user", "content": "春"}]

    tokens = model.chat_tokens(messages)
    whole = plugin.prompt("春", system="诗", path=str(folder), temperature=0)
    assert whole.text() == model.generate(tokens, max_tokens=512 - len(tokens), temperature=0).text

    talk = plugin.conversation()
    first = talk.prompt("春", system="诗", path=str(folder), max_tokens=9, temperature=0).text()
    assert first == model.generate(tokens, max_tokens=9, temperature=0).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "秋"}]
    second = talk.prompt("秋", path=str(folder), max_tokens=9, temperature=0).text()
    assert second == model.generate(model.chat_tokens(messages), max_tokens=9, temperature=0).text


def test_errors_and_options_are_told(plugin: Welm) -> None:
    with pytest.raises(welm.InvalidOption, match="top_p"):
        plugin.prompt(PROMPT, top_p=2.0).text()
    with pytest.raises(welm.IoError, match="/no/such/model"):
        plugin.prompt(PROMPT, path="/no/such/model").text()
    with pytest.raises(ValueError, match="temprature"):
        plugin.prompt(PROMPT, temprature=1.0)
