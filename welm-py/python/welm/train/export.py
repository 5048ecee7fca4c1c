"""Step ``export``: a folder that welm and transformers load, and a GGUF file for llama.cpp.

The folder gets the weights in f32 (``model.safetensors``), ``config.json``, the tokenizer of tokenizers and of
SentencePiece, and ``model.gguf``. A prompt begins with the end token, after which each document began in training.
llama.cpp's own converter is not used: of GPT-NeoX it knows GPT-2's kind of tokenizer only. The file has what it would
write, and SentencePiece's tokenizer.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import welm
from welm.train.megatron import from_megatron
from welm.train.pretrain.shapes import config_of, shape_of
from welm.train.recipe import RecipeError
from welm.train.steps import (
    begin,
    fingerprint,
    is_done,
    mark_done,
    pretrain_mark,
    required,
    stamp,
    tokenizer_mark,
    write,
)
from welm.train.tokenizer import END, END_ID, PAD, PAD_ID, UNK, UNK_ID, load

if TYPE_CHECKING:
    from pathlib import Path

    import sentencepiece

    from welm.train.recipe import Recipe, Shape

Weights = dict[str, torch.Tensor]


def run(recipe: Recipe, out: Path) -> None:
    """Writes the folder."""
    settings, model = recipe.export, recipe.out / "pretrain" / "model" / "model.safetensors"
    mark = fingerprint(*_before(recipe), settings.settings)
    if is_done(out, mark):
        return
    begin(out, mark, settings.settings)
    words = load(recipe.out / "tokenizer")
    shape, pieces = shape_of(recipe.pretrain), words.get_piece_size()
    weights = from_megatron(settings.megatron, shape, pieces) if settings.megatron else load_file(model)
    weights = {name: value.float().contiguous() for name, value in weights.items()}
    folder(weights, shape, recipe.out / "tokenizer", pieces, out)
    write_gguf(weights, shape, words, recipe.tokenizer.kind, out / "model.gguf")
    int8 = recipe.out / "export-int8"
    shutil.rmtree(int8, ignore_errors=True)
    if settings.int8:
        welm.quantize(out, int8)
    mark_done(out, mark)


def export_mark(recipe: Recipe) -> str:
    """The fingerprint of this step, which must be done."""
    return required(recipe.out / "export", recipe.export.settings, *_before(recipe))


def _before(recipe: Recipe) -> tuple[str, str]:
    """The fingerprints of the tokenizer, and of where the weights come from."""
    megatron = recipe.export.megatron
    if not megatron:
        return tokenizer_mark(recipe), pretrain_mark(recipe)
    if not megatron.is_dir():
        raise RecipeError(f"{megatron}: no such folder")
    origin = stamp(sorted(megatron.glob("mp_rank_*/*"))) + shape_of(recipe.pretrain).model_dump_json()
    return tokenizer_mark(recipe), origin


def folder(weights: Weights, shape: Shape, tokenizer: Path, pieces: int, out: Path) -> None:
    """Writes a folder as transformers has it."""
    if shape.tied:
        weights = {name: value for name, value in weights.items() if not _is_output(name)}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    config = config_of(shape, pieces)
    config.architectures = ["GPTNeoXForCausalLM"]
    config.dtype = "float32"
    write(out / "config.json", config.to_json_string())
    ends = {"bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 50, "max_new_tokens": 128}
    _dump(out / "generation_config.json", {**ends, **sampling})
    _dump(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNK,
            "bos_token": END,
            "eos_token": END,
            "pad_token": PAD,
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.context,
        },
    )
    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    fast.post_processor = TemplateProcessing(f"{END} $A", f"{END} $A {END} $B", [(END, END_ID)])
    fast.save(str(out / "tokenizer.json"))
    shutil.copyfile(tokenizer / "tokenizer.model", out / "tokenizer.model")


_IN_GGUF = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def write_gguf(
    weights: Weights, shape: Shape, words: sentencepiece.SentencePieceProcessor, kind: str, path: Path
) -> None:
    """Writes a GGUF file: matrices in f16, the rest in f32."""
    partial = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(partial, "gptneox")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_head_count(shape.heads)
    writer.add_parallel_residual(False)
    writer.add_layer_norm_eps(1e-5)
    _vocabulary(writer, words, kind)
    if not any(_is_output(name) for name in weights):  # llama.cpp asks for one
        weights = {**weights, "embed_out.weight": weights["gpt_neox.embed_in.weight"]}
    for name, value in weights.items():
        stem, kind = name.rsplit(".", 1)
        array = value.numpy()
        if "query_key_value" in stem:  # transformers has q, k, v of a head, then of the next one
            heads = array.reshape(shape.heads, 3, -1, *array.shape[1:])
            array = np.ascontiguousarray(heads.swapaxes(0, 1)).reshape(array.shape)
        if ".layers." in stem:
            layer, inside = stem.split(".layers.")[1].split(".", 1)
            there = f"blk.{layer}.{_IN_GGUF[inside]}.{kind}"
        else:
            there = f"{_IN_GGUF[stem]}.{kind}"
        writer.add_tensor(there, array.astype(np.float16) if array.ndim == 2 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def _vocabulary(writer: gguf.GGUFWriter, words: sentencepiece.SentencePieceProcessor, kind: str) -> None:
    """SentencePiece's pieces. llama.cpp has BPE by scores under the name of Llama, and unigram under that of T5."""
    kinds = []
    for number in range(words.get_piece_size()):
        if words.is_unknown(number):
            kinds.append(gguf.TokenType.UNKNOWN)
        elif words.is_control(number):
            kinds.append(gguf.TokenType.CONTROL)
        elif words.is_byte(number):
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    pieces = range(words.get_piece_size())
    writer.add_tokenizer_model("t5" if kind == "unigram" else "llama")
    writer.add_remove_extra_whitespaces(False)
    writer.add_token_list([words.id_to_piece(number).encode() for number in pieces])
    writer.add_token_scores([words.get_score(number) for number in pieces])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(END_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_unk_token_id(UNK_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _is_output(name: str) -> bool:
    return name in ("embed_out.weight", "lm_head.weight")


def _dump(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
