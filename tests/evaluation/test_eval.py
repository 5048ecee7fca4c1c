"""The model that lm-eval sees, and runs of tasks, with lm-eval itself."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance

import welm
from welm.eval import EvalError, WelmLM, evaluate
from welm.eval.journal import NAME
from welm.eval.lm import generation

from conftest import LINES, outcome


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


@pytest.fixture(scope="module")
def lm(model: welm.Model) -> WelmLM:
    return WelmLM(model)


def by_logits(model: welm.Model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The formula: the sum of log softmax, and whether each token is the argmax."""
    logits = model.logits([*context, *continuation], len(context) - 1)[:-1].astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    each = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    total = float(each[np.arange(len(continuation)), continuation].sum())
    return total, bool((logits.argmax(1) == continuation).all())


def test_loglikelihoods(model: welm.Model, lm: WelmLM) -> None:
    pairs = [tuple(line.split("，")) for line in LINES]
    pairs = [(f"{before}，", after) for before, after in pairs]
    pairs += [("", "床前"), ("床前明月光， ", "x"), ("床", ""), ("  ", "x"), pairs[0]]
    results = lm.loglikelihood(instances("loglikelihood", *pairs))
    for (context, continuation), result in zip(pairs, results, strict=True):
        begin = context.rstrip()
        before = model.tokenize(begin) or [1]
        after = model.tokenize(context + continuation)[len(model.tokenize(begin)) :]
        total, greedy = by_logits(model, before, after) if after else (0.0, True)
        assert result == (pytest.approx(total, abs=1e-3), greedy)
    for at in range(6):
        assert results[at][0] == model.score(pairs[at][0], [pairs[at][1]])[0].logprob
    assert results[-1] == results[0]
    assert {greedy for _, greedy in results} == {True, False}


def test_texts_that_the_tokenizer_joins_are_counted(model: welm.Model) -> None:
    lm = WelmLM(model)
    context, continuation = lm._encode_pair("春眠不觉晓。", "处处闻啼鸟。")
    assert context + continuation == model.tokenize("春眠不觉晓。处处闻啼鸟。")
    assert lm.counts["joined"] == 0
    # As Qwen's: a mark and the line break after it are one token.
    lm.tok_encode = lambda text, **_: [ord(c) for c in text.replace("。\n", "\x01")]  # type: ignore[method-assign]
    assert lm._encode_pair("甲。", "\n乙") == ([ord("甲"), ord("。")], [ord("乙")])
    assert lm.counts["joined"] == 1


def test_too_long_contexts_lose_their_beginning(model: welm.Model) -> None:
    lm = WelmLM(model)
    line = model.tokenize("".join(LINES))
    tokens = (line * 20)[:600]
    pair = (None, tokens[:-3], tokens[-3:])
    ((total, greedy),) = lm._loglikelihood_tokens([pair])
    assert (total, greedy) == (
        pytest.approx(by_logits(model, tokens[-512:-3], tokens[-3:])[0], abs=1e-3),
        greedy,
    )
    assert lm.counts["shortened"] == 1
    with pytest.raises(EvalError, match="continuations of at most 511 tokens, got 512"):
        lm._loglikelihood_tokens([(None, [1], tokens[:512])])


def test_rolling(model: welm.Model, lm: WelmLM) -> None:
    texts = ["".join(LINES), "".join(LINES) * 40, "春"]
    results = lm.loglikelihood_rolling(instances("loglikelihood_rolling", *((text,) for text in texts)))
    for text, result in zip(texts, results, strict=True):
        # Each token once; the last window reaches back as far as the context allows.
        tokens, total, most = model.tokenize(text), 0.0, 511
        for start in range(0, len(tokens), most):
            end = min(start + most, len(tokens))
            context = [1] if start == 0 else tokens[end - most - 1 : start]
            total += by_logits(model, context, tokens[start:end])[0]
        assert result == pytest.approx(total, rel=1e-5)


