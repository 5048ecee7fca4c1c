"""Compares welm's token ids with those of `sentencepiece`, for models with its own rules and ten thousand texts.

    pip install sentencepiece protobuf numpy safetensors gguf ./welm-py
    python tests/reference/differential/compare_sentencepiece.py WORK [MODEL...]

Trains small models of both kinds in WORK/sentencepiece: with each table of normalization rules, and with each way to
treat white space and unknown characters. Each MODEL is a file `tokenizer.model`, which is also compared. For each model
it prints how many texts are equal, and the shortest texts that differ. The exit status is 1 if any differs.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import sentencepiece as spm

from sources import write_model
from texts import LINES, texts

RULES = ["identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]
WHITE_SPACE = {
    "default": {},
    "kept": {"remove_extra_whitespaces": False},
    "bare": {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "suffix": {"treat_whitespace_as_suffix": True},
}
SYMBOLS = {"user_defined_symbols": ["<tool>", "\n", "\n\n", "▁▁", "▁▁▁▁", "ab", "abc", "中国"], "control_symbols": ["<|end|>"]}


def train(folder: Path) -> list[Path]:
    """Trains a model of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "lines.txt"
    lines.write_text("\n".join(line.replace("\n", " ") for line in LINES for _ in range(3)))
    made = []
    for kind in ("unigram", "bpe"):
        for rules in RULES:
            for name, space in WHITE_SPACE.items():
                for fallback in (False, True):
                    stem = folder / f"{kind}-{rules}-{name}{'-bytes' if fallback else ''}"
                    made.append(stem.with_suffix(".model"))
                    if made[-1].exists():
                        continue
                    spm.SentencePieceTrainer.train(
                        input=str(lines), model_prefix=str(stem), model_type=kind, normalization_rule_name=rules,
                        byte_fallback=fallback, character_coverage=0.985, vocab_size=1600, hard_vocab_limit=False,
                        minloglevel=2, num_threads=1, **space, **(SYMBOLS if name in ("kept", "suffix") else {}))
    return made


def compare(model: Path, encode, n: int) -> bool:
    """Whether all texts have the same ids. encode(texts) gives welm's ids."""
    reference = spm.SentencePieceProcessor(model_file=str(model))
    names = [reference.id_to_piece(i) for i in range(min(len(reference), 1000)) if reference.is_control(i)]
    chosen = texts(names, n)
    different = [(t, w, g) for t, w, g in zip(chosen, reference.encode(chosen), encode(chosen)) if w != g]
    print(f"{model.stem:44} {n - len(different)} equal, {len(different)} different", flush=True)
    for text, want, got in sorted(different, key=lambda d: len(d[0]))[:5]:
        print(f"    {json.dumps(text)}: expected {want}, got {got}")
    return not different


def encoder(model: Path, folder: Path):
    """A function that gives welm's ids with a model. Puts the model into a folder of its own."""
    import welm

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(model, folder / "tokenizer.model")
    write_model(folder, len(spm.SentencePieceProcessor(model_file=str(model))))
    loaded = welm.Model(str(folder), device="cpu", threads=1, context_tokens=64)
    return lambda chosen: [loaded.tokenize(text) for text in chosen]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("-n", type=int, default=10_000, help="texts for each")
    args = parser.parse_args()
    models = train(args.work / "sentencepiece") + args.models
    good = [compare(model, encoder(model, args.work / "tried"), args.n) for model in models]
    print(f"{len(good)} models, {good.count(False)} different")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
