"""Tasks with their templates: a YAML file each, in ``tasks``.

==============  ========================================================================================================
``type``        what kind of task it is; whole kinds can be held out
``licence``     what the data set's authors allow
``files``       JSON Lines below the folder of the data; those that are there are read
``label``       the field with the label, if answers are words for labels
``fields``      further fields, as templates over the fields of an example
``skip``        a template that is ``True`` for examples to leave out
``words``       sets of words for the labels (verbalisers)
``templates``   pairs: a prompt, and the name of a set of words or a template of the answer
==============  ========================================================================================================

Templates are Jinja's. A prompt may have ``{{options}}``, the words of its set with 、 between, or ``{{either}}``, with
还是 between.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent / "tasks"

_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)


@dataclass
class Template:
    """A prompt, and where its answer comes from."""

    prompt: jinja2.Template
    words: dict[str, str] = field(default_factory=dict[str, str])
    """The word of each label; or none, and then there is ``answer``."""
    answer: jinja2.Template | None = None


@dataclass
class Task:
    """A task with all its templates."""

    name: str
    type: str
    licence: str
    files: list[str]
    label: str | None
    fields: dict[str, jinja2.Template]
    skip: jinja2.Template | None
    templates: list[Template]

    def examples(self, data: Path) -> Iterator[dict[str, Any]]:
        """The examples of the files that are in a folder. Raises :class:`RecipeError` with the line that is wrong."""
        for file in self.found(data):
            with open(file, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        example = self._read(line)
                    except (ValueError, TypeError, IndexError, jinja2.TemplateError) as error:
                        raise RecipeError(f"{file}:{number}: {error}") from None
                    if example is not None:
                        yield example

    def found(self, data: Path) -> list[Path]:
        """The files that are in a folder."""
        return [data / name for name in self.files if (data / name).is_file()]

    def missing(self, data: Path) -> list[str]:
        """The files that are not there."""
        return [name for name in self.files if not (data / name).is_file()]

    def _read(self, line: str) -> dict[str, Any] | None:
        example = json.loads(line)
        if not isinstance(example, dict):
            raise ValueError("expected a JSON object")
        if self.skip and self.skip.render(example) == "True":
            return None
        example |= {name: one.render(example) for name, one in self.fields.items()}
        if self.label:
            label = example.get(self.label)
            if str(label) not in self.templates[0].words:
                raise ValueError(f"{label} is no label of {self.name}")
        for number in range(len(self.templates)):  # a field that is missing is found here
            self.filled(example, number)
        return example

    def filled(self, example: dict[str, Any], number: int) -> tuple[str, str]:
        """Prompt and answer of an example, by the template of a number."""
        template = self.templates[number]
        words = template.words.values()
        prompt = template.prompt.render(example, options="、".join(words), either="还是".join(words))
        if template.answer is None:
            return prompt, template.words[str(example[self.label or ""])]
        return prompt, template.answer.render(example).strip()


def tasks() -> dict[str, Task]:
    """All tasks, by name."""
    return {file.stem: _read(file) for file in sorted(FOLDER.glob("*.yaml"))}


def _read(file: Path) -> Task:
    value = yaml.safe_load(file.read_text("utf-8"))
    words = {
        name: {str(label): word for label, word in one.items()}
        for name, one in value.get("words", {}).items()
    }
    templates = [
        Template(_JINJA.from_string(prompt), words[answer])
        if answer in words
        else Template(_JINJA.from_string(prompt), answer=_JINJA.from_string(answer))
        for prompt, answer in value["templates"]
    ]
    return Task(
        file.stem,
        value["type"],
        value["licence"],
        value["files"],
        value.get("label"),
        {name: _JINJA.from_string(one) for name, one in value.get("fields", {}).items()},
        _JINJA.from_string(value["skip"]) if "skip" in value else None,
        templates,
    )
