"""The tasks' classes for lm-eval: ``Ranking`` of options, and ``Generation`` of a text."""

# lm-eval has no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import apply_template

from . import mix, ranking
from .data import DataError
from .sources import SOURCES, USES, documents, origin, without

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .readers import Document


class DataTask(ConfigurableTask):
    """A task whose documents come from ``sources``.

    ``dataset_kwargs`` in YAML: ``source``, the name there, and options of its reading function; ``mix``, a language
    into which some words are changed; ``question``, another source with the same ids, which the questions come from.
    ``metadata``: ``data``, a folder, "samples", or nothing for the hub.
    """

    def __init__(self, config: dict[str, Any] | None = None, **_: Any) -> None:
        """Reads the data."""
        config = {"process_results": "by the class", **(config or {})}
        config.pop("class", None)
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Reads the documents into ``dataset``; lm-eval calls it.

        The metadata get ``read``, where the documents of the test come from, their number, and ``passage``, the field
        that those about one text have in common.
        """
        options = dict(dataset_kwargs or {})
        source, into, question = (options.pop(key, None) for key in ("source", "mix", "question"))
        metadata: dict[str, Any] = self.config.metadata or {}
        data = metadata.get("data")
        test, shots = (documents(source, use, data, **options) for use in USES)
        self.dataset = datasets.DatasetDict()
        for use, found in zip(USES, (test, without(shots, test)), strict=True):
            if question and found:
                found = recombined(found, documents(question, use, data, **options))
            if into:
                found = [mix.document(document, into) for document in found]
            if found:
                self.dataset[use] = datasets.Dataset.from_list(found)
        names = [name for name in (source, question) if name]
        read = ", ".join(origin(name, "test", data) for name in names)
        about = {"read": read, "documents": len(self.dataset["test"]), "passage": SOURCES[source].passage}
        self.config.metadata = {**metadata, **about}
        if "shots" not in self.dataset:
            # lm-eval then never draws the example that is asked.
            self.config.fewshot_split = self.fewshot_cfg.split = "test"

    def fewshot_context(self, doc: Document, num_fewshot: int, *args: Any, **given: Any) -> Any:
        """The examples and the question."""
        self.check(num_fewshot)
        return super().fewshot_context(doc, num_fewshot, *args, **given)

    def check(self, shots: int) -> None:
        """Raises :class:`DataError` if there are not so many examples."""
        there = len(self.dataset[self.fewshot_cfg.split]) - (self.fewshot_cfg.split == self.config.test_split)
        if shots > there:
            raise DataError(f"{self.config.task}: expected at most {there} examples in a prompt, got {shots}")


def recombined(passages: Sequence[Document], questions: Sequence[Document]) -> list[Document]:
    """The passages and answers of one language with the questions of another, by id."""
    asked = {document["id"]: document["question"] for document in questions}
    return [{**d, "question": asked[d["id"]]} for d in passages if d["id"] in asked]


class Generation(DataTask):
    """A task that generates a text. ``process_results`` in YAML scores it."""


class Ranking(DataTask):
    """A task that chooses among options, by the four rules of ``ranking``.

    ``doc_to_text`` in YAML is the whole template with ``{{option}}``. The metrics are ``acc`` by the rule ``whole``,
    and ``acc_mean``, ``acc_sum``, ``acc_own``; the same with ``f1``, where the YAML lists them.
    """

    chat = False

    def pieces(self, doc: Document) -> ranking.Pieces:
        """The template filled in."""
        template = apply_template(self.config.doc_to_text, {**doc, "option": ranking.MARK})
        return ranking.pieces(template, self.doc_to_choice(doc), ranking.around(self.config.doc_to_text))

    def doc_to_text(self, doc: Document, doc_to_text: Any = None) -> str:
        """What stands before the option."""
        parts = self.pieces(doc)
        return parts.head + parts.stem

    def gold(self, doc: Document) -> int:
        """The index of the right option."""
        gold: Any = self.doc_to_target(doc)
        return int(gold)

    def fewshot_context(
        self,
        doc: Document,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str:
        """The examples, filled with their right options. In a chat also what stands before the option."""
        self.check(num_fewshot)
        same = self.fewshot_cfg.split == self.config.test_split
        drawn = self.sampler.sample(n=num_fewshot, eval_doc=doc if same else None) if num_fewshot else []
        texts = [text for text in (system_instruction, self.config.description) if text]
        texts += [self.pieces(example).filled(self.gold(example)) for example in drawn]
        self.chat = apply_chat_template
        if apply_chat_template and chat_template:
            parts = self.pieces(doc)
            content = self.config.fewshot_delimiter.join([*texts, parts.head])
            if not content.strip():
                raise DataError(
                    f"{self.config.task}: nothing stands before the option's line, so it cannot be asked in a chat; "
                    "another prompt of the task can"
                )
            return str(chat_template([{"role": "user", "content": content}]))
        return str(self.config.fewshot_delimiter.join(texts))

    def requests(self, doc: Document, context: str) -> list[tuple[str, str]]:
        """The requests of a document, in order."""
        between = self.config.fewshot_delimiter
        return ranking.requests(self.pieces(doc), context, between, whole=not self.chat)

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """The requests as lm-eval's instances."""
        metadata = kwargs["metadata"]
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=pair, idx=index, metadata=metadata)
            for index, pair in enumerate(self.requests(doc, ctx))
        ]

    def process_results(self, doc: Document, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        """The metrics of a document."""
        scores = [score for score, _ in results]
        # The context only matters for the count of tokens, where it cancels out.
        asked = self.requests(doc, "")
        parts = self.pieces(doc)
        counts = ranking.token_counts(asked, scores, self.counter())
        ranked = ranking.rank(parts, scores, counts, whole=not self.chat)
        found: dict[str, Any] = {}
        for rule, values in ranked.items():
            chosen, ending = ranking.best(values), "" if rule == "whole" else f"_{rule}"
            found[f"acc{ending}"] = float(chosen == self.gold(doc))
            found[f"f1{ending}"] = (self.gold(doc), chosen)
        return {name: value for name, value in found.items() if name in self._metric_fn_list}

    def counter(self) -> Callable[[str], int] | None:
        """What counts tokens for a model that does not: a tokenizer of transformers, or bytes, as the metadata says."""
        metadata = self.config.metadata or {}
        if metadata.get("unit") == "byte":
            return lambda text: len(text.encode())
        name = metadata.get("tokenizer") or metadata.get("pretrained")
        return _tokenizer(str(name)) if name else None


@cache
def _tokenizer(name: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
