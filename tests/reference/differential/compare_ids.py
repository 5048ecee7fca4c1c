"""Compares welm's token ids with llama.cpp's and transformers', for real vocabularies and a thousand texts each.

    pip install transformers sentencepiece tiktoken gguf xllamacpp ./welm-py
    python tests/reference/differential/sources.py WORK
    python tests/reference/differential/compare_ids.py WORK [NAME...]

A GGUF file is compared with llama.cpp, a folder with transformers' PreTrainedTokenizerFast; both with special tokens
parsed and without. The result is equal, a typed error of welm's, or DIFFERENT with the shortest text that shows it. The
exit status is 1 if anything differs.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import welm
from texts import texts


# Intended differences; welm-core/src/tokenizer/gguf.rs gives the reasons. These tokens, and texts that contain them,
# are not compared.
MEANT = {
    # The file says that these are control tokens. llama.cpp finds them in any text, so a user could write a turn.
    "gguf-lenml-gptoss": ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|constrain|>"],
    # The file says that this is an ordinary token. llama.cpp makes it a control token, so HTML texts lose it.
    "ggml-vocab-qwen2": ["</s>"],
    "ggml-vocab-qwen35": ["</s>"],
    "gguf-lenml-qwen3": ["</s>"],
}


def begin(ids, own):
    """How many ids are in front of a text's own."""
    return next(i for i in range(len(ids) + 1) if ids[i:i + len(own)] == own)


class Gguf:
    """llama.cpp as the reference."""

    def __init__(self, folder):
        from llama_cpp import Vocabulary

        self.vocabulary = Vocabulary(folder / "model.gguf")
        self.special = self.vocabulary.special()

    def encode(self, text, special):
        return self.vocabulary.encode(text, special=special)

    def begin(self):
        """Tokens that are put in front of a text."""
        return begin(self.vocabulary.encode("a", special=False, add=True), self.encode("a", False))

    def more(self, model):
        """Further comparisons: (what, expected but not got, got but not expected)."""
        n = len(self.vocabulary)
        meant = {model.token_id(name) for name in self.meant}
        want = {i: self.vocabulary.piece(i) for i in range(n) if i not in meant}
        got = {i: model.token_bytes(i) for i in want}
        # For tokens that are not written in the byte alphabet, llama.cpp returns a message instead of bytes.
        wrong = [i for i in want if want[i] != got[i] and not want[i].startswith(b"[UNK_BYTE_")]
        yield "bytes of tokens", {i: want[i] for i in wrong[:5]}, {i: got[i] for i in wrong[:5]}
        controls = [i for i in range(n) if model.is_special(i)]
        for what, want, got in (("control tokens", self.vocabulary.controls(), controls),
                                ("ends of text", self.vocabulary.ends(), model.config.eos_token_ids)):
            yield what, sorted(set(want) - set(got) - meant), sorted(set(got) - set(want) - meant)


class Folder:
    """transformers as the reference."""

    def __init__(self, folder):
        from transformers import PreTrainedTokenizerFast
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.special = [t.content for t in self.tokenizer.added_tokens_decoder.values()]

    def encode(self, text, special):
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    def begin(self):
        return begin(self.tokenizer("a")["input_ids"], self.encode("a", False))

    def more(self, model):
        return []


def shortest(text, differs):
    """The shortest text that still differs, found by removing parts."""
    step = max(len(text) // 2, 1)
    while step:
        i = 0
        while i < len(text):
            shorter = text[:i] + text[i + step:]
            if differs(shorter):
                text = shorter
            else:
                i += step
        step //= 2
    return text


def compare(folder, n):
    """Compares one vocabulary. Returns (result, lines of details)."""
    is_gguf = (folder / "model.gguf").exists()
    try:
        path = folder / "model.gguf" if is_gguf else folder
        model = welm.Model(str(path), device="cpu", threads=1, context_tokens=64)
    except welm.Error as error:
        return "error", [f"{type(error).__name__}: {error}"[:300]]
    reference = (Gguf if is_gguf else Folder)(folder)
    reference.meant = MEANT.get(folder.name, [])
    found, failed, equal = {}, {}, 0
    begin = model.generate("a", max_tokens=0).usage.prompt_tokens - len(model.tokenize("a"))
    checks = [*reference.more(model), ("tokens in front", reference.begin(), begin)]
    details = [f"{what}: expected {want}, got {got}" for what, want, got in checks if want != got]
    for special in (False, True):
        def outcome(text, special=special):
            want = reference.encode(text, special)
            try:
                got = model.tokenize(text, parse_special=special)
            except welm.Error as error:
                return want, error
            return want, got

        def differs(text):
            want, got = outcome(text)
            return not isinstance(got, welm.Error) and want != got

        for text in texts(reference.special, n):
            if any(name in text for name in reference.meant):
                continue
            want, got = outcome(text)
            if isinstance(got, welm.Error):
                reason = re.sub(r"(0x)?[0-9A-F]*\d+", "N", str(got))[:200]
                failed[reason] = failed.get(reason, 0) + 1
            elif want != got:
                text = shortest(text, differs) if len(found) < 12 else text
                found.setdefault((special, text), outcome(text))
            else:
                equal += 1
    for (special, text), (want, got) in sorted(found.items(), key=lambda f: len(f[0][1]))[:12]:
        details.append(f"parse_special={special} {json.dumps(text)}: expected {want}, got {got}")
    errors = [f"{count} texts: {reason}" for reason, count in failed.items()]
    verdict = f"DIFFERENT ({len(found)})" if details else "equal"
    return f"{verdict}, {equal} equal, {sum(failed.values())} errors", details + errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("-n", type=int, default=1000, help="texts for each")
    args = parser.parse_args()
    folders = [f for f in sorted((args.work / "models").iterdir()) if not args.names or f.name in args.names]
    bad = 0
    for folder in folders:
        started = time.monotonic()
        verdict, details = compare(folder, args.n)
        bad += verdict.startswith("DIFFERENT")
        print(f"{folder.name:28} {verdict}  ({time.monotonic() - started:.1f} s)", flush=True)
        for line in details:
            print(f"    {line}", flush=True)
    print(f"{len(folders)} vocabularies, {bad} different")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
