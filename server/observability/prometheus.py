"""The metrics page in Prometheus's format, and the statistics extension's JSON.

https://prometheus.io/docs/instrumenting/exposition_formats/
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from runtime.model import Model
from runtime.promises import compatibility_windows, today
from server.batching.service import Service
from server.batching.service_state import State
from server.metrics import DurationSum, Histogram, Metrics
from server.observability.snapshot import CollectStats, StatsSnapshot
from server.protocols.response import Response


class MetricsPage(Collector):
    """The metrics page, serialized by prometheus-client.

    Args:
      service: whose state and model are shown.
      collect_stats: returns the statistics.
    """

    def __init__(self, service: Service, collect_stats: CollectStats) -> None:
        self._service = service
        self._collect_stats = collect_stats
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def respond(self) -> Response:
        """Return the page. On the event loop, which owns the metrics."""
        body = generate_latest(self._registry)
        return Response(200, (("content-type", CONTENT_TYPE_LATEST),), body)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        snapshot = self._collect_stats()
        m = snapshot.metrics
        yield from self._of_requests(m)
        yield _counter("inferences", "Rows answered.", m.rows)
        executions = sum(bucket.run.count for bucket in m.buckets.values())
        yield _counter("executions", "Batches run.", executions)
        buckets = CounterMetricFamily(
            "hloserve_bucket_executions", "Batches run, by bucket.", labels=["bucket"]
        )
        for name, bucket in m.buckets.items():
            buckets.add_metric([name], bucket.run.count)
        yield buckets
        yield from self._of_devices(snapshot)
        yield _histogram("batch_rows", "Rows of each batch, without padding.", m.batch_rows)
        yield _counter("padding_rows", "Rows run only to fill a bucket.", m.padding_rows)
        yield _counter("elements", "Input elements run, padding included.", m.elements)
        yield _counter("padding_elements", "Input elements that were padding.", m.padding_elements)
        yield _histogram("queue_duration_seconds", "Wait of each task for its batch.", m.queued)
        yield _histogram("compute_duration_seconds", "Time of each batch.", m.computed)
        if self._service.loaded and self._service.model.preparer is not None:
            yield _histogram(
                "preprocess_duration_seconds",
                "Time to prepare the raw inputs of each request.",
                m.prepared,
            )
            yield _counter("tokens", "Tokens of texts, padding apart.", m.tokens)
            yield _counter(
                "truncated_rows", "Rows of which a text was cut off at the limit.", m.truncated
            )
            yield _counter(
                "preprocess_panics", "Failures of the library that prepares raw inputs.", m.panics
            )
        yield _counter("row_errors", "Rows that failed by themselves.", m.row_errors)
        yield _counter(
            "nonfinite_outputs", "Answers with NaN, or infinity that is not declared.", m.nonfinite
        )
        yield from self._of_service(snapshot)
        yield from _of_processes(snapshot.pids)

    def _of_requests(self, m: Metrics) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "hloserve_requests",
            "Requests answered.",
            labels=["model", "version", "protocol", "code"],
        )
        model = self._model_labels()
        for labels, count in m.requests.items():
            requests.add_metric([*model, *labels], count)
        yield requests
        failures = CounterMetricFamily(
            "hloserve_request_failures", "Inferences that failed.", labels=["reason"]
        )
        for reason in ("rejected", "canceled", "backend", "other"):
            failures.add_metric([reason], m.failures[reason])
        yield failures
        durations = HistogramMetricFamily(
            "hloserve_request_duration_seconds", "Time of an inference.", labels=["protocol"]
        )
        for protocol, histogram in m.durations.items():
            durations.add_metric([protocol], histogram.buckets(), histogram.sum)
        yield durations

    def _model_labels(self) -> tuple[str, str]:
        """Return name and version of the served model, whatever a request names."""
        if not self._service.loaded:
            return "", ""
        manifest = self._service.model.manifest
        return manifest.name, manifest.version

    def _of_devices(self, snapshot: StatsSnapshot) -> Iterator[Metric]:
        executions = CounterMetricFamily(
            "hloserve_device_executions", "Batches run, by device.", labels=["device"]
        )
        busy = CounterMetricFamily(
            "hloserve_device_busy_seconds", "Times of batches, by device.", labels=["device"]
        )
        for name in (model.device_name for model in self._service.models):
            batches = snapshot.metrics.devices.get(name, DurationSum())
            executions.add_metric([name], batches.count)
            busy.add_metric([name], batches.seconds)
        yield executions
        yield busy
        if snapshot.memory_by_device:
            memory = GaugeMetricFamily(
                "hloserve_device_memory_in_use_bytes",
                "Memory in use, by device.",
                labels=["device"],
            )
            for name, used in snapshot.memory_by_device.items():
                memory.add_metric([name], used)
            yield memory

    def _of_service(self, snapshot: StatsSnapshot) -> Iterator[Metric]:
        service = self._service
        yield _gauge("ready", "1 while requests are answered.", service.state is State.READY)
        yield _gauge("queue_depth", "Rows that wait.", snapshot.queued_rows)
        yield _gauge(
            "runs_alone", "1 where batches hold one task, since rows mix.", service.no_batching
        )
        yield _counter("compiles_after_ready", "Programs compiled after ready.", snapshot.compiles)
        yield _counter("log_lines_dropped", "Lines of the log not written.", snapshot.lines_dropped)
        startup = GaugeMetricFamily(
            "hloserve_startup_seconds", "Time of each stage of the start.", labels=["stage"]
        )
        for stage, took in service.startup_s.items():
            startup.add_metric([stage], took)
        yield startup
        if service.loaded:
            yield from _of_model(service.model)
            # Params, and inputs and outputs of running programs: a number that grows is a leak.
            yield _gauge("live_arrays", "Arrays on the device.", snapshot.arrays)
        if snapshot.memory is not None:
            yield _gauge(
                "device_memory_bytes", "Device memory in use, of all devices.", snapshot.memory
            )


def _of_model(model: Model) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "hloserve_bundle_info",
        "What is served.",
        labels=["model", "version", "digest", "platform"],
    )
    manifest = model.manifest
    info.add_metric([manifest.name, manifest.version, model.bundle.digest, model.platform], 1)
    yield info
    left = GaugeMetricFamily(
        "hloserve_promised_days_left",
        "Days of jax builds that are promised to read the bundle.",
        labels=["form"],
    )
    for promise in compatibility_windows(manifest):
        left.add_metric([promise.form], promise.days_left(today()))
    yield left


def _of_processes(pids: Iterable[int]) -> Iterator[Metric]:
    """Yield the system's metrics of the processes, summed; the start time is the earliest."""
    found: dict[str, list[Metric]] = {}
    for pid in pids:
        for metric in ProcessCollector(pid=functools.partial(int, pid), registry=None).collect():
            found.setdefault(metric.name, []).append(metric)
    for name, metrics in found.items():
        values = [metric.samples[0].value for metric in metrics]
        value = min(values) if name == "process_start_time_seconds" else sum(values)
        first = metrics[0]
        first.samples[0] = first.samples[0]._replace(value=value)
        yield first


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"hloserve_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"hloserve_{name}", text, value=float(value))


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(
        f"hloserve_{name}", text, buckets=histogram.buckets(), sum_value=histogram.sum
    )


