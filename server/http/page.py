"""The HTML page at `/`: the model, requests for it, and statistics.

One document without external resources. It is readable without JavaScript; with it the statistics are
refreshed by requesting the page again, and an instance can be tried.
"""

import base64
import hashlib
import importlib.resources
import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from runtime.description import (
    describe_axis,
    describe_format,
    describe_output,
    describe_tensor,
)
from runtime.manifest import Manifest
from runtime.model import Model
from runtime.raw_inputs import Stage
from runtime.signature import Signature, TensorSpec
from server.batching.service import Service
from server.metrics import quantile
from server.observability.snapshot import CollectStats, StatsSnapshot
from server.protocols import embeddings
from server.protocols.oip import BYTES, DATATYPES
from server.protocols.response import Headers, Response

# A larger example would be most of the page.
_MAX_ELEMENTS = 4096
_MAX_LABELS = 50
_EXAMPLE_TEXT = "A short sentence."

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
        text = self._template.render(
            state=service.state.value,
            model=_about(service.model) if service.loaded else None,
            predict_route=self._predict_route,
            curls=list(self._curls()) if service.loaded else [],
            figures=_figures(self._collect_stats()),
            **(_example_of(service.model.manifest) if service.loaded else {"example": None}),
        )
        return Response(200, self._headers, text.encode())

    def _curls(self) -> Iterator[tuple[str, str]]:
        """Yield the protocol of each route, and a curl command that requests it."""
        model = self._service.model
        manifest = model.manifest
        bodies = dict(example_bodies(manifest.signature, manifest.preprocess))
        of_embeddings = embeddings.example_bodies(_EXAMPLE_TEXT)
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


def _example_of(manifest: Manifest) -> dict[str, Any]:
    instance = example_instance(manifest.signature, manifest.preprocess)
    return {"example": instance and json.dumps({"instances": [instance]})}


def example_instance(signature: Signature, stages: Sequence[Stage] = ()) -> dict[str, Any] | None:
    """Return a valid instance without masks; None if it would be too large to show."""
    sizes = _sizes(signature)
    specs = _given(signature, stages)
    if sum(math.prod(spec.concrete(1, sizes)) for spec in specs) > _MAX_ELEMENTS:
        return None
    texts = {name: _EXAMPLE_TEXT for stage in stages for name in stage.raw_names}
    return texts | {spec.name: _nested(spec.concrete(1, sizes)[1:], _value(spec)) for spec in specs}


def _given(signature: Signature, stages: Sequence[Stage]) -> list[TensorSpec]:
    """Return the inputs that an example has: no masks, and none that texts are made into."""
    made = {name for stage in stages for name in stage.made}
    return [spec for spec in signature.inputs if not spec.mask and spec.name not in made]


def example_bodies(signature: Signature, stages: Sequence[Stage] = ()) -> Mapping[str, Any]:
    """Return a valid body for each protocol with inferences; empty if they would be too large."""
    instance = example_instance(signature, stages)
    if instance is None:
        return {}
    sizes = _sizes(signature)
    texts = [
        {"name": name, "shape": [1], "datatype": BYTES, "data": [instance[name]]}
        for stage in stages
        for name in stage.raw_names
    ]
    inputs = [
        {
            "name": spec.name,
            "shape": list(spec.concrete(1, sizes)),
            "datatype": DATATYPES[spec.dtype],
            "data": [instance[spec.name]],
        }
        for spec in _given(signature, stages)
    ]
    rows = {"instances": [instance]}
    return {"vertex": rows, "tfserving": rows, "oip": {"inputs": [*texts, *inputs]}}


def _sizes(signature: Signature) -> dict[str, int]:
    """Return a small valid size of each bucketed axis."""
    return {
        axis.name: max(axis.minimum, min(4, axis.sizes[0])) if axis.sizes[0] else 0
        for axis in signature.axes
    }


def _value(spec: TensorSpec) -> bool | int | float:
    if spec.dtype == "bool":
        return False
    if "float" in spec.dtype:
        return 0.0
    low = 0 if spec.minimum is None else max(0, spec.minimum)
    return min(low, spec.maximum) if isinstance(spec.maximum, int) else low


def _nested(shape: tuple[int, ...], value: Any) -> Any:
    for size in reversed(shape):
        value = [value] * size
    return value
