"""The command line, run as a process: pins, pipes, terminals, Ctrl-C, errors, JSON."""

from __future__ import annotations

import errno
import inspect
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import welm
from welm._cli.terminal import OFF, Progress, Shading, shade_of

from conftest import FIXTURES, GREEDY, PROMPT, read_safetensors

SMOLLM2 = os.environ.get("WELM_SMOLLM2")
ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")
# A request that takes seconds, so that there is time to end it.
LONG = ("--max-tokens", "450", "-n", "60", "--ignore-eos", "--seed", "1", "--isa", "scalar")


def environment(**more: str) -> dict[str, str]:
    """Without what a developer's own may say of colours."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "WELM_ISA")}
    return {**kept, "TERM": "xterm-256color", **more}


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "welm", *map(str, args)]


def run(*args: str | Path, stdin: str | bytes = b"", code: int = 0) -> tuple[str, str]:
    """What it prints on stdout and stderr."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(command(*args), input=data, capture_output=True, env=environment(), timeout=120)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, err
    assert "Traceback" not in err
    return out, err


def run_json(*args: str | Path, stdin: str = "") -> Any:
    out, err = run(*args, "--json", stdin=stdin)
    assert (out.count("\n"), err) == (1, "")
    return json.loads(out)


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, *args: str | Path, **env: str) -> None:
        self._pty, far = pty.openpty()
        self.process = subprocess.Popen(
            command(*args), stdin=far, stdout=far, stderr=far, env=environment(**env), start_new_session=True,
            preexec_fn=lambda: _controlling(far),
        )  # fmt: skip
        os.close(far)
        self.seen = ""
        self._bytes = b""

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        return not select.select([self._pty], [], [], seconds)[0]

    def read(self) -> bool:
        """Reads what has come; ``False`` at the end."""
        assert not self.is_silent(60), self.seen
        try:
            data = os.read(self._pty, 4096)
        except OSError as error:
            if error.errno != errno.EIO:  # of Linux, when the last one there has gone
                raise
            data = b""
        self._bytes += data
        self.seen = self._bytes.decode(errors="ignore").replace("\r\n", "\n")
        return bool(data)

    def wait_for(self, text: str, since: int = 0) -> None:
        while text not in self.seen[since:]:
            assert self.read(), self.seen

    def type(self, text: str) -> None:
        os.write(self._pty, text.encode())

    def end(self) -> tuple[int, str]:
        """The exit code, and all that was to be seen."""
        while self.read():
            pass
        os.close(self._pty)
        assert "Traceback" not in self.seen
        return self.process.wait(60), self.seen


def _controlling(far: int) -> None:
    """Makes the terminal the one whose Ctrl-C this process gets."""
    import fcntl
    import termios

    fcntl.ioctl(far, termios.TIOCSCTTY, 0)


def test_greedy_tokens_of_the_small_model() -> None:
    want = GREEDY
    options = ("--max-tokens", str(len(want)), "--temperature", "0", "--ignore-eos")
    answer = run_json(PROMPT, *options)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == want
    assert answer["usage"]["completion_tokens"] == len(want)
    assert answer["timings"].keys() == {"load_s", "first_token_s", "total_s", "tokens_per_s"}
    text = choice["text"] + "\n"
    assert run(PROMPT, *options) == (text, "")
    assert run("generate", *options, PROMPT) == (text, "")
    assert run("-", *options, stdin=PROMPT + "\n") == (text, "")
    assert run("generate", *options, stdin=PROMPT) == (text, "")


