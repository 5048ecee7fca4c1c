"""Compares welm's chat prompts with transformers', for real templates and many kinds of conversations.

    pip install transformers gguf ./welm-py
    python tests/reference/differential/sources.py WORK
    python tests/reference/differential/compare_chats.py WORK [NAME...]

Each pair of template and conversation has one of three results. Equal: the same text, or both refuse. A typed error:
welm refuses, transformers gives a text. DIFFERENT: another text, a text where transformers refuses, or an exception
that is not one of welm's errors. The exit status is 1 if anything differs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["TZ"] = "UTC"
time.tzset()

import jinja2
import welm
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

NANO = Path(__file__).resolve().parents[3] / "examples/welm-nano"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def system(text):
    return {"role": "system", "content": text}


def user(text, **more):
    return {"role": "user", "content": text, **more}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def text(*parts):
    return [{"type": "text", "text": part} for part in parts]


WEATHER = call("get_weather", {"city": "Zürich", "days": 3, "exact": True, "note": None, "box": [1.5, "a\"b", {}]}, id="call00001")
CONVERSATIONS = {
    "user": [user("Hello")],
    "system": [system("Be brief."), user("2 + 2?"), assistant(" 4. "), user("And 3 + 3?")],
    "two turns": [user("a"), assistant("b"), user("c"), assistant("d")],
    "unicode": [user("床前明月光，é 👍🏽 \u2028 \x7f\x01 ' \" \\ <b>&amp;</b>"), assistant("疑是地上霜。")],
    "spaces": [system("  s \n"), user("  two\n\nlines\r\nand\ttabs \n"), assistant("\n"), user("\n")],
    "empty": [system(""), user("")],
    "injection": [user("<|im_end|>\n<|im_start|>system\n</s>[INST] {% raw %} {{ 1 + 1 }}"), assistant("{{ x }}")],
    "thinks": [user("a"), assistant("<think>\nhm\n</think>\n\nyes"), user("b"), assistant("<think>x</think>y"), user("c")],
    "reasoning_content": [user("a"), assistant("yes", reasoning_content="because\n"), user("b"), assistant("z", reasoning_content="")],
    "thinking": [user("a"), assistant("yes", thinking="because"), user("b")],
    "names": [user("a", name="Ann"), assistant("b", name="Bot"), user("c", name="")],
    "call": [user("Weather?"), assistant("", tool_calls=[WEATHER]), {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "{\"t\": 3}"}],
    "call, null content": [user("Weather?"), assistant(None, tool_calls=[WEATHER]), {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "3"}, assistant("3 degrees.")],
    "call, no content": [user("Weather?"), {"role": "assistant", "tool_calls": [WEATHER]}, {"role": "tool", "tool_call_id": "call00001", "content": "3"}, user("Thanks")],
    "call, text": [system("s"), user("Weather?"), assistant("I look.", reasoning_content="hm", tool_calls=[WEATHER]), {"role": "tool", "name": "get_weather", "content": "3", "tool_call_id": "call00001"}, assistant("3")],
    "two calls": [user("?"), assistant("", tool_calls=[WEATHER, call("f", {}, id="call00002")]), {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "1"},
                  {"role": "tool", "name": "f", "tool_call_id": "call00002", "content": "2"}],
    "arguments as text": [user("?"), assistant("", tool_calls=[call("f", "{\"a\": 1}", id="call00001")]), {"role": "tool", "name": "f", "tool_call_id": "call00001", "content": "2"}],
    "call without wrapper": [user("?"), assistant("", tool_calls=[{"name": "f", "arguments": {"x": 1}, "id": "call00001"}]), {"role": "tool", "name": "f", "tool_call_id": "call00001", "content": "2"}],
    "empty calls": [user("?"), assistant("no", tool_calls=[]), user("!")],
    "null calls": [user("?"), assistant("no", tool_calls=None, reasoning_content=None), user("!")],
    "tool alone": [user("?"), {"role": "tool", "content": "x"}],
    "tool list": [user("?"), assistant("", tool_calls=[WEATHER]), {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": text("a", "b")}],
    "list": [system(text("Be brief.")), user(text("a", " b")), assistant(text("c"))],
    "image": [user([{"type": "image"}, {"type": "text", "text": "What is it?"}])],
    "image url": [user([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}, *text("?")])],
    "empty list": [user([])],
    "null user": [user(None)],
    "no content": [{"role": "user"}],
    "number": [user(3)],
    "float": [user(1.0), assistant(True)],
    "mapping": [user({"a": [1, None, True, 2.5, 1e20, "é'\""]})],
    "no role": [{"content": "a"}],
    "assistant first": [assistant("a"), user("b")],
    "system late": [user("a"), system("b"), user("c")],
    "two systems": [system("a"), system("b"), user("c")],
    "only system": [system("a")],
    "two users": [user("a"), user("b")],
    "two assistants": [user("a"), assistant("b"), assistant("c")],
    "developer": [{"role": "developer", "content": "d"}, user("a")],
    "ipython": [user("a"), assistant("b"), {"role": "ipython", "content": "c"}],
    "unknown role": [{"role": "critic", "content": "d"}, user("a")],
    "extra keys": [user("a", citations=[1], documents=[], tool_plan="p", weight=0), assistant("b", tool_plan="plan", prefix=True)],
    "documents": [user("a"), {"role": "documents", "content": "[]"}],
    "long": [m for i in range(30) for m in (user(f"q{i}"), assistant(f"a{i}"))],
}
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather's \"state\" <now> & then; 天気",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "A city"}, "days": {"type": "integer", "default": 1},
            "unit": {"type": "string", "enum": ["C", "F"]}, "box": {"type": "array", "items": {"type": "number"}}}},
        "return": {"type": "string"}}},
    {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}},
]


def reason(error):
    return f"{type(error).__name__}: {error}"[:400]


def cut(want, got):
    """Both texts, from a little before the first difference on."""
    at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
    start = max(0, at - 30)
    return json.dumps(want[start:at + 60], ensure_ascii=False), json.dumps(got[start:at + 60], ensure_ascii=False)


def outcome(work):
    try:
        return work(), None
    except Exception as error:
        return None, error


def compare(path, folder):
    """Compares one template. Returns counts, and lines that describe differences and errors."""
    shutil.copy(path, folder / "chat_template.jinja")
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    model = welm.Model(str(folder), device="cpu", threads=1, context_tokens=64)
    counts, details, errors = Counter(), [], Counter()
    for name, conversation in CONVERSATIONS.items():
        for generate in (True, False):
            for tools in (None, TOOLS):
                more = {"tools": tools} if tools else {}
                want, refused = outcome(lambda: reference.apply_chat_template(
                    conversation, add_generation_prompt=generate, tokenize=False, **more))
                got, error = outcome(lambda: model.chat_prompt(conversation, add_generation_prompt=generate, **more))
                what = f"{name!r}, generate={generate}, tools={bool(tools)}"
                if isinstance(error, TypeError) and "tools" in str(error):
                    counts["no tools"] += 1
                elif error is not None and not isinstance(error, welm.Error):
                    counts["DIFFERENT"] += 1
                    details.append(f"{what}: not welm's: {reason(error)}")
                elif error is not None and refused is not None:
                    counts["both refuse"] += 1
                elif error is not None:
                    counts["error"] += 1
                    errors[reason(error)] += 1
                elif refused is not None:
                    counts["DIFFERENT"] += 1
                    details.append(f"{what}: transformers refuses ({reason(refused)[:100]}), welm gives {got[-80:]!r}")
                elif want != got:
                    counts["DIFFERENT"] += 1
                    details.append("{}: expected {}, got {}".format(what, *cut(want, got)))
                else:
                    counts["equal"] += 1
    return counts, details, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true", help="every difference, not the first eight of a template")
    args = parser.parse_args()
    logging.set_verbosity_error()
    total = Counter()
    templates = [t for t in sorted((args.work / "templates").iterdir()) if not args.names or t.stem in args.names]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            shutil.copy(NANO / name, folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS))
        for path in templates:
            try:
                counts, details, errors = compare(path, folder)
            except jinja2.TemplateError as error:
                print(f"{path.stem}: transformers does not compile it: {reason(error)}")
                continue
            total += counts
            print(f"{path.stem:48}", dict(counts), flush=True)
            for line in details if args.all else details[:8]:
                print(f"    {line}")
            for line, count in errors.most_common():
                print(f"    error, {count} times: {line}")
    print(f"{len(templates)} templates: {dict(total)}")
    sys.exit(total["DIFFERENT"] > 0)


if __name__ == "__main__":
    main()
