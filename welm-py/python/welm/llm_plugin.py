"""A plugin for ``llm`` (https://llm.datasette.io): ``llm -m welm "床前明月光，"``.

Another model than the small one in this package by the option ``path``::

    llm -m welm -o path smollm2.gguf "What is the capital of France?"
    llm models options set welm path /models/smollm2.gguf

With a chat template the conversation goes through it; without one the model continues its text. This module is
loaded by ``llm`` alone, which finds it by an entry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llm
from llm.parts import TextPart

import welm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    """Called by ``llm``."""
    register(Welm())


class Welm(llm.Model):
    """Any model that the engine takes; loaded when it is first asked."""

    model_id = "welm"
    can_stream = True

    class Options(llm.Options):  # pyright: ignore[reportIncompatibleVariableOverride]  # as all plugins do
        """As those of :meth:`welm.Model.generate`, with the engine's defaults; see there."""

        path: str | None = None
        """Hugging Face folder, int8 folder or GGUF file; the small model of the package if none."""
        max_tokens: int | None = None
        """With a chat template all that the context has room for, else the engine's default."""
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

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._loaded: tuple[str | None, welm.Model] | None = None

    def _model(self, path: str | None) -> welm.Model:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None  # lets the memory go first
            self._loaded = (path, welm.Model(path))
        return self._loaded[1]

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Called by ``llm``; gives the answer piece by piece."""
        options: dict[str, Any] = prompt.options.model_dump(exclude_none=True)
        model = self._model(options.pop("path", None))
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
        finish: welm.Finish | None = None
        with model.stream(tokens, **options) as pieces:
            for piece in pieces:
                yield piece.text
                finish = piece.finish or finish
            if finish:
                response.set_usage(  # pyright: ignore[reportUnknownMemberType]
                    input=pieces.prompt_tokens, output=finish.completion_tokens
                )
                response.response_json = {"seed": pieces.seed, "finish_reason": finish.reason}
