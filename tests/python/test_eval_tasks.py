"""``welm.eval.tasks`` as far as it needs no lm-eval: data sets, their errors, and the rules that rank options.

`tests/evaluation` has the rest.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from welm.eval import tasks
from welm.eval.tasks import ranking, readers
from welm.eval.tasks.data import DataError, Row
from welm.eval.tasks.sources import SOURCES, documents, origin, without

NAMES = sorted(SOURCES)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def written(folder: Path, name: str, *rows: Any) -> Path:
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str) -> None:
    assert len(lines(tasks.FOLDER / f"samples/{name}.jsonl")) == 10
    found = documents(name, "test", "samples")
    assert len(found) >= 10
    assert documents(name, "shots", "samples") == []
    assert len({tuple(document) for document in found}) == 1, "equal fields"
    for document in found:
        assert all(value not in ("", []) for key, value in document.items() if key not in ("before", "after"))
        assert not any("XXXXX" in str(value) or "#idiom" in str(value) for value in document.values())


def test_every_source_is_asked_and_every_task_has_a_source() -> None:
    found = {name.removesuffix("_4way") for name in tasks.TASKS} | {"xquad_zh", "xquad_en"}
    assert found == set(SOURCES)
    assert len({name.removesuffix("_4way") for name in tasks.TASKS}) == 19


@pytest.mark.parametrize("name", NAMES)
def test_a_folder(name: str, tmp_path: Path) -> None:
    """Each place that a source names is read, and the first that is there."""
    sample = lines(tasks.FOLDER / f"samples/{name}.jsonl")
    expected = documents(name, "test", "samples")
    for number, choice in enumerate(reversed(SOURCES[name].test)):
        folder = tmp_path / str(number)
        parts = choice.split("+")
        for at, part in enumerate(parts):
            written(folder, part, *sample[at :: len(parts)])
        found = documents(name, "test", folder)
        assert sorted(map(str, found)) == sorted(map(str, expected))
        assert documents(name, "shots", folder) in ([], found), "no file of examples, or the same file"
    for choice in SOURCES[name].shots:
        for part in choice.split("+"):
            written(tmp_path / "0", part, *sample[:3])
    assert documents(name, "shots", tmp_path / "0") or not SOURCES[name].shots


def test_the_order_is_drawn_by_a_seed(tmp_path: Path) -> None:
    """A file that is sorted by its labels gives all labels early."""
    (row, *_) = lines(tasks.FOLDER / "samples/tnews.jsonl")
    rows = [{**row, "sentence": f"第{n}条", "label": label} for label in (100, 104, 116) for n in range(100)]
    written(tmp_path, "tnews/dev", *rows)
    found = [d["gold"] for d in documents("tnews", "test", tmp_path)]
    assert found == [d["gold"] for d in documents("tnews", "test", tmp_path)]
    assert len(found) == 300
    assert min(found[:30].count(gold) for gold in set(found)) >= 5


def test_documents_that_are_there_twice(tmp_path: Path) -> None:
    """They are asked once. The order of the others stays, and equal texts with other labels are others."""
    rows = [{"text": f"第{n}条", "label": "positive"} for n in range(50)]
    written(tmp_path / "once", "chnsenticorp/test", *rows)
    written(tmp_path / "twice", "chnsenticorp/test", *rows, rows[3], {**rows[3], "label": "negative"})
    once, twice = (documents("chnsenticorp", "test", tmp_path / name) for name in ("once", "twice"))
    assert len(once) == 50
    assert len(twice) == 51
    assert {str(document) for document in once} < {str(document) for document in twice}
    assert without(once, once) == []
    assert without([{"id": 1, "a": 2}, {"id": 2, "a": 2}, {"id": 3, "a": 3}], [{"id": 9, "a": 3}]) == [
        {"id": 1, "a": 2}
    ]


def test_where_documents_come_from(tmp_path: Path) -> None:
    sample = lines(tasks.FOLDER / "samples/c3.jsonl")
    written(tmp_path, "c3/m-dev", *sample)
    written(tmp_path, "c3/d-dev", *sample)
    assert origin("c3", "test", tmp_path) == "c3/m-dev+c3/d-dev"
    assert origin("c3", "shots", tmp_path) == ""
    assert origin("c3", "test", "samples") == "c3"
    assert origin("c3", "test", None) == "clue/clue c3 validation"
    assert origin("chnsenticorp", "test", None) == "lansinuote/ChnSentiCorp test"
    assert origin("pd", "test", None) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_data_set_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        documents(name, "test", tmp_path)
    source = SOURCES[name]
    for part in (str(tmp_path), f"{source.test[0].split('+')[0]}", source.origin, source.licence):
        assert part in str(error.value)
    with pytest.raises(DataError, match="expected a folder with data sets, got no such folder"):
        documents(name, "test", tmp_path / "none")
    if source.hub is None:
        with pytest.raises(DataError, match="it is not on the hub") as error:
            documents(name, "test", None)
        assert source.origin in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_each_field_that_is_missing_or_wrong_is_named(name: str, tmp_path: Path) -> None:
    first, second, *_ = lines(tasks.FOLDER / f"samples/{name}.jsonl")
    unused = {"id", "title", "idx", "label_desc", "label_des", "keywords", "context_id", "evidences"}
    unused |= {"question_id", "question_type"}
    for field in set(first) - unused:
        for change in ("gone", "number", "empty"):
            row = dict(second)
            if change == "gone":
                del row[field]
            else:
                row[field] = 3.5 if change == "number" else ""
            if SOURCES[name].read is readers.reading and (field, change) == ("question", "empty"):
                continue
            path = written(tmp_path, SOURCES[name].test[-1].split("+")[0], first, row)
            for part in SOURCES[name].test[-1].split("+")[1:]:
                written(tmp_path, part, first)
            with pytest.raises(DataError) as error:
                documents(name, "test", tmp_path)
            message = str(error.value)
            assert message.startswith(f"{path}:2: field {field!r}: expected "), (change, message)
            assert ", got " in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one JSON object a line, got an empty file"),
        (b"\n \n", "expected one JSON object a line, got an empty file"),
        (b'{"a": 1}\n{"a": \n', ":2: expected a JSON object, got "),
        (b"[1]\n", ":1: expected a JSON object, got list"),
        (b'{"a": "\xff"}\n', "expected UTF-8, got invalid start byte at byte 7"),
    ],
)
def test_broken_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, "webqa/test")
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        documents("webqa", "test", tmp_path)
    assert str(path) in str(error.value)


def test_other_separators_end_no_line(tmp_path: Path) -> None:
    text = "一\u2028二\u0085三\u000c四"
    written(tmp_path, "webqa/test", {"question": text, "answers": [text]})
    assert documents("webqa", "test", tmp_path) == [{"question": text, "answers": [text]}]


def test_values_that_are_out_of_range(tmp_path: Path) -> None:
    for name, change in (
        ("chid", {"answer": 10}),
        ("chid", {"content": "no blank"}),
        ("cmrc2019", {"answers": [0, 3]}),
        ("cmrc2019", {"context": "no blank"}),
        ("cmnli", {"label": "yes"}),
        ("tnews", {"label": 105}),
        ("smp-ecisa", {"label": "3"}),
        ("smp-ecisa", {"label": "01"}),
        ("smp-ecisa", {"label": True}),
        ("c3", {"answer": "not a choice"}),
        ("pd", {"query": "no blank"}),
        ("pd", {"query": "XXXXX XXXXX"}),
        ("adgen", {"content": "no attributes"}),
        ("cluewsc2020", {"target": {"span1_text": "a", "span2_text": "它", "span2_index": 0}}),
        ("cmrc2018", {"answers": [{"text": ""}]}),
        ("dureader", {"documents": [{"title": "no text"}]}),
    ):
        (row, *_) = lines(tasks.FOLDER / f"samples/{name}.jsonl")
        parts = SOURCES[name].test[0].split("+")
        path = written(tmp_path, parts[0], {**row, **change})
        with pytest.raises(DataError, match=f"{re.escape(str(path))}:1: field {next(iter(change))!r}"):
            documents(name, "test", tmp_path)


def test_what_is_left_out() -> None:
    row = lines(tasks.FOLDER / "samples/ocnli.jsonl")[0]
    assert readers.nli([Row({**row, "label": "-"}, "x")]) == []
    assert readers.reading([Row({"context": "c", "question": "", "answers": ["a"]}, "x")]) == []
    assert readers.dureader([Row({"question": "q", "answers": [], "documents": []}, "x")]) == []


def test_rows_of_the_hub() -> None:
    """The hub's forms of the same sets."""
    squad = {
        "id": "1",
        "context": "甲乙",
        "question": "问",
        "answers": {"text": ["甲", "甲"], "answer_start": [0, 0]},
    }
    assert readers.reading([Row(squad, "x")])[0]["answers"] == ["甲"]
    idioms = {
        "candidates": ["一心一意", "三心二意", "五光十色"],
        "content": ["他#idiom000001#地学，从不#idiom000002#。", "街上#idiom000003#。"],
        "answers": {"text": ["#idiom000001#", "#idiom000002#", "#idiom000003#"], "candidate_id": [0, 1, 2]},
    }
    found = readers.chid([Row(idioms, "x")])
    assert [(d["before"], d["after"], d["gold"]) for d in found] == [
        ("他", "地学，从不____。", 0),
        ("他____地学，从不", "。", 1),
        ("街上", "。", 2),
    ]
    assert [
        d["gold"] for d in readers.chnsenticorp([Row({"text": "好", "label": v}, "x") for v in (1, 0)])
    ] == [0, 1]


