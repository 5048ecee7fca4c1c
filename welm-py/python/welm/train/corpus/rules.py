"""The rules: what the text of a document must be like."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from datatrove.pipeline.filters.base_filter import BaseFilter

from welm.train.words import HAN, HANGUL, KANA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datatrove.data import Document
    from datatrove.pipeline.writers.disk_base import DiskWriter

    from welm.train.recipe import Rules

REPEATED = 10
"""Characters in a row that count as repeated."""

_HAN = re.compile(f"[{HAN}]")
_OTHER_WORD = re.compile(rf"[{KANA}{HANGUL}]|(?:(?![{HAN}{KANA}{HANGUL}])[^\W\d_])+")


def broken_rule(text: str, rules: Rules) -> str | None:
    """The name of the first rule that a text breaks, or ``None``."""
    size = len(text)
    if size < rules.min_characters:
        return "min_characters"
    if size > rules.max_characters:
        return "max_characters"
    counts = Counter(text)
    kinds: Counter[str] = Counter()
    for character, count in counts.items():
        kinds[_kind(character)] += count
    han = len(_HAN.findall(text))
    shares = (
        ("max_broken", kinds["broken"], rules.max_broken),
        ("max_symbols", kinds["symbol"], rules.max_symbols),
        ("max_digits", kinds["digit"], rules.max_digits),
        ("max_punctuation", kinds["punctuation"], rules.max_punctuation),
        ("max_common_character", _most_common(counts), rules.max_common_character),
    )
    for name, count, most in shares:
        if count > most * size:
            return name
    if kinds["punctuation"] < rules.min_punctuation * size:
        return "min_punctuation"
    if han < rules.min_chinese * (han + len(_OTHER_WORD.findall(text))):
        return "min_chinese"
    if _in_repeated_lines(text) > rules.max_repeated_lines * size:
        return "max_repeated_lines"
    if _in_repeated_ngrams(text) > rules.max_repeated_ngrams * size:
        return "max_repeated_ngrams"
    if any(word in text for word in rules.blocked):
        return "blocked"
    return None


class RuleFilter(BaseFilter):
    """Removes documents that break a rule of their source."""

    name = "rules"

    def __init__(self, rules: Mapping[str, Rules], exclusion_writer: DiskWriter) -> None:
        """``rules`` are those of each source."""
        super().__init__(exclusion_writer)
        self._rules = dict(rules)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document is kept, or why not."""
        broken = broken_rule(doc.text, self._rules[doc.metadata["source"]])
        return (False, broken) if broken else True


@lru_cache(maxsize=1 << 17)
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\ufffd" or (category in ("Cc", "Cn", "Co", "Cs") and character not in "\t\n\r"):
        return "broken"
    return {"L": "letter", "M": "letter", "N": "digit", "P": "punctuation", "S": "symbol"}.get(
        category[0], "space"
    )


def _most_common(counts: Counter[str]) -> int:
    return max((count for character, count in counts.items() if _kind(character) == "letter"), default=0)


def _in_repeated_lines(text: str) -> int:
    seen: set[str] = set()
    repeated = 0
    for line in text.splitlines():
        line = line.strip()
        if line in seen:
            repeated += len(line)
        elif line:
            seen.add(line)
    return repeated


def _in_repeated_ngrams(text: str) -> int:
    """How many characters are part of runs that stood in the text before, steps of one run's length."""
    seen: set[str] = set()
    repeated = at = 0
    while at + REPEATED <= len(text):
        run = text[at : at + REPEATED]
        if run in seen:
            repeated += REPEATED
            at += REPEATED
        else:
            seen.add(run)
            at += 1
    return repeated