@pytest.mark.parametrize("name", ["neox_sequential", "welm", "llama_gqa", "llama_sharded"])
def test_greedy_tokens_of_every_family(name: str) -> None:
    """The tokens that the Rust tests pin, from transformers; these models have no tokenizer."""
    want = read_safetensors(FIXTURES / name / "expected.safetensors")
    prompt = " ".join(map(str, want["prompt"].flatten()))
    options = ("--max-tokens", "64", "--temperature", "0", "--ignore-eos", "--cache-dtype", "f32")
    answer = run_json("generate", "--tokens", prompt, "--model", FIXTURES / name, *options)
    assert answer["choices"][0]["token_ids"] == want["greedy"].flatten().tolist()


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--seed 3", {"seed": 3}),
        ("--seed 3 -n 3 --echo --max-tokens 9", {"seed": 3, "n": 3, "echo": True, "max_tokens": 9}),
        ("--seed 4 --logprobs 2", {"seed": 4, "logprobs": 2}),
        ("--seed 7 --top-k 3 --top-p 0.6 --min-p 0.1", {"seed": 7, "top_k": 3, "top_p": 0.6, "min_p": 0.1}),
        (
            "--seed 7 --temperature 2 --repetition-penalty 1.5",
            {"seed": 7, "temperature": 2, "repetition_penalty": 1.5},
        ),
        (
            "--seed 2 --frequency-penalty 0.5 --presence-penalty -0.2"
            " --logit-bias 40=2 --logit-bias 40=3 --logit-bias 3=-inf",
            {
                "seed": 2,
                "frequency_penalty": 0.5,
                "presence_penalty": -0.2,
                "logit_bias": {40: 5, 3: -math.inf},
            },
        ),
        ("--seed 1 --stop 。 --stop ， --max-tokens 40", {"seed": 1, "stop": ["。", "，"], "max_tokens": 40}),
        ("--seed 1 --deadline 0", {"seed": 1, "deadline": 0}),
        (
            "--seed 0 --temperature 0 --stop-token-id 9 --stop-token-id 1225 --cache-salt mine --ignore-eos",
            {
                "seed": 0,
                "temperature": 0,
                "stop_token_ids": [9, 1225],
                "cache_salt": "mine",
                "ignore_eos": True,
            },
        ),
    ],
)
def test_flags_are_the_options(model: welm.Model, flags: str, options: dict[str, Any]) -> None:
    want = model.generate(PROMPT, **options)
    answer = run_json(PROMPT, *flags.split())
    assert answer["seed"] == want.seed
    for got, choice in zip(answer["choices"], want.choices, strict=True):
        assert (got["text"], got["finish_reason"]) == (choice.text, choice.finish_reason)
        assert got["end_token"] == choice.end_token
        assert got["token_ids"] == [token.id for token in choice.tokens]
        if "logprobs" not in options:
            assert "tokens" not in got
            continue
        for token, true in zip(got["tokens"], choice.tokens, strict=True):
            assert (bytes(token["bytes"]), token["logprob"]) == (true.bytes, true.logprob)
            assert [other["id"] for other in token["alternatives"]] == [
                other.id for other in true.alternatives
            ]


def test_every_option_has_a_flag_and_the_help_tells_the_engine_s_defaults() -> None:
    helped, _ = run("generate", "--help")
    helped = " ".join(helped.split())
    for call, others in (
        (welm.Model.generate, {"self", "prompt", "cancel"}),
        (welm.Model, {"path", "progress"}),
    ):
        for name, parameter in inspect.signature(call).parameters.items():
            if name in others:
                continue
            named = {"stop_token_ids": "stop_token_id"}.get(name, name).replace("_", "-")
            flag = ("--no-" if parameter.default is True else "--") + named
            about = re.search(rf" {flag} (.*?)( --|$)", helped[helped.index("request:") :])
            assert about, name
            if parameter.default not in (None, True, False):
                assert f"(default: {parameter.default})" in about[1], name