def test_generation(model: welm.Model, lm: WelmLM) -> None:
    until = {"until": ["。", ""], "max_gen_toks": 20}
    asked = [(line[:6], until) for line in LINES] + [("", until), ("床前明月光，", {"until": "霜"})]
    results = lm.generate_until(instances("generate_until", *asked))
    for (context, settings), result in zip(asked, results, strict=True):
        stop = [stop for stop in settings["until"] if stop]
        most = settings.get("max_gen_toks", 256)
        prompt = model.tokenize(context) or [1]
        assert result == model.generate(prompt, temperature=0, max_tokens=most, stop=stop).text
    assert "。" not in "".join(results[:7])

    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    asked = [("床前明月光，", drawn)] * 4 + [("春眠不觉晓，", drawn)]
    first = lm.generate_until(instances("generate_until", *asked))
    assert len(set(first)) > 2
    assert lm.generate_until(instances("generate_until", *asked)) == first

    long = "".join(LINES) * 20
    for most, room in ((100, 411), (5000, 255)):
        (text,) = lm.generate_until(instances("generate_until", (long, {"max_gen_toks": most, "until": []})))
        tokens = model.tokenize(long)[-room:]
        assert text == model.generate(tokens, temperature=0, max_tokens=511 - room).text


def test_settings_of_generation() -> None:
    assert generation({}) == {"max_tokens": 256, "temperature": 0, "top_p": 1, "top_k": 0, "stop": []}
    given = {"until": "x", "max_new_tokens": 3, "temperature": 0.5, "top_p": 0.9, "num_beams": 1}
    assert generation(given) == {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 0, "stop": ["x"]}
    assert generation({"temperature": 0.5, "do_sample": False})["temperature"] == 0
    with pytest.raises(EvalError, match=r"expected some of until, .* got num_beams: 4"):
        generation({"num_beams": 4})


