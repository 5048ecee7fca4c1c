"""The plugin for ``llm``, called as ``llm`` calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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

from click.testing import CliRunner
from llm.cli import cli as llm_cli


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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``llm`` keeps its logs and settings."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "home"))
    return tmp_path / "home"


def ask(*args: str, cwd: Path | None = None) -> str:
    """Runs ``llm`` as a process, and gives its answer. Only its logs connect two calls."""
    line = [sys.executable, "-m", "llm", *args]
    done = subprocess.run(line, capture_output=True, cwd=cwd, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().removesuffix("\n")


def settings(*args: str) -> None:
    """Runs ``llm models options``, in this process."""
    done = CliRunner().invoke(llm_cli, ["models", "options", *args])
    assert done.exit_code == 0, done.output


def copy_of(folder: Path, template: bool = True) -> welm.Model:
    """Copies the small model to another folder, with a template, so that its answers differ."""
    shutil.copytree(welm.NANO, folder)
    if template:
        text = json.loads((FIXTURES / "chat.json").read_text("utf-8"))["templates"]["nano"]
        (folder / "chat_template.jinja").write_text(text, "utf-8")
    return welm.Model(folder)


def test_a_conversation_stays_with_its_model(home: Path, tmp_path: Path, model: welm.Model) -> None:
    talker = copy_of(tmp_path / "talker")
    flags = ("-o", "temperature", "0", "-o", "max_tokens", "9")
    said: list[dict[str, str]] = []

    def answer(text: str) -> str:
        said.append({"role": "user", "content": text})
        said.append(
            {
                "role": "assistant",
                "content": talker.generate(talker.chat_tokens(said), max_tokens=9, temperature=0).text,
            }
        )
        return said[-1]["content"]

    # The path is relative; the conversation is continued from another folder.
    assert ask("-m", "welm", "-o", "path", "talker", *flags, "春", cwd=tmp_path) == answer("春")
    assert ask("-c", *flags, "秋", cwd=tmp_path.parent) == answer("秋")
    assert ask("-c", *flags, "夏") == answer("夏")
    # The user's default is for new conversations.
    settings("set", "welm", "path", welm.NANO)
    assert ask("-c", *flags, "冬") == answer("冬")
    assert ask("-m", "welm", *flags, "春") == model.generate("春", max_tokens=9, temperature=0).text

    # One that began without a path stays with the small model, whatever the default becomes.
    settings("clear", "welm")
    first = ask("-m", "welm", *flags, PROMPT)
    settings("set", "welm", "path", str(tmp_path / "talker"))
    want = model.generate(PROMPT + first + "，", max_tokens=9, temperature=0).text
    assert ask("-c", *flags, "，") == want
    # Another path that is given replaces it, and is kept from then on.
    settings("clear", "welm")
    ask("-c", "-o", "path", str(tmp_path / "talker"), *flags, "春")
    assert home.exists()
    again = tmp_path / "talker"
    again.rename(tmp_path / "gone")
    line = [sys.executable, "-m", "llm", "-c", *flags, "秋"]
    gone = subprocess.run(line, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    assert gone.returncode == 1
    assert str(again) in gone.stderr.decode()


def test_an_empty_answer_keeps_the_model_too(plugin: Welm, home: Path, tmp_path: Path) -> None:
    talker = copy_of(tmp_path / "talker")
    talk = plugin.conversation()
    assert talk.prompt("春", path=str(tmp_path / "talker"), max_tokens=0).text() == ""
    said = [{"role": "user", "content": "春"}, {"role": "assistant", "content": ""}]
    want = talker.generate(
        talker.chat_tokens([*said, {"role": "user", "content": "秋"}]), max_tokens=9, temperature=0
    )
    assert talk.prompt("秋", max_tokens=9, temperature=0).text() == want.text
    assert home.name == "home"


def test_errors_and_options_are_told(plugin: Welm) -> None:
    with pytest.raises(welm.InvalidOption, match="top_p"):
        plugin.prompt(PROMPT, top_p=2.0).text()
    with pytest.raises(welm.IoError, match="/no/such/model"):
        plugin.prompt(PROMPT, path="/no/such/model").text()
    with pytest.raises(ValueError, match="temprature"):
        plugin.prompt(PROMPT, temprature=1.0)
