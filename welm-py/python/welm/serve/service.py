"""What all endpoints do with a request: who asks, may they, when is it their turn, and what did it take."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

import welm
from welm._prompts import added_tokens
from welm.serve.errors import Refusal, log, refusal_of, timed_out
from welm.serve.gate import Full, Gate, Late
from welm.serve.keys import Client, Keys
from welm.serve.metrics import Metrics
from welm.serve.quota import Quota
from welm.serve.wire import Events, event, read_json, unless_gone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence

    from starlette.requests import Request

    from welm.serve.settings import Settings


Prompt = str | list[int]
"""A text, or its token ids."""

PREPARING = 2
"""Texts that are tokenized at once. The engine tokenizes prompts on other threads."""


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

    waits: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the prompt of this request that waits for its turn."""

    @property
    def age(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return max(self.timeout - self.age, 0.0)

    def log(self, **values: Any) -> None:
        """Adds to the request's line in the log."""
        self.http.state.log_fields.update(values)

    def count(self, usage: welm.Usage) -> None:
        """Adds the tokens of a prompt to the line in the log."""
        fields = self.http.state.log_fields
        for name in ("prompt_tokens", "completion_tokens"):
            fields[name] = fields.get(name, 0) + getattr(usage, name)


class Service:
    """A model with what a server needs around it."""

    def __init__(self, model: welm.Model, settings: Settings) -> None:
        """Opens the quotas."""
        self.model = model
        self.keys = Keys(settings.keys)
        self.settings = settings.with_values(keys={})  # from here on there are hashes only
        self.gate = Gate(settings.parallel, settings.queue_limit)
        # Tokenizing and templates, which clients take turns for as well.
        self._preparing = Gate(PREPARING, settings.queue_limit)
        self._pool = ThreadPoolExecutor(PREPARING, "welm-prepare")
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
    def ended(self) -> bool:
        """Whether the engine has ended, so that the process has to be started again."""
        try:
            self.model.check_health()
        except welm.Error:
            return True
        return False

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return min(self.model.memory.context_tokens, self.model.memory.cache_tokens)

    @cached_property
    def added_tokens(self) -> list[int]:
        """The tokens that the tokenizer adds in front of a text."""
        return added_tokens(self.model)

    # Who asks, and may they.

    def job(self, http: Request) -> Job:
        """A job for a request, after the key is checked."""
        address = http.client.host if http.client else "unknown"
        client = self.keys.client(http.headers.get("authorization"), address)
        if client is None:
            message = "expected an API key in the header Authorization: Bearer KEY, got none or a wrong one"
            raise Refusal(401, message, code="invalid_api_key")
        http.state.log_fields["client"] = client.name
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

    async def body(self, job: Job) -> dict[str, Any]:
        """The JSON object that a request has. The deadline counts from its end, not from its beginning."""
        body = await read_json(job.http, self.settings.max_body)
        job.began = time.monotonic()
        return body

    async def charge(self, job: Job, *, always: bool = False) -> None:
        """Counts a request towards the quotas of its owner, or refuses it. There are none for clients without keys."""
        if job.client.salt is None or not (always or self.settings.quota_everywhere):
            return
        if spent := await self.quota.admit(job.client.name):
            raise Refusal(429, f"quota: {spent[0]}", code="rate_limit_exceeded", retry_after=spent[1])
        job.counted = True

    def log_texts(self, job: Job, **texts: Any) -> None:
        """Adds texts to the request's line in the log, if the settings want them there."""
        if self.settings.log_prompts:
            job.log(**texts)

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
        answers: list[welm.Generation | None] = [None] * len(prompts)

        async def one(number: int) -> None:
            async with self.turn(job, options.get("n")):
                given: dict[str, Any] = {**job.options, **options, "deadline": job.left}
                answers[number] = await self.model.generate_async(prompts[number], **given)

        try:
            await unless_gone(job.http, self._each(len(prompts), one))
        except (asyncio.CancelledError, ClientDisconnect):
            self.metrics.finished("cancelled", job.age)
            raise
        generations = [answer for answer in answers if answer is not None]
        characters = 0
        for prompt, generation in zip(prompts, generations, strict=True):
            for choice in generation.choices:
                characters += len(choice.text) - self._echoed(job, prompt, options)
                self._ended(job, choice.finish_reason)
            self.metrics.used(generation.usage, job.age)
            job.count(generation.usage)
        await self._charge_characters(job, characters)
        self.log_texts(job, answers=[choice.text for one in generations for choice in one.choices])
        return generations

    async def pieces(
        self, job: Job, prompts: Sequence[Prompt], options: dict[str, Any], used: list[welm.Usage]
    ) -> AsyncIterator[tuple[int, welm.Piece]]:
        """The pieces of the answers to prompts, each with the prompt's number, and at the end what each one used.

        They are taken from the engine as they come, whether this is iterated or not: a client that is slow to read
        keeps nobody waiting.
        """
        queue: asyncio.Queue[tuple[int, welm.Piece] | BaseException | None] = asyncio.Queue()
        characters = 0
        texts: dict[tuple[int, int], str] = {}  # only if they are logged

        async def one(number: int) -> None:
            nonlocal characters
            cached = completion = 0
            async with self.turn(job, options.get("n")):
                given: dict[str, Any] = {**job.options, **options, "deadline": job.left}
                stream = self.model.stream_async(prompts[number], **given)
                async with stream:
                    async for piece in stream:
                        characters += len(piece.text)
                        if self.settings.log_prompts:
                            at = (number, piece.index)
                            texts[at] = texts.get(at, "") + piece.text
                        if piece.finish:
                            completion += piece.finish.completion_tokens
                            cached = max(cached, piece.finish.cached_tokens)
                            characters -= self._echoed(job, prompts[number], options)
                            self._ended(job, piece.finish.reason)
                        queue.put_nowait((number, piece))
            used.append(welm.Usage(stream.prompt_tokens or 0, completion, cached))
            self.metrics.used(used[-1], job.age)
            job.count(used[-1])

        async def run() -> None:
            try:
                await self._each(len(prompts), one)
            except Exception as error:
                queue.put_nowait(error)
            except asyncio.CancelledError:
                self.metrics.finished("cancelled", job.age)
                raise
            finally:
                self.log_texts(job, answers=[texts[at] for at in sorted(texts)])
                await self._charge_characters(job, characters)
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

    async def _each(self, count: int, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Works on the prompts of a request, in order, on as many at once as there are places in the engine."""
        if count > self.settings.queue_limit:
            message = f"prompt: expected at most {self.settings.queue_limit:,} prompts, got {count:,}"
            raise Refusal(400, message, param="prompt")
        rest = iter(range(count))

        async def worker() -> None:
            for number in rest:
                await one(number)

        tasks = [asyncio.ensure_future(worker()) for _ in range(min(count, self.settings.parallel))]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def prepare(self, job: Job, function: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
        """Calls a function that takes long for a long text: on another thread, in the client's turn."""
        call = partial(function, *given, **named)

        async def work() -> Any:
            async with self._preparing.enter(job.client.name, 1, job.left):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)

        try:
            return await unless_gone(job.http, work())
        except (Full, Late) as error:
            raise self._not_in_time(job, error) from None

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
        return Events(self._with_errors(job, coming, events, failed), self.settings.keep_alive)

    async def _with_errors(
        self,
        job: Job,
        first: asyncio.Future[bytes],
        rest: AsyncGenerator[bytes, None],
        failed: Callable[[Refusal], bytes],
    ) -> AsyncGenerator[bytes, None]:
        """The first event and the rest; an error is an event, too."""
        try:
            yield await first
            async for one in rest:
                yield one
        except ClientDisconnect:
            pass
        except Exception as error:
            refusal = refusal_of(error)
            job.log(error=refusal.message)
            yield failed(refusal)
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await rest.aclose()

    @contextlib.asynccontextmanager
    async def turn(self, job: Job, sequences: object) -> AsyncGenerator[None, None]:
        """Waits until the engine has room for so many sequences and it is their client's turn."""
        count = sequences if isinstance(sequences, int) else 1
        waited = time.monotonic()
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with job.waits:  # of the prompts of a request one waits at a time
                    await stack.enter_async_context(self.gate.enter(job.client.name, count, job.left))
                self.metrics.queue_time.observe(time.monotonic() - waited)
                yield
        except (Full, Late) as error:
            raise self._not_in_time(job, error) from None

    def _not_in_time(self, job: Job, error: Full | Late) -> Refusal:
        if isinstance(error, Late):
            return timed_out(job.timeout)
        return Refusal(429, "too many requests wait", code="queue_full", retry_after=1)

    def _ended(self, job: Job, reason: str) -> None:
        self.metrics.finished(reason, job.age)
        if reason == "deadline":
            raise timed_out(job.timeout)
        if reason == "cancelled":
            raise ClientDisconnect

    def _echoed(self, job: Job, prompt: Prompt, options: dict[str, Any]) -> int:
        """How many characters of a text are the prompt's, which are not charged."""
        if not job.counted or not options.get("echo"):
            return 0
        return len(prompt if isinstance(prompt, str) else self.model.detokenize(prompt))

    async def _charge_characters(self, job: Job, characters: int) -> None:
        """Counts generated characters. If that fails, the client gets its answer nevertheless."""
        if not job.counted or characters <= 0:
            return
        try:
            await self.quota.add(job.client.name, characters)
        except sqlite3.Error as error:
            log.error("%d characters of %s are not counted: %s", characters, job.client.name, error)
