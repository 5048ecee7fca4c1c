"""The corpus by Slurm, on a cluster of one node that is started here. The daemons run as root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from conftest import bytes_of, command, documents, run, save, values, write_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not all(map(shutil.which, DAEMONS)),
    reason="needs root, and slurmctld, slurmd, slurm-client and munge",
)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starts a cluster; jobs that are left at the end are killed."""
    root = tmp_path / "slurm"
    root.mkdir()
    (root / "key").write_bytes(b"k" * 128)
    (root / "key").chmod(0o600)
    name = socket.gethostname().split(".")[0]
    (root / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000
NodeName={name} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4100
PartitionName=cpu Nodes=ALL Default=YES State=UP
"""
    )
    monkeypatch.setenv("SLURM_CONF", str(root / "slurm.conf"))
    files = [f"--{kind}-file={root / kind}" for kind in ("key", "pid", "log", "seed")]
    subprocess.run(["munged", "--force", f"--socket={root}/munge.sock", *files], check=True)
    daemons = [subprocess.Popen(["slurmctld", "-D"]), subprocess.Popen(["slurmd", "-D"])]
    try:
        until = time.monotonic() + 60
        while "idle" not in _told("sinfo", "--noheader", "--format=%t"):
            assert time.monotonic() < until, (root / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        subprocess.run(["munged", "--stop", f"--socket={root}/munge.sock", *files], check=False)


def _told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


SLURM = {"kind": "slurm", "tasks": 2, "workers": 2, "partition": "cpu", "time": "00:10:00"}


@pytest.mark.usefixtures("cluster")
def test_slurm(folder: Path) -> None:
    # A task that fails: this is told, and no job is left.
    with open(folder / "recipes.jsonl", "a") as file:
        file.write('{"text": \n')
    path = save(values(folder, executor=SLURM), folder / "recipe.toml")
    done = run("corpus", "--config", str(path))
    assert done.returncode == 1
    assert "1 tasks of the stage rules failed" in done.stderr, done.stderr
    assert not _told("squeue", "--noheader")

    # Interrupted, it cancels its jobs.
    write_lines(folder / "recipes.jsonl", documents("recipes")[:60])
    process = subprocess.Popen(command("corpus", "--config", str(path)), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not _told("squeue", "--noheader") and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    until = time.monotonic() + 60
    while _told("squeue", "--noheader") and time.monotonic() < until:
        time.sleep(0.2)
    assert not _told("squeue", "--noheader")

    # The same command goes on, and makes what a run without Slurm makes.
    done = run("corpus", "--config", str(path))
    assert done.returncode == 0, done.stderr
    kept = bytes_of(folder / "out" / "corpus" / "train")
    (folder / "out").rename(folder / "slurm-out")
    local = save(values(folder, executor={"tasks": 2}), folder / "recipe.toml")
    done = run("corpus", "--config", str(local))
    assert done.returncode == 0, done.stderr
    assert bytes_of(folder / "out" / "corpus" / "train") == kept
