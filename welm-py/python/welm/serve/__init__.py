"""A server for a model: WeLM's HTTP API, OpenAI's, and what an operator needs.

``python -m welm serve MODEL`` runs one. :func:`app` makes the application, to run it with another server or inside
another program:

.. code-block:: python

    import fastapi, welm, welm.serve

    site = fastapi.FastAPI()
    site.mount("/llm", welm.serve.app(welm.Model("model.gguf"), model_names=("mine",)))

Needs ``pip install "welm[serve]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from welm.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    import welm

__all__ = ["Settings", "app"]


def app(model: welm.Model, settings: Settings | None = None, /, **values: Any) -> FastAPI:
    """The application that serves a model; it can be mounted in another one.

    ``values`` are fields of :class:`Settings`, and replace those of ``settings``. Raises :class:`ValueError` if one is
    wrong.
    """
    from welm.serve.application import application

    return application(model, (settings or Settings()).with_values(**values))
