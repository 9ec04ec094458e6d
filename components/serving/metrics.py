"""What Prometheus is told about an endpoint, at /metrics. No label holds what a client chose freely, so their number is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

disable_created_metrics()  # a series beside each, which nobody reads

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One endpoint's; tests have several in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ours = {"registry": self.registry, "namespace": "modelyard_serving"}
        self.requests = Counter("requests", "Requests that were answered, by HTTP status.", ("model", "version", "arm", "route", "status"), **ours)
        self.seconds = Histogram("request_seconds", "From the request's header to the end of its answer.", ("model", "arm", "route"), buckets=SECONDS, **ours)
        self.first = Histogram("first_token_seconds", "From the request's header to the first token.", ("model", "arm"), buckets=FIRST, **ours)
        self.tokens = Counter("tokens", "Tokens read (prompt) and written (completion).", ("model", "arm", "kind"), **ours)
        self.running = Gauge("running", "Answers that are being written.", ("arm",), **ours)
        self.waiting = Gauge("waiting", "Answers that wait for a place.", **ours)
        self.refused = Counter("refused", "Requests that were refused before anything was written.", ("reason",), **ours)
        self.info = Gauge("model_info", "1 for each version in service.", ("model", "version", "arm"), **ours)
        self.shadow = Counter("shadow", "Answers of the shadow: same, different, dropped because it was behind, failed.", ("outcome",), **ours)
        self.drift = Gauge("prompt_drift", "How far served prompts are from the training prompts.", ("model", "measure"), **ours)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