def test_segmented_sentences_are_joined() -> None:
    assert (
        readers.joined(" 今天 买 了 iPhone 15 Pro ， 花 了 6000 元 。 ")
        == "今天买了iPhone 15 Pro，花了6000元。"
    )
    sentences = ["甲 在 。", "乙 XXXXX 丙 。", "丁 。"]
    (found,) = readers.cloze([Row({"doc": sentences, "query": sentences[1], "answer": "走 了"}, "x")])
    assert found["before"] == "甲在。乙"
    assert found["passage"] == "甲在。乙【】丙。丁。"
    assert found["answers"] == ["走了"]


def test_four_topics_are_drawn_by_a_seed() -> None:
    for name in ("tnews", "iflytek"):
        every, four = documents(name, "test", "samples"), documents(name, "test", "samples", ways=4)
        assert four == documents(name, "test", "samples", ways=4)
        for whole, few in zip(every, four, strict=True):
            assert len(few["candidates"]) == len(set(few["candidates"])) == 4
            assert few["candidates"][few["gold"]] == whole["candidates"][whole["gold"]]
            assert set(few["candidates"]) <= set(whole["candidates"])
        assert len({tuple(d["candidates"]) for d in four}) > 1
        assert len({d["gold"] for d in four}) > 1
    assert {len(d["candidates"]) for d in documents("tnews", "test", "samples")} == {15}
    assert {len(d["candidates"]) for d in documents("iflytek", "test", "samples")} == {119}


