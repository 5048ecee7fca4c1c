"""Computes results of a published GGUF file with transformers in f32, for tests/models.rs.

    pip install torch transformers accelerate gguf
    python tests/reference/real_models.py FILE.gguf tests/fixtures/models/NAME.json

The GGUF reader of transformers dequantises the weights. For each prompt it writes: its ids, the log-probabilities of
ids[1:], the five likeliest tokens after it, and 64 greedy tokens. An end token does not stop these.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "床前明月光，",
    "问题：百年孤独的作者是？\n回答：",
    'fn main() {\n    println!("',
    "微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる。",
    "Once upon a time, there was a",
    "将下面的句子翻译成英文：我今天很高兴。\n译文：",
    "写一首关于秋天的诗：\n",
    "\u3000\u3000全角空格开头，\t制表符，  两个空格。😀👨\u200d👩\u200d👧\n",
]


@torch.no_grad()
def reference(model, tokenizer, prompt):
    ids = tokenizer(prompt).input_ids
    out = model(input_ids=torch.tensor([ids]), use_cache=True)
    logprobs = out.logits[0].log_softmax(-1)
    top = logprobs[-1].topk(5)
    greedy, best = [], top.indices[0]
    while True:
        greedy.append(best.item())
        if len(greedy) == 64:
            break
        out = model(input_ids=best.view(1, 1), past_key_values=out.past_key_values, use_cache=True)
        best = out.logits[0, -1].argmax()
    return {
        "prompt": prompt,
        "ids": ids,
        "logprobs": [round(logprobs[i, t].item(), 5) for i, t in enumerate(ids[1:])],
        "top": [[t.item(), round(p.item(), 5)] for p, t in zip(top.values, top.indices)],
        "greedy": greedy,
        "text": tokenizer.decode(greedy),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    source = dict(pretrained_model_name_or_path=args.file.parent, gguf_file=args.file.name)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for prompt in PROMPTS:
        cases.append(reference(model, tokenizer, prompt))
        print(cases[-1]["text"], flush=True)
    args.out.write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
