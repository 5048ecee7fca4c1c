"""Picks the English text on which int8 is measured: 9 windows of 512 tokens of SmolLM2.

    rustup component add rust-docs
    python tests/reference/running_text.py SmolLM2-135M-Instruct.Q4_1.gguf BOOK [--out tests/fixtures]

BOOK is the folder share/doc/rust/html/book of a Rust toolchain (`rustup doc --path` shows where). The text is prose
(paragraphs, no code blocks) from the beginnings of nine chapters of The Rust Programming Language, which is licensed
MIT OR Apache-2.0 like this project. Writes running_text.json; truth.py adds llama.cpp's figures to it.
"""

import argparse
import json
from html.parser import HTMLParser
from pathlib import Path

from llama_cpp_run import LlamaCpp

WINDOW = 512
CHAPTERS = [
    "ch00-00-introduction",
    "ch04-01-what-is-ownership",
    "ch08-02-strings",
    "ch09-03-to-panic-or-not-to-panic",
    "ch11-01-writing-tests",
    "ch16-03-shared-state",
    "ch17-00-async-await",
    "ch18-01-what-is-oo",
    "appendix-07-nightly-rust",
]
SOURCE = {
    "title": "The Rust Programming Language (https://doc.rust-lang.org/book/), as in Rust 1.95's rust-docs",
    "attribution": "Steve Klabnik, Carol Nichols, and Chris Krycho, with contributions from the Rust Community. "
                   "Copyright: The Rust Project Developers",
    "licence": "MIT OR Apache-2.0",
    "changes": "prose paragraphs only, markup removed, the first 512 tokens of each of nine chapters",
    "tokenizer": "SmolLM2, no special tokens added",
}


class Paragraphs(HTMLParser):
    """Collects the text of the <p> elements inside <main>."""

    def __init__(self):
        super().__init__()
        self.in_main = False
        self.current = None  # pieces of the open paragraph
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "main":
            self.in_main = True
        elif tag == "p" and self.in_main:
            self.current = []

    def handle_endtag(self, tag):
        if tag == "main":
            self.in_main = False
        elif tag == "p" and self.current is not None:
            self.found.append(" ".join("".join(self.current).split()))
            self.current = None

    def handle_data(self, data):
        if self.current is not None:
            self.current.append(data)


def prose(path):
    parser = Paragraphs()
    parser.feed(path.read_text())
    return "\n\n".join(p for p in parser.found if p)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("gguf", type=Path)
    parser.add_argument("book", type=Path)
    parser.add_argument("--out", type=Path, default=here.parent / "fixtures")
    args = parser.parse_args()
    tokenizer = LlamaCpp(args.gguf, vocab_only=True)
    windows = []
    for chapter in CHAPTERS:
        ids = tokenizer.encode(prose(args.book / f"{chapter}.html"))[:WINDOW]
        assert len(ids) == WINDOW, chapter
        windows.append({"chapter": chapter, "ids": ids})
    lines = ",\n".join("  " + json.dumps(window) for window in windows)
    text = f'{{\n "source": {json.dumps(SOURCE)},\n "windows": [\n{lines}\n ]\n}}\n'
    (args.out / "running_text.json").write_text(text)


if __name__ == "__main__":
    main()
