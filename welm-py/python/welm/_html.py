"""Generations as HTML for notebooks: text coloured by the probability of its tokens."""

from __future__ import annotations

import codecs
import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from welm._output import Choice, Generation, Token


def html_of(generation: Generation) -> str | None:
    """The choices one below the other, or ``None`` if no token has a log-probability."""
    if all(token.logprob is None for choice in generation.choices for token in choice.tokens):
        return None
    return "".join(f'<div style="white-space: pre-wrap">{_choice(c)}</div>' for c in generation.choices)


def _choice(choice: Choice) -> str:
    spans = list(_whole_characters(choice.tokens))
    shown = "".join(text for text, _ in spans)
    # Tokens from a stop string's beginning on are not part of the text. If the text is not that of its tokens, for
    # instance because of special tokens in an echoed prompt, all tokens are shown.
    left = len(choice.text) if shown.startswith(choice.text) else len(shown)
    html: list[str] = []
    for text, tokens in spans:
        text, left = text[:left], left - min(left, len(text))
        if text:
            html.append(_span(text, tokens))
    return "".join(html)


def _whole_characters(tokens: tuple[Token, ...]) -> Iterator[tuple[str, list[Token]]]:
    """Texts with their tokens: one token each, or several that make up one character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    members: list[Token] = []
    for at, token in enumerate(tokens):
        text += decoder.decode(token.bytes, final=at + 1 == len(tokens))
        members.append(token)
        if not decoder.getstate()[0]:
            yield text, members
            text, members = "", []


def _span(text: str, tokens: list[Token]) -> str:
    known = [token.logprob for token in tokens if token.logprob is not None]
    if len(known) < len(tokens):
        return escape(text)
    probability = math.exp(sum(known))
    lines = [f"{probability:.1%}"]
    if len(tokens) == 1:
        others = (t for t in tokens[0].alternatives if t.logprob is not None)
        lines += [f"{t.text!r} {math.exp(t.logprob or 0.0):.1%}" for t in others]
    # Red for 0, green for 1, over the page's own background, dark or light.
    colour = f"hsl({120 * probability:.0f} 80% 50% / 0.35)"
    return f'<span style="background: {colour}" title="{escape(chr(10).join(lines))}">{escape(text)}</span>'
