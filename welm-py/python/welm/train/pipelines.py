"""Stages of datatrove's pipelines, run here, on a Ray cluster, or by Slurm."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger
from tqdm import tqdm

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from welm.train.recipe import Executor


@dataclass
class Stage:
    """Work that is done by a number of tasks, each on its share of the files."""

    name: str
    tasks: int
    steps: list[Any] = field(default_factory=list)


def run_stages(stages: list[Stage], executor: Executor, logs: Path) -> None:
    """Runs stages, one after the other; tasks that are done are left out.

    On Slurm this submits them and waits. If one fails, or the wait is interrupted, the jobs are cancelled.

    Raises :class:`RecipeError`.
    """
    logger.remove()
    os.environ["LOGURU_AUTOINIT"] = "0"  # of the processes of the tasks
    if executor.kind == "slurm":
        slurm = _Slurm(stages, executor, logs)
        try:
            slurm.submit()
            for stage in stages:
                _run_stage(stage, logs / stage.name, partial(slurm.wait, stage))
        except BaseException:
            slurm.cancel()
            raise
        return
    if executor.kind == "ray":
        import ray

        if not ray.is_initialized():
            ray.init(None if executor.address == "local" else executor.address, log_to_driver=False)
    kind = RayPipelineExecutor if executor.kind == "ray" else _Local
    for stage in stages:
        run = kind(
            pipeline=stage.steps,
            tasks=stage.tasks,
            workers=min(executor.workers, stage.tasks),
            logging_dir=str(logs / stage.name),
        ).run
        _run_stage(stage, logs / stage.name, run)


class _Local(LocalPipelineExecutor):
    """A local executor that writes its log into files only."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.main = os.getpid()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        if os.getpid() != self.main:
            with contextlib.suppress(OSError, AttributeError):  # Linux: a task ends when its parent does
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            finally:
                logger.remove()  # it would write to `nowhere`, which is closed


def _run_stage(stage: Stage, logs: Path, run: Callable[[], Any]) -> None:
    """Runs a stage, and shows how many of its tasks are done."""
    ended = threading.Event()
    with tqdm(total=stage.tasks, desc=stage.name, unit="task") as bar:

        def watch() -> None:
            while not ended.wait(0.5):
                bar.update(_completed(logs) - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            run()
        except RecipeError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise RecipeError(f"the stage {stage.name} failed: {told}; see {logs / 'logs'}") from error
        finally:
            ended.set()
            watcher.join()
            bar.update(_completed(logs) - bar.n)
    if left := stage.tasks - _completed(logs):
        raise RecipeError(f"{left} tasks of the stage {stage.name} failed; see {logs / 'logs'}")


def _completed(logs: Path) -> int:
    folder = logs / "completions"
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


@contextlib.contextmanager
def _signals_at_the_end() -> Generator[None, None, None]:
    """Handles Ctrl-C and SIGTERM at the end of the block. dill, in it, catches whatever is raised, and goes on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[Any, ...]] = []
    before: dict[int, Callable[..., Any]] = {}
    for one in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(one)
        if callable(handler):
            before[one] = handler
            signal.signal(one, lambda *got: came.append(got))
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
    for number, frame in came[:1]:
        before[number](number, frame)


class _Slurm:
    """Stages as jobs, each of which starts after the one before it."""

    POLL, SETTLE, UNANSWERED = 2.0, 10.0, 60
    """Seconds between two looks at the queue; seconds until a shared folder shows what a job has written; how often a
    look at the queue may fail."""

    def __init__(self, stages: list[Stage], executor: Executor, logs: Path) -> None:
        token = secrets.token_hex(4)  # so that only jobs of this run are found by their names
        self._names = {stage.name: f"welm-{stage.name}-{token}" for stage in stages}
        self._logs = logs
        self._unanswered = 0
        before = None
        for stage in stages:
            before = SlurmPipelineExecutor(
                stage.steps,
                tasks=stage.tasks,
                workers=min(executor.workers, stage.tasks),
                time=executor.time,
                partition=executor.partition,
                job_name=self._names[stage.name],
                logging_dir=str(logs / stage.name),
                env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
                depends=before,
            )
        self._last = before

    def submit(self) -> None:
        """Submits the stages that are not done."""
        try:
            with _signals_at_the_end():
                if self._last:
                    self._last.run()
        except (OSError, subprocess.CalledProcessError) as error:
            raise RecipeError(f"sbatch: {error}") from None

    def wait(self, stage: Stage) -> None:
        """Returns when all tasks of a stage are done, or when no job is left that would do them."""
        logs = self._logs / stage.name
        gone = 0.0
        while _completed(logs) < stage.tasks and gone < self.SETTLE:
            gone = 0.0 if self._queued(stage) else gone + self.POLL
            time.sleep(self.POLL)

    def _queued(self, stage: Stage) -> bool:
        try:
            told = self._told("squeue", "--noheader", "--format=%r", "--name", self._names[stage.name])
        except RecipeError:
            self._unanswered += 1
            if self._unanswered >= self.UNANSWERED:
                raise
            return True
        self._unanswered = 0
        return any(reason != "DependencyNeverSatisfied" for reason in told.split())

    def cancel(self) -> None:
        """Cancels all jobs."""
        for name in self._names.values():
            with contextlib.suppress(RecipeError):
                self._told("scancel", "--name", name)

    def _told(self, *command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except OSError as error:
            raise RecipeError(f"{command[0]}: {error.strerror}") from None
        except subprocess.CalledProcessError as error:
            raise RecipeError(f"{command[0]}: {error.stderr.strip()}") from None
