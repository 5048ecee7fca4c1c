"""A plugin for ``llm`` (https://llm.datasette.io): ``llm -m welm "床前明月光，"``.

The option ``path`` chooses another model than the small one in this package::

    llm -m welm -o path smollm2.gguf "Write a short poem about the sea."
    llm -c "And of Italy?"
    llm models options set welm path /models/smollm2.gguf

A conversation keeps its model until it is given another path. If the model has a chat template, that is used; if not,
the model continues the conversation's text. Only ``llm`` loads this module, by an entry point.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import llm
from llm.parts import StreamEvent, TextPart
from pydantic import field_validator

import welm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    """Called by ``llm``."""
    register(Welm())


class Welm(llm.Model):
    """Any model that the engine can load; it is loaded at the first prompt."""

    model_id = "welm"
    can_stream = True

    class Options(llm.Options):  # pyright: ignore[reportIncompatibleVariableOverride]  # as all plugins do
        """Options of :meth:`welm.Model.generate`, with the engine's defaults."""

        path: str | None = None
        """Hugging Face folder, int8 folder or GGUF file; the small model of the package if none."""
        max_tokens: int | None = None
        """Default: with a chat template as many as the context has room for, without one the engine's default."""
        temperature: float | None = None
        top_p: float | None = None
        top_k: int | None = None
        min_p: float | None = None
        repetition_penalty: float | None = None
        frequency_penalty: float | None = None
        presence_penalty: float | None = None
        stop: str | None = None
        seed: int | None = None
        deadline: float | None = None

        @field_validator("path")
        @classmethod
        def _absolute(cls, path: str | None) -> str | None:
            # A conversation may be continued from another folder.
            return path and os.path.abspath(path)

    def __init__(self) -> None:
        """Makes the model without loading it."""
        self._loaded: tuple[str | None, welm.Model] | None = None

    def _model(self, path: str | None) -> welm.Model:
        loaded = self._loaded
        if loaded is None or loaded[0] != path:
            self._loaded = loaded = None  # frees the memory of the old model first
            self._loaded = loaded = (path, welm.Model(path))
        return loaded[1]

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[StreamEvent]:
        """Called by ``llm``; gives the answer piece by piece."""
        options: dict[str, Any] = prompt.options.model_dump(exclude_none=True)
        path = _path_of(prompt, options.pop("path", None))
        model = self._model(path)
        messages = [
            {
                "role": message.role,
                "content": "".join(p.text for p in message.parts if isinstance(p, TextPart)),
            }
            for message in prompt.messages
        ]
        tokens: str | list[int]
        if model.has_chat_template:
            tokens = model.chat_tokens(messages)
            options.setdefault("max_tokens", max(model.memory.context_tokens - len(tokens), 1))
        else:
            tokens = "".join(message["content"] for message in messages)
        # `llm` stores this with the answer, and gives it back with the conversation. It does not do so with options.
        kept = {"welm": {"path": path}}
        finish: welm.Finish | None = None
        is_empty = True
        with model.stream(tokens, **options) as pieces:
            for piece in pieces:
                yield StreamEvent(type="text", chunk=piece.text, provider_metadata=kept)
                is_empty = is_empty and not piece.text
                finish = piece.finish or finish
            if is_empty:  # `llm` stores nothing for an empty text
                yield StreamEvent(type="reasoning", chunk="", provider_metadata=kept)
            if finish:
                response.set_usage(  # pyright: ignore[reportUnknownMemberType]
                    input=pieces.prompt_tokens, output=finish.completion_tokens
                )
                response.response_json = {"seed": pieces.seed, "finish_reason": finish.reason}


def _path_of(prompt: llm.Prompt, asked: str | None) -> str | None:
    """The path asked for, else the one of the conversation's last answer.

    The user's default for new conversations does not count as asked for, although ``llm`` passes it in the same way.
    """
    for message in reversed(prompt.messages):
        for part in message.parts:
            metadata: Any = getattr(part, "provider_metadata", None) or {}
            kept: Any = metadata.get("welm")
            if kept:
                return kept["path"] if asked in (None, _default_path()) else asked
    return asked


def _default_path() -> str | None:
    from llm import cli

    defaults = cast("dict[str, Any]", cli.get_model_options(Welm.model_id))  # pyright: ignore[reportUnknownMemberType]
    path: str | None = defaults.get("path")
    return path and os.path.abspath(path)