def test_a_line_of_json_for_each_piece() -> None:
    flags = ("--seed", "5", "-n", "2", "--max-tokens", "12", "--logprobs", "0")
    whole = run_json(PROMPT, *flags)
    out, _ = run(PROMPT, *flags, "--json", "--stream")
    *pieces, summary = [json.loads(line) for line in out.splitlines()]
    assert {key: summary[key] for key in ("seed", "usage")} == {key: whole[key] for key in ("seed", "usage")}
    assert len(pieces) > 12
    for index, choice in enumerate(whole["choices"]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [token for piece in own for token in piece["tokens"]] == choice["tokens"]
        assert [bool(piece["finish"]) for piece in own] == [False] * (len(own) - 1) + [True]
        assert own[-1]["finish"]["reason"] == choice["finish_reason"]


def test_several_sequences_come_one_after_another() -> None:
    flags = ("--seed", "5", "-n", "3", "--max-tokens", "12")
    choices = run_json(PROMPT, *flags)["choices"]
    out, _ = run(PROMPT, *flags)
    assert out == "".join(f"[{i}] {choice['text']}\n" for i, choice in enumerate(choices))


def test_json_is_ascii_where_the_output_is_not_utf_8() -> None:
    line = command(PROMPT, "--json", "--seed", "1")
    out = subprocess.run(
        line, capture_output=True, env=environment(PYTHONIOENCODING="latin-1"), check=True
    ).stdout
    assert out.isascii()
    assert json.loads(out)["choices"] == run_json(PROMPT, "--seed", "1")["choices"]
    line = command(PROMPT, "--seed", "1")
    out = subprocess.run(
        line, capture_output=True, env=environment(PYTHONIOENCODING="latin-1"), check=True
    ).stdout
    assert out.startswith(b"\\u")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((PROMPT, "--top-p", "1.5"), "option `top_p`: expected 0 to 1, got 1.5"),
        ((PROMPT, "--max-tokens", "-1"), "option `max_tokens`: expected 0 or more, got -1"),
        ((PROMPT, "-n", "0"), "option `n`: expected 1 to 128, got 0"),
        ((PROMPT, "--max-tokens", "600"), "context"),
        ((PROMPT, "--dtype", "int3"), 'option `dtype`: expected auto, f32, bf16 or int8, got "int3"'),
        ((PROMPT, "--memory-limit", "1M"), "model needs"),
        ((PROMPT, "--model", "/no/such/model"), "/no/such/model"),
        ((PROMPT, "--model", FIXTURES / "welm"), "tokenizer"),
        (("generate", "--tokens", "9999999"), "option `prompt`"),
        (("chat",), "chat template: this model has none"),
        (("info", "/no/such/model"), "/no/such/model"),
        (("quantize", "/no/such/model", "/tmp/never-made"), "/no/such/model"),
        (("bench", "--prompt-tokens", "5000"), "context"),
    ],
)
def test_errors_are_a_line_and_exit_code_1(args: tuple[str, ...], message: str) -> None:
    out, err = run(*args, code=1)
    assert "python -m welm: " in err
    assert (message in err, err.count("\n"), out if args[0] != "bench" else "") == (True, 1, "")


@pytest.mark.parametrize(
    "args",
    [
        (),
        (PROMPT, "--max-tokens", "many"),
        (PROMPT, "--no-such-flag"),
        (PROMPT, "--max-tok", "3"),
        (PROMPT, "another"),
        (PROMPT, "--memory-limit", "much"),
        ("generate", "--tokens", "1 2 x"),
        ("score", PROMPT),
        ("quantize", "from"),
        ("bench", "--sequences", "1,0"),
        ("bench", "--rounds", "0"),
    ],
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...]) -> None:
    out, err = run(*args, code=2)
    assert (out, "usage: python -m welm" in err) == ("", True)


def test_bytes_that_are_no_text() -> None:
    _, err = run("-", stdin=b"\xff\xfe", code=1)
    assert "utf-8" in err
    done = subprocess.run([*command(), b"\xff"], capture_output=True, env=environment())
    assert (done.returncode, b"expected UTF-8" in done.stderr) == (2, True)


def test_help_and_version() -> None:
    assert run("--version") == (f"welm {welm.__version__}\n", "")
    out, _ = run("--help")
    for name in ("generate", "chat", "score", "quantize", "info", "bench"):
        assert f"\n  {name} " in out
        helped, _ = run(name, "--help")
        assert f"usage: python -m welm {name} " in helped
        assert "\nexamples:\n  python -m welm " in helped