@pytest.mark.parametrize(
    ("template", "head", "stem", "tail"),
    [
        ("甲？@，乙", "甲？", "", "，乙"),
        ("这是关于@的文章：标题。", "", "这是关于", "的文章：标题。"),
        ("标题\n类别是：@", "标题", "\n类别是：", ""),
        ("标题。\n类别是：@。", "标题。", "\n类别是：", "。"),
        ("他说：“好。”然后@走了", "他说：“好。”", "然后", "走了"),
        ("真的吗？！@", "真的吗？！", "", ""),
        ("\n\n@", "", "\n\n", ""),
        ("@甲。", "", "", "甲。"),
        ("一。二。三@四。", "一。二。", "三", "四。"),
    ],
)
def test_where_a_template_is_cut(template: str, head: str, stem: str, tail: str) -> None:
    parts = ranking.pieces(template.replace("@", ranking.MARK), ["子", "丑"])
    assert (parts.head, parts.stem, parts.tail) == (head, stem, tail)
    assert parts.filled(1) == template.replace("@", "丑")


@pytest.mark.parametrize(
    ("template", "around"),
    [
        ("{{text}}\n类别是：{{option}}版。", ("类别是：", "版。")),
        ("这是关于{{option}}的文章：{{text}}", ("这是关于", "")),
        ("{{text}}。\n由此可知，“{{other}}”这种说法是{{option}}的。", ("这种说法是", "的。")),
        ("{{before}}{{option}}{{after}}", ("", "")),
        ("{{text}}？{{option}}，{{other}}", ("", "")),
        ("{{text}}\n问：满意吗？\n答：{{option}}", ("答：", "")),
    ],
)
def test_the_words_around_an_option(template: str, around: tuple[str, str]) -> None:
    text = template.replace("{{option}}", ranking.MARK).replace("{{", "").replace("}}", "")
    assert ranking.pieces(text, ["a", "b"], ranking.around(template)).around == around


