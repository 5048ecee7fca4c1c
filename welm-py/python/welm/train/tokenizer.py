"""Step ``tokenizer``: SentencePiece with byte fallback, without normalisation, white space kept.

The folder gets ``tokenizer.model`` (SentencePiece), the same vocabulary as ``tokenizer.json`` (tokenizers), and a
report with a plot: characters per token by source and by script, on held-out documents.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tqdm import tqdm

from welm.train import plots
from welm.train.documents import HELDOUT, TRAIN, texts_of, times
from welm.train.recipe import RecipeError
from welm.train.steps import begin, corpus_mark, fingerprint, is_done, mark_done, write
from welm.train.words import HAN, HANGUL, KANA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from welm.train.recipe import Recipe

UNK, END, PAD = "<unk>", "<|endoftext|>", "<pad>"
UNK_ID, END_ID, PAD_ID = 0, 1, 2

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

ALWAYS = (
    "\n\t" + "".join(map(chr, range(33, 127))) + "，。！？；：、“”‘’（）《》「」『』【】〈〉—…·・～％＋－＝　"
)
"""Characters that are pieces of their own in any case, beside the most frequent ones."""

LINE = 10_000
"""Most characters of a line that SentencePiece learns from; longer ones are cut."""

_SCRIPTS = (
    ("Japanese", re.compile(f"[{KANA}]")),
    ("Korean", re.compile(f"[{HANGUL}]")),
    ("Chinese", re.compile(f"[{HAN}]")),
    ("Latin", re.compile("[A-Za-z\u00c0-\u024f]")),
)


def run(recipe: Recipe, out: Path) -> None:
    """Trains the tokenizer, and measures it."""
    corpus = recipe.out / "corpus"
    settings = recipe.tokenizer.settings
    mark = fingerprint(corpus_mark(recipe), settings)
    if is_done(out, mark):
        return
    begin(out, mark, settings)
    _train(recipe, corpus, out)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    fast = converted(processor, recipe.tokenizer.kind)
    fast.save(str(out / "tokenizer.json"))
    _report(recipe, corpus, out, processor, fast)
    mark_done(out, mark)


def load(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer of a folder."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def _sample(recipe: Recipe, corpus: Path) -> Iterator[str]:
    """Documents of all sources by their weights, thinned out evenly to the size of the sample."""
    sources = recipe.corpus.sources
    sizes = json.loads((corpus / "report.json").read_text("utf-8"))["sources"]
    total = sum([*sizes[source.name].values()][-1][1] * source.weight for source in sources)
    share = min(1.0, recipe.tokenizer.sample / max(total, 1))
    for source in tqdm(sources, desc="tokenizer", unit="source"):
        for text in texts_of(corpus, TRAIN, source.name):
            for _ in range(times(text, source.weight * share)):
                yield text


def _train(recipe: Recipe, corpus: Path, out: Path) -> None:
    settings = recipe.tokenizer
    counts: Counter[str] = Counter()
    for text in _sample(recipe, corpus):
        counts.update(text)
    for character in (" ", SPACE, "\0", "\r"):
        counts.pop(character, None)
    room = settings.pieces - 259 - 1  # three control pieces, 256 bytes, the space
    if room < len(ALWAYS):
        raise RecipeError(f"tokenizer.pieces: expected at least {260 + len(ALWAYS)}, got {settings.pieces}")
    always = dict.fromkeys(ALWAYS)
    frequent = (
        one for one, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if one not in always
    )
    characters = [*always, *frequent][: min(settings.characters, room)]
    if settings.kind == "unigram" and len(characters) > room // 2:
        raise RecipeError("tokenizer.characters: expected less than half of the pieces for unigram")
    # Newlines and tabs are tokens of their own, and never part of a longer one, because lines are fed without them.
    # A line is cut at characters outside the vocabulary, which become bytes.
    cut = re.compile("[^" + re.escape("".join([*characters, " "])) + "]|[\n\t]")
    lines = (
        part[at : at + LINE]
        for text in _sample(recipe, corpus)
        for part in cut.split(text)
        for at in range(0, len(part), LINE)
    )
    model = io.BytesIO()  # with a path, SentencePiece would write the path into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type=settings.kind,
        vocab_size=settings.pieces,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars="".join(characters),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        max_sentencepiece_length=settings.longest,
        max_sentence_length=4 * LINE,
        num_threads=1,  # the result does not depend on the machine
        unk_id=UNK_ID,
        bos_id=-1,
        eos_id=END_ID,
        pad_id=PAD_ID,
        unk_piece=UNK,
        eos_piece=END,
        pad_piece=PAD,
        minloglevel=2,
    )
    (out / "tokenizer.model").write_bytes(model.getvalue())


def converted(processor: sentencepiece.SentencePieceProcessor, kind: str) -> Tokenizer:
    """The same vocabulary for tokenizers.

    SentencePiece's BPE joins the adjacent pair whose union has the best score. That is a list of merges which has, in
    order of score, every way of making a piece out of two pieces.
    """
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    if kind == "unigram":
        scores = [(piece, processor.get_score(i)) for i, piece in enumerate(pieces)]
        fast = Tokenizer(models.Unigram(scores, unk_id=UNK_ID, byte_fallback=True))
    else:
        ids = {piece: i for i, piece in enumerate(pieces)}
        merges = []
        for i, piece in enumerate(pieces):
            if processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i):
                continue
            for at in range(1, len(piece)):
                left, right = piece[:at], piece[at:]
                if left in ids and right in ids:
                    merges.append((-processor.get_score(i), ids[left], ids[right], left, right))
        pairs = [(left, right) for *_, left, right in sorted(merges)]
        fast = Tokenizer(models.BPE(ids, pairs, unk_token=UNK, fuse_unk=False, byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", SPACE)
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (UNK, END, PAD)])
    return fast


HARD = (
    *(
        "",
        " ",
        "  a  b  ",
        "\t\tx\n\n y\n",
        "你好，世界!",
        "，,。.！!？?；;：:（(",
        "🙂👩‍👩‍👧‍👦🇨🇳",
        "한국어 텍스트",
    ),
    *(
        "微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる",
        "床前明月光，疑是地上霜。\n",
    ),
    *(
        "𪚥龘鱻 café ﬁ Ａ１ ½\u3000全角\u00a0\u200b\r\n",
        "1234567890 3.14159",
        "\x01\x7f",
        "a\u0301 e\u0301",
        "…………————",
    ),
    "   缩进\n\t制表",
)
"""Texts that tokenizers get wrong."""


def check(processor: sentencepiece.SentencePieceProcessor, fast: Tokenizer, texts: Iterable[str]) -> None:
    """Raises :class:`AssertionError` if the two tokenizers differ, or a text does not come back."""
    for text in texts:
        ids = processor.encode(text)
        if fast.encode(text, add_special_tokens=False).ids != ids:
            raise AssertionError(f"tokenizers and SentencePiece differ: {text[:80]!r}")
        if fast.decode(ids, skip_special_tokens=False) != text or UNK_ID in ids:
            raise AssertionError(f"a text does not come back: {text[:80]!r}")


def _report(
    recipe: Recipe,
    corpus: Path,
    out: Path,
    processor: sentencepiece.SentencePieceProcessor,
    fast: Tokenizer,
) -> None:
    check(processor, fast, HARD)
    sources: dict[str, list[int]] = {}
    scripts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for source in recipe.corpus.sources:
        texts = [
            text
            for text in texts_of(corpus, HELDOUT, source.name)
            if not any(piece in text for piece in (UNK, END, PAD, SPACE))
        ]
        if not texts:
            continue
        check(processor, fast, texts[:100])
        counted = sources[source.name] = [0, 0, 0]
        for text in texts:
            for line in text.splitlines():
                one = _counted(processor, line)
                script = next((name for name, pattern in _SCRIPTS if pattern.search(line)), "other")
                for total in (counted, scripts[script]):
                    for i, value in enumerate(one):
                        total[i] += value
    han = sum(
        bool(re.fullmatch(f"[{HAN}]+", processor.id_to_piece(i))) for i in range(processor.get_piece_size())
    )
    result: dict[str, Any] = {
        "pieces": processor.get_piece_size(),
        "chinese_pieces": han,
        "sources": {
            name: dict(zip(("characters", "tokens", "bytes"), c, strict=True)) for name, c in sources.items()
        },
        "scripts": {
            name: dict(zip(("characters", "tokens", "bytes"), c, strict=True)) for name, c in scripts.items()
        },
    }
    write(out / "report.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    lines = [
        "# The tokenizer\n",
        f"{result['pieces']:,} pieces; {han:,} of them are Chinese characters or words of several. "
        "Measured on held-out documents.\n",
        "![Characters per token](report.png)\n",
    ]
    for title, table in (("source", sources), ("lines with", scripts)):
        lines += [
            f"| {title} | characters | tokens | characters a token | tokens that are bytes |",
            "|---|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {name} | {c:,} | {t:,} | {c / max(t, 1):.2f} | {b / max(t, 1):.2%} |"
            for name, (c, t, b) in table.items()
        ]
        lines.append("")
    write(out / "report.md", "\n".join(lines))
    _plot({"by source": sources, "lines with": scripts}, out / "report.png")


def _counted(processor: sentencepiece.SentencePieceProcessor, line: str) -> tuple[int, int, int]:
    ids = processor.encode(line)
    return len(line), len(ids), sum(processor.is_byte(ids)) if ids else 0


def _plot(groups: dict[str, dict[str, list[int]]], path: Path) -> None:
    rows = max(len(group) for group in groups.values())
    figure = plots.figure(9, 1 + 0.26 * max(rows, 3))
    for axes, (title, group) in zip(
        figure.subplots(1, len(groups), sharex=True), groups.items(), strict=True
    ):
        order = sorted(group, key=lambda name: group[name][0] / max(group[name][1], 1))
        axes.barh(order, [group[name][0] / max(group[name][1], 1) for name in order], color=plots.BLUE)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("characters per token")
    plots.save(figure, path)
