"""What the engine adds to prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import welm


def added_tokens(model: welm.Model) -> list[int]:
    """The tokens that the tokenizer adds in front of a text."""
    text = "a"
    alone = model.tokenize(text)
    whole = [t.id for t in model.generate(text, max_tokens=0, echo=True).choices[0].tokens]
    return whole[: len(whole) - len(alone)] if whole[-len(alone) :] == alone else []
