"""The HTML page at `/`: a form that asks the model, what goes on, and how to ask from elsewhere.

One document without external resources. It is readable without JavaScript; with it the form asks, and
statistics are drawn and refreshed by requesting the page again.
"""

import base64
import hashlib
import importlib.resources
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from runtime.description import describe_axis, describe_format, describe_output, describe_tensor
from runtime.errors import BundleError
from runtime.model import Model
from runtime.records.golden_instances import golden_instances
from server.batching.service import Service
from server.http.page_form import EXAMPLE_TEXT, example_bodies, form_fields, ways_to_ask
from server.metrics import ROWS, SECONDS, Histogram, quantile
from server.observability.snapshot import CollectStats, StatsSnapshot
from server.protocols import embeddings
from server.protocols.response import Headers, Response

_MAX_LABELS = 50
# Of a sample as JSON: a photograph.
_MAX_SAMPLE_BYTES = 1 << 20

Rule = tuple[str, str, str]


class Page:
    """The page, rendered for each request.

    Args:
      service: whose model and state are shown.
      collect_stats: returns the statistics.
      rules: protocol, method and rule of each route that is shown.
      predict_route: path that the form posts its instance to.
      port: in the curl commands, for readers without JavaScript.
    """

    def __init__(
        self,
        service: Service,
        collect_stats: CollectStats,
        rules: Iterable[Rule],
        predict_route: str,
        port: int,
    ) -> None:
        self._service = service
        self._collect_stats = collect_stats
        self._rules = list(rules)
        self._predict_route = predict_route
        self._origin = f"http://localhost:{port}"
        self._sample: str | None = None
        files = importlib.resources.files("server.http")
        style, script = (files.joinpath(f"page.{kind}").read_text() for kind in ("css", "js"))
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.globals |= {"style": Markup(style), "script": Markup(script)}  # noqa: S704 (our own)
        self._template = environment.from_string(files.joinpath("page.html").read_text())
        self._headers: Headers = (
            ("content-type", "text/html; charset=utf-8"),
            ("content-security-policy", _policy(script, style)),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        )

    def respond(self) -> Response:
        """Return the page. On the event loop, which owns the metrics."""
        service = self._service
        snapshot = self._collect_stats()
        about: dict[str, Any] = {"model": None}
        if service.loaded:
            manifest = service.model.manifest
            about = {
                "model": _about(service.model),
                "fields": form_fields(manifest),
                "ways": list(ways_to_ask(manifest, self._origin, self._predict_route)),
                "curls": list(self._curls()),
                "sample": self._read_sample(service.model),
            }
        text = self._template.render(
            state=service.state.value,
            predict_route=self._predict_route,
            figures=_figures(snapshot),
            stats=json.dumps(_stats(snapshot)),
            **about,
        )
        return Response(200, self._headers, text.encode())

    def _read_sample(self, model: Model) -> str:
        """Return the first golden row as JSON, where the export was asked to show it; read once."""
        if not model.manifest.page_sample:
            return ""
        if self._sample is None:
            self._sample = _sample(model)
        return self._sample

    def _curls(self) -> Iterator[tuple[str, str]]:
        """Yield the protocol of each route, and a curl command that requests it."""
        model = self._service.model
        manifest = model.manifest
        bodies = dict(example_bodies(manifest.signature, manifest.preprocess))
        of_embeddings = embeddings.example_bodies(EXAMPLE_TEXT)
        if embeddings.embeds_texts(model):
            bodies |= of_embeddings
        for protocol, method, rule in self._rules:
            if protocol in of_embeddings and protocol not in bodies:
                continue  # the model is another
            path = rule.replace("<model>", manifest.name).replace("<version>", manifest.version)
            line = f"curl {shlex.quote(self._origin + path)}"
            if method == "POST":
                body = bodies.get(protocol)
                line += f" -d {shlex.quote(json.dumps(body)) if body else '@request.json'}"
            yield protocol, line


def _policy(script: str, style: str) -> str:
    """Return a content security policy that allows this script, this style and this server only."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _sample(model: Model) -> str:
    """Return the first golden row as JSON; nothing if it is too large, or its file has gone."""
    try:
        row = next(iter(golden_instances(model.bundle)))
    except (BundleError, OSError):
        return ""
    text = json.dumps(
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
    )
    return text if len(text) <= _MAX_SAMPLE_BYTES else ""


def _about(model: Model) -> dict[str, Any]:
    manifest = model.manifest
    labels = manifest.output_format.labels
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": model.bundle.digest,
        "device": model.platform,
        "inputs": [
            *(stage.description for stage in manifest.preprocess),
            *map(describe_tensor, model.signature.inputs),
        ],
        "outputs": [describe_output(spec) for spec in model.signature.outputs],
        "axes": [describe_axis(axis) for axis in model.signature.axes],
        "buckets": ", ".join(map(str, manifest.buckets)),
        "format": describe_format(manifest.output_format, labels=False),
        "kind": manifest.output_format.kind,
        "labels": labels[:_MAX_LABELS],
        "more_labels": max(0, len(labels) - _MAX_LABELS),
    }


def _figures(snapshot: StatsSnapshot) -> list[tuple[str, str]]:
    """Return statistics since the start, as (name, value) pairs."""
    metrics = snapshot.metrics
    batches = sum(bucket.run.count for bucket in metrics.buckets.values())
    run = metrics.rows + metrics.padding_rows

    def milliseconds(share: float) -> str:
        seconds = quantile(metrics.durations.values(), share)
        return "-" if seconds is None else f"{seconds * 1e3:.3g} ms"

    return [
        ("requests answered", f"{metrics.succeeded.count:,}"),
        ("requests failed", f"{metrics.failed.count:,}"),
        ("rows", f"{metrics.rows:,}"),
        ("rows a batch", f"{metrics.rows / batches:.1f}" if batches else "-"),
        ("rows of padding", f"{metrics.padding_rows / run:.0%}" if run else "-"),
        ("rows waiting", f"{snapshot.queued_rows:,}"),
        ("half answered within", milliseconds(0.5)),
        ("99 % answered within", milliseconds(0.99)),
    ]


def _stats(snapshot: StatsSnapshot) -> Mapping[str, Any]:
    """Return the counts since the start that charts are drawn of, as the page's script reads them."""
    metrics = snapshot.metrics
    durations = Histogram(SECONDS)
    for histogram in metrics.durations.values():
        durations.merge(histogram)
    return {
        "requests": metrics.succeeded.count + metrics.failed.count,
        "durations": {"bounds": SECONDS, "counts": durations.counts},
        "batches": {"bounds": ROWS, "counts": metrics.batch_rows.counts},
        "buckets": {name: times.run.count for name, times in sorted(metrics.buckets.items())},
    }
