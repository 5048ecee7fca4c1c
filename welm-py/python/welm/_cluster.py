"""A Ray cluster: connects to it, and says where models go."""

# Ray has no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import logging
import socket
from typing import Any

from welm._errors import Error


class ClusterError(Error):
    """A cluster that is not there, or work on it that failed."""


def connect(address: str) -> Any:
    """Connects to a cluster, and gives the module ``ray``. Raises :class:`ClusterError`."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ClusterError(f'a Ray cluster needs Ray ({error}): pip install "welm[ray]"') from None
    if not ray.is_initialized():
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="welm")
        except (OSError, ValueError, RuntimeError) as error:
            raise ClusterError(f"expected a Ray cluster at {address}: {error}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _reach(address: str) -> None:
    """Raises :class:`OSError` if nothing answers there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def place(ray: Any, device: str) -> tuple[int, dict[str, float]]:
    """How many actors with a model there are, and what each needs, so that two never share a GPU or a node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if device != "cpu" else 0
    if gpus:
        return gpus, {"num_gpus": 1}
    # More than half of the CPUs of the largest node; the rest is for Ray's own tasks. Nodes with fewer have no actor.
    needed = max((node.get("CPU", 0) for node in nodes), default=0) // 2 + 1
    actors = sum(node.get("CPU", 0) >= needed for node in nodes)
    if not actors:
        raise ClusterError("expected a Ray cluster with a node that has CPUs, got none so far")
    return actors, {"num_cpus": needed}


def failure(error: Exception) -> ClusterError:
    """What is told of a `RayError`: its cause."""
    cause = error.__cause__ or error
    return ClusterError(f"on the Ray cluster: {type(cause).__name__}: {cause}")
