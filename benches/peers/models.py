"""Models of one shape with random weights, in the formats of several engines. The time of an engine's int8 products and
memory accesses does not depend on the values.

    python3 models.py gguf SHAPE FILE           Q8_0, for llama.cpp
    python3 models.py ctranslate2 SHAPE FOLDER  int8, for CTranslate2
    python3 models.py requantize FROM TO        a GGUF file of real weights as Q8_0, by llama.cpp itself
    python3 models.py onnx FROM FOLDER          a GGUF file of real weights as int4 for onnxruntime-genai, by its own
                                                builder; needs torch and transformers

What is there already is left alone. Values are finite and as large as those of a trained model, so that nothing
overflows and no arithmetic meets subnormal numbers.
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GROUP = 32  # of Q8_0
PERIOD = 1_048_573  # values of a random pattern that tensors repeat: prime, so that rows do not line up


@dataclass(frozen=True)
class Shape:
    arch: str  # of GGUF: gptneox with biases everywhere; qwen2 with biases on q, k and v; llama without
    layers: int
    dim: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    context: int
    tied: bool
    rope_base: float = 10_000.0

    @property
    def head_dim(self):
        return self.dim // self.heads

    @property
    def kv_dim(self):
        return self.kv_heads * self.head_dim

    @property
    def neox(self):
        return self.arch == "gptneox"


# The shapes of `welm-bench-cpu write`. smollm2 is for an engine that cannot read the file with the real weights.
SHAPES = {
    "welm-medium": Shape("gptneox", 24, 2048, 16, 16, 8192, 62_080, 2048, False),
    "qwen-0.5b": Shape("qwen2", 24, 896, 14, 2, 4864, 151_936, 32_768, True, 1e6),
    "smollm2-135m": Shape("llama", 30, 576, 9, 3, 1536, 49_152, 8192, True, 100_000.0),
}


class Random:
    """Slices of random patterns."""

    def __init__(self, seed=1):
        self.rng = np.random.default_rng(seed)
        self.int8 = self.rng.integers(-127, 128, PERIOD, dtype=np.int8)
        self.next = 0

    def matrix(self, rows, cols):
        """(rows, cols) int8, deviation 73"""
        self.next = (self.next + 104_729) % PERIOD
        repeats = -(-(rows * cols + self.next) // PERIOD)
        return np.tile(self.int8, repeats)[self.next : self.next + rows * cols].reshape(rows, cols)

    def scales(self, n, cols):
        """n scales with which products over `cols` columns have values of the same size as their inputs"""
        return (self.rng.random(n, dtype=np.float32) + 0.5) / 73.0 / np.float32(cols) ** 0.5


# ---- llama.cpp ----------------------------------------------------------------------------------------------


def q8_0(random, rows, cols):
    """(rows, cols / 32 * 34) bytes: for each 32 values an f16 scale, then the values"""
    groups = rows * cols // GROUP
    blocks = np.empty((groups, 2 + GROUP), dtype=np.uint8)
    blocks[:, :2] = random.scales(groups, cols).astype(np.float16).view(np.uint8).reshape(groups, 2)
    blocks[:, 2:] = random.matrix(groups, GROUP).view(np.uint8)
    return blocks.reshape(rows, cols // GROUP * (2 + GROUP))


def write_gguf(shape, path):
    import gguf

    s, random = shape, Random()
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, s.arch)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.dim)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.hidden)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_vocab_size(s.vocab)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if s.neox:
        writer.add_layer_norm_eps(1e-5)
        writer.add_parallel_residual(False)
    else:
        writer.add_layer_norm_rms_eps(1e-6)

    def vector(name, n, value):
        writer.add_tensor(name, np.full(n, value, dtype=np.float32))

    def matrix(name, rows, cols, bias):
        writer.add_tensor(f"{name}.weight", q8_0(random, rows, cols), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        if bias:
            vector(f"{name}.bias", rows, 0.01)

    def norm(name):
        vector(f"{name}.weight", s.dim, 1.0)
        if s.neox:
            vector(f"{name}.bias", s.dim, 0.01)

    matrix("token_embd", s.vocab, s.dim, False)
    norm("output_norm")
    if not s.tied:
        matrix("output", s.vocab, s.dim, False)
    for l in range(s.layers):
        norm(f"blk.{l}.attn_norm")
        norm(f"blk.{l}.ffn_norm")
        if s.neox:
            matrix(f"blk.{l}.attn_qkv", s.dim + 2 * s.kv_dim, s.dim, True)
        else:
            for part, rows in [("q", s.dim), ("k", s.kv_dim), ("v", s.kv_dim)]:
                matrix(f"blk.{l}.attn_{part}", rows, s.dim, s.arch == "qwen2")
            matrix(f"blk.{l}.ffn_gate", s.hidden, s.dim, False)
        matrix(f"blk.{l}.attn_output", s.dim, s.dim, s.neox)
        matrix(f"blk.{l}.ffn_up", s.hidden, s.dim, s.neox)
        matrix(f"blk.{l}.ffn_down", s.dim, s.hidden, s.neox)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def requantize(source, path):
    import llama_cpp

    partial = path.with_suffix(".partial")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), params)
    if code != 0:
        sys.exit(f"llama.cpp could not requantize {source}: {code}")
    os.replace(partial, path)


# ---- onnxruntime-genai ---------------------------------------------------------------------------------------


def build_onnx(source, folder):
    """The file's weights as transformers reads them, in the builder's int4: 32 weights share a scale, and activations are
    8-bit integers in products (accuracy level 4, its fastest)."""
    import torch
    import transformers

    partial, floats = folder.with_suffix(".partial"), folder.with_suffix(".floats")
    for path in (partial, floats):
        shutil.rmtree(path, ignore_errors=True)
    source = Path(source).resolve()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(floats)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The weights are floats now. But as long as it remembers that they were GGUF, it refuses to save them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(floats)
    del model
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(floats), "-o", str(partial)]
    command += ["-p", "int4", "-e", "cpu", "-c", str(floats / "cache")]
    subprocess.run([*command, "--extra_options", "int4_accuracy_level=4"], check=True)
    shutil.rmtree(floats)
    os.replace(partial, folder)


# ---- CTranslate2 --------------------------------------------------------------------------------------------


def write_ctranslate2(shape, folder):
    """Fills the specification as its converters for GPT-NeoX and Qwen2 do, with weights that are int8 already."""
    from ctranslate2.specs import common_spec, transformer_spec

    s, random = shape, Random()
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        s.layers,
        s.heads,
        pre_norm=True,
        activation=common_spec.Activation.GELU if s.neox else common_spec.Activation.SWISH,
        ffn_glu=not s.neox,
        rms_norm=not s.neox,
        rotary_dim=s.head_dim,
        rotary_interleave=False,
        rotary_base=s.rope_base,
        parallel_residual=False,
        num_heads_kv=None if s.kv_heads == s.heads else s.kv_heads,
    )

    def matrix(spec, rows, cols, bias=False):
        spec.weight = random.matrix(rows, cols)
        spec.weight_scale = 1 / random.scales(rows, cols)  # the factor that made the values int8
        if bias:
            spec.bias = np.full(rows, 0.01, dtype=np.float32)

    def norm(spec):
        spec.gamma = np.ones(s.dim, dtype=np.float32)
        if s.neox:
            spec.beta = np.full(s.dim, 0.01, dtype=np.float32)

    decoder = spec.decoder
    decoder.scale_embeddings = False
    matrix(decoder.embeddings, s.vocab, s.dim)
    norm(decoder.layer_norm)
    for layer in decoder.layer:
        norm(layer.self_attention.layer_norm)
        norm(layer.ffn.layer_norm)
        matrix(layer.self_attention.linear[0], s.dim + 2 * s.kv_dim, s.dim, s.arch != "llama")
        matrix(layer.self_attention.linear[1], s.dim, s.dim, s.neox)
        matrix(layer.ffn.linear_0, s.hidden, s.dim, s.neox)
        if not s.neox:
            matrix(layer.ffn.linear_0_noact, s.hidden, s.dim)
        matrix(layer.ffn.linear_1, s.dim, s.hidden, s.neox)
    if s.tied:
        decoder.projection.weight = np.zeros((), dtype=np.int8)  # only for the check that nothing is missing
    else:
        matrix(decoder.projection, s.vocab, s.dim)
    spec.register_vocabulary([f"t{i}" for i in range(s.vocab)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "t0", "t1", "t2"
    spec.config.layer_norm_epsilon = 1e-5 if s.neox else 1e-6
    spec.validate()
    if s.tied:
        decoder.projection.weight = "decoder/embeddings/weight"
        decoder.projection.weight_scale = "decoder/embeddings/weight_scale"
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    spec.save(str(partial))
    os.replace(partial, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("format", choices=["gguf", "ctranslate2", "requantize", "onnx"])
    parser.add_argument("source", help="a shape, or for requantize and onnx a file")
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    if args.path.exists():
        return
    args.path.parent.mkdir(parents=True, exist_ok=True)
    if args.format == "requantize":
        requantize(args.source, args.path)
        return
    if args.format == "onnx":
        build_onnx(args.source, args.path)
        return
    if args.source not in SHAPES:
        sys.exit(f"expected one of {', '.join(SHAPES)}, got {args.source}")
    write = {"gguf": write_gguf, "ctranslate2": write_ctranslate2}[args.format]
    write(SHAPES[args.source], args.path)


if __name__ == "__main__":
    main()
