"""The server on many machines, by Ray Serve: copies of the model, one a GPU or one a node.

.. code-block:: python

    from ray import serve
    import welm.serve.ray

    serve.run(welm.serve.ray.deployment("/models/mine.gguf", num_replicas=2), name="welm", route_prefix="/")

Each copy is a process with the application of :func:`welm.serve.app`, so the API is the same, and so are the answers.
The file of the model has to lie under the same path on every machine. A configuration file, for ``serve deploy`` or for
Kubernetes, names :func:`build` and has its arguments; ``examples/ray`` in the repository has both kinds.

**Which copy a request goes to.** The one to which its client sent requests before, because that has computed the
beginnings of that client's prompts: a header chooses it by consistent hashing, and if that copy has too much to do, the
next one. Set ``RAY_SERVE_SESSION_ID_HEADER_KEY=authorization`` in the environment of Ray on every machine, or name
another header in which your clients say what belongs together. Without it requests are spread evenly.

Quotas are counted by each copy; those on one machine share a ``quota_file``. Needs ``pip install "welm[cluster]"``.
"""

# Ray has no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import RequestRouterConfig

import welm
import welm.serve
from welm.serve.keys import read_keys

if TYPE_CHECKING:
    from fastapi import FastAPI

ROUTER: Any = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


class Replica:
    """One copy of the model."""

    def __init__(self, path: str | None, options: dict[str, Any], settings: dict[str, Any]) -> None:
        """Loads it."""
        options = dict(options)
        settings = {"parallel": options.get("max_running", 64), **settings}
        self._model = welm.Model(path, **options)
        self._app = welm.serve.app(self._model, **settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, which Ray Serve asks for."""
        return self._app

    async def check_health(self) -> None:
        """Raises an exception if the engine has ended; then Ray starts another copy."""
        self._model.check_health()


def deployment(
    path: str | None,
    *,
    num_replicas: int | None = None,
    min_replicas: int = 1,
    max_replicas: int = 4,
    target_requests: int = 32,
    cpus: float = 1,
    gpus: float = 0,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> serve.Application:
    """An application for ``serve.run``.

    ``options`` are those of :class:`welm.Model`, ``settings`` are fields of :class:`welm.serve.Settings`. There are
    ``num_replicas`` copies; without that, between ``min_replicas`` and ``max_replicas``, so many that each has about
    ``target_requests`` that run or wait. A copy is placed where ``cpus`` and ``gpus`` are free: on a machine with GPUs
    give it one; without, as many CPUs as a node, or one of its sockets, has, and ``options={"threads": ...}``.
    """
    limit = int(settings.get("queue_limit", 1024))
    scaling: dict[str, Any] = {"num_replicas": num_replicas}
    if num_replicas is None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": min_replicas,
                "max_replicas": max_replicas,
                "target_ongoing_requests": target_requests,
            }
        }
    made: Any = serve.deployment(
        serve.ingress()(Replica),
        name="welm",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=limit,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        **scaling,
    )
    bound: serve.Application = made.bind(path, options or {}, settings)
    return bound


def build(args: dict[str, Any]) -> serve.Application:
    """As :func:`deployment`, with the arguments of a configuration file: ``path`` and the others by name.

    ``api_keys`` is a file of keys, as ``welm serve --api-keys`` has it; ``model_names`` is a list.
    """
    args = dict(args)
    if (keys := args.pop("api_keys", None)) is not None:
        args["keys"] = read_keys(keys)
    if "model_names" in args:
        args["model_names"] = tuple(args["model_names"])
    return deployment(args.pop("path", None), **args)
