"""The HTTP routes and their handlers, independent of any HTTP server.

Both front ends serve these routes: `frontend` for `python -m server`, `flask_app` under WSGI.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, override

from runtime.model import Model
from server.batching.service import Service
from server.batching.service_state import State
from server.config import ServerConfig
from server.errors import Overloaded, Unsupported
from server.http.openapi import openapi_response
from server.http.page import Page
from server.http.raw_bodies import ReadRaw, all_types, raw_types, read_raw_body
from server.metrics import Metrics
from server.observability.prometheus import MetricsPage, statistics
from server.observability.snapshot import CollectStats, snapshot_of
from server.protocols import embeddings, oip, oip_http, tfserving, vertex
from server.protocols.body import BodyInfo, inflate
from server.protocols.inference import LARGE_BYTES, Inference, ParsedRequest, Read, metadata_headers
from server.protocols.request_options import RequestOptions
from server.protocols.response import Response, exception_response, json_response
from server.protocols.strict_json import expect_fitting

# Extensions of the Open Inference Protocol that clients know and this server does not have.
_UNSUPPORTED = (
    "/v2/models/<model>/config",
    "/v2/models/<model>/versions/<version>/config",
    "/v2/models/<model>/trace/setting",
    "/v2/models/<model>/generate",
    "/v2/models/<model>/generate_stream",
    "/v2/repository/<path:rest>",
    "/v2/systemsharedmemory/<path:rest>",
    "/v2/cudasharedmemory/<path:rest>",
    "/v2/trace/setting",
    "/v2/logging",
)

# nginx's status for a client that disconnected, as TensorFlow Serving counts it.
_CLIENT_CLOSED = "499"

# Takes the variables of the path as keywords.
Handler = Callable[..., Response]
OnResponse = Callable[[Response], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One route: an inference, or information about the server.

    Attributes:
      method: GET or POST.
      rule: the path, with variables in <>, as werkzeug and Flask write them.
      protocol: label of its requests in the metrics.
      handler: returns the response, if the route is not an inference.
      read: parses a request for the model; None if the route is not an inference.
      read_raw: parses a body that is no JSON, see `raw_bodies`; None if the route takes none.
    """

    method: str
    rule: str
    protocol: str
    handler: Handler = Response
    read: Read | None = None
    read_raw: ReadRaw | None = None

    @property
    def infers(self) -> bool:
        """Whether requests run the model."""
        return self.read is not None

    def raw_types(self, service: Service) -> tuple[str, ...]:
        """Return the content types of bodies that are no JSON, which the model takes here."""
        if self.read_raw is None:
            return ()
        # Without a model it is refused for another reason.
        return raw_types(service.model) if service.loaded else all_types()

    def infer(
        self,
        service: Service,
        body: bytes,
        body_info: BodyInfo,
        options: RequestOptions,
        variables: Mapping[str, str],
        on_response: OnResponse,
    ) -> "HttpInference":
        """Run an inference and count it. On the event loop.

        Args:
          service: runs the model.
          body: as received, perhaps compressed.
          body_info: what the headers say about the body.
          options: from the headers.
          variables: of the path.
          on_response: called once, possibly before this returns.

        Returns:
          The inference, to be cancelled if its client disconnects.
        """
        inference = HttpInference(self, service, body, body_info, options, variables, on_response)
        inference.begin(large=len(body) > LARGE_BYTES or body_info.content_encoding != "")
        return inference

    def respond(
        self, metrics: Metrics, variables: Mapping[str, str], identity: str | None
    ) -> Response:
        """Return the response of a route that is not an inference, and count it. On the event loop.

        Args:
          metrics: counts the request.
          variables: of the path.
          identity: id of the request, for an error.
        """
        try:
            response = self.handler(**variables)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            return self.refuse(metrics, error, identity)
        self.count(metrics, response, 0.0)
        return response

    def refuse(self, metrics: Metrics, error: Exception, identity: str | None) -> Response:
        """Return the error response for a request that could not be read, and count it."""
        response = exception_response(error, identity)
        self.count(metrics, response, 0.0)
        return response

    def count(self, metrics: Metrics, response: Response, seconds: float) -> None:
        """Count a request by its response."""
        if self.read is not None:
            status = str(response.status)
            metrics.count_inference(self.protocol, status, seconds, response.error_code)
        else:
            metrics.count_request(self.protocol, str(response.status))


