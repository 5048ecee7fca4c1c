"""The command line, run as a process: pins, pipes, terminals, Ctrl-C, errors, JSON."""

from __future__ import annotations

import errno
import fcntl
import inspect
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import welm
from welm._cli import COMMANDS, arguments, terminal
from welm._cli.streams import one_line
from welm._cli.terminal import OFF, Progress, Shading, shade_of, width, wrapped

from conftest import FIXTURES, GREEDY, PROMPT, read_safetensors

SMOLLM2 = os.environ.get("WELM_SMOLLM2")
ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")
# A request that takes seconds, so that there is time to end it.
LONG = ("--max-tokens", "450", "-n", "60", "--ignore-eos", "--seed", "1", "--isa", "scalar")


def environment(**more: str) -> dict[str, str]:
    """An environment without a developer's own settings of colours."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "WELM_ISA")}
    return {**kept, "TERM": "xterm-256color", **more}


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "welm", *map(str, args)]


def run(*args: str | Path, stdin: str | bytes = b"", code: int = 0) -> tuple[str, str]:
    """Runs a command line, and gives its stdout and stderr."""
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

    def __init__(
        self,
        *args: str | Path,
        env: dict[str, str] | None = None,
        columns: int | None = None,
        program: str | None = None,
    ) -> None:
        self._pty, far = pty.openpty()
        if columns:
            self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program] if program else command(*args),
            stdin=far, stdout=far, stderr=far, env=environment(**env or {}), start_new_session=True,
            preexec_fn=lambda: _controlling(far),
        )  # fmt: skip
        os.close(far)
        self.seen = ""
        self._bytes = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._pty, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def echoes(self) -> bool:
        """Whether the terminal has a shell's settings: typed text is echoed, and read line by line."""
        flags = termios.tcgetattr(self._pty)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing comes for this time."""
        return not select.select([self._pty], [], [], seconds)[0]

    def read(self) -> bool:
        """Reads what has come; ``False`` at the end."""
        assert not self.is_silent(60), self.seen
        try:
            data = os.read(self._pty, 4096)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux gives this after the last process has ended
                raise
            data = b""
        self._bytes += data
        self.seen = self._bytes.decode(errors="ignore").replace("\r\n", "\n")
        return bool(data)

    def wait_for(self, text: str, since: int = 0) -> None:
        while text not in self.seen[since:]:
            assert self.read(), self.seen

    def type(self, text: str | bytes) -> None:
        os.write(self._pty, text.encode() if isinstance(text, str) else text)

    def end(self) -> tuple[int, str]:
        """The exit code, and all output."""
        while self.read():
            pass
        os.close(self._pty)
        assert "Traceback" not in self.seen
        return self.process.wait(60), self.seen


def _controlling(far: int) -> None:
    """Makes this the controlling terminal of the process, so that it gets its Ctrl-C."""
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
                assert f"default: {parameter.default})" in about[1], name


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
        (
            (PROMPT, "--max-tokens", str(1 << 64)),
            "option `max_tokens`: expected at most 18446744073709551615",
        ),
        ((PROMPT, "--max-tokens", "600"), "context"),
        ((PROMPT, "--isa", "sse2"), "instruction set `sse2`"),
        ((PROMPT, "--memory-limit", "1M"), "model needs"),
        ((PROMPT, "--model", "/no/such/model"), "/no/such/model"),
        ((PROMPT, "--model", FIXTURES / "welm"), "tokenizer"),
        (("generate", "--tokens", "9999999"), "option `prompt`"),
        (("chat",), "chat template: this model has none"),
        (("info", "/no/such/model"), "/no/such/model"),
        (("quantize", "/no/such/model", "/tmp/never-made"), "/no/such/model"),
        (("bench", "--prompt-tokens", "5000"), "a context and a cache of 5001 tokens or more"),
        (("bench", "--context-tokens", "1"), "a context and a cache of 80 tokens or more"),
        (("-", "--max-tokens", "1", "--model", FIXTURES / "welm"), "tokenizer"),
    ],
)
def test_errors_are_a_line_and_exit_code_1(args: tuple[str, ...], message: str) -> None:
    out, err = run(*args, code=1)
    assert "python -m welm: " in err
    assert (message in err, err.count("\n"), out) == (True, 1, ""), err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((PROMPT, "--max-tokens", "many"), '--max-tokens: expected a whole number, 0 or more, got "many"'),
        ((PROMPT, "--temperature", "warm"), '--temperature: expected a number, 0 to 100, got "warm"'),
        ((PROMPT, "--memory-limit", "much"), '--memory-limit: expected bytes, such as 8G, got "much"'),
        ((PROMPT, "--memory-limit", "-1"), '--memory-limit: expected bytes, such as 8G, got "-1"'),
        ((PROMPT, "--logit-bias", "3"), 'such as 40=-2.5, got "3"'),
        ((PROMPT, "--logit-bias", "3=nan"), 'such as 40=-2.5, got "3=nan"'),
        ((PROMPT, "--deadline", "-0.1"), "--deadline: expected 0 or more, got -0.1"),
        ((PROMPT, "--stop-token-id", "-1"), "--stop-token-id: expected 0 or more, got -1"),
        ((PROMPT, "--stop"), "--stop: expected one argument"),
        ((PROMPT, "--max-tok", "3"), "unknown option --max-tok, did you mean --max-tokens?"),
        ((PROMPT, "--max_tokens", "3"), "unknown option --max_tokens, did you mean --max-tokens?"),
        (("chat", "--sytem", "x"), "unknown option --sytem, did you mean --system?"),
        (("-。", "--seed", "1"), "unknown option -。; a text that begins with a dash comes after --"),
        ((PROMPT, "--a\nb"), "unknown option --a b"),
        ((PROMPT, "\x1b[1m"), r'unexpected argument "\x1b[1m"'),
        ((PROMPT, "another"), 'unexpected argument "another"; a prompt with spaces'),
        (("translate", "it"), "commands are generate, chat, score, quantize, info, bench"),
        (("chat", FIXTURES / "welm"), f"; a model is --model {FIXTURES / 'welm'}"),
        ((PROMPT, "--dtype", "int3"), '--dtype: expected auto, f32, bf16 or int8, got "int3", did you mean int8?'),
        ((PROMPT, "--device", "cdua:1"), 'expected auto, cpu, cuda or cuda:N, got "cdua:1", did you mean cuda?'),
        ((PROMPT, "--device", "cuda:x"), 'expected auto, cpu, cuda or cuda:N, got "cuda:x"'),
        (("generat", "x"), "unknown command generat, did you mean generate?"),
        (("chta",), "unknown command chta, did you mean chat?"),
        (("hcat",), "unknown command hcat, did you mean chat?"),
        (("Quantise", "a", "b"), "unknown command Quantise, did you mean quantize?"),
        (("INFO",), "unknown command INFO, did you mean info?"),
        (("--model", "x", "chat"), "the command chat comes first"),
        (("--seed", "1", "banch"), "unknown command banch, did you mean bench?"),
        (("generate", "--tokens", "1 2 x"), '--tokens: of token ids expected a whole number, 0 or more, got "x"'),
        (("generate", "--tokens", "1 -2"), "--tokens: of token ids expected 0 or more, got -2"),
        (("score", PROMPT), "required: CONTINUATION"),
        (("quantize", "from"), "required: TO"),
        (("info", "one", "--model", "another"), "expected one model, got one and another"),
        (("bench", "--sequences", "1,0"), '--sequences: expected whole numbers, 1 to 4096, such as 1,8, got "1,0"'),
        (("bench", "--sequences", "5000"), "1 to 4096"),
        (("bench", "--prompt-tokens", "8,"), "--prompt-tokens: expected whole numbers, 1 or more"),
        (("bench", "--rounds", "0"), "--rounds: expected 1 or more, got 0"),
        (("bench", "--new-tokens", "1"), "--new-tokens: expected 2 or more, got 1"),
    ],
)  # fmt: skip
def test_wrong_usage_is_a_line_and_exit_code_2(args: tuple[str, ...], message: str) -> None:
    out, err = run(*args, code=2)
    assert (out, message in err, err.count("\n")) == ("", True, 1), err
    assert err.startswith("python -m welm")


def test_no_arguments_are_wrong_usage() -> None:
    out, err = run(code=2)
    assert out == ""
    assert err.startswith("usage: python -m welm PROMPT")


def test_domains_are_the_engine_s(model: welm.Model) -> None:
    """The command line checks values before a model is loaded, also numbers that the engine's types cannot hold."""

    def said(option: str, value: Any) -> str:
        call = welm.Model.estimate if flag in arguments.LOADING else partial(model.generate, PROMPT)
        with pytest.raises(welm.InvalidOption) as error:
            call(**{option: value})
        assert error.value.option == option
        return str(error.value)

    domains = 0
    for flag in (*arguments.LOADING, *arguments.REQUEST):
        name = f"--{flag.option.removesuffix('s') if flag.option == 'stop_token_ids' else flag.option}"
        name = name.replace("_", "-")
        command = ("info",) if flag in arguments.LOADING else (PROMPT,)
        domain: Any = flag.type
        if isinstance(domain, (arguments.Whole, arguments.Real)):
            domains += 1
            assert f" {domain.least:g}" in run(*command, f"{name}={domain.least - 1}", code=2)[1]
            if domain.most in (None, math.inf, (1 << 64) - 1):
                continue
            above = int(domain.most or 0) + 1
            if flag.option == "logprobs":
                assert said("logprobs", above) == f"option `logprobs`: expected at most 100, got {above}"
                continue
            want = f"expected {domain.domain}, got "
            assert said(flag.option, above) == f"option `{flag.option}`: {want}{above}"
            assert f"{name}: {want}{above} (" in run(*command, f"{name}={above}", code=2)[1]
            if domain.least > 0:
                assert f": {want}0" in said(flag.option, 0)
        elif isinstance(domain, arguments.Named):
            domains += 1
            assert said(flag.option, "nonesuch").endswith(f': expected {domain.domain}, got "nonesuch"')
            for value in (*domain.names, *domain.aliases):
                estimate: Any = welm.Model.estimate
                assert domain(value) == value
                assert value.replace("-", "_") == "int8_rotated" or estimate(**{flag.option: value})
    assert domains > 18