def test_a_template_has_one_option() -> None:
    for template in ("none", f"{ranking.MARK}{ranking.MARK}"):
        with pytest.raises(ValueError, match="expected a template with one"):
            ranking.pieces(template, ["a"])


def test_requests_are_what_the_rules_need() -> None:
    parts = ranking.Pieces("甲。", "\n类别：", ("子", "丑"), "。", ("类别：", "。"))
    assert ranking.requests(parts, "", "\n\n") == [
        ("", "甲"),
        ("甲", "。\n类别："),
        ("甲", "。\n类别：子。"),
        ("甲", "。\n类别：丑。"),
        ("", "类别：子。"),
        ("", "类别：丑。"),
    ]
    assert ranking.requests(parts, "例。", "\n\n") == [
        ("例", "。\n\n甲"),
        ("例。\n\n甲", "。\n类别："),
        ("例。\n\n甲", "。\n类别：子。"),
        ("例。\n\n甲", "。\n类别：丑。"),
        ("", "类别：子。"),
        ("", "类别：丑。"),
    ]
    # An option at the beginning: there is no head, and the break of lines goes with the text.
    parts = ranking.Pieces("", "", ("子", "丑"), "：甲。")
    assert ranking.requests(parts, "例。", "\n\n") == [
        ("例", "。\n\n子：甲。"),
        ("例", "。\n\n丑：甲。"),
        ("", "子"),
        ("", "丑"),
    ]
    # In a chat the head is in the user's message.
    parts = ranking.Pieces("甲。", "\n类别：", ("子", "丑"), "")
    assert ranking.requests(parts, "<user>甲。<model>", "\n\n", whole=False)[:2] == [
        ("<user>甲。<model>", "类别："),
        ("<user>甲。<model>", "类别：子"),
    ]


def test_rules_are_the_formulas() -> None:
    parts = ranking.Pieces("h", "s", ("a", "b"), "t")
    head, stem, rests, alone = (-10.0, 5), (-3.0, 2), [(-9.0, 6), (-8.0, 4)], [(-5.0, 3), (-7.0, 3)]
    pairs = [head, stem, *rests, *alone]
    found = ranking.rank(parts, [s for s, _ in pairs], [n for _, n in pairs])
    assert found["whole"] == [-19 / 11, -18 / 9]
    assert found["mean"] == [-6 / 4, -5 / 2]
    assert found["sum"] == [-6, -5]
    assert found["own"] == [-1, 2]
    # The perplexity of the whole text, which is smallest where this is largest.
    perplexity = [math.exp(-value) for value in found["whole"]]
    assert min(perplexity) == perplexity[ranking.best(found["whole"])] == pytest.approx(math.exp(19 / 11))
    assert [ranking.best(found[rule]) for rule in ranking.RULES] == [0, 0, 1, 1]
    assert ranking.best([1.0, 1.0]) == 0
    with pytest.raises(ValueError, match="expected the results of 4 requests"):
        ranking.rank(parts, [0.0] * 5, [1] * 5)


