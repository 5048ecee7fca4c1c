"""A recipe: the settings of all steps, read from a TOML file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from welm._errors import Error

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class RecipeError(Error):
    """A recipe, or what it refers to, is wrong."""


def _from_recipe(path: Path, info: ValidationInfo) -> Path:
    """Paths in a recipe are relative to its folder."""
    return Path(os.path.abspath(Path(info.context["folder"], path))) if info.context else path


File = Annotated[Path, AfterValidator(_from_recipe)]


class Section(BaseModel):
    """A table of the file. A field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def settings(self) -> str:
        """What the result of a step depends on."""
        return self.model_dump_json()


class Rules(Section):
    """What a document must be like; a rule that it breaks removes it. Shares are of its characters unless said."""

    min_characters: int = Field(default=50, ge=0)
    max_characters: Count = 2_000_000
    min_chinese: Share = 0.5
    """Least share of Chinese characters among words: a Chinese character, a kana or a syllable of Hangul is a word, and
    so is a run of other letters. English, Japanese and Korean inside a Chinese document are kept."""
    max_symbols: Share = 0.1
    """Characters that are not letters, digits, punctuation or white space."""
    max_digits: Share = 0.3
    """Digits, of all characters."""
    min_punctuation: Share = 0.02
    """Lists of keywords have none."""
    max_punctuation: Share = 0.4
    max_broken: Share = 0.0
    """U+FFFD, which stands for bytes that were not text, and control characters."""
    max_repeated_lines: Share = 0.3
    """Lines that stood in the document before."""
    max_repeated_ngrams: Share = 0.3
    """Ten characters in a row that stood in the document before."""
    max_common_character: Share = 0.15
    """The most common letter, of all characters."""
    blocked: tuple[str, ...] = ()
    """Words that a document must not have."""


class Source(Section):
    """Documents from one origin. Reports, weights and held-out losses are for each source."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    files: tuple[File, ...] = Field(min_length=1)
    """Text files, with an empty line between documents; JSON Lines, Parquet. Text and JSON Lines may be compressed, as
    ``.gz``, ``.xz`` or ``.zst``. A name may have ``*``."""
    field: str = "text"
    """Of JSON Lines and Parquet: where the text is."""
    licence: str = Field(min_length=1)
    origin: str = ""
    """Who made it, and where it is from; for the card of a model."""
    weight: float = Field(default=1.0, ge=0)
    """How often a document is read in one pass over the corpus. With 0.4, four in ten documents are read, chosen by a
    hash."""
    untitled: Share = 0.0
    """Share of the documents that are read without their first line, if that is a title which texts in use often
    lack."""
    rules: Rules | None = None
    """Instead of the corpus's."""
    quality: bool = True
    """Whether the quality classifier may remove documents."""


class Quality(Section):
    """A fastText classifier, trained on documents of sources that are known to be good and bad."""

    good: tuple[str, ...] = Field(min_length=1)
    bad: tuple[str, ...] = Field(min_length=1)
    """Names of sources."""
    least: Share = 0.5
    """Least probability of being good."""
    documents: Count = 20_000
    """Most documents of a class that it learns from."""
    characters: Count = 1000
    """A longer document is judged by its first characters."""
    epochs: Count = 5
    seed: int = 1


class Duplicates(Section):
    """Near-duplicates, by MinHash over runs of words; a Chinese character is a word."""

    ngram: Count = 8
    buckets: Count = 14
    hashes: Count = 8
    """Hashes in a bucket. Two documents whose sets of runs overlap by s (Jaccard) are found with probability
    1 - (1 - s^hashes)^buckets."""


class Contamination(Section):
    """Documents that have text of evaluation sets."""

    files: tuple[File, ...] = Field(min_length=1)
    """JSON Lines; all strings in them count. A name may have ``*`` and ``**``."""
    ngram: Count = 17
    """Words in a row; a Chinese character is a word."""


class Executor(Section):
    """Where the work is done."""

    kind: Literal["local", "ray", "slurm"] = "local"
    workers: Count = 1
    """How many tasks run at once."""
    tasks: Count = 8
    """Into how many the files of the corpus are divided. Another number is another order of the documents. ``tokens``
    has a task for each source."""
    address: str = "auto"
    """Ray: address of the cluster; ``local`` starts one here."""
    partition: str = ""
    """Slurm: name of the partition."""
    time: str = "20:00:00"
    """Slurm: limit of a task."""


class Corpus(Section):
    """Step ``corpus``."""

    @property
    def settings(self) -> str:
        """All of it, without the paths of files."""
        paths: Any = {"sources": {"__all__": {"files"}}, "contamination": {"files"}}
        return self.model_dump_json(exclude=paths)

    sources: tuple[Source, ...] = ()
    """Needed by all steps but ``prompts`` with a ``base``."""
    rules: Rules = Rules()
    quality: Quality | None = None
    duplicates: Duplicates | Literal[False] = Duplicates()
    contamination: Contamination | None = None
    heldout: Share = 0.01
    """Share of the documents that are kept for measuring, chosen by a hash of their text."""

    @model_validator(mode="after")
    def _names(self) -> Corpus:
        names = [source.name for source in self.sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"sources: {min(twice)} is there twice")
        if self.quality and (unknown := {*self.quality.good, *self.quality.bad} - {*names}):
            raise ValueError(f"quality: there is no source {min(unknown)}")
        return self