@pytest.mark.parametrize("prompt", ["Hello", "that", "what", "space", "", "chats are fun", "x"])
def test_a_word_that_is_like_no_command_is_a_prompt(prompt: str) -> None:
    assert run(prompt, "--seed", "1", "--max-tokens", "1")[0].endswith("\n")


def test_after_two_dashes_all_is_text() -> None:
    flags = ("--seed", "1", "--max-tokens", "3")
    assert run(*flags, "--", "chat") == run("generate", "chat", *flags)
    assert run(*flags, "--", "--stop")[0].endswith("\n")
    assert run(PROMPT, "--frequency-penalty", "-1e-3", "--max-tokens", "1")[1] == ""


def shell(line: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line of shell, in which ``$W`` is the program."""
    more = {"W": " ".join(command()), **(env or {})}
    done = subprocess.run(
        ["bash", "-c", line],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120, env=environment(**more),
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# Command lines that do some work and write to stdout; some read stdin.
WORK = {
    "help": "--help",
    "version": "--version",
    "help_of_one": "score --help",
    "generate": f"{PROMPT} --max-tokens 2",
    "json": f"{PROMPT} --max-tokens 2 --json",
    "stream": f"{PROMPT} --max-tokens 2 --json --stream",
    "score": f"score {PROMPT} 疑",
    "info": "info",
    "info_json": "info --json",
    "quantize": f"quantize {FIXTURES / 'llama_gqa'} $TO/out",
    "bench": "bench --prompt-tokens 4 --sequences 1 --new-tokens 2 --rounds 1",
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_streams_that_cannot_be_used(work: str, tmp_path: Path) -> None:
    """Python writes at once with ``PYTHONUNBUFFERED``, else at the end."""
    env = {"PYTHONUNBUFFERED": "1" if work in ("--help", "info") else "", "TO": str(tmp_path)}

    def does(redirection: str) -> tuple[int, str, str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return shell(f"$W {work} {redirection}", env)

    assert does("<&-")[0] == 0
    for redirection in ("2>&-", "2>/dev/full", "<&- 2>&-"):
        code, out, err = does(redirection)
        assert (code, bool(out), err) == (0, True, "")
    code, out, err = does(">&-")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "python -m welm: stdout: is closed"
    code, out, err = does(">/dev/full")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "python -m welm: stdout: No space left on device"
    assert "Traceback" not in err
    code, out, err = does("<&- >&- 2>&-")
    assert (code, out, err) == (1, "", "")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    code, out, err = shell(f"{{ sleep 0.3; $W {work}; echo $? >&2; }} | true", env)
    assert err.splitlines()[-1] == "141"
    assert "Error" not in err


@pytest.mark.parametrize("line", ["$W -", "$W generate", "$W score - 疑", "$W chat --model $MODEL"])
def test_a_closed_stdin_is_told_by_what_reads_it(line: str, talker: Path) -> None:
    code, out, err = shell(f"{line} <&-", {"MODEL": str(talker)})
    assert (code, out, err) == (1, "", "python -m welm: stdin: is closed\n")


def test_an_environment_that_asks_for_the_impossible() -> None:
    code, _, err = shell(f"$W {PROMPT}", {"WELM_ISA": "sse2"})
    assert (code, err.count("\n"), "`sse2`" in err) == (1, 1, True)
    for env in ({"COLUMNS": "many"}, {"TERM": ""}, {"TERM": "no-such-terminal"}, {"LC_ALL": "xx_YY"}):
        assert shell(f"$W {PROMPT} --seed 1 --max-tokens 2", env)[0] == 0


def test_errors_are_told_whatever_is_closed() -> None:
    for redirection in ("<&-", ">&-", ">/dev/full", "<&- >&-"):
        code, _, err = shell(f"$W info /no/such/model {redirection}")
        assert (code, err.count("\n"), "/no/such/model" in err) == (1, 1, True)
    for redirection in ("2>&-", "2>/dev/full", "<&- >&- 2>&-"):
        assert shell(f"$W info /no/such/model {redirection}") == (1, "", "")
        assert shell(f"$W info --jsn {redirection}") == (2, "", "")


def test_a_traceback_is_shown_to_those_who_ask() -> None:
    line = "$W info /no/such/model"
    assert "Traceback" not in shell(line, {"WELM_TRACEBACK": "0"})[2]
    _, _, err = shell(line, {"WELM_TRACEBACK": "1"})
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("python -m welm: /no/such/model")


def test_a_fault_of_the_program_is_a_line_too() -> None:
    program = "import sys, welm._cli as c; c.COMMANDS = 5; sys.exit(c.main(['x']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment())
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"TypeError: " in done.stderr
    assert b"WELM_TRACEBACK=1" in done.stderr


def test_bytes_that_are_no_text() -> None:
    _, err = run("-", stdin=b"ab\xff\xfe", code=1)
    assert err == "python -m welm: stdin: expected UTF-8, got the byte 0xff at byte 2\n"
    for line, told in (
        ([b"\xff"], b"expected UTF-8"),
        ([b"score", b"a", b"\xff"], b"expected UTF-8"),
        ([b"a", b"--stop", b"\xff"], b"expected UTF-8"),
        ([b"chat", b"--system", b"\xff"], b"expected UTF-8"),
        ([b"a", b"--dtype", b"\xff"], b'got "\\udcff"'),
        ([b"a", b"--n\xff"], b"unknown option --n\\udcff"),
        ([b"a", b"--max-tokens", b"\xff"], b'got "\\udcff"'),
        ([b"a", b"b\xff"], b'unexpected argument "b\\udcff"'),
    ):
        done = subprocess.run([*command(), *line], capture_output=True, env=environment())
        assert (done.returncode, done.stderr.count(b"\n"), told in done.stderr) == (2, 1, True)


def test_a_path_need_not_be_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(welm.NANO, folder)
    for line in (
        ("info", folder),
        ("info", "--model", folder),
        (PROMPT, "--model", folder, "--max-tokens", "1"),
    ):
        done = subprocess.run(command(*line), capture_output=True, env=environment())
        assert (done.returncode, done.stderr) == (0, b"")


def test_help_and_version() -> None:
    assert run("--version") == (f"welm {welm.__version__}\n", "")
    out, _ = run("--help")
    for name in COMMANDS:
        assert f"\n  {name} " in out
        helped, _ = run(name, "--help")
        assert f"usage: python -m welm {name} " in helped
        assert "\nexamples:\n  python -m welm " in helped


def test_a_prompt_may_be_a_command_s_name() -> None:
    assert run_json("generate", "chat", "--seed", "1")["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("flags", [(), ("--json", "--stream")])
def test_ctrl_c_ends_with_what_there_is(flags: tuple[str, ...]) -> None:
    line, pipe = command(PROMPT, *LONG, *flags), subprocess.PIPE
    # Without a buffer, because `communicate` would not get bytes that were read ahead.
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


def interrupted_at(piece: int, *line: str) -> list[str]:
    """The command with this line, which gets a Ctrl-C at a piece."""
    program = f"""
import os, signal, sys
from welm._cli import answer, main
add, pieces = answer.Answer.add, []
def interrupted(self, piece):
    add(self, piece)
    pieces.append(piece)
    if len(pieces) == {piece}:
        os.kill(os.getpid(), signal.SIGINT)
answer.Answer.add = interrupted
sys.exit(main(sys.argv[1:]))
"""
    return [sys.executable, "-c", program, *line]


def test_ctrl_c_ends_a_chat_of_lines(talker: Path) -> None:
    line = interrupted_at(2, "chat", "--model", str(talker), "--json")
    done = subprocess.run(line, input=b"a\nb\nc\n", capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 130, done.stderr
    (answer,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert answer["finish_reason"] == "cancelled"


def test_ctrl_c_ends_a_json_object() -> None:
    """Ctrl-C is sent at the 200th piece, because the program writes nothing before its end that one could wait for."""
    line = interrupted_at(200, PROMPT, *LONG, "--json")
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
        _, seen = Terminal(PROMPT, *flags, env=env).end()
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

    def drawn(columns: int | None) -> str:
        monkeypatch.setattr(terminal, "columns", lambda _: columns)
        now[0] = 0.0
        with Progress("work") as progress:
            progress(25, 100)
            assert capsys.readouterr().err == ""
            now[0] = 1.0
            progress(50, 100)
            progress(51, 100)
        begin, line, end = capsys.readouterr().err.split("\r")
        assert (begin, line[-3:], end) == ("", "\x1b[K", "\x1b[K")
        return line[:-3]

    wide = f"work {'█' * 15}{'░' * 15}  50% of 0.0 MB"
    assert (drawn(80), drawn(None)) == (wide, wide)
    # A line that is too long could not be cleared.
    assert drawn(40) == f"work {'█' * 9}{'░' * 9}  50% of 0.0 MB"
    for columns, want in ((20, "work 50%"), (9, "50%"), (3, "50"), (1, "")):
        assert drawn(columns) == want


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
    assert about["tokenizer"] == "BPE"
    assert about["tokenizer_tokens"] == model.config.vocab_size
    assert sum(count["elements"] for count in about["types"]) > model.config.n_params  # and scales of int8
    out, _ = run("info", FIXTURES / "gguf_llama_q4_1" / "model.gguf")
    assert re.search(r"^family +llama$", out, re.M)
    row = r"\d+ tensors, [\d,]+ elements, [\d.]+ MB"
    assert re.search(rf"^types +Q4_1: {row}\n +F32: {row}$", out, re.M)
    assert re.search(r"^tokenizer +byte-level BPE of [\d,]+ tokens$", out, re.M)
    assert run("info", "--model", FIXTURES / "gguf_llama_q4_1" / "model.gguf") == (out, "")
    assert (about["format"], about["unsupported"]) == ("safetensors", None)
    assert re.search(r"^memory +\d+\.\d MB in all$", out, re.M)


def test_info_names_the_devices() -> None:
    flags = ("--cache-tokens", "1024", "--threads", "1")
    cpu, cuda = run_json("info", *flags)["devices"]
    want = welm.Model.estimate(device="cpu", threads=1, cache_tokens=1024).total_bytes
    assert cpu == {"device": "cpu", "total_bytes": want, "unsupported": None}
    # Where the package was built without kernels, that is the reason; else this type is one.
    blocks = FIXTURES / "gguf_llama_q4_1" / "model.gguf"
    assert cuda["device"] == "cuda"
    with pytest.raises(welm.Error) as why:
        welm.Model.estimate(blocks, device="cuda")
    assert run_json("info", blocks)["devices"][1]["unsupported"] == str(why.value)
    out, _ = run("info", blocks)
    assert re.search(r"^cpu +can, with \d+\.\d MB of its memory$", out, re.M)
    assert f"\ncuda            {why.value}\n" in out


def write_gguf(path: Path, family: bytes) -> None:
    """A file of one setting and one tensor in IQ3_S, which nothing here loads."""
    key, name = b"general.architecture", b"output.weight"
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
        + struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(family)) + family
        + struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 256, 4, 21, 0)
        + b"\0" * 4096
    )  # fmt: skip


def test_info_of_what_is_not_supported(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", b"mamba")
    for path in (tmp_path / "m.gguf", tmp_path):
        about = run_json("info", path)
        assert (about["format"], about["family"], about["n_params"]) == ("gguf", "mamba", 1024)
        assert about["types"] == [{"name": "IQ3_S", "tensors": 1, "elements": 1024, "bytes": None}]
        assert about["settings"] == {"general.architecture": "mamba"}
        why = welm.Model.describe(path).unsupported
        assert why is not None
        assert "mamba" in why
        assert "IQ3_S" in why
        assert about["unsupported"] == why
        out, _ = run("info", path)
        types = "types           IQ3_S: 1 tensor, 1,024 elements"
        for row in ("family          mamba", types, f"not supported   {why}"):
            assert f"{row}\n" in out
        assert out.endswith("\n  general.architecture = mamba\n")
        # Commands that load it print the same reason, in one line.
        _, err = run("generate", "--model", path, "x", code=1)
        assert (err.count("\n"), why in err) == (1, True)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    _, err = run("info", tmp_path / "m.gguf", code=1)
    assert (err.count("\n"), "m.gguf" in err) == (1, True)


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
    """The small model with a chat template. Its answers make no sense, but they come in turns."""
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
    terminal = Terminal("chat", "--model", talker, "--seed", "3", "--max-tokens", "6", env={"NO_COLOR": "1"})
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
    ask("/nonsense\n", "/reset        starts a new conversation")
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


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX", "C without UTF-8"])
def test_bytes_that_are_no_text_do_not_end_a_chat(talker: Path, tmp_path: Path, locale: str) -> None:
    """Bytes that are not text, typed or pasted, in a message or a command."""
    env = {"LC_ALL": locale.split()[0], "NO_COLOR": "1"}
    if "without" in locale:
        env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = ("--model", talker, "--seed", "3", "--max-tokens", "6")
    terminal = Terminal("chat", *flags, env=env)
    terminal.wait_for("> ")

    def ask(line: bytes, answer: str) -> None:
        since = len(terminal.seen)
        terminal.type(line)
        terminal.wait_for(answer, since)
        terminal.wait_for("\n> ", since)

    ask("春\n".encode(), "\n")
    if locale != "C.UTF-8":  # there readline leaves such bytes out of the line that it shows
        ask(b"caf\xe9 x\n", "this line: expected UTF-8, got the byte 0xe9 at byte 3\n")
        ask(b"/system \xff\n", "this line: expected UTF-8, got the byte 0xff at byte 8\n")
        ask(b"\x1b[200~\xe9 pasted\x1b[201~\n", "this line: expected UTF-8, got the byte 0xe9 at byte ")
    ask(f"/save {tmp_path}/\n".encode().replace(b"/\n", b"/\xff/\xfe\n"), "\n")
    ask(b"\xff\n", "\n")
    ask("秋\n".encode(), "\n")
    ask(f"/save {tmp_path / 'chat.json'}\n".encode(), "\n")
    terminal.type("\x04")
    code, seen = terminal.end()
    assert (code, "Error" in seen) == (0, False)
    messages = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    assert [message["content"] for message in messages if message["role"] == "user"] == ["春", "秋"]


def test_a_line_of_a_pipe_that_is_no_text_is_named(talker: Path) -> None:
    flags = ("chat", "--model", talker, "--seed", "3", "--max-tokens", "6")
    answer, _ = run(*flags, stdin="春\n")
    out, err = run(*flags, stdin="春\n".encode() + b"\nca\xe9\n" + "秋\n".encode(), code=1)
    assert (out, err) == (
        answer,
        "python -m welm: line 3 of stdin: expected UTF-8, got the byte 0xe9 at byte 2\n",
    )


def test_no_error_of_a_turn_ends_a_chat(talker: Path, tmp_path: Path) -> None:
    """An error in the program itself does not end the conversation either."""
    program = f"""
import sys
from welm._cli import chat, main
say = chat.Chat.say
def faulty(self, message, **options):
    if message == "boom":
        raise {{}}["boom"]
    if message == "memory":
        raise MemoryError
    say(self, message, **options)
chat.Chat.say = faulty
sys.exit(main(["chat", "--model", {str(talker)!r}, "--seed", "3", "--max-tokens", "4"]))
"""
    terminal = Terminal(env={"NO_COLOR": "1"}, program=program)
    terminal.wait_for("> ")
    for line, answer in (
        ("春", "\n"),
        ("boom", "KeyError: 'boom'; with WELM_TRACEBACK=1"),
        ("memory", "out of memory"),
        (f"/save {tmp_path}", "Is a directory"),
        ("/save /dev/full", "/dev/full: No space left on device"),
        (f"/save {tmp_path / 'chat.json'}", "\n"),
    ):
        since = len(terminal.seen)
        terminal.type(line + "\n")
        terminal.wait_for(answer, since)
        terminal.wait_for("\n> ", since)
    terminal.type("\x04")
    assert terminal.end()[0] == 0
    assert len(json.loads((tmp_path / "chat.json").read_text("utf-8"))) == 2


def test_a_chat_whose_answers_go_elsewhere_shows_its_prompt(talker: Path, tmp_path: Path) -> None:
    line = f"exec {' '.join(command())} chat --model {talker} --seed 3 --max-tokens 4 > {tmp_path / 'out'}"
    terminal = Terminal(
        program=f"import os; os.execvp('bash', ['bash', '-c', {line!r}])", env={"LC_ALL": "C.UTF-8"}
    )
    terminal.wait_for("> ")
    terminal.type(b"caf\xe9 x\n")
    terminal.wait_for("this line: expected UTF-8, got the byte 0xe9 at byte 3\n> ")
    terminal.type("春\n\x04")
    assert terminal.end()[0] == 0
    model = welm.Model(talker)
    tokens = model.chat_tokens([{"role": "user", "content": "春"}])
    assert (tmp_path / "out").read_text("utf-8") == model.generate(tokens, seed=3, max_tokens=4).text + "\n\n"


def slow_chat(talker: Path) -> str:
    """A program whose answers begin after a second."""
    return f"""
import sys, time
from welm._cli import answer, main
added = answer.Answer.add
def add(self, piece):
    if not self.sequences[0].tokens:
        time.sleep(1)
    added(self, piece)
answer.Answer.add = add
sys.exit(main(["chat", "--model", {str(talker)!r}, "--seed", "3", "--max-tokens", "4"]))
"""


def test_a_spinner_turns_until_the_first_text(talker: Path) -> None:
    model = welm.Model(talker)
    tokens = model.chat_tokens([{"role": "user", "content": "春"}])
    text = model.generate(tokens, seed=3, max_tokens=4).text
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        terminal = Terminal(program=slow_chat(talker), env=env)
        terminal.wait_for("> ")
        since = len(terminal.seen)
        terminal.type("春\n")
        terminal.wait_for("\n> ", since)
        terminal.type("\x04")
        code, seen = terminal.end()
        assert code == 0
        turning, clear, after = seen.partition("\r\x1b[K")
        if "TERM" in env:
            assert (clear, "\r|" in seen) == ("", False)
        else:
            assert re.search(r"\n\r\|(\r[-/\\|])+$", turning)
            assert after.startswith(text)
            assert "\x1b[K" not in after.partition("> ")[0]
    piped = subprocess.run(
        [sys.executable, "-c", slow_chat(talker)],
        input="春\n".encode(),
        capture_output=True,
        env=environment(),
    )
    assert (piped.stdout.decode(), piped.stderr) == (text + "\n", b"")


def test_what_is_told_fits_the_terminal(talker: Path) -> None:
    """No word is broken at 20 columns; at 1 nothing hangs."""
    lines = (
        (PROMPT, "--max-tokens", "1", "--seed", "1"),
        ("info",),
        ("info", "--help"),
        ("score", PROMPT, "疑", "a\nb"),
        ("bench", "--prompt-tokens", "4", "--sequences", "1", "--new-tokens", "2", "--rounds", "1"),
        ("--help",),
    )
    for line in lines:
        wide = Terminal(*line, columns=400, env={"NO_COLOR": "1"}).end()[1]
        narrow = Terminal(*line, columns=20, env={"NO_COLOR": "1"}).end()[1]
        assert max(map(width, wide.splitlines())) > 20
        for shown in narrow.splitlines():
            assert width(shown) <= 20 or len(shown.split()) == 1, shown
        assert Terminal(*line, columns=1, env={"NO_COLOR": "1"}).end()[0] == 0
        if line[0] in ("info", "score") and "--help" not in line:
            assert narrow.split() == wide.split()  # nothing is lost


def test_lines_are_broken_between_words() -> None:
    text = "name   a value of words\n  indented words here\n"
    assert wrapped(text, None) == wrapped(text, 80) == text
    assert wrapped(text, 12) == "name a value\n  of words\n  indented\n    words\n    here\n"
    assert wrapped("明月 春风 秋水", 9) == "明月 春风\n  秋水"
    assert wrapped("unbreakable", 3) == "unbreakable"
    assert one_line("春\u3000秋") == "春\u3000秋"
    assert one_line("a\tb\n\x1b[0m月") == "a\\tb\\n\\x1b[0m月"


def test_a_chat_in_a_terminal_that_is_resized(talker: Path) -> None:
    terminal = Terminal("chat", "--model", talker, "--seed", "3", "--max-tokens", "4", columns=80)
    terminal.wait_for("> ")
    for columns in (20, 1, 300):
        since = len(terminal.seen)
        terminal.resize(columns)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.type("/help\n")
        terminal.wait_for("leaves", since)
        # Text that is typed before the next prompt may be lost.
        terminal.wait_for(">", terminal.seen.index("leaves", since))
    terminal.type("\x04")
    assert terminal.end()[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_a_model_is_loaded_or_written(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    program = f"""
import os, sys
from welm._cli import main
from welm._cli.terminal import Progress
Progress.__call__ = lambda *_: os.kill(os.getpid(), {int(number)})
sys.exit(main(sys.argv[1:]))
"""
    for line in (
        [PROMPT],
        ["chat"],
        ["score", PROMPT, "疑"],
        ["bench"],
        ["quantize", str(FIXTURES / "llama_gqa"), str(tmp_path / "out")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *line], capture_output=True, env=environment(), timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sigterm_ends_what_is_going_on(talker: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(command(PROMPT, *LONG), stdout=pipe, stderr=pipe, env=environment()) as process:
        assert process.stdout
        process.stdout.read(10)
        process.terminate()
        assert (process.wait(60), process.communicate()[1]) == (143, b"")
    terminal = Terminal("chat", "--model", talker)
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    while terminal.process.poll() is None:  # Python forgets one that comes just before it begins to wait
        terminal.process.terminate()
        time.sleep(0.5)
    assert terminal.process.wait(60) == 143
    assert terminal.echoes(), "readline's settings are undone"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("line", [("-",), ("chat",)])
def test_signals_while_it_reads(
    talker: Path, line: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    program = """
import sys
from welm._cli import main, streams
lines = streams._stdin_lines
def reading():
    print("reads", flush=True)
    yield from lines()
streams._stdin_lines = reading
sys.exit(main(sys.argv[1:]))
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program, *line, "--model", talker],
        stdin=pipe, stdout=pipe, stderr=pipe, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == b"reads\n"
        time.sleep(0.2)
        while process.poll() is None:  # Python forgets one that comes just before it begins to wait
            process.send_signal(number)
            time.sleep(0.5)
        assert (process.returncode, process.communicate()) == (code, (b"", b""))


@pytest.mark.skipif(not SMOLLM2, reason="WELM_SMOLLM2 names no GGUF file")
def test_chat_with_a_real_model(tmp_path: Path) -> None:
    assert SMOLLM2
    question = "What is the capital of France? Answer in one word."
    out, _ = run("chat", "--model", SMOLLM2, "--temperature", "0", "--max-tokens", "12", stdin=question)
    assert "Paris" in out

    # Its end tokens are forbidden, so that the answer does not end before Ctrl-C.
    endless = [flag for token in (0, 2, 4) for flag in ("--logit-bias", f"{token}=-inf")]
    terminal = Terminal("chat", "--model", SMOLLM2, "--temperature", "0", *endless, env={"NO_COLOR": "1"})
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
