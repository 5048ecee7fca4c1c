"""The package: its content, the time of its import, and that its signatures are those of the core."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import welm

ROOT = Path(__file__).parents[2]
NANO = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_version() -> None:
    assert importlib.metadata.version("welm") == welm.__version__
    assert f'\nversion = "{welm.__version__}"\n' in (ROOT / "Cargo.toml").read_text()


def test_what_is_installed() -> None:
    files = {str(f) for f in importlib.metadata.files("welm") or [] if "dist-info" not in str(f)}
    if any("__editable__" in f or f.endswith(".pth") for f in files):
        pytest.skip("an editable installation has no files of its own")
    kept = {f for f in files if "__pycache__" not in f}
    assert {f"welm/welm-nano/{name}" for name in NANO} <= kept
    assert {"welm/__init__.py", "welm/_welm.abi3.so", "welm/_welm.pyi", "welm/py.typed"} <= kept
    assert {f for f in kept if not f.startswith("welm/")} == {"../../../bin/welm"}
    assert not any("test" in f for f in kept)
    licences = {f.name for f in importlib.metadata.files("welm") or [] if "licenses" in f.parts}
    assert {"LICENSE-APACHE", "LICENSE-MIT"} <= licences


def test_the_wheels_tag() -> None:
    """One wheel for every CPython from 3.10 on."""
    wheel = importlib.metadata.distribution("welm").read_text("WHEEL")
    tags = re.findall(r"^Tag: (.+)$", wheel or "", re.MULTILINE)
    assert tags
    assert all(tag.startswith("cp310-abi3-") for tag in tags), tags


def test_the_small_model_is_the_repositorys() -> None:
    assert set(os.listdir(welm.NANO)) == NANO
    for name in NANO:
        assert Path(welm.NANO, name).read_bytes() == (ROOT / "examples/welm-nano" / name).read_bytes()


def test_the_source_distribution(tmp_path: Path) -> None:
    """The source package has everything that the wheel is built from, also the small model, as files and not as
    links."""
    command = [
        sys.executable,
        "-m",
        "maturin",
        "sdist",
        "-m",
        str(ROOT / "welm-py/Cargo.toml"),
        "-o",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with tarfile.open(tmp_path / f"welm-{welm.__version__}.tar.gz") as archive:
        names = {m.name.partition("/")[2]: m for m in archive.getmembers()}
    nano = {f"python/welm/welm-nano/{name}" for name in NANO}
    found = {n for n in names if "welm-nano/" in n and "examples/" not in n}
    assert {n[n.index("python/") :] for n in found} == nano
    assert all(names[n].isfile() for n in found), "files, not links"
    assert any(n.endswith("welm-core/src/lib.rs") for n in names)
    assert any(n.endswith("welm-kernels/build.rs") for n in names)
    assert any(n.endswith("welm-kernels/cuda/ptx.cuh") for n in names)
    assert {"PKG-INFO", "pyproject.toml", "Cargo.lock"} <= set(names)


def test_importing_takes_less_than_a_tenth_of_a_second() -> None:
    """Measured in processor time, so that other programs do not matter."""
    script = "import time; start = time.process_time(); import welm; print(time.process_time() - start)"
    best = min(float(python(script)) for _ in range(7))
    print(f"import welm: {best * 1e3:.1f} ms")
    assert best < 0.1


def test_what_is_imported() -> None:
    """numpy is for logits only, asyncio for asyncio."""
    python("""
import sys
import welm
assert not {"numpy", "asyncio", "html"} & set(sys.modules), sys.modules
model = welm.Model()
model.generate("春", max_tokens=1, logprobs=1)
assert "numpy" not in sys.modules and "asyncio" not in sys.modules
model.logits("春")
assert "numpy" in sys.modules
assert welm.AsyncStream.__name__ == "AsyncStream"
""")
    python("""
import sys
sys.modules["numpy"] = None  # not installed
import welm
model = welm.Model()
assert model.generate("春", max_tokens=1).usage.completion_tokens == 1
try:
    model.logits("春")
except ImportError as error:
    assert "numpy" in str(error)
else:
    raise AssertionError
""")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        welm.nothing  # noqa: B018


def test_names() -> None:
    assert set(welm.__all__) <= set(dir(welm)) | {"AsyncStream", "GenerateOptions", "LoadOptions"}
    public = {n for n, v in vars(welm).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public <= set(welm.__all__)
    for name in welm.__all__:
        thing = getattr(welm, name)
        if inspect.isclass(thing):
            assert thing.__doc__, name
            for member, value in vars(thing).items():
                if not member.startswith("_") and callable(value):
                    assert value.__doc__, f"{name}.{member}"


def test_signatures_tell_the_defaults(model: welm.Model) -> None:
    """The defaults that help() shows are those of the core."""
    signatures = [
        inspect.signature(f)
        for f in (welm.Model.generate, welm.Model.stream, welm.Model.generate_async, welm.Model.stream_async)
    ]
    assert all(s == signatures[0] for s in signatures)
    defaults = {n: p.default for n, p in signatures[0].parameters.items() if p.default is not p.empty}
    assert len(defaults) == 20
    given = model.generate("春眠", seed=4, **{n: d for n, d in defaults.items() if n != "seed"})
    assert given == model.generate("春眠", seed=4)
    loading = inspect.signature(welm.Model)
    defaults = {n: p.default for n, p in loading.parameters.items()}
    assert welm.Model(**defaults).memory == welm.Model().memory
    defaults["threads"] = 1  # as the model of the tests
    assert welm.Model(**defaults).memory == model.memory
    estimating = inspect.signature(welm.Model.estimate).parameters
    assert list(estimating) == list(loading.parameters)[:-1]
    assert defaults["queue_limit"] == 1024


def test_time_to_the_first_token() -> None:
    started = time.perf_counter()
    python('import welm; print(next(welm.Model().stream("床前明月光，")).text)')
    print(f"python -c 'next(welm.Model().stream(..))': {(time.perf_counter() - started) * 1e3:.0f} ms")