def statistics(metrics: Metrics, name: str, version: str) -> dict[str, Any]:
    """Return the statistics extension's response, times in nanoseconds."""
    buckets = metrics.buckets.values()
    parts = {
        "compute_input": [bucket.stage for bucket in buckets],
        "compute_infer": [bucket.run for bucket in buckets],
        "compute_output": [bucket.unstage for bucket in buckets],
    }
    queue = DurationSum(metrics.queued.count, metrics.queued.sum)
    model = {
        "name": name,
        "version": version,
        "inference_count": metrics.rows,
        "execution_count": sum(bucket.run.count for bucket in buckets),
        "inference_stats": {
            "success": _spent(metrics.succeeded),
            "fail": _spent(metrics.failed),
            "queue": _spent(queue),
            **{part: _spent(*spent) for part, spent in parts.items()},
        },
        "batch_stats": [
            {
                "batch_size": bucket.batch,
                "compute_input": _spent(bucket.stage),
                "compute_infer": _spent(bucket.run),
                "compute_output": _spent(bucket.unstage),
            }
            for bucket in buckets
        ],
    }
    return {"model_stats": [model]}


def _spent(*parts: DurationSum) -> dict[str, int]:
    return {
        "count": sum(part.count for part in parts),
        "ns": round(sum(part.seconds for part in parts) * 1e9),
    }