class HttpInference(Inference[Response]):
    """An inference request of an HTTP route; see `Route.infer`."""

    def __init__(
        self,
        route: Route,
        service: Service,
        body: bytes,
        body_info: BodyInfo,
        options: RequestOptions,
        variables: Mapping[str, str],
        on_response: OnResponse,
    ) -> None:
        super().__init__(service, options.timeout_s)
        self._route = route
        self._body = body
        self._body_info = body_info
        self._options = options
        self._variables = variables
        self._respond = on_response
        self._begun = time.monotonic()
        # Bytes that decompression added, and those of them that the memory budget counts.
        self._added = self._counted = 0

    @override
    def parse(self, model: Model) -> ParsedRequest[Response]:
        variables, read, body = self._variables, self._route.read, self._body
        if variables:
            oip.check_names(model.manifest, variables["model"], variables.get("version", ""))
        info = self._body_info
        if info.content_encoding:
            body = inflate(body, info)
            self._added = max(0, len(body) - len(self._body))
        if info.raw_type and self._route.read_raw is not None:
            return self._route.read_raw(body, info.raw_type, model)
        raw_marks = model.preparer.max_marks if model.preparer else 0
        rows = self.service.max_request_rows
        expect_fitting(body, info.json_length, model.signature, rows, raw_marks)
        return read(body, info.json_length, model)  # type: ignore[misc]

    @override
    def submit(self, parsed: ParsedRequest[Response]) -> None:
        try:
            self.service.memory.acquire(self._added)
        except Overloaded as error:
            self.on_error(error)
            return
        self._counted = self._added
        super().submit(parsed)

    @override
    def on_response(self, message: Response) -> None:
        if self._options.metadata:
            headers = metadata_headers(self.service.model, self.metadata)
            message = message._replace(headers=message.headers + headers)
        self._end(message)

    @override
    def on_error(self, error: Exception) -> None:
        self._end(exception_response(error, self._options.id))

    @override
    def cancel(self) -> None:
        super().cancel()
        self._release()
        seconds = time.monotonic() - self._begun
        self.service.metrics.count_inference(
            self._route.protocol, _CLIENT_CLOSED, seconds, "canceled"
        )

    def _release(self) -> None:
        self.service.memory.release(self._counted)
        self._counted = 0

    def _end(self, response: Response) -> None:
        self._release()
        self._route.count(self.service.metrics, response, time.monotonic() - self._begun)
        self._respond(response)


def make_routes(
    service: Service, config: ServerConfig, collect_stats: CollectStats | None = None
) -> tuple[Route, ...]:
    """Return every route; a configured path takes precedence over a fixed one.

    Args:
      service: runs the model.
      config: with the configured paths, and whether there are metrics and a page.
      collect_stats: returns the server's statistics; those of this process by default.
    """
    collect_stats = collect_stats or functools.partial(snapshot_of, service)
    found: dict[tuple[str, str], Route] = {}
    for route in [
        *_vertex(service, config),
        *_oip(service, collect_stats),
        *_tfserving(service),
        *_embeddings(service),
        *_metrics(service, config, collect_stats),
        Route("GET", "/openapi.json", "page", functools.partial(openapi_response, config)),
    ]:
        found.setdefault((route.method, route.rule), route)
    if config.page:
        page = _page(service, collect_stats, config, list(found.values()))
        found.setdefault((page.method, page.rule), page)
    return tuple(found.values())


def _json_handler(function: Callable[..., Any]) -> Handler:
    """Return a handler that responds with a function's value as JSON."""
    return lambda **variables: json_response(function(**variables))


def _model_handler(service: Service, function: Callable[[], Any]) -> Handler:
    """Return a handler for a function about the model, which the path may name."""

    def handler(model: str | None = None, version: str = "") -> Response:
        if model is not None:
            oip.check_names(service.model.manifest, model, version)
        return json_response(function())

    return handler


