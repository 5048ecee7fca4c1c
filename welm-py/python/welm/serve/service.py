"""What all endpoints do with a request: who asks, may they, when is it their turn, and what did it take."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

import welm
from welm.serve.errors import Refusal, refusal_of, timed_out
from welm.serve.gate import Full, Gate
from welm.serve.keys import Client, Keys
from welm.serve.metrics import Metrics
from welm.serve.quota import Quota
from welm.serve.wire import Events, event, read_json, unless_gone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence

    from starlette.requests import Request

    from welm.serve.settings import Settings

    Prompt = str | list[int]


@dataclass
class Job:
    """One HTTP request that the model works for."""

    http: Request
    client: Client
    timeout: float
    """Seconds that it may take, from ``began`` on."""
    began: float = field(default_factory=time.monotonic)
    counted: bool = False
    """Whether the owner's quota counts it."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the engine that do not depend on the endpoint."""

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return max(self.timeout - (time.monotonic() - self.began), 0.0)

    def note(self, **values: Any) -> None:
        """Adds to the request's line in the log."""
        self.http.state.note.update(values)


class Service:
    """A model with what a server needs around it."""

    def __init__(self, model: welm.Model, settings: Settings) -> None:
        """Opens the quotas."""
        self.model, self.settings = model, settings
        self.keys = Keys(settings.keys)
        self.gate = Gate(settings.parallel, settings.queue_limit)
        self.quota = Quota(settings.quota_file, settings.requests_per_minute, settings.characters_per_day)
        self.metrics = Metrics(self)
        self.created = int(time.time())
        self.draining = False
        """Set when the server is about to end."""

    @property
    def name(self) -> str:
        """The model's name in answers."""
        return self.settings.model_names[0]

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return min(self.model.memory.context_tokens, self.model.memory.cache_tokens)

    # Who asks, and may they.

    def job(self, http: Request) -> Job:
        """A job for a request, after the key is checked."""
        address = http.client.host if http.client else "unknown"
        client = self.keys.client(http.headers.get("authorization"), address)
        if client is None:
            message = "expected an API key in the header Authorization: Bearer KEY, got none or a wrong one"
            raise Refusal(401, message, code="invalid_api_key")
        http.state.note["client"] = client.name
        job = Job(http, client, self._timeout(http))
        if client.salt is not None and not self.settings.share_prefixes:
            job.options["cache_salt"] = client.salt
        return job

    def _timeout(self, http: Request) -> float:
        asked = http.headers.get("x-request-timeout")
        if asked is None:
            return self.settings.timeout
        try:
            seconds = float(asked)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise Refusal(400, f"X-Request-Timeout: expected seconds, more than 0, got {asked[:40]}")
        return min(seconds, self.settings.timeout)

    async def body(self, http: Request) -> dict[str, Any]:
        """The JSON object that a request has."""
        return await read_json(http, self.settings.max_body)

    def charge(self, job: Job, *, always: bool = False) -> None:
        """Counts a request towards the quotas of its owner, or refuses it. There are none for clients without keys."""
        if job.client.salt is None or not (always or self.settings.quota_everywhere):
            return
        if spent := self.quota.admit(job.client.name):
            raise Refusal(429, f"quota: {spent[0]}", code="rate_limit_exceeded", retry_after=spent[1])
        job.counted = True

    def check_model(self, name: object) -> None:
        """Refuses a model that is not served."""
        if name not in self.settings.model_names:
            names = ", ".join(self.settings.model_names)
            message = f"model: expected {names}, got {str(name)[:80]}"
            raise Refusal(404, message, param="model", code="model_not_found")

    # The work.

    async def whole(
        self, job: Job, prompts: Sequence[Prompt], options: dict[str, Any]
    ) -> list[welm.Generation]:
        """The answers to prompts. When the client hangs up, the work ends: raises `ClientDisconnect`."""

        async def one(prompt: Prompt) -> welm.Generation:
            async with self.turn(job, options.get("n")):
                return await self.model.generate_async(prompt, **job.options, **options, deadline=job.left)

        generations: list[welm.Generation] = await unless_gone(
            job.http, _all([one(prompt) for prompt in prompts])
        )
        for generation in generations:
            for choice in generation.choices:
                self._ended(job, choice.finish_reason)
            self._used(job, generation.usage)
        self._spend(job, sum(len(choice.text) for g in generations for choice in g.choices))
        return generations

    async def pieces(
        self, job: Job, prompts: Sequence[Prompt], options: dict[str, Any], used: list[welm.Usage]
    ) -> AsyncIterator[tuple[int, welm.Piece]]:
        """The pieces of the answers to prompts, each with the prompt's number, and at the end what each one used.

        They are taken from the engine as they come, whether this is iterated or not: a client that is slow to read
        keeps nobody waiting.
        """
        queue: asyncio.Queue[tuple[int, welm.Piece] | BaseException | None] = asyncio.Queue()

        async def one(number: int, prompt: Prompt) -> None:
            cached = completion = 0
            async with self.turn(job, options.get("n")):
                stream = self.model.stream_async(prompt, **job.options, **options, deadline=job.left)
                async with stream:
                    async for piece in stream:
                        if piece.finish:
                            completion += piece.finish.completion_tokens
                            cached = max(cached, piece.finish.cached_tokens)
                            self._ended(job, piece.finish.reason)
                        self._spend(job, len(piece.text))
                        queue.put_nowait((number, piece))
            used.append(welm.Usage(stream.prompt_tokens or 0, completion, cached))
            self._used(job, used[-1])

        async def run() -> None:
            try:
                await _all([one(number, prompt) for number, prompt in enumerate(prompts)])
            except Exception as error:
                queue.put_nowait(error)
            queue.put_nowait(None)

        running = asyncio.ensure_future(run())
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def events(
        self, job: Job, events: AsyncGenerator[bytes, None], failed: Callable[[Refusal], bytes] | None = None
    ) -> Events:
        """A response of events. It waits for the first, so that an error at the beginning has its own status.

        It does not wait for longer than until a comment would have to be sent. A later error is an event, which
        ``failed`` writes.
        """
        coming = asyncio.ensure_future(anext(events))
        try:
            await unless_gone(job.http, asyncio.wait([coming], timeout=self.settings.keep_alive))
            if coming.done():
                coming.result()
        except BaseException:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await events.aclose()
            raise
        failed = failed or (lambda refusal: event(refusal.body))
        return Events(_told(coming, events, failed), self.settings.keep_alive)

    @contextlib.asynccontextmanager
    async def turn(self, job: Job, sequences: object) -> AsyncGenerator[None, None]:
        """Waits until the engine has room for a request and it is its client's turn."""
        turn = self.gate.enter(job.client.name, sequences if isinstance(sequences, int) else 1)
        waited = time.monotonic()
        try:
            await asyncio.wait_for(turn.__aenter__(), job.left)
        except Full:
            raise Refusal(429, "too many requests wait", code="queue_full", retry_after=1) from None
        except asyncio.TimeoutError:
            raise timed_out(job.timeout) from None
        self.metrics.queue_time.observe(time.monotonic() - waited)
        try:
            yield
        finally:
            await turn.__aexit__(None, None, None)

    def _ended(self, job: Job, reason: str) -> None:
        self.metrics.finished(reason, time.monotonic() - job.began)
        if reason == "deadline":
            raise timed_out(job.timeout)
        if reason == "cancelled":
            raise ClientDisconnect

    def _used(self, job: Job, usage: welm.Usage) -> None:
        self.metrics.used(usage)
        note = job.http.state.note
        note["prompt_tokens"] = note.get("prompt_tokens", 0) + usage.prompt_tokens
        note["completion_tokens"] = note.get("completion_tokens", 0) + usage.completion_tokens

    def _spend(self, job: Job, characters: int) -> None:
        if job.counted and characters:
            self.quota.add(job.client.name, characters)


async def _all(work: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all; when one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _told(
    first: asyncio.Future[bytes], rest: AsyncGenerator[bytes, None], failed: Callable[[Refusal], bytes]
) -> AsyncGenerator[bytes, None]:
    """The first event and the rest; an error is an event, too."""
    try:
        yield await first
        async for one in rest:
            yield one
    except ClientDisconnect:
        pass
    except Exception as error:
        yield failed(refusal_of(error))
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await rest.aclose()
