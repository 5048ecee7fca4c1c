"""Examples in docstrings and in the README run, and give the results that they show."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import welm
from welm import _welm

README = Path(__file__).parents[2] / "welm-py/README.md"


def documented() -> dict[str, str]:
    """Docstrings with examples: of the package, its classes and their members."""
    docs = {"welm": welm.__doc__ or ""}
    for name in welm.__all__:
        thing = getattr(welm, name)
        docs[name] = inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            docs |= {f"{name}.{m}": inspect.getdoc(v) or "" for m, v in vars(thing).items() if m[0] != "_"}
    return {name: doc for name, doc in docs.items() if ">>>" in doc}


@pytest.mark.parametrize("name", documented())
def test_docstring(name: str, model: welm.Model) -> None:
    names: dict[str, Any] = {"welm": welm, "model": model, "asyncio": __import__("asyncio")}
    test = doctest.DocTestParser().get_doctest(documented()[name], names, name, None, 0)
    report: list[str] = []
    assert doctest.DocTestRunner().run(test, out=report.append).failed == 0, "".join(report)


def test_there_are_examples() -> None:
    assert {"welm", "Model", "Model.generate", "Model.stream_async", "CancelToken"} <= set(documented())
    assert _welm.__doc__


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks in their order, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "月" in capsys.readouterr().out


def test_samples_of_the_small_model(model: welm.Model) -> None:
    readme = (Path(welm.NANO) / "README.md").read_text("utf-8")
    samples = readme.split("## Samples")[1].split("```text\n")[1].split("\n```")[0].split("\n\n")
    texts = [
        model.generate("床前明月光，", seed=seed, max_tokens=64, echo=True).text for seed in (1, 2, 3, 4)
    ]
    assert [text.rstrip("\n") for text in texts] == samples
