"""From published rows to the documents of tasks: one function for each kind of data set.

A document is a flat dictionary. Templates in the YAML files name its fields. ``gold`` is the index of the right option.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .labels import IFLYTEK, TNEWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .data import Row

Document: TypeAlias = dict[str, Any]

SEED = 1234
NLI = ("entailment", "neutral", "contradiction")
BLANK = "XXXXX"


def reading(rows: Sequence[Row]) -> list[Document]:
    """CMRC2018, DRCD, XQuAD: SQuAD with one question a row.

    Rows with an empty question, of which CMRC2018's trial split has one, are left out.
    """
    return [
        {
            "id": str(row.fields.get("id", number)),
            "context": row.text("context"),
            "question": row.text("question"),
            "answers": row.answers(),
        }
        for number, row in enumerate(rows)
        if row.fields.get("question") != ""
    ]


def dureader(rows: Sequence[Row]) -> list[Document]:
    """DuReader: the paragraphs that annotators chose, or else all of them, up to 1000 characters.

    Questions without an answer are left out.
    """
    documents: list[Document] = []
    for row in rows:
        if row.fields.get("answers") == []:
            continue
        found = row.items("documents")
        if not all(isinstance(d, dict) and isinstance(cast("Document", d).get("para"), str) for d in found):
            raise row.wrong("documents", 'a list of objects with "para"')
        chosen = [d["para"] for d in found if d.get("is_selected")] or [d["para"] for d in found]
        context = re.sub(r"\s+", " ", "\n".join(chosen)).strip()[:1000]
        documents.append({"context": context, "question": row.text("question"), "answers": row.answers()})
    return documents


def webqa(rows: Sequence[Row]) -> list[Document]:
    """WebQA, closed book: the evidences are not shown."""
    return [{"question": row.text("question"), "answers": row.answers()} for row in rows]


def joined(words: str) -> str:
    """A segmented sentence without the spaces. Spaces between Latin words or numbers stay."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", words.strip())


def cloze(rows: Sequence[Row]) -> list[Document]:
    """PD, CFT, CMRC2017: one word of a segmented passage is missing."""
    documents: list[Document] = []
    for row in rows:
        query = joined(row.text("query"))
        if query.count(BLANK) != 1:
            raise row.wrong("query", f"a sentence with one {BLANK}")
        sentences = [joined(sentence) for sentence in row.texts("doc")]
        # In some of the sets the passage has the sentence of the query, in others only what stands before it.
        at = next((i for i, sentence in enumerate(sentences) if BLANK in sentence), len(sentences))
        start, _, after = query.partition(BLANK)
        before = "".join(sentences[:at]) + start
        passage = "".join(sentences[:at]) + query + "".join(sentences[at + 1 :])
        answer = joined(row.text("answer"))
        documents.append(
            {
                "before": before,
                "passage": passage.replace(BLANK, "【】"),
                "query": query.replace(BLANK, "【】"),
                "after": after,
                "answers": [answer],
            }
        )
    return documents


def chid(rows: Sequence[Row]) -> list[Document]:
    """ChID: which idiom fits. Rows of the hub have several passages and blanks, those of FewCLUE one."""
    documents: list[Document] = []
    for row in rows:
        if isinstance(row.fields.get("content"), list):
            documents += _chid_of_the_hub(row)
            continue
        content, candidates = row.text("content"), row.texts("candidates", 2)
        if content.count("#idiom#") != 1:
            raise row.wrong("content", "a text with one #idiom#")
        before, _, after = content.partition("#idiom#")
        documents.append(
            {
                "before": before,
                "after": after,
                "candidates": candidates,
                "gold": row.integer("answer", len(candidates)),
            }
        )
    return documents


def _chid_of_the_hub(row: Row) -> list[Document]:
    candidates, answers = row.texts("candidates", 2), row.object("answers", "text", "candidate_id")
    gold = dict(zip(answers["text"], answers["candidate_id"], strict=True))
    documents: list[Document] = []
    for content in row.texts("content"):
        for blank in re.findall(r"#idiom\d+#", content):
            before, _, after = content.partition(blank)
            documents.append(
                {
                    "before": re.sub(r"#idiom\d+#", "____", before),
                    "after": re.sub(r"#idiom\d+#", "____", after),
                    "candidates": candidates,
                    "gold": gold[blank],
                }
            )
    return documents


