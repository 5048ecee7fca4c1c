"""Words without a dictionary: a Chinese character, a kana, a syllable of Hangul; of other letters a run is a word."""

from __future__ import annotations

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
KANA = "\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff\uff66-\uff9d"
HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"

_ALONE = f"[{HAN}{KANA}{HANGUL}]"
WORD = re.compile(rf"{_ALONE}|(?:(?!{_ALONE})\w)+")


def words(text: str) -> list[str]:
    """The words of a text, in order, without punctuation and white space."""
    return WORD.findall(text)