def test_chat(tmp_path: Path) -> None:
    for file in Path(welm.NANO).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    lm = WelmLM(tmp_path, dtype="f32")
    talk = [{"role": "user", "content": "明月"}]
    assert lm.apply_chat_template(talk) == "[user]明月\n[a]"
    begun = [*talk, {"role": "assistant", "content": "光"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "[user]明月\n[assistant]光"
    assert lm.chat_template(True) == ""


def test_lm_eval_knows_it_by_name(tasks: list[str], model: welm.Model) -> None:
    arguments = {"pretrained": welm.NANO, "cache_tokens": 2048}
    results = lm_eval.simple_evaluate("welm", arguments, tasks=tasks[:1], num_fewshot=2, batch_size=4)
    assert results is not None
    for sample in results["samples"]["choose"]:
        scores = [
            model.score(pair[0], [pair[1]])[0].logprob for pair in (tuple(a) for a in sample["arguments"])
        ]
        assert [float(r[0][0]) for r in sample["resps"]] == scores
        assert sample["acc"] == float(np.argmax(scores) == sample["doc"]["gold"])


# Runs.


@pytest.fixture(scope="module")
def whole(tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    evaluate(tasks=tasks, out=out, shots=1)
    return out


def test_results(tasks: list[str], whole: Path, tmp_path: Path) -> None:
    results = json.loads((whole / "results.json").read_text("utf-8"))
    assert set(results["results"]) == {"choose", "go_on", "draw", "read"}
    assert 0 <= results["results"]["choose"]["acc,none"] <= 1
    about = results["welm"]
    assert about["requests_computed"] == len((whole / NAME).read_text("utf-8").splitlines()) - 1
    assert about["tokens_per_second"] == pytest.approx(about["tokens"] / about["seconds"])
    assert results["config"]["model_args"] == {"pretrained": welm.NANO}
    assert {p.name for p in whole.iterdir()} == {
        "results.json",
        NAME,
        *(f"samples_{name}.jsonl" for name in results["results"]),
    }
    sample = json.loads((whole / "samples_draw.jsonl").read_text("utf-8").splitlines()[0])
    assert len(set(sample["resps"][0])) > 1, "repeats are drawn each by itself"
    # All answers are there, so that nothing is computed.
    again = evaluate(tasks=tasks, out=whole, shots=1)
    assert again["welm"]["requests_computed"] == 0
    assert again["welm"]["tokens_per_second"] is None
    # Few threads and a small cache change nothing; nor does a part that was computed before.
    tmp_path.joinpath(NAME).write_bytes(b"".join((whole / NAME).read_bytes().splitlines(True)[:20]))
    evaluate(tasks=tasks, out=tmp_path, shots=1, threads=1, cache_tokens=1024, prefix_cache=False)
    assert outcome(tmp_path) == outcome(whole)


def line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "welm", "eval", *map(str, arguments)]


def run(*arguments: object, code: int = 0, **more: Any) -> tuple[str, str]:
    done = subprocess.run(line(*arguments), capture_output=True, text=True, check=False, timeout=120, **more)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_command(tasks: list[str], whole: Path, tmp_path: Path) -> None:
    out, err = run("--tasks", ",".join(tasks), "--out", tmp_path, "--shots", 1)
    assert err == ""
    assert outcome(tmp_path) == outcome(whole)
    rows = out.splitlines()
    assert rows[0].split() == ["task", "metric", "value", "±", "n", "shots"]
    acc = json.loads((tmp_path / "results.json").read_text("utf-8"))["results"]["choose"]["acc,none"]
    assert rows[1].split()[:3] == ["choose", "acc", f"{acc:.4f}"]
    assert rows[-1].endswith(f"tokens/s; results are in {tmp_path}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on(tasks: list[str], whole: Path, tmp_path: Path, number: int) -> None:
    arguments = ("--tasks", ",".join(tasks), "--out", tmp_path, "--shots", 1)
    slowly = ("--threads", 1, "--max-running", 1, "--no-prefix-cache")
    with subprocess.Popen(line(*arguments, *slowly), stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        file = tmp_path / NAME
        while not file.exists() or file.read_bytes().count(b"\n") < 10:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        ended = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - ended < 20
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert err == f"what was finished is in {tmp_path}; the same command goes on with it\n"
    assert not (tmp_path / "results.json").exists()
    kept = file.read_bytes().count(b"\n") - 1
    assert 9 <= kept < (whole / NAME).read_bytes().count(b"\n") - 1
    out, _ = run(*arguments)
    assert outcome(tmp_path) == outcome(whole)
    assert f" requests computed, {kept} found" in out


def test_wrong_usage_and_folders(tasks: list[str], whole: Path, tmp_path: Path) -> None:
    name = "python -m welm eval"
    _, err = run("--tasks", "c3", code=2)
    assert (
        err
        == f"{name}: the following arguments are required: --tasks, --out ({name} --help tells the options)\n"
    )
    _, err = run("a", "--model", "b", "--tasks", "c3", "--out", tmp_path, code=2)
    assert "expected one model, got a and b" in err
    _, err = run("--tasks", tasks[0], "--out", tmp_path, "--limit", 0, code=2)
    assert "--limit: expected 1 or more, got 0" in err
    _, err = run(tmp_path / "none", "--tasks", tasks[0], "--out", tmp_path, code=1)
    assert f"{tmp_path / 'none'}" in err
    _, err = run("--tasks", tasks[0], "--out", tmp_path, "--chat", code=1)
    assert err == f"python -m welm: {welm.NANO}: expected a chat template, got a model without one\n"
    before = outcome(whole)
    _, err = run("--tasks", tasks[0], "--out", whole, "--limit", 2, code=1)
    assert "this run was begun with tasks [" in err
    assert "give another folder for that" in err
    assert outcome(whole) == before
    (tmp_path / "file").write_text("")
    _, err = run("--tasks", tasks[0], "--out", tmp_path / "file", code=1)
    assert err == f"python -m welm: {tmp_path / 'file'}: File exists\n"


def test_a_full_disk(tasks: list[str], whole: Path, tmp_path: Path) -> None:
    def little() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    arguments = ("--tasks", ",".join(tasks), "--out", tmp_path, "--shots", 1)
    _, err = run(
        *arguments, code=1, preexec_fn=little, env={**os.environ, "HF_DATASETS_IN_MEMORY_MAX_SIZE": "1e9"}
    )
    assert err.splitlines() == [
        f"what was finished is in {tmp_path}; the same command goes on with it",
        f"python -m welm: {tmp_path / NAME}: File too large",
    ]
    run(*arguments)
    assert outcome(tmp_path) == outcome(whole)


def test_a_ray_cluster_gives_the_same(tasks: list[str], whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        arguments = ("--tasks", ",".join(tasks), "--out", tmp_path, "--shots", 1, "--threads", 1)
        run(*arguments, "--ray", cluster.address)
    finally:
        cluster.shutdown()
    assert outcome(tmp_path) == outcome(whole)
    _, err = run(*arguments[:2], "--out", tmp_path / "other", "--ray", "127.0.0.1:1", code=1)
    assert err.startswith("python -m welm: expected a Ray cluster at 127.0.0.1:1: ")
    assert "Connection refused" in err