def _health(service: Service) -> Handler:
    def handler() -> Response:
        status = 200 if service.state is State.READY else 503
        return json_response({"status": service.state.value}, status)

    return handler


def _ready(service: Service) -> Handler:
    def handler(model: str | None = None, version: str = "") -> Response:
        ready = service.state is State.READY
        if model is None:
            return json_response({"ready": ready}, 200 if ready else 503)
        manifest = service.model.manifest
        oip.check_names(manifest, model, version)
        return json_response({"name": manifest.name, "ready": ready}, 200 if ready else 503)

    return handler


def _vertex(service: Service, config: ServerConfig) -> Iterator[Route]:
    read = functools.partial(vertex.read, max_rows=service.max_request_rows)
    raw = functools.partial(read_raw_body, max_rows=service.max_request_rows)
    yield Route("POST", config.predict_route, "vertex", read=read, read_raw=raw)
    yield Route("GET", config.health_route, "health", _health(service))


def _oip(service: Service, collect_stats: CollectStats) -> Iterator[Route]:
    def about() -> Any:
        return {
            "name": oip.SERVER_NAME,
            "version": oip.SERVER_VERSION,
            "extensions": list(oip.EXTENSIONS),
        }

    def stats() -> Any:
        manifest = service.model.manifest
        return statistics(collect_stats().metrics, manifest.name, manifest.version)

    describe = _model_handler(service, lambda: oip.metadata(service.model.manifest))
    yield Route("GET", "/v2", "oip", _json_handler(about))
    yield Route("GET", "/v2/health/live", "health", _json_handler(lambda: {"live": True}))
    yield Route("GET", "/v2/health/ready", "health", _ready(service))
    yield Route("GET", "/v2/models/stats", "oip", _model_handler(service, stats))
    for model in ("/v2/models/<model>", "/v2/models/<model>/versions/<version>"):
        yield Route("GET", model, "oip", describe)
        yield Route("GET", f"{model}/ready", "health", _ready(service))
        yield Route("GET", f"{model}/stats", "oip", _model_handler(service, stats))
        yield Route("POST", f"{model}/infer", "oip", read=oip_http.read)
    for rule in _UNSUPPORTED:
        for method in ("GET", "POST"):
            yield Route(method, rule, "oip", _unsupported)


def _unsupported(**_: str) -> Response:
    raise Unsupported("this extension of the protocol is not served; GET /v2 lists those that are")


def _tfserving(service: Service) -> Iterator[Route]:
    def status() -> Any:
        return tfserving.status(service.model.manifest, service.state)

    def names() -> Any:
        return {"models": [service.model.manifest.name]}

    describe = _model_handler(service, lambda: tfserving.metadata(service.model.manifest))
    yield Route("GET", "/v1/models", "tfserving", _json_handler(names))
    for model in ("/v1/models/<model>", "/v1/models/<model>/versions/<version>"):
        yield Route("GET", model, "tfserving", _model_handler(service, status))
        yield Route("GET", f"{model}/metadata", "tfserving", describe)
        read = functools.partial(tfserving.read, max_rows=service.max_request_rows)
        raw = functools.partial(read_raw_body, max_rows=service.max_request_rows)
        yield Route("POST", f"{model}:predict", "tfserving", read=read, read_raw=raw)


def _embeddings(service: Service) -> Iterator[Route]:
    rows = service.max_request_rows
    openai = functools.partial(embeddings.read_openai, max_rows=rows)
    yield Route("POST", "/v1/embeddings", "openai", read=openai)
    tei = functools.partial(embeddings.read_tei, max_rows=rows)
    yield Route("POST", "/embed", "tei", read=tei)


def _metrics(
    service: Service, config: ServerConfig, collect_stats: CollectStats
) -> Iterator[Route]:
    if config.metrics:
        yield Route("GET", "/metrics", "metrics", MetricsPage(service, collect_stats).respond)


def _page(
    service: Service, collect_stats: CollectStats, config: ServerConfig, routes: list[Route]
) -> Route:
    shown = ((r.protocol, r.method, r.rule) for r in routes if r.handler is not _unsupported)
    page = Page(service, collect_stats, shown, config.predict_route, config.port)
    return Route("GET", "/", "page", page.respond)