def cmrc2019(rows: Sequence[Row]) -> list[Document]:
    """CMRC2019: which sentence fits. One document a blank, with 200 characters on both sides.

    The other blanks stay blanks, so that a blank can be judged without the others' answers.
    """
    documents: list[Document] = []
    for row in rows:
        context, choices, answers = row.text("context"), row.texts("choices", 2), row.items("answers")
        for number, gold in enumerate(answers, 1):
            mark = f"[BLANK{number}]"
            if context.count(mark) != 1:
                raise row.wrong("context", f"a text with {mark} once")
            if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
                raise row.wrong("answers", f"whole numbers from 0 to {len(choices) - 1}")
            before, _, after = (re.sub(r"\[BLANK\d+\]", "____", p) for p in context.partition(mark))
            documents.append(
                {"before": before[-200:], "after": after[:200], "candidates": choices, "gold": gold}
            )
    return documents


def nli(rows: Sequence[Row]) -> list[Document]:
    """CMNLI, OCNLI: rows on which annotators did not agree, label ``-``, are left out."""
    return [
        {
            "sentence1": row.text("sentence1").strip().rstrip("。.?？!！,，"),
            "sentence2": row.text("sentence2").strip().rstrip("。.?？!！,，"),
            "gold": row.one_of("label", NLI),
        }
        for row in rows
        if row.fields.get("label") != "-"
    ]


def topics(names: dict[str, str], row: Row, ways: int | None, number: int) -> Document:
    """A text and the names of topics: all, or the right one and others drawn by a seed."""
    codes = list(names)
    gold = row.one_of("label", codes)
    candidates = list(names.values())
    if ways:
        source = random.Random(f"{SEED} {number} {row.text('sentence')}")
        right = candidates[gold]
        candidates = [right, *source.sample([c for c in candidates if c != right], ways - 1)]
        source.shuffle(candidates)
        gold = candidates.index(right)
    return {"sentence": row.text("sentence").strip(), "candidates": candidates, "gold": gold}


def tnews(rows: Sequence[Row], ways: int | None = None) -> list[Document]:
    """TNEWS: fifteen topics of news titles, or ``ways`` of them."""
    return [topics(TNEWS, row, ways, number) for number, row in enumerate(rows)]


def iflytek(rows: Sequence[Row], ways: int | None = None) -> list[Document]:
    """IFLYTEK: 119 kinds of apps, or ``ways`` of them."""
    return [topics(IFLYTEK, row, ways, number) for number, row in enumerate(rows)]


def chnsenticorp(rows: Sequence[Row]) -> list[Document]:
    """ChnSentiCorp: 0 is positive. The hub's labels are 1 and 0."""
    values = ("positive", "negative", "1", "0")
    return [{"text": row.text("text").strip(), "gold": row.one_of("label", values) % 2} for row in rows]


def ecisa(rows: Sequence[Row]) -> list[Document]:
    """SMP-ECISA: 0 none, 1 positive, 2 negative."""
    return [{"text": row.text("text").strip(), "gold": row.one_of("label", ("0", "1", "2"))} for row in rows]


def lcsts(rows: Sequence[Row]) -> list[Document]:
    """LCSTS: a short news text and its summary."""
    return [
        {"text": row.text("abstract", "text").strip(), "answers": [row.text("summary").strip()]}
        for row in rows
    ]


def adgen(rows: Sequence[Row]) -> list[Document]:
    """ADGEN: attributes of a product, and a text that advertises it."""
    documents: list[Document] = []
    for row in rows:
        pairs = [pair.partition("#") for pair in row.text("content").split("*") if pair]
        if not all(mark and name and value for name, mark, value in pairs):
            raise row.wrong("content", "attributes such as 类型#裙*颜色#红色")
        attributes = "；".join(f"{name}：{value}" for name, _, value in pairs)
        documents.append({"attributes": attributes, "answers": [row.text("summary").strip()]})
    return documents


def cluewsc(rows: Sequence[Row]) -> list[Document]:
    """CLUEWSC2020: whether a pronoun means a noun. ``gold`` is 0 if it does."""
    documents: list[Document] = []
    for row in rows:
        text, target = row.text("text"), row.object("target", "span1_text", "span2_text", "span2_index")
        noun, pronoun, at = target["span1_text"], target["span2_text"], target["span2_index"]
        if not isinstance(at, int) or not text[at:].startswith(pronoun):
            raise row.wrong("target", f"span2_index to be where {pronoun!r} stands in the text")
        documents.append(
            {
                "text": text,
                "noun": noun,
                "pronoun": pronoun,
                "before": text[:at],
                "after": text[at + len(pronoun) :],
                "candidates": [noun, pronoun],
                "gold": row.one_of("label", ("true", "false")),
            }
        )
    return documents


def c3(rows: Sequence[Row]) -> list[Document]:
    """C3: a dialogue or a text, a question, and two to four choices."""
    documents: list[Document] = []
    for row in rows:
        choices = row.texts("choice", 2)
        documents.append(
            {
                "context": "\n".join(row.texts("context")),
                "question": row.text("question"),
                "candidates": choices,
                "gold": row.one_of("answer", choices),
            }
        )
    return documents
