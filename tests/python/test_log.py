"""The engine's log goes to `logging`."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import welm


def test_loading_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "welm"):
        model = welm.Model()
    (loaded,) = [r for r in caplog.records if r.message.startswith("model loaded ")]
    assert (loaded.name, loaded.levelname) == ("welm", "INFO")
    assert f"backend={model.backend}" in loaded.message
    assert "parameters=6541312" in loaded.message
    caplog.clear()
    with caplog.at_level(logging.WARNING, "welm"):
        welm.Model(device="cpu")
    assert not caplog.records


def test_two_tokens_that_start_a_text_are_told(model: welm.Model, caplog: pytest.LogCaptureFixture) -> None:
    (start,) = model.tokenize("<|endoftext|>", parse_special=True)
    with caplog.at_level(logging.WARNING, "welm"):
        model.generate([start, 5], max_tokens=1)
        model.generate([5, start, start], max_tokens=1)
        model.generate("<|endoftext|><|endoftext|>", max_tokens=1)  # a text, with nothing special in it
        assert not caplog.records
        model.generate([start, start, 5], max_tokens=1)
        model.generate("<|endoftext|><|endoftext|>春", max_tokens=1, parse_special=True)
    assert ["two tokens that start a text" in r.message for r in caplog.records] == [True, True]


def test_nothing_is_printed_unasked() -> None:
    script = "import sys, welm; welm.Model(); assert 'logging' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
