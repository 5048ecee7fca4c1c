"""The application: which path leads where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

import welm
from welm.serve import openai_chat, openai_completions, openai_responses, tokens, welm_api
from welm.serve.checks import Checks
from welm.serve.errors import Refusal, json_response, refusal_of
from welm.serve.service import Job, Service
from welm.serve.wire import read_json

if TYPE_CHECKING:
    from welm.serve.settings import Settings

Handler = Callable[[Service, Job, dict[str, Any]], Awaitable[Response]]

LITTLE = 1 << 16
"""Most bytes of a body with a wrong key."""

_LACKING = {
    "/v1/embeddings": "this model makes no embeddings",
    "/v1/moderations": "this model does not moderate",
    "/v1/images/generations": "this model makes no images",
    "/v1/audio/speech": "this model makes no sound",
    "/v1/audio/transcriptions": "this model does not listen",
}
"""Endpoints of OpenAI that are refused by name."""


def application(model: welm.Model, settings: Settings) -> FastAPI:
    """The application; see :func:`welm.serve.app`."""
    service = Service(model, settings)
    app = FastAPI(
        title="welm",
        version=welm.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service

    def post(path: str, handler: Handler) -> None:
        async def endpoint(request: Request) -> Response:
            job = service.job(request)  # bodies are read for those who may send them
            return await handler(service, job, await service.body(job))

        _add_post(app, path, endpoint)

    _add_welm(app, service)
    post("/v1/chat/completions", openai_chat.answer)
    post("/v1/responses", openai_responses.answer)
    for prefix in ("", "/v1"):
        post(f"{prefix}/tokenize", tokens.tokenize)
        post(f"{prefix}/detokenize", tokens.detokenize)
        post(f"{prefix}/score", tokens.score)
    for path, why in _LACKING.items():
        post(path, _lacking(why))
    _add_state(app, service)
    if settings.page:
        _add_page(app)
    _add_errors(app)
    app.add_middleware(Checks, settings=settings)
    return app


def _add_post(app: FastAPI, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
    """Adds an endpoint, whose errors are answers."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; nginx logs this number, too
        except Exception as error:
            return _refused(request, error)

    app.add_api_route(path, guarded, methods=["POST"], response_model=None)


def _add_welm(app: FastAPI, service: Service) -> None:
    """Adds the paths of WeLM's API, of which one is OpenAI's as well: the model's name tells which is meant.

    So it is only known after the body is read which status a wrong key has. Of a body with a wrong key little is read.
    """

    def is_welm(request: Request, body: dict[str, Any]) -> bool:
        return request.url.path.endswith("/welm/v1/completions") or welm_api.is_welm(body)

    async def either(request: Request) -> Response:
        try:
            job = service.job(request)
        except Refusal as refusal:
            try:
                body = await read_json(
                    request, LITTLE if refusal.status == 401 else service.settings.max_body
                )
            except Refusal:  # the key is what to look at first
                body = {}
            raise (welm_api.with_status(refusal) if is_welm(request, body) else refusal) from None
        body = await service.body(job)
        answer = welm_api.answer if is_welm(request, body) else openai_completions.answer
        return await answer(service, job, body)

    for path in ("/v1/completions", "/welm/v1/completions"):
        _add_post(app, path, either)


def _lacking(why: str) -> Handler:
    async def answer(service: Service, job: Job, body: dict[str, Any]) -> Response:
        raise Refusal(400, why, code="unsupported_endpoint")

    return answer


def _add_state(app: FastAPI, service: Service) -> None:
    """Adds the endpoints that tell about the server."""

    def about(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "welm",
            "max_model_len": service.context,
        }

    @app.get("/v1/models", response_model=None)
    async def models(request: Request) -> dict[str, Any]:
        service.job(request)
        return {"object": "list", "data": [about(name) for name in service.settings.model_names]}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one_model(request: Request, name: str) -> dict[str, Any]:
        service.job(request)
        service.check_model(name)
        return about(name)

    @app.api_route("/health", methods=["GET", "HEAD"], response_model=None)
    async def health() -> Response:
        return (
            json_response({"status": "ok"}) if not service.ended else json_response({"status": "ended"}, 503)
        )

    @app.api_route("/ready", methods=["GET", "HEAD"], response_model=None)
    async def ready() -> Response:
        status = "ended" if service.ended else "draining" if service.draining else "ready"
        return json_response({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    """Adds the page at ``/``. It loads nothing from elsewhere, and the browser is told so."""
    folder = Path(__file__).parent / "page"
    policy = {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

    def add(path: str, file: Path) -> None:
        async def endpoint() -> Response:
            return FileResponse(file, headers=policy, media_type=kinds[file.suffix])

        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)

    for file in sorted(folder.iterdir()):
        add("/" if file.name == "index.html" else f"/page/{file.name}", file)


def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    request.state.log_fields["error"] = refusal.message
    return refusal.response()


def _add_errors(app: FastAPI) -> None:
    """All errors have OpenAI's shape."""

    async def refused(request: Request, error: Exception) -> Response:
        return _refused(request, error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path[:200]}"
        message = f"{what}: no such endpoint" if error.status_code == 404 else f"{what}: {error.detail}"
        response = Refusal(error.status_code, message, code="unknown_url").response()
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, unknown)
