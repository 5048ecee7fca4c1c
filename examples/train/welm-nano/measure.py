#!/usr/bin/env python3
"""Held-out bits a character of models, and of a 5-gram model of the same corpus, by source.

    python examples/train/welm-nano/measure.py CORPUS MODEL... [--texts FILE] [--characters 20000] [--ngram]

CORPUS is the folder that `welm train corpus` made. FILE has other texts to measure on, as JSON Lines with `source` and
`text`. A model is what welm loads. A document stands after an end token, its
own end token is predicted, too, and long documents are cut into windows of the model's context, as `welm train pretrain`
measures. The 5-gram model is of characters, with interpolated Kneser-Ney smoothing (Chen and Goodman, 1999), and learns
from each document once.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

import welm
from welm.train.documents import HELDOUT, TRAIN, texts_of
from welm.train.pretrain.measure import some_of, windows_of

ORDER = 5
BEGIN, END = "\1" * (ORDER - 1), "\0"
"""Around a document; no document has these characters."""

UNKNOWN_BITS = 16.0
"""For a character that the 5-gram model does not know, beside the probability that one comes."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--texts", type=Path, help="JSON Lines with source and text (default: what CORPUS held out)")
    parser.add_argument("--characters", type=int, default=20_000, help="of each source (default: 20000)")
    parser.add_argument("--ngram", action="store_true", help="the 5-gram model as well")
    args = parser.parse_args()
    sources = [*json.loads((args.corpus / "report.json").read_text("utf-8"))["sources"]]
    if args.texts:
        heldout: dict[str, list[str]] = {}
        for line in args.texts.read_text("utf-8").splitlines():
            document = json.loads(line)
            heldout.setdefault(document["source"], []).append(document["text"])
    else:
        heldout = {name: texts_of(args.corpus, HELDOUT, name) for name in sources}
    texts = {name: some_of(found, args.characters) for name, found in heldout.items()}
    texts = {name: some for name, some in texts.items() if some}
    columns = {}
    for path in args.models:
        model = welm.Model(path, cache_dtype="f32")
        columns[path] = {name: bits_of_model(model, some) for name, some in texts.items()}
        del model
    if args.ngram:
        ngram = Ngram(text for name in sources for text in texts_of(args.corpus, TRAIN, name))
        columns["5-gram"] = {name: ngram.bits(some) for name, some in texts.items()}
    print("| source | characters | " + " | ".join(columns) + " |")
    print("|---|--:|" + "--:|" * len(columns))
    for name, some in texts.items():
        cells = " | ".join(f"{column[name]:.3f}" for column in columns.values())
        print(f"| {name} | {sum(map(len, some)):,} | {cells} |")
    return 0


def bits_of_model(model: welm.Model, texts: list[str]) -> float:
    end = model.tokenize("<|endoftext|>", parse_special=True)
    context = model.memory.context_tokens
    nats = 0.0
    for text in texts:
        ids = [*end, *model.tokenize(text), *end]
        for window in windows_of(ids, context):
            logits = np.asarray(model.logits(window[:-1]), dtype=np.float64)
            logits -= logits.max(-1, keepdims=True)
            right = logits[np.arange(len(window) - 1), window[1:]]
            nats += float((np.log(np.exp(logits).sum(-1)) - right).sum())
    return nats / math.log(2) / sum(map(len, texts))


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class Ngram:
    """A model of characters. An n-gram is one number, with a digit for each character."""

    def __init__(self, texts):
        joined = "".join(f"{BEGIN}{text}{END}" for text in texts)
        codes = _codes(joined)
        known, counts = np.unique(codes, return_counts=True)
        most = int((1 << 64) ** (1 / ORDER)) - 1  # so that an n-gram fits into 64 bits
        self._known = np.sort(known[np.argsort(-counts, kind="stable")[: most - 1]])
        self._base = np.uint64(len(self._known) + 1)
        digits = self._digits(codes)
        grams = self._grams(digits, ORDER)[digits[ORDER - 1 :] != self._digits(_codes(BEGIN[0]))]
        numbers, counts = np.unique(grams, return_counts=True)
        self._orders = [None] * (ORDER + 1)
        for order in range(ORDER, 0, -1):
            self._orders[order] = self._table(numbers, counts)
            if order > 1:  # a shorter n-gram counts once for each character that comes before it
                numbers, counts = np.unique(numbers % self._base ** np.uint64(order - 1), return_counts=True)

    def _digits(self, codes):
        at = np.searchsorted(self._known, codes)
        at[at == len(self._known)] = 0
        return np.where(self._known[at] == codes, at + 1, 0).astype(np.uint64)

    def _grams(self, digits, order):
        grams = np.zeros(len(digits) - order + 1, dtype=np.uint64)
        for at in range(order):
            grams = grams * self._base + digits[at : len(digits) - order + 1 + at]
        return grams

    def _table(self, numbers, counts):
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / max(once + 2 * twice, 1)
        contexts, first = np.unique(numbers // self._base, return_index=True)
        totals = np.add.reduceat(counts, first)
        types = np.diff([*first, len(numbers)])
        return numbers, counts, contexts, totals, types, discount

    def bits(self, texts):
        total = 0.0
        for text in texts:
            digits = self._digits(_codes(f"{BEGIN}{text}{END}"))
            p = np.full(len(text) + 1, 1 / float(self._base))
            for order in range(1, ORDER + 1):
                numbers, counts, contexts, totals, types, discount = self._orders[order]
                grams = self._grams(digits[ORDER - order :], order)
                at = np.minimum(np.searchsorted(numbers, grams), len(numbers) - 1)
                count = np.where(numbers[at] == grams, counts[at], 0)
                before = grams // self._base
                at = np.minimum(np.searchsorted(contexts, before), len(contexts) - 1)
                seen = contexts[at] == before
                whole = np.where(seen, totals[at], 1)
                higher = np.maximum(count - discount, 0) / whole + discount * types[at] / whole * p
                p = np.where(seen, higher, p)
            total += -np.log2(p).sum() + UNKNOWN_BITS * (digits[ORDER - 1 :] == 0).sum()
        return total / sum(map(len, texts))


if __name__ == "__main__":
    raise SystemExit(main())