def test_rules_agree_with_the_log_probability_of_the_whole_text() -> None:
    """A model of single characters, whose log-probability of a text is known: a sum over characters and places."""

    def score(context: str, text: str) -> float:
        return sum(-((ord(c) + 7 * (len(context) + i)) % 13) / 5 for i, c in enumerate(text))

    for template in ("甲乙。丙@丁", "甲@。", "@乙丙", "甲。@", "甲\n乙：@丙"):
        for context in ("", "例子。"):
            parts = ranking.pieces(template.replace("@", ranking.MARK), ["子丑", "寅", "卯辰巳"])
            asked = ranking.requests(parts, context, "\n")
            scores = [ranking.LogLikelihood(score(c, t), len(t)) for c, t in asked]
            found = ranking.rank(parts, scores, ranking.token_counts(asked, scores, None))
            for i, option in enumerate(parts.options):
                # What separates the examples from the text belongs to its first piece, with the mark before it.
                before, lead = ("例子", "。\n") if context else ("", "")
                whole = lead + parts.filled(i)
                assert found["whole"][i] == pytest.approx(score(before, whole) / len(whole))
                at = whole.index(option) if parts.head or parts.stem else 0
                assert found["sum"][i] == pytest.approx(score(before + whole[:at], whole[at:]))
                assert found["mean"][i] == pytest.approx(found["sum"][i] / len(whole[at:]))


def test_no_tokenizer_joins_what_two_requests_have() -> None:
    """Tokens of Qwen and Llama 3 have marks with the line breaks and the quotes after them."""

    def tokens(text: str) -> list[str]:
        return re.findall(r"[^\w\s]+[\r\n]*|\w+|\s*[\r\n]+|\s+", text)

    for template in (
        "甲。\n类别：@",
        "“甲。”\n\n“乙”是@。",
        "甲？@，乙",
        "甲！\n@\n丙。",
        "……\n@",
        "@：甲。",
    ):
        for context in ("", "例。", "“例子！”", "……"):
            parts = ranking.pieces(template.replace("@", ranking.MARK), ["子丑", "“寅”", "卯。"])
            for before, text in ranking.requests(parts, context, "\n\n"):
                kept = before.rstrip()  # lm-eval
                assert tokens(before + text)[: len(tokens(kept))] == tokens(kept), (before, text)


def test_numbers_of_tokens() -> None:
    asked = [("ab", "cde"), ("", "fg")]
    told = [ranking.LogLikelihood(-1.0, 7), ranking.LogLikelihood(-2.0, 9)]
    assert ranking.token_counts(asked, told, None) == [7, 9]
    assert ranking.token_counts(asked, [-1.0, -2.0], len) == [3, 2]
    with pytest.raises(ValueError, match='the metadata "tokenizer"'):
        ranking.token_counts(asked, [-1.0, -2.0], None)
    again = pickle.loads(pickle.dumps(told[0]))
    assert (again, again.tokens) == (-1.0, 7)


def test_published_figures() -> None:
    published = tasks.published()
    assert len(published["figures"]) == 73
    for figure in published["figures"]:
        assert set(figure) == {"task", "metric", "value", "model", "shots", "protocol", "source"}
        assert figure["task"] in tasks.TASKS
        assert figure["protocol"] in published["protocols"]
        assert figure["source"] in published["sources"]
        assert 0 <= figure["value"] <= 100
    (c3,) = (f for f in published["figures"] if (f["task"], f["model"]) == ("c3", "CPM 2.6B"))
    assert c3["value"] == 49.81
