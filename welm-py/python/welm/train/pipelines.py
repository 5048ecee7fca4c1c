"""Stages of datatrove's pipelines, run here, on a Ray cluster, or by Slurm."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger
from tqdm import tqdm

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from welm.train.recipe import Executor


@dataclass
class Stage:
    """Work that is done by a number of tasks, each on its share of the files."""

    name: str
    tasks: int
    steps: list[Any] = field(default_factory=list)


def run_stages(stages: list[Stage], executor: Executor, logs: Path) -> None:
    """Runs stages, one after the other; tasks that are done are left out. On Slurm this submits them and waits.

    Raises :class:`RecipeError`.
    """
    logger.remove()
    os.environ["LOGURU_AUTOINIT"] = "0"  # of the processes of the tasks
    if executor.kind == "slurm":
        _submit(stages, executor, logs)
    if executor.kind == "ray":
        import ray

        if not ray.is_initialized():
            ray.init(None if executor.address == "local" else executor.address, log_to_driver=False)
    for stage in stages:
        _run_stage(stage, executor, logs / stage.name)


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


def _run_stage(stage: Stage, executor: Executor, logs: Path) -> None:
    """Runs a stage, or waits for Slurm to run it."""
    given: dict[str, Any] = {
        "pipeline": stage.steps,
        "tasks": stage.tasks,
        "workers": min(executor.workers, stage.tasks),
        "logging_dir": str(logs),
    }
    ended = threading.Event()
    with tqdm(total=stage.tasks, desc=stage.name, unit="task") as bar:

        def watch() -> None:
            while not ended.wait(0.5):
                bar.update(_completed(logs) - bar.n)
                if executor.kind == "slurm" and bar.n >= stage.tasks:
                    ended.set()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            if executor.kind == "slurm":
                ended.wait()
            else:
                (RayPipelineExecutor if executor.kind == "ray" else _Local)(**given).run()
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


def _submit(stages: list[Stage], executor: Executor, logs: Path) -> None:
    before = None
    for stage in stages:
        before = SlurmPipelineExecutor(
            stage.steps,
            tasks=stage.tasks,
            workers=min(executor.workers, stage.tasks),
            time=executor.time,
            partition=executor.partition,
            job_name=f"welm-{stage.name}",
            logging_dir=str(logs / stage.name),
            depends=before,
        )
    if before:
        before.run()
