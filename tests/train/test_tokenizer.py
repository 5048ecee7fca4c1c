"""The tokenizer: SentencePiece, tokenizers and welm give the same ids, and every text comes back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import sentencepiece
from tokenizers import Tokenizer

import welm.train
from welm.train import RecipeError
from welm.train.tokenizer import END_ID, HARD, check, load

from conftest import bytes_of, documents, made, write_lines

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_ids_agree(folder: Path, kind: str) -> None:
    recipe = made(folder, tokenizer={"kind": kind, "characters": 600})
    welm.train.run("corpus", recipe)
    welm.train.run("tokenizer", recipe)
    out = recipe.out / "tokenizer"
    words = load(out)
    assert words.get_piece_size() == 1500
    assert words.piece_to_id("<|endoftext|>") == END_ID
    fast = Tokenizer.from_file(str(out / "tokenizer.json"))
    check(words, fast, [*HARD, *documents("poems")[:100], *documents("recipes")[:20]])
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert {*report["sources"]} == {"poems", "recipes"}
    assert report["scripts"]["Chinese"]["characters"] > report["scripts"]["Chinese"]["tokens"] / 2
    if kind == "bpe":
        twice = made(folder, out=str(folder / "again"), tokenizer={"kind": kind, "characters": 600})
        welm.train.run("corpus", twice)
        welm.train.run("tokenizer", twice)
        assert bytes_of(out) == bytes_of(twice.out / "tokenizer")


def test_check_finds_a_difference(folder: Path) -> None:
    recipe = made(folder)
    welm.train.run("corpus", recipe)
    welm.train.run("tokenizer", recipe)
    out = recipe.out / "tokenizer"
    values = json.loads((out / "tokenizer.json").read_text("utf-8"))
    values["model"]["merges"] = values["model"]["merges"][10:]
    fast = Tokenizer.from_str(json.dumps(values))
    with pytest.raises(AssertionError, match="differ"):
        check(
            sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model")),
            fast,
            documents("poems"),
        )


def test_too_few_pieces(folder: Path) -> None:
    recipe = made(folder, tokenizer={"pieces": 300, "characters": 10})
    welm.train.run("corpus", recipe)
    with pytest.raises(RecipeError, match=r"tokenizer.pieces: expected at least \d+, got 300"):
        welm.train.run("tokenizer", recipe)


def test_held_out_texts_with_odd_characters(folder: Path) -> None:
    """What SentencePiece writes for a space, and the names of pieces, do not stop the report."""
    texts = [text + "▁▂▃ <pad>" for text in documents("recipes")[:60]]
    write_lines(folder / "recipes.jsonl", texts)
    recipe = made(folder)
    welm.train.run("corpus", recipe)
    welm.train.run("tokenizer", recipe)
    report = json.loads((recipe.out / "tokenizer" / "report.json").read_text("utf-8"))
    assert [*report["sources"]] == ["poems"]
