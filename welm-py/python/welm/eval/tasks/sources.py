"""The data sets: what each asks, where it comes from, under which licence, and how it is read.

``test`` and ``shots`` name files below the folder of ``--data``, without ``.jsonl``, in order of preference; names with
``+`` between are read one after the other. Where ``shots`` finds nothing but what is in the test file, examples for
few-shot prompts are drawn from there, never the one that is asked.

The names on the hub were checked by their pages only: nothing was loaded from there in tests.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import readers
from .data import SAMPLES, DataError, Row, from_hub, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Use = Literal["test", "shots"]
USES: tuple[Use, Use] = ("test", "shots")


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub."""

    path: str
    config: str | None = None
    test: str = "validation"
    shots: str | None = "train"


@dataclass(frozen=True)
class Source:
    """A data set."""

    title: str
    origin: str
    licence: str
    read: Callable[..., list[readers.Document]]
    test: tuple[str, ...]
    shots: tuple[str, ...] = ()
    hub: Hub | None = None
    passage: str = "context"
    """The field that documents have in common which are about one text."""


def _clue(config: str) -> Hub:
    return Hub("clue/clue", config)


FEWCLUE = "none stated; FewCLUE's README allows academic research"

SOURCES: dict[str, Source] = {
    "cmrc2018": Source(
        "reading comprehension, Wikipedia",
        "https://github.com/ymcui/cmrc2018",
        "CC BY-SA 4.0",
        readers.reading,
        ("cmrc2018/dev",),
        ("cmrc2018/train", "cmrc2018/trial"),
        _clue("cmrc2018"),
    ),
    "drcd": Source(
        "reading comprehension, traditional characters",
        "https://github.com/DRCKnowledgeTeam/DRCD",
        "CC BY-SA 3.0",
        readers.reading,
        ("drcd/dev", "drcd/test"),
        ("drcd/train",),
        _clue("drcd"),
    ),
    "dureader": Source(
        "reading comprehension, questions to a search engine",
        "https://github.com/baidu/DuReader (Zhidao of DuReader 2.0)",
        "Apache-2.0",
        readers.dureader,
        ("dureader/dev", "dureader/zhidao_dev", "dureader-demo/search_dev"),
        ("dureader/train", "dureader/zhidao_train"),
    ),
    "pd": Source(
        "cloze, news",
        "https://github.com/ymcui/Chinese-Cloze-RC (People's Daily)",
        "none stated in the repository",
        readers.cloze,
        ("pd/test", "pd/dev"),
        ("pd/train", "pd/dev"),
    ),
    "cft": Source(
        "cloze, fairy tales",
        "https://github.com/ymcui/Chinese-Cloze-RC (Children's Fairy Tale)",
        "none stated in the repository",
        readers.cloze,
        ("cft/test", "cft/test_human", "cft/test_auto"),
        ("pd/train", "pd/dev"),
    ),
    "cmrc2017": Source(
        "cloze, children's reading",
        "https://github.com/ymcui/cmrc2017",
        "none stated in the repository",
        readers.cloze,
        ("cmrc2017/test", "cmrc2017/dev"),
        ("cmrc2017/train",),
    ),
    "chid": Source(
        "which idiom fits",
        "https://github.com/chujiezheng/ChID-Dataset; as in https://github.com/CLUEbenchmark/FewCLUE",
        "none stated in the repository",
        readers.chid,
        ("chid/dev", "chid/test_public", "fewclue/chid/test_public"),
        ("chid/train", "chid/train_few_all", "fewclue/chid/train_few_all"),
        _clue("chid"),
        passage="candidates",
    ),
    "cmrc2019": Source(
        "which sentence fits",
        "https://github.com/ymcui/cmrc2019",
        "CC BY-SA 4.0",
        readers.cmrc2019,
        ("cmrc2019/dev",),
        ("cmrc2019/train", "cmrc2019/trial"),
        passage="candidates",
    ),
    "cmnli": Source(
        "inference, translated",
        "https://github.com/CLUEbenchmark/CLUE",
        "none stated; translated from MultiNLI and XNLI (CC BY-NC 4.0)",
        readers.nli,
        ("cmnli/dev",),
        ("cmnli/train",),
        _clue("cmnli"),
        passage="sentence1",
    ),
    "ocnli": Source(
        "inference, written in Chinese",
        "https://github.com/CLUEbenchmark/OCNLI",
        "CC BY-NC 2.0",
        readers.nli,
        ("ocnli/dev",),
        ("ocnli/train", "ocnli/train.3k", "ocnli/train.50k"),
        _clue("ocnli"),
        passage="sentence1",
    ),
    "tnews": Source(
        "topic of a news title",
        "https://github.com/CLUEbenchmark/CLUE",
        FEWCLUE,
        readers.tnews,
        ("tnews/dev", "tnews/test_public", "fewclue/tnews/test_public"),
        ("tnews/train", "tnews/train_few_all", "fewclue/tnews/train_few_all"),
        _clue("tnews"),
    ),
    "iflytek": Source(
        "kind of an app",
        "https://github.com/CLUEbenchmark/CLUE",
        FEWCLUE,
        readers.iflytek,
        ("iflytek/dev", "iflytek/test_public", "fewclue/iflytek/test_public"),
        ("iflytek/train", "iflytek/train_0", "fewclue/iflytek/train_0"),
        _clue("iflytek"),
    ),
    "chnsenticorp": Source(
        "sentiment of a review",
        "https://github.com/SophonPlus/ChineseNlpCorpus (corpus of Tan Songbo)",
        "none stated",
        readers.chnsenticorp,
        ("chnsenticorp/test", "chnsenticorp/dev"),
        ("chnsenticorp/train",),
        Hub("lansinuote/ChnSentiCorp", test="test"),
    ),
    "smp-ecisa": Source(
        "sentiment that no word names",
        "https://www.biendata.xyz/competition/smpecisa2019 (SMP2019-ECISA, Shanxi University)",
        "on application, for research",
        readers.ecisa,
        ("smp-ecisa/dev", "smp-ecisa/test"),
        ("smp-ecisa/train",),
    ),
    "lcsts": Source(
        "summary of a short news text",
        "http://icrc.hitsz.edu.cn/Article/show/139.html (LCSTS, Harbin Institute of Technology)",
        "on application, for research",
        readers.lcsts,
        ("lcsts/test", "lcsts/dev"),
        ("lcsts/train", "lcsts/dev"),
        Hub("hugcyp/LCSTS", test="test"),
    ),
    "adgen": Source(
        "advertisement from attributes",
        "https://www.luge.ai/#/luge/dataDetail?id=9 (AdvertiseGen, Tsinghua University)",
        "none stated; CC BY 4.0 on the hub",
        readers.adgen,
        ("adgen/dev",),
        ("adgen/train",),
        Hub("shibing624/AdvertiseGen"),
    ),
    "webqa": Source(
        "questions without a text",
        "https://arxiv.org/abs/1607.06275 (WebQA, Baidu)",
        "on application, for research",
        readers.webqa,
        ("webqa/test", "webqa/dev"),
        ("webqa/train", "webqa/dev"),
    ),
    "cluewsc2020": Source(
        "what a pronoun means",
        "https://github.com/CLUEbenchmark/CLUEWSC2020",
        FEWCLUE,
        readers.cluewsc,
        ("cluewsc2020/dev", "cluewsc/dev", "fewclue/cluewsc/dev_few_all"),
        ("cluewsc2020/train", "cluewsc/train", "fewclue/cluewsc/train_few_all"),
        _clue("cluewsc2020"),
        passage="text",
    ),
    "c3": Source(
        "questions about dialogues and texts",
        "https://github.com/nlpdata/c3",
        "for non-commercial research",
        readers.c3,
        ("c3/dev", "c3/m-dev+c3/d-dev"),
        ("c3/train", "c3/m-train+c3/d-train"),
        _clue("c3"),
    ),
    "xquad_zh": Source(
        "reading comprehension, Chinese",
        "https://github.com/google-deepmind/xquad",
        "CC BY-SA 4.0",
        readers.reading,
        ("xquad/zh",),
        hub=Hub("google/xquad", "xquad.zh", shots=None),
    ),
    "xquad_en": Source(
        "reading comprehension, English",
        "https://github.com/google-deepmind/xquad",
        "CC BY-SA 4.0",
        readers.reading,
        ("xquad/en",),
        hub=Hub("google/xquad", "xquad.en", shots=None),
    ),
}