def test_a_prompt_may_be_a_command_s_name() -> None:
    assert run_json("generate", "chat", "--seed", "1")["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("flags", [(), ("--json", "--stream")])
def test_ctrl_c_ends_with_what_there_is(flags: tuple[str, ...]) -> None:
    line, pipe = command(PROMPT, *LONG, *flags), subprocess.PIPE
    # Without a buffer: what was read ahead would be lost to `communicate`.
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, env=environment(), bufsize=0) as process:
        assert process.stdout is not None
        begin = process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    out = (begin + rest).decode()
    assert out.endswith("\n")
    if flags:
        *pieces, summary = [json.loads(line) for line in out.splitlines()]
        assert sum(piece["finish"] is not None for piece in pieces) == 60
        assert sum(len(piece["token_ids"]) for piece in pieces) == summary["usage"]["completion_tokens"]
    else:
        assert out.startswith("[0] ")
        assert "\n[59] " in out


def test_ctrl_c_ends_a_json_object() -> None:
    """It is sent when the 200th piece comes: nothing is written before the end that could be waited for."""
    program = f"""
import os, signal, sys
from welm._cli import answer, main
add, pieces = answer.Answer.add, []
def interrupted(self, piece):
    add(self, piece)
    pieces.append(piece)
    if len(pieces) == 200:
        os.kill(os.getpid(), signal.SIGINT)
answer.Answer.add = interrupted
sys.exit(main({[PROMPT, *LONG, "--json"]!r}))
"""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, env=environment(), timeout=120, check=False)
    assert (done.returncode, done.stderr) == (130, b"")
    answer = json.loads(done.stdout)
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"cancelled"}
    assert 200 <= answer["usage"]["completion_tokens"] < 60 * 450


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        command(PROMPT, *LONG, "--json", "--stream"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")


def test_text_comes_to_a_terminal_as_it_is_made() -> None:
    terminal = Terminal(PROMPT, *LONG)
    terminal.wait_for("[0] ")
    assert terminal.process.poll() is None
    terminal.type("\x03")
    code, seen = terminal.end()
    assert code == 130
    assert "\n[59] " in seen
    assert re.search(r"5 prompt tokens, .*; seed 1; cpu", seen)


def test_colours_are_for_terminals_only(model: welm.Model) -> None:
    flags = ("--seed", "2", "--logprobs", "0", "--max-tokens", "30")
    text = model.generate(PROMPT, seed=2, max_tokens=30).text
    code, seen = Terminal(PROMPT, *flags, "-q").end()
    assert (code, ESCAPE.sub("", seen)) == (0, text + "\n")
    assert len(set(re.findall(r"\x1b\[38;5;\d+m", seen))) > 1
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        _, seen = Terminal(PROMPT, *flags, **env).end()
        assert seen.startswith(text + "\n5 prompt tokens, ")
        assert "\x1b" not in seen
    assert run(PROMPT, *flags) == (text + "\n", "")


def test_colours_of_characters() -> None:
    def token(data: bytes, logprob: float | None) -> welm.Token:
        return welm.Token(0, logprob, (), data)

    half = "月".encode()
    likely, unlikely = shade_of(0.0), shade_of(-9.0)
    assert likely != unlikely
    shading = Shading()
    shading.add((token(half[:1], -4.5),))
    assert shading.shade("") == ""
    shading.add((token(half[1:], -4.5), token("照abc".encode(), 0.0)))
    assert shading.shade("月照") == f"{unlikely}月{likely}照{OFF}"
    shading.add((token(b"de", -9.0),))
    assert shading.shade("abcde") == f"{likely}abc{unlikely}de{OFF}"
    shading.add((token(b"x", None), token(b" y", 0.0)))
    assert shading.shade("x y") == f"x{likely} y{OFF}"
    assert Shading().shade("no tokens") == "no tokens"
    spaced = Shading()
    spaced.add((token(b" a", 0.0),))
    assert spaced.shade("a") == f"{likely}a{OFF}"


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("work") as progress:
        for done in (0, 5, 6, 49, 50, 100):
            progress(done, 100)
    lines = capsys.readouterr().err
    assert lines == "".join(f"work: {percent} % of 0.0 MB\n" for percent in (40, 50, 100))
    with Progress("work", quiet=True) as progress:
        progress(1, 1)
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("work") as progress:
        progress(25, 100)
        assert capsys.readouterr().err == ""
        now[0] = 1.0
        progress(50, 100)
        progress(51, 100)
    assert capsys.readouterr().err == f"\rwork {'█' * 15}{'░' * 15}  50% of 0.0 MB\r\x1b[K"


def test_score(model: welm.Model) -> None:
    texts = ["地上霜疑是。", "疑是地上霜。", "今天买电脑。"]
    want = model.score(PROMPT, texts)
    answer = run_json("score", PROMPT, *texts)
    assert [row["continuation"] for row in answer["scores"]] == texts
    assert [row["logprob"] for row in answer["scores"]] == [score.logprob for score in want]
    assert [row["token_ids"] for row in answer["scores"]] == [
        [token.id for token in score.tokens] for score in want
    ]
    head, *rows = run("score", "-", *texts, stdin=PROMPT)[0].splitlines()
    assert head.split() == ["logprob", "a", "token", "tokens", "continuation"]
    assert [row.split()[-1] for row in rows] == ["疑是地上霜。", "地上霜疑是。", "今天买电脑。"]
    assert rows[0].split()[:3] == [f"{want[1].logprob:.3f}", f"{want[1].logprob / 6:.3f}", "6"]


def test_quantize(tmp_path: Path) -> None:
    out, err = run("quantize", FIXTURES / "llama_gqa", tmp_path / "int8")
    assert err.startswith("quantizing: 10 % of 0.1 MB\n")
    assert err.endswith("quantizing: 100 % of 0.1 MB\n")
    size = (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert f"{size / 1e6:,.1f} MB in {tmp_path / 'int8'}" in out
    answer = run_json("generate", "--tokens", "1 2 3", "--model", tmp_path / "int8", "--max-tokens", "4")
    assert len(answer["choices"][0]["token_ids"]) == 4
    assert run_json("quantize", FIXTURES / "llama_gqa", tmp_path / "again")["bytes"] == size


def test_info(model: welm.Model) -> None:
    about = run_json("info", "--cache-tokens", "1024")
    for name in ("family", "n_params", "dim", "n_layers", "vocab_size", "eos_token_ids"):
        want = getattr(model.config, name)
        assert about[name] == (list(want) if isinstance(want, tuple) else want)
    assert about["memory"]["cache_bytes"] == welm.Model.estimate(cache_tokens=1024).cache_bytes
    assert about["has_chat_template"] is False
    out, _ = run("info", FIXTURES / "gguf_llama_q4_1" / "model.gguf")
    assert re.search(r"^family +llama$", out, re.M)
    assert re.search(r"^memory +\d+\.\d MB in all$", out, re.M)


def test_bench() -> None:
    flags = ("--prompt-tokens", "8,16", "--sequences", "1,2", "--new-tokens", "4", "--rounds", "2")
    about = run_json("bench", *flags)
    rows = [(row["what"], row.get("prompt_tokens") or row["sequences"]) for row in about["measurements"]]
    assert rows == [("prefill", 8), ("prefill", 16), ("decode", 1), ("decode", 2)]
    assert all(row["tokens_per_s"] > 0 and len(row["rounds"]) == 2 for row in about["measurements"])
    assert about["peak_resident_bytes"] > 1e6
    out, _ = run("bench", *flags)
    assert re.search(r"^decode 4 × 2 +[\d,]+\.\d", out, re.M)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a chat template: it says nothing sensible, but says it in turns."""
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(welm.NANO, folder, dirs_exist_ok=True)
    template = json.loads((FIXTURES / "chat.json").read_text("utf-8"))["templates"]["nano"]
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def test_chat_keeps_the_conversation(talker: Path) -> None:
    model = welm.Model(talker)
    flags = ("chat", "--model", talker, "--system", "诗", "--seed", "3", "--max-tokens", "20")
    messages = [{"role": "system", "content": "诗"}]
    for said in ("春", "秋"):
        messages.append({"role": "user", "content": said})
        answer = model.generate(model.chat_tokens(messages), seed=3, max_tokens=20).text
        messages.append({"role": "assistant", "content": answer})
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert run(*flags, stdin="春\n\n秋\n") == ("".join(answer + "\n" for answer in answers), "")
    out, _ = run(*flags, "--json", stdin="春\n秋")
    assert [json.loads(line)["content"] for line in out.splitlines()] == answers


def test_chat_tells_that_the_context_is_full(talker: Path) -> None:
    _, err = run("chat", "--model", talker, stdin="春" * 600, code=1)
    assert "context" in err
    assert "/reset makes room" in err
    _, err = run("chat", "--model", talker, "--max-tokens", "510", stdin="春", code=1)
    assert "a smaller --max-tokens or /reset makes room" in err
    out, _ = run(
        "chat", "--model", talker, "--json", "--context-tokens", "64", "--temperature", "0.1", stdin="春"
    )
    answer = json.loads(out)
    if answer["finish_reason"] == "length":
        assert answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"] == 64


def test_chat_in_a_terminal(talker: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    model = welm.Model(talker)
    options: dict[str, Any] = {"seed": 3, "max_tokens": 6}
    terminal = Terminal("chat", "--model", talker, "--seed", "3", "--max-tokens", "6", NO_COLOR="1")
    terminal.wait_for("> ")

    def ask(line: str, answer: str) -> None:
        since = len(terminal.seen)
        terminal.type(line)
        terminal.wait_for(answer, since)
        terminal.wait_for("> ", since)

    def said(*messages: tuple[str, str]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        return model.generate(model.chat_tokens(chat), **options).text

    first = said(("user", "春"))
    ask("春\n", first.splitlines()[0])
    ask("/nonsense\n", "/reset        forgets the conversation")
    since = len(terminal.seen)
    terminal.type("half a line")
    terminal.wait_for("half a line", since)
    terminal.type("\x03")
    while terminal.is_silent(2):  # Python forgets a Ctrl-C that comes just before it begins to wait
        terminal.type("\x03")
    terminal.wait_for("> ", since)
    ask("/system 诗\n", "")
    second = said(("system", "诗"), ("user", "秋"))
    ask("秋\n", second.splitlines()[0])
    ask(f"/save {saved}\n", "")
    ask("/save /no/such/folder/file\n", "No such file")
    ask("春" * 600 + "\n", "/reset makes room")
    terminal.type("\x04")
    code, seen = terminal.end()
    assert code == 0, seen
    assert json.loads(saved.read_text("utf-8")) == [
        {"role": "system", "content": "诗"},
        {"role": "user", "content": "秋"},
        {"role": "assistant", "content": second},
    ]


@pytest.mark.skipif(not SMOLLM2, reason="WELM_SMOLLM2 names no GGUF file")
def test_chat_with_a_real_model(tmp_path: Path) -> None:
    assert SMOLLM2
    question = "What is the capital of France? Answer in one word."
    out, _ = run("chat", "--model", SMOLLM2, "--temperature", "0", "--max-tokens", "12", stdin=question)
    assert "Paris" in out

    terminal = Terminal("chat", "--model", SMOLLM2, "--temperature", "0", NO_COLOR="1")
    terminal.wait_for("> ")
    since = len(terminal.seen)
    terminal.type("Count from one to one hundred, in words.\n")
    terminal.wait_for("\n", since)
    while len(terminal.seen[since:].partition("\n")[2]) < 20:  # some of the answer is there
        assert terminal.read()
    terminal.type("\x03")
    terminal.wait_for("[stopped]", since)
    terminal.wait_for("> ", since)
    terminal.type(f"/save {tmp_path / 'chat.json'}\n\x04")
    code, seen = terminal.end()
    assert code == 0, seen
    question, answer = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    assert (question["role"], answer["role"], bool(answer["content"])) == ("user", "assistant", True)


def test_nothing_is_imported_that_is_not_needed() -> None:
    program = (
        f"import sys; from welm._cli import main; code = main([{PROMPT!r}, '--max-tokens', '2']);"
        "print([name for name in ('asyncio', 'json', 'numpy', 'inspect', 'subprocess') if name in sys.modules], code)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env=environment()
    ).stdout
    assert out.decode().splitlines()[-1] in ("[] 0", "['inspect'] 0")  # dataclasses imports inspect
