"""Metrics of generated answers, as the data sets' own scripts define them. All but BLEU are between 0 and 1.

EM and F1 (CMRC2018, DRCD, WebQA)
    Texts are cut into Chinese characters and Latin words, lower case, without punctuation. EM: equal to one of the
    answers. F1: of the longest run of pieces that is in both; the best of the answers.
EM and F1 (XQuAD in English)
    SQuAD's: words without articles and punctuation, F1 of the words in common.
ROUGE-1, -2, -L
    F1 of the rouge-score library, on characters and on words (jieba). Its own tokenizer would drop all Chinese text.
    The best of the answers.
BLEU
    Corpus BLEU-4 of sacrebleu with its Chinese tokenization, between 0 and 100.

One thing differs from CMRC2018's script: that splits Latin text into sentences with nltk's data before it splits words,
which matters only to a full stop inside a Latin answer of several sentences. The data would have to be downloaded.
"""

# The libraries have no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import re
import string
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The characters that CMRC2018's script takes for punctuation. ASCII marks that are not here stay in Latin words.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CHINESE = re.compile(r"[\u4e00-\u9fa5]")


@cache
def _words() -> Callable[[str], list[str]]:
    from nltk.tokenize import NLTKWordTokenizer

    tokenize: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize
    return tokenize


def segments(text: str) -> list[str]:
    """Chinese characters and Latin words, lower case, without punctuation."""
    pieces: list[str] = []
    latin = ""
    for character in text.lower().strip():
        if character in PUNCTUATION:
            continue
        if CHINESE.match(character):
            pieces += _words()(latin)
            latin = ""
            pieces.append(character)
        else:
            latin += character
    return pieces + _words()(latin)


def bare(text: str) -> str:
    """The text that exact match compares: lower case, without punctuation."""
    return "".join(c for c in text.lower().strip() if c not in PUNCTUATION)


def longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest run of pieces that is in both."""
    longest = 0
    before = [0] * (len(right) + 1)
    for piece in left:
        row = [0]
        for at, other in enumerate(right):
            row.append(before[at] + 1 if piece == other else 0)
        longest = max(longest, *row)
        before = row
    return longest


def _f1(common: int, predicted: int, right: int) -> float:
    return 2 * common / (predicted + right) if common else 0.0


def exact(answers: Sequence[str], text: str) -> float:
    """EM of CMRC2018."""
    return float(any(bare(answer) == bare(text) for answer in answers))


def f1(answers: Sequence[str], text: str) -> float:
    """F1 of CMRC2018."""
    predicted = segments(text)
    rights = [segments(answer) for answer in answers]
    return max(_f1(longest_run(right, predicted), len(predicted), len(right)) for right in rights)


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's script compares."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def squad_exact(answers: Sequence[str], text: str) -> float:
    """EM of SQuAD."""
    return float(any(squad_words(answer) == squad_words(text) for answer in answers))


def squad_f1(answers: Sequence[str], text: str) -> float:
    """F1 of SQuAD."""
    predicted = squad_words(text)
    best = 0.0
    for answer in answers:
        right = squad_words(answer)
        common = sum((Counter(right) & Counter(predicted)).values())
        best = max(best, _f1(common, len(predicted), len(right)))
    return best


class Characters:
    """All characters but white space, for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        return [c for c in text if not c.isspace()]


class Words:
    """jieba's words, for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        return [word for word in jieba().lcut(text) if word.strip()]


@cache
def jieba() -> Any:
    """The module, silent."""
    import logging

    try:
        import jieba
        import jieba.posseg
    except ImportError:
        raise ImportError("words of Chinese text need jieba: pip install jieba") from None
    jieba.setLogLevel(logging.WARNING)
    return jieba


@cache
def _scorer(kind: type[Characters | Words]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=kind())


def rouge(answers: Sequence[str], text: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L on characters, and with ``_words`` on words."""
    found: dict[str, float] = {}
    for kind, ending in ((Characters, ""), (Words, "_words")):
        each = [_scorer(kind).score(answer, text) for answer in answers]
        for name in ("rouge1", "rouge2", "rougeL"):
            found[name + ending] = max(score[name].fmeasure for score in each)
    return found


def bleu(pairs: Sequence[tuple[Sequence[str], str]]) -> float:
    """BLEU-4 of all (answers, text) together."""
    from sacrebleu.metrics.bleu import BLEU

    most = max(len(answers) for answers, _ in pairs)
    references: Any = [[a[i] if i < len(a) else None for a, _ in pairs] for i in range(most)]
    return float(BLEU(tokenize="zh").corpus_score([text for _, text in pairs], references).score)


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """The mean of the classes' F1, of (right, predicted)."""
    from sklearn import metrics

    right, predicted = zip(*pairs, strict=True)
    f1_score: Any = metrics.f1_score
    return float(f1_score(right, predicted, average="macro", zero_division=0.0))


def first_line(text: str) -> str:
    """The answer in a generated text: its first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def cloze(answer: str, text: str) -> dict[str, float]:
    """``acc``: the text begins with the answer, as a passage that is continued does. ``em``: it is the answer."""
    given = first_line(text).lstrip("“”「」《》\"' ")
    return {"acc": float(given.startswith(answer)), "em": exact([answer], given)}
