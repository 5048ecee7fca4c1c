"""Makes small SentencePiece models, and the ids that `sentencepiece` gives texts with them.

    pip install sentencepiece protobuf
    python tests/reference/sentencepiece_models.py

Writes `tests/fixtures/sentencepiece`: NAME.model, and NAME.json with the ids and the texts that they decode to. The
input texts are in `texts.json`. The models' tables of normalization rules have only a few rules. SentencePiece's own
tables have 300,000 bytes; `differential/compare_sentencepiece.py` tests these.
"""

import json
import sys
import tempfile
from pathlib import Path

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "differential"))
from texts import LINES, SPELLED, texts

OUT = HERE.parent / "fixtures/sentencepiece"
# Normalization rules: (text, replacement).
RULES = [("\u3000", " "), ("\u00a0", " "), ("\t", " "), ("\n", " "), ("\r", " "), ("\u2003", " "), ("\u200b", ""),
         ("\ufeff", ""), ("\u00ad", ""), ("ﬁ", "fi"), ("ﬃ", "ffi"), ("½", "1⁄2"), ("Ａ", "A"), ("０", "0"), ("１", "1"), ("２", "2"),
         ("ｶ", "カ"), ("ｶﾞ", "ガ"), ("ﾊ", "ハ"), ("ﾊﾟ", "パ"), ("e\u0301", "é"), ("n\u0303", "ñ"), ("㎏", "kg"), ("①", "1"), ("²", "2"),
         ("\u1100\u1161\u11a8", "각"), ("\u1100\u1161", "가"), ("ﷺ", "صلى الله عليه وسلم"), ("…", "..."), ("～", "~")]
FOLDING = RULES + [(chr(c), chr(c + 32)) for c in range(65, 91)] + [("ß", "ss"), ("İ", "i\u0307"), ("Σ", "σ"), ("ς", "σ")]
LLAMA = {"add_dummy_prefix": True, "remove_extra_whitespaces": False, "byte_fallback": True,
         "normalization_rule_name": "identity"}
GEMMA = LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "\t", "<tool>", "</b>"]}
SYMBOLS = {"user_defined_symbols": ["<tool>", "ab", "abc", "bcd", "中国", " x", "▁y", "ﬁ"], "control_symbols": ["<|end|>", "<pad2>"]}

# The models are trained on some of the lines, so that the other lines have unknown characters.
TRAINED = LINES[:9] + LINES[36:52]

# Name -> options of the trainer, normalization rules, and changes of the file after training.
MODELS = {
    "unigram": ({"model_type": "unigram"}, RULES, {}),
    "unigram_bytes": (LLAMA | {"model_type": "unigram"}, None, {}),
    "unigram_folding": (SYMBOLS | {"model_type": "unigram", "byte_fallback": True}, FOLDING, {}),
    "unigram_suffix": (SYMBOLS | {"model_type": "unigram", "treat_whitespace_as_suffix": True}, RULES, {}),
    "unigram_unused": ({"model_type": "unigram", "add_dummy_prefix": False}, RULES, {"unused": 3}),
    "unigram_spaces": ({"model_type": "unigram", "remove_extra_whitespaces": False}, FOLDING, {"escape": False}),
    "bpe": ({"model_type": "bpe"}, RULES, {}),
    "bpe_llama": (LLAMA | {"model_type": "bpe"}, None, {}),
    "bpe_gemma": (GEMMA | {"model_type": "bpe"}, None, {}),
    "bpe_folding": (SYMBOLS | {"model_type": "bpe", "byte_fallback": True}, FOLDING, {}),
    "bpe_suffix": (SYMBOLS | {"model_type": "bpe", "treat_whitespace_as_suffix": True}, RULES, {}),
    "bpe_unused": (LLAMA | {"model_type": "bpe"}, None, {"unused": 3}),
    "bpe_equal": (LLAMA | {"model_type": "bpe"}, None, {"scores": 5}),
}


def train(folder: Path, name: str, options: dict, rules: list | None, changes: dict) -> bytes:
    """Trains a model on lines of `texts.py`, and writes it."""
    (folder / "lines.txt").write_text("\n".join(line.replace("\n", " ") for line in TRAINED for _ in range(3)))
    if rules:
        codes = lambda text: " ".join(f"{ord(c):X}" for c in text)
        (folder / "rules.tsv").write_text("".join(f"{codes(a)}\t{codes(b)}\n" for a, b in rules))
        options = options | {"normalization_rule_tsv": str(folder / "rules.tsv")}
    spm.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"), model_prefix=str(folder / name), minloglevel=2, num_threads=1,
        character_coverage=0.99, vocab_size=900 if options.get("byte_fallback") else 640, hard_vocab_limit=False, **options)
    model = pb.ModelProto.FromString((folder / f"{name}.model").read_bytes())
    model.trainer_spec.ClearField("input")
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    if not changes.get("escape", True):
        model.normalizer_spec.escape_whitespaces = False
    pieces = [piece for piece in model.pieces if piece.type == pb.ModelProto.SentencePiece.NORMAL]
    for i, piece in enumerate(pieces):
        if changes.get("unused") and len(piece.piece) > 1 and i % changes["unused"] == 0:
            piece.type = pb.ModelProto.SentencePiece.UNUSED
        if changes.get("scores"):
            piece.score = -float(i // changes["scores"])
    return model.SerializeToString()


def main():
    OUT.mkdir(exist_ok=True)
    chosen = [text for text in texts(SPELLED + ["<tool>", "abcd", "中国"], 1500) if len(text) <= 60][::5]
    (OUT / "texts.json").write_text(json.dumps(chosen, ensure_ascii=True, separators=(",", ":")) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        for name, (options, rules, changes) in MODELS.items():
            model = train(Path(folder), name, options, rules, changes)
            (OUT / f"{name}.model").write_bytes(model)
            reference = spm.SentencePieceProcessor(model_proto=model)
            ids = [reference.encode(text) for text in chosen]
            expected = {"ids": ids, "texts": [reference.decode(i) for i in ids]}
            (OUT / f"{name}.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
            print(name, len(model), len(reference), sum(map(len, ids)))


if __name__ == "__main__":
    main()
