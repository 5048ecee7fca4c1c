"""Measures how far llama.cpp's 8-bit format (Q8_0) is from float32. welm's int8 is compared with this figure.

    pip install gguf llama-cpp-python torch transformers safetensors tokenizers
    python tests/reference/truth.py SmolLM2-135M-Instruct.Q4_1.gguf SCRATCH [--fixtures tests/fixtures]

Every tensor of the model is dequantised. The model is then written to SCRATCH (700 MB) twice: as float32, and as
Q8_0 like that of llama.cpp's own `quantize` (all matrices, with the embedding, which is also the output matrix; norms
stay float32). Both run in llama.cpp on the CPU without flash attention, over the windows of running_text.json,
each from an empty cache and without a begin token.

The truth is the result with float32 weights and a float32 cache. Other results are compared with it at all 4,608
positions:

    kl            KL(truth || other) per token, in nats: mean, median, 99th percentile,
                  largest, and where (window, position) that is
    top1          fraction of positions with the same most likely token
    ppl           exp of the mean negative log-likelihood of the 4,599 tokens that have a predecessor

The figures are added to running_text.json under "llama_cpp". Two lines are results of transformers in float32: with
the same weights (the noise of the comparison), and with the Q8_0 weights (the error of rounding the weights,
without rounding activations).

Note two facts. The publisher has rounded the matrices to 4 bits and the embedding to Q8_0, so Q8_0 loses nothing in
the embedding and the output layer. And llama.cpp also rounds activations to Q8_0 (int8 with a float16 scale for 32
values).
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType

from gguf_models import llama_from_file
from llama_cpp_run import LlamaCpp, log_softmax


def requantise(source, target, dtype, file_type):
    """Copies a GGUF file with its matrices dequantised and stored as `dtype`, the rest as float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        stored_as = dtype if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, stored_as), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Tally:
    """Collects, window by window, the results of one way of computing and the truth."""

    def __init__(self):
        self.nll, self.kl, self.same_top1 = [], [], []

    def add(self, ids, logprobs, truth):
        targets = np.asarray(ids[1:])
        self.nll.append(-logprobs[np.arange(len(targets)), targets])
        self.kl.append((np.exp(truth) * (truth - logprobs)).sum(-1))
        self.same_top1.append(truth.argmax(-1) == logprobs.argmax(-1))

    def summary(self):
        nll, kl, same = (np.concatenate(x) for x in (self.nll, self.kl, self.same_top1))
        return {
            "ppl": round(float(np.exp(nll.mean())), 5),
            "mean_nll": round(float(nll.mean()), 7),
            "mean_kl": float(f"{kl.mean():.4g}"),
            "median_kl": float(f"{np.median(kl):.4g}"),
            "p99_kl": float(f"{np.percentile(kl, 99):.4g}"),
            "max_kl": float(f"{kl.max():.4g}"),
            "max_kl_at": [int(i) for i in divmod(int(kl.argmax()), len(self.kl[0]))],
            "top1_agreement": round(float(same.mean()), 5),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("gguf", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--fixtures", type=Path, default=here.parent / "fixtures")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    f32_path, q8_path = args.scratch / "model.f32.gguf", args.scratch / "model.q8_0.gguf"
    requantise(args.gguf, f32_path, GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32)
    requantise(args.gguf, q8_path, GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0)

    def load(path, kv_f32):
        return LlamaCpp(path, n_ctx=512, kv_f32=kv_f32, threads=args.threads)

    truth_model = load(f32_path, kv_f32=True)
    others = {
        "f32_weights_f16_cache": load(f32_path, kv_f32=False),
        "q8_0_weights_f16_cache": load(q8_path, kv_f32=False),
        "q8_0_weights_f32_cache": load(q8_path, kv_f32=True),
    }
    in_transformers = {
        "transformers_f32": llama_from_file(f32_path)[0],
        "transformers_q8_0_weights": llama_from_file(q8_path)[0],
    }

    tallies = {name: Tally() for name in ["f32_weights_f32_cache", *others, *in_transformers]}
    text_path = args.fixtures / "running_text.json"
    record = json.loads(text_path.read_text())
    for window in record["windows"]:
        ids = window["ids"]
        truth = log_softmax(truth_model.logits(ids))
        tallies["f32_weights_f32_cache"].add(ids, truth, truth)
        for name, model in others.items():
            tallies[name].add(ids, log_softmax(model.logits(ids)), truth)
        for name, model in in_transformers.items():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
            tallies[name].add(ids, log_softmax(logits), truth)
        print(window["chapter"], {n: float(f"{t.kl[-1].mean():.3g}") for n, t in tallies.items()}, flush=True)

    results = {name: tally.summary() for name, tally in tallies.items()}
    base = results["f32_weights_f32_cache"]["ppl"]
    for result in results.values():
        result["ppl_ratio"] = round(result["ppl"] / base, 6)
    features = llama_cpp.llama_print_system_info().decode().strip()
    record["llama_cpp"] = {
        "versions": {n: version(n) for n in ("llama-cpp-python", "gguf", "torch", "transformers")},
        "cpu": f"{platform.machine()}; {features}",
        "positions": sum(len(w["ids"]) for w in record["windows"]),
        "results": results,
    }
    print(json.dumps(record["llama_cpp"], indent=1))
    windows = ",\n".join("  " + json.dumps(w) for w in record["windows"])
    measured = ",\n".join(f"   {json.dumps(n)}: {json.dumps(r)}" for n, r in results.items())
    head = {k: v for k, v in record["llama_cpp"].items() if k != "results"}
    text_path.write_text(
        "{\n"
        f' "source": {json.dumps(record["source"])},\n'
        f' "windows": [\n{windows}\n ],\n'
        f' "llama_cpp": {{\n  {json.dumps(head)[1:-1]},\n  "results": {{\n{measured}\n  }}\n }}\n'
        "}\n")
    assert json.loads(text_path.read_text()) == record


if __name__ == "__main__":
    main()