def rows(name: str, use: Use, data: Path | str | None) -> list[Row]:
    """The rows of a data set: of a folder, of the package's samples for ``"samples"``, or of the hub for ``None``.

    No rows, if there are none for few-shot prompts.
    """
    if data is None:
        return _from_hub(name, SOURCES[name], use)
    return [row for path in files(name, use, data) for row in read(path)]


def files(name: str, use: Use, data: Path | str) -> list[Path]:
    """The files of a data set in a folder, or of the package's samples for ``"samples"``."""
    if data == "samples":
        return [SAMPLES / f"{name}.jsonl"] if use == "test" else []
    folder = Path(data)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with data sets, got no such folder")
    choices: tuple[str, ...] = getattr(SOURCES[name], use)
    for choice in choices:
        paths = [folder / f"{part}.jsonl" for part in choice.split("+")]
        if all(path.is_file() for path in paths):
            return paths
    if use == "shots":
        return []
    raise missing(name, f"{folder}: expected {' or '.join(f'{c}.jsonl' for c in choices)}, got no such file")


def origin(name: str, use: Use, data: Path | str | None) -> str:
    """Where the rows of a data set are read: files below the folder, without ``.jsonl``, or a set on the hub."""
    if data is None:
        hub = SOURCES[name].hub
        return " ".join(filter(None, (hub.path, hub.config, getattr(hub, use)))) if hub else ""
    folder = SAMPLES if data == "samples" else Path(data)
    return "+".join(path.relative_to(folder).with_suffix("").as_posix() for path in files(name, use, data))


