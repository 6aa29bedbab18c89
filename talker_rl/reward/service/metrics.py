"""Prometheus metrics of one service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "talker_rl_requests", "HTTP requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "talker_rl_request_seconds", "Time to answer a scoring request.", buckets=_SECONDS, registry=self.registry
        )
        self.items = Counter(
            "talker_rl_items", "Items answered, by outcome: ok or a failure's code.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.cache_hits = Counter(
            "talker_rl_cache_hits", "Items answered from the cache or joined to one under way.", registry=self.registry
        )
        self.speech_seconds = Counter(
            "talker_rl_speech_seconds", "Seconds of speech that came out of the queues.", registry=self.registry
        )
        self.queued_seconds = Gauge(
            "talker_rl_queued_seconds", "Seconds of speech accepted and not yet answered.", registry=self.registry
        )
        self.queued_jobs = Gauge("talker_rl_queued_jobs", "Jobs waiting.", ["kind"], registry=self.registry)
        self.workers_ready = Gauge("talker_rl_workers_ready", "Workers ready.", ["kind"], registry=self.registry)
        self.worker_deaths = Counter(
            "talker_rl_worker_deaths", "Workers that died, hung or failed the canary.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self.batch_items = Histogram(
            "talker_rl_batch_items", "Items per batch.", ["kind"], buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "talker_rl_batch_seconds", "Time a batch.", ["kind"], buckets=_SECONDS, registry=self.registry
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