class TokenizerStep(Section):
    """Step ``tokenizer``: SentencePiece with byte fallback, without normalisation, white space kept."""

    pieces: Annotated[int, Field(ge=300)] = 12_000
    kind: Literal["bpe", "unigram"] = "bpe"
    characters: Count = 7_000
    """Single characters that are pieces, the most frequent ones; others become bytes."""
    sample: Count = 60_000_000
    """Most characters that it learns from, of each source by its weight."""
    longest: Count = 8
    """Most characters of a piece."""


class Shape(Section):
    """The shape of a GPT-NeoX model with WeLM's defaults."""

    layers: Count = 6
    dim: Count = 320
    """Width of the residual stream."""
    heads: Count = 5
    """Attention heads of a layer, which share out ``dim``."""
    hidden: Count = 1280
    """Width of the feed-forward layer."""
    context: Count = 1024
    """Most tokens of a text."""
    tied: bool = True
    """Whether the output layer has the weights of the embedding."""


class Pretrain(Section):
    """Step ``pretrain``, and the order of the documents in ``tokens``."""

    @property
    def order(self) -> str:
        """What the tokens depend on."""
        return f"seed {self.seed}"

    @property
    def settings(self) -> str:
        """What the trained model depends on. The number is another one where the step itself has changed."""
        how = {"micro_batch", "shard", "checkpointing", "compile", "save_every"}
        return f"2 {self.model_dump_json(exclude={*how, 'measure_every', 'measure_characters', 'prompts'})}"

    shape: Literal["nano", "medium", "large", "xl"] | Shape = "nano"
    tokens: Count = 100_000_000
    """Tokens to train on. The corpus is read as often as that takes."""
    batch: Count = 16
    """Sequences in a step, of ``context`` tokens each, over all processes."""
    micro_batch: Count = 8
    """Sequences that a process computes at once."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate of AdamW."""
    muon_rate: float = Field(default=0.02, gt=0)
    """Highest learning rate of Muon, for the matrices inside the layers. The rest has AdamW."""
    short: Share = 0.0
    """Share of the steps, the first ones, in which each sequence is cut into four, which makes attention cheaper."""
    warmup: Share = 0.01
    """Share of the steps in which the rate grows to its highest."""
    final: Share = 0.1
    """The rate at the end of the cosine, as a share of the highest."""
    decay: float = Field(default=0.1, ge=0)
    """Weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    seed: int = 1
    precision: Literal["bf16", "f32"] = "bf16"
    save_every: Count = 200
    """Steps between checkpoints."""
    measure_every: Count = 500
    """Steps between measurements on held-out documents."""
    measure_characters: Count = 100_000
    """Held-out text of a source that is measured, in whole documents that a hash chooses."""
    prompts: tuple[str, ...] = ()
    """Continued at each measurement, as samples; not with ``shard``."""
    compile: bool = False
    """Whether torch compiles the model."""
    shard: bool = False
    """Whether parameters, gradients and the optimizer's state are shared out to all processes (FSDP2)."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory."""


class Prompts(Section):
    """Step ``prompts``: multi-prompted training."""

    @property
    def settings(self) -> str:
        """What the trained model depends on, without paths."""
        return self.model_dump_json(exclude={"data", "base", "micro_batch", "save_every"})

    data: File
    """Folder of the data sets, with the names and fields of ``prompts/tasks``. Those that are there are used."""
    base: File | None = None
    """Folder or GGUF file of the model that is trained; by default this recipe's export."""
    tasks: tuple[str, ...] = ()
    """Tasks, or types of tasks; by default all."""
    heldout: tuple[str, ...] = ()
    """Tasks, or types of tasks, that are left out."""
    rows: Count = 10_000
    """Prompts with answers to train on."""
    cap: Count = 2000
    """A larger task counts as if it had so many examples."""
    smoothing: Share = 0.5
    """A task's part of the rows grows with its size to this power."""
    longest: Count = 512
    """Most tokens of a prompt with its answer."""
    lora: int = Field(default=16, ge=0)
    """Rank of the adapters (LoRA) of all matrices in the layers; 0 trains the whole model."""
    batch: Count = 32
    """Rows in a step."""
    micro_batch: Count = 8
    """Rows that are computed at once, padded to the longest of them; 1 computes no padding."""
    rate: float = Field(default=2e-4, gt=0)
    """Highest learning rate."""
    warmup: Share = 0.03
    seed: int = 1
    precision: Literal["bf16", "f32"] = "bf16"
    save_every: Count = 50
    """Steps between checkpoints."""


class Export(Section):
    """Step ``export``."""

    @property
    def settings(self) -> str:
        """All but the paths. The number is another one where the step itself has changed."""
        return f"2 {self.model_dump_json(exclude={'megatron'})}"

    int8: bool = False
    """Whether an int8 copy is written as well, into ``export-int8``."""
    megatron: File | None = None
    """Folder of a Megatron checkpoint, with ``mp_rank_00``: its weights instead of those of the step ``pretrain``."""


class Recipe(Section):
    """All steps."""

    out: File
    """Folder of all results. Each step has its own there."""
    executor: Executor = Executor()
    corpus: Corpus = Corpus()
    tokenizer: TokenizerStep = TokenizerStep()
    pretrain: Pretrain = Pretrain()
    export: Export = Export()
    prompts: Prompts | None = None


def read(path: str | Path) -> Recipe:
    """Reads a recipe. Raises :class:`RecipeError` with the field that is wrong."""
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected TOML: {error}") from None
    return parse(values, path)


def parse(values: dict[str, Any], path: Path) -> Recipe:
    """A recipe of values that are already read; ``path`` is where they are from."""
    try:
        return Recipe.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        told = "; ".join([*filter(None, [where]), first["msg"].removeprefix("Value error, ")])
        raise RecipeError(f"{path}: {told}") from None