def missing(name: str, what: str) -> DataError:
    """The error for a data set that is not there, with where to get it."""
    source = SOURCES[name]
    hub = f" On the hub it is {source.hub.path}." if source.hub else ""
    return DataError(f"{what}. {name} comes from {source.origin}, licence: {source.licence}.{hub}")


def _from_hub(name: str, source: Source, use: Use) -> list[Row]:
    if source.hub is None:
        raise missing(name, f"{name}: expected a folder with data sets, because it is not on the hub")
    split = getattr(source.hub, use)
    if split is None:
        return []
    try:
        return from_hub(source.hub.path, source.hub.config, split)
    except Exception as error:
        what = f"{name}: could not be loaded from the hub ({type(error).__name__}: {error})"
        raise missing(name, what) from error


def documents(name: str, use: Use, data: Path | str | None, **options: Any) -> list[readers.Document]:
    """The documents of a task, in an order drawn by a fixed seed. Of equal ones the first is left.

    Some sets are sorted by their labels, and ``--limit`` takes the first documents. Some have documents twice, which
    would make intervals too narrow.
    """
    found = SOURCES[name].read(rows(name, use, data), **options)
    random.Random(readers.SEED).shuffle(found)
    return without(found, ())


def without(found: Iterable[readers.Document], others: Iterable[readers.Document]) -> list[readers.Document]:
    """The documents that are not among others, and not there twice. Their ids do not count."""
    seen = {_content(document) for document in others}
    kept: list[readers.Document] = []
    for document in found:
        if (content := _content(document)) not in seen:
            seen.add(content)
            kept.append(document)
    return kept


def _content(document: readers.Document) -> str:
    return json.dumps(
        {field: value for field, value in document.items() if field != "id"}, ensure_ascii=False
    )
