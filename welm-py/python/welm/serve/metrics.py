"""Metrics for Prometheus, with vLLM's names, so that dashboards made for vLLM show a welm server as well."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    import welm
    from welm.serve.service import Service

_LABELS = ("model_name", "engine")
_SECONDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
_REASONS = {"end_of_text": "stop", "cancelled": "abort", "deadline": "abort"}
"""The engine's reasons of an end, where vLLM has another word."""


class Metrics:
    """The metrics of a server. Those of the engine are read when they are asked for."""

    def __init__(self, service: Service) -> None:
        """Registers them, in a registry of their own: there may be several servers in a process."""
        self._service = service
        self._values = (service.settings.model_names[0], "0")
        self._registry = CollectorRegistry()
        self._registry.register(self)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"vllm:{name}", about, _LABELS, registry=self._registry, buckets=buckets)
            return made.labels(*self._values)

        self.queue_time = histogram("request_queue_time_seconds", "Seconds that requests waited", _SECONDS)
        self._whole_time = histogram(
            "e2e_request_latency_seconds", "Seconds from a request to its end", _SECONDS
        )
        self._prompt = histogram("request_prompt_tokens", "Tokens of prompts", _TOKENS)
        self._completion = histogram("request_generation_tokens", "Tokens generated for requests", _TOKENS)
        self._success = Counter(
            "vllm:request_success",
            "Sequences that ended, by reason",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort"):
            self._success.labels(*self._values, reason)

    def finished(self, reason: str, seconds: float) -> None:
        """A sequence ended, so many seconds after its request came."""
        word = _REASONS.get(reason, reason)
        self._success.labels(*self._values, word).inc()
        if word == "abort":  # and with it the request
            self._whole_time.observe(seconds)

    def used(self, usage: welm.Usage, seconds: float) -> None:
        """All sequences of a prompt ended, so many seconds after its request came."""
        self._whole_time.observe(seconds)
        self._prompt.observe(usage.prompt_tokens)
        self._completion.observe(usage.completion_tokens)

    def text(self) -> bytes:
        """All of them in the text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The engine's."""
        stats = self._service.model.stats()
        blocks = max(stats.blocks_total, 1)
        for name, about, value in (
            ("num_requests_running", "Sequences that are computed", stats.running),
            (
                "num_requests_waiting",
                "Requests and sequences that wait",
                stats.queue_depth + self._service.gate.waiting,
            ),
            (
                "kv_cache_usage_perc",
                "Share of the KV cache that is in use; 1 is all",
                stats.blocks_used / blocks,
            ),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", about, labels=_LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, about, value in (
            ("num_preemptions", "How often a sequence had to be computed again", stats.preemptions),
            ("prompt_tokens", "Prompt tokens, computed or cached", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.completion_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prompt_tokens),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hit_tokens),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", about, labels=_LABELS)
            counter.add_metric(self._values, value)
            yield counter
        for name, about, times in (
            (
                "time_to_first_token_seconds",
                "Seconds from a request to its first token",
                stats.time_to_first_token,
            ),
            ("inter_token_latency_seconds", "Seconds between two tokens", stats.time_between_tokens),
        ):
            yield self._histogram(name, about, times)

    def _histogram(self, name: str, about: str, times: welm.Histogram) -> Metric:
        family = HistogramMetricFamily(f"vllm:{name}", about, labels=_LABELS)
        below = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip(times.bounds, times.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == math.inf else str(bound), below))
        family.add_metric(self._values, buckets, times.sum)
        return family
