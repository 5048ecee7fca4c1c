"""Code-switching: some words of a Chinese text in English or Japanese.

The example that WeLM published is

    微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる

Words are jieba's; nouns, verbs and adjectives count as content words, verbs such as 是 and 有 do not. 30 % of them are
changed, drawn by a seed from those that the dictionary ``mix.tsv`` has, or all of these if they are fewer. Words that
are written the same in Japanese are not in its column. Options and answers are not changed.
"""

from __future__ import annotations

import csv
import random
from functools import cache
from pathlib import Path
from typing import Any

from .metrics import jieba

SHARE = 0.3
SEED = 1234
_LIGHT = "是 有 没有 会 能 能够 要 可 可以 可能 应该 不能 不会 没 还有 来 去 到 出 起来 成 使 作为 进行 说"
LIGHT = frozenset(_LIGHT.split())
FIELDS = ("context", "question", "sentence")


@cache
def dictionary(into: str) -> dict[str, str]:
    """Chinese words and what they are in ``"en"`` or ``"ja"``."""
    with (Path(__file__).parent / "mix.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if into not in rows[0] or into == "zh":
        raise ValueError(f"expected a language to mix with: en or ja, got {into!r}")
    return {row["zh"]: row[into] for row in rows if row[into]}


def switched(text: str, into: str) -> str:
    """The text with some words in the other language."""
    words: list[tuple[str, str]] = [(pair.word, pair.flag) for pair in jieba().posseg.lcut(text)]
    known = dictionary(into)
    content = [i for i, (word, flag) in enumerate(words) if flag[:1] in ("n", "v", "a") and word not in LIGHT]
    possible = [i for i in content if words[i][0] in known]
    source = random.Random(f"{SEED} {into} {text}")
    chosen = set(source.sample(possible, min(len(possible), round(SHARE * len(content)))))
    pieces: list[str] = []
    for i, (word, _) in enumerate(words):
        piece = known[word] if i in chosen else word
        # Latin words that now meet need a space.
        if pieces and pieces[-1][-1:].isascii() and pieces[-1][-1:].isalnum() and piece[:1].isascii():
            piece = " " + piece if piece[:1].isalnum() else piece
        pieces.append(piece)
    return "".join(pieces)


def document(document: dict[str, Any], into: str) -> dict[str, Any]:
    """A document with its texts switched."""
    return {k: switched(v, into) if k in FIELDS else v for k, v in document.items()}
