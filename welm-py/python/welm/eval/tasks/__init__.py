"""Chinese and mixed-language tasks for lm-eval.

They work in every installation of lm-eval, also without welm: this folder is all that ``--include_path`` needs::

    lm_eval --include_path FOLDER --metadata '{"data": "samples"}' --tasks c3,tnews_prompts --model hf ...

``README.md`` beside this file has a table of the tasks and says how to add one.
"""

# lm-eval has no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

FOLDER = Path(__file__).resolve().parent

# Each task has further prompts, NAME_2 and so on, and a group of all of them, NAME_prompts.
TASKS: dict[str, str] = {
    "cmrc2018": "reading comprehension; generates; EM, F1",
    "drcd": "reading comprehension in traditional characters; generates; EM, F1",
    "dureader": "questions to a search engine, with texts; generates; ROUGE",
    "pd": "the missing word of a news text; generates; accuracy",
    "cft": "the missing word of a fairy tale; generates; accuracy",
    "cmrc2017": "the missing word of a children's text; generates; accuracy",
    "chid": "the missing idiom; ranks; accuracy",
    "cmrc2019": "the missing sentence; ranks; accuracy",
    "cmnli": "inference, translated; ranks; accuracy",
    "ocnli": "inference, written in Chinese; ranks; accuracy",
    "tnews": "topic of a news title, of 15; ranks; accuracy",
    "tnews_4way": "topic of a news title, of 4; ranks; accuracy",
    "iflytek": "kind of an app, of 119; ranks; accuracy",
    "iflytek_4way": "kind of an app, of 4; ranks; accuracy",
    "chnsenticorp": "sentiment of a review; ranks; accuracy",
    "smp-ecisa": "sentiment that no word names; ranks; accuracy, macro-F1",
    "lcsts": "summary of a short news text; generates; ROUGE",
    "adgen": "advertisement from attributes; generates; ROUGE, BLEU",
    "webqa": "questions without a text; generates; EM, F1",
    "cluewsc2020": "what a pronoun means; ranks; accuracy",
    "c3": "questions about dialogues and texts; ranks; accuracy",
}
LANGUAGES: dict[str, str] = {
    "c3_mix_en": "c3 with English words; ranks; accuracy",
    "tnews_mix_en": "tnews with English words; ranks; accuracy",
    "c3_mix_ja": "c3 with Japanese words; ranks; accuracy",
    "tnews_mix_ja": "tnews with Japanese words; ranks; accuracy",
    "xquad_p_zh_q_zh": "reading comprehension, passage and question Chinese; generates; EM, F1",
    "xquad_p_zh_q_en": "reading comprehension, passage Chinese, question English; generates; EM, F1",
    "xquad_p_en_q_zh": "reading comprehension, passage English, question Chinese; generates; EM, F1",
    "xquad_p_en_q_en": "reading comprehension, passage and question English; generates; EM, F1",
}
# Tasks that lm-eval has itself, for models of Chinese, English, Japanese and Korean.
FROM_LM_EVAL: tuple[str, ...] = (
    "belebele_zho_Hans",
    "belebele_zho_Hant",
    "belebele_eng_Latn",
    "belebele_jpn_Jpan",
    "belebele_kor_Hang",
    "xnli_zh",
    "xnli_en",
    "xcopa_zh",
    "xstorycloze_zh",
    "xstorycloze_en",
    "xwinograd_zh",
    "xwinograd_jp",
    "xwinograd_en",
    "paws_zh",
    "paws_ja",
    "paws_ko",
    "paws_en",
    "mlqa_zh_zh",
    "mlqa_zh_en",
    "mlqa_en_zh",
    "mgsm_direct_zh",
    "mgsm_direct_ja",
)


def manager(data: Path | str | None = None, **metadata: Any) -> TaskManager:
    """The tasks of this folder and of lm-eval.

    ``data`` is a folder with ``<task>/<split>.jsonl``, "samples" for ten made-up examples a task, or nothing for the
    Hugging Face hub. ``metadata`` is handed on to the tasks: ``unit="byte"`` or ``tokenizer="NAME"`` for a model that
    does not tell how many tokens a text has.
    """
    from lm_eval.tasks import TaskManager

    known = {} if data is None else {"data": str(data)}
    return TaskManager(include_path=str(FOLDER), metadata={**known, **metadata})


def published() -> dict[str, Any]:
    """Figures from papers, with the protocol and the source of each."""
    figures: dict[str, Any] = json.loads((FOLDER / "published.json").read_text("utf-8"))
    return figures
