"""What Prometheus reads at /metrics; a registry for each app, so that apps do not mix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class _Count:
    """A counter that somebody else keeps."""

    name: str
    text: str
    read: Callable[[], float]

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self.name, self.text, value=self.read())


class Metrics:
    """Counters, gauges and histograms of one app; labels come from the route table only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "slimp_requests_total",
            "Requests answered",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "slimp_request_seconds",
            "Seconds from a request's arrival to its answer",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting_seconds = Histogram(
            "slimp_waiting_seconds",
            "Seconds that work waited for a thread",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.work_seconds = Histogram(
            "slimp_work_seconds",
            "Seconds that decoding and inference took",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "slimp_stage_seconds",
            "Seconds of a request's work by stage: wait (to decode), decode, infer, search",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.problems = Counter(
            "slimp_problems_total",
            "Requests that were refused, shed or failed, by the answer's code",
            ("code",),
            registry=self.registry,
        )
        self.metadata = Counter(
            "slimp_metadata_total",
            "Metadata fields of answered lesions, by source and by why they are missing",
            ("source", "reason"),
            registry=self.registry,
        )
        self.not_assessable = Counter(
            "slimp_not_assessable_total",
            "Lesions that could not be assessed",
            ("reason",),
            registry=self.registry,
        )
        self.load_seconds = Gauge(
            "slimp_load_seconds", "Seconds that loading and checking took", registry=self.registry
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when Prometheus asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch_count(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a counter, its name without `_total`, that is read when Prometheus asks."""
        self.registry.register(_Count(name, text, read))

    def expose(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)
