"""The routes of the data port: what answers what. No HTTP server is known here.

Both entrances serve these routes: `http_app` all of them, `http_front` the hot ones itself.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, override

from runtime.model import Model
from runtime.release import version
from server import oip, oip_http, tfserving, vertex
from server.body import inflate
from server.config import ServerConfig
from server.dialect import LARGE_BYTES, Call, Inference, Read, evidence_headers
from server.errors import Overloaded, Unsupported
from server.exposition import MetricsPage, statistics
from server.figures import Gather, figures_of
from server.metrics import Metrics
from server.page import Page
from server.parse import expect_fitting
from server.reply import Reply, failure, reply
from server.request import Request
from server.service import Service, State
from server.target import spelt

SERVER_NAME = "hloserve"
SERVER_VERSION = version()
# What a client of the Open Inference Protocol may ask for and is not served.
_UNSERVED = (
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

# nginx's status for a client that has gone, as TensorFlow Serving counts it.
_GONE = "499"

# Takes the named parts of the path, as keywords; gives what is told.
Tell = Callable[..., Reply]
Done = Callable[[Reply], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One route: it asks the model, or tells about the server.

    Attributes:
      method: GET or POST.
      rule: its path, names of parts in <>, as Flask writes them.
      protocol: what its requests are counted as.
      tell: tells about the server.
      read: reads a request for the model; None if it asks nothing of it.
    """

    method: str
    rule: str
    protocol: str
    tell: Tell = Reply
    read: Read | None = None

    @property
    def infers(self) -> bool:
        """Say whether it asks the model."""
        return self.read is not None

    def answer(
        self, service: Service, request: Request, parts: Mapping[str, str], done: Done
    ) -> "_Inference | None":
        """Answer a request, whatever happens, and count it. On the event loop.

        Args:
          service: that answers.
          request: what came.
          parts: named parts of its path.
          done: called once, perhaps before this returns.

        Returns:
          Hears of what becomes of its client while the request is not done.
        """
        if self.read is not None:
            inference = _Inference(self, service, request, parts, done)
            inference.begin(large=len(request.body) > LARGE_BYTES or request.packed is not None)
            return inference
        try:
            made = self.tell(**parts)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            made = failure(error, request.fields.id)
        self.count(service.metrics, made, 0.0)
        done(made)
        return None

    def refuse(self, metrics: Metrics, error: Exception, identity: str | None) -> Reply:
        """Answer a request that could not be read, and count it."""
        made = failure(error, identity)
        self.count(metrics, made, 0.0)
        return made

    def count(self, metrics: Metrics, made: Reply, seconds: float) -> None:
        """Count a request that was answered, or refused."""
        if self.read is not None:
            metrics.inference(self.protocol, str(made.status), seconds, made.slug)
        else:
            metrics.other(self.protocol, str(made.status))


class _Inference(Inference[Reply]):
    """A request of a route that asks the model; it is counted with how it ended."""

    def __init__(
        self,
        route: Route,
        service: Service,
        request: Request,
        parts: Mapping[str, str],
        done: Done,
    ) -> None:
        super().__init__(service, request.fields.timeout_s)
        self._route = route
        self._request = request
        self._parts = parts
        self._done = done
        self._begun = time.monotonic()
        # Bytes that decompressing added, and those of them that count as held.
        self._added = self._held = 0

    @override
    def read(self, model: Model) -> Call[Reply]:
        parts, read = self._parts, self._route.read
        if parts:
            oip.check_names(model.manifest, parts["model"], parts.get("version", ""))
        request = self._request
        if request.packed is not None:
            whole = inflate(request.body, request.packed)
            self._added = max(0, len(whole) - len(request.body))
            request = request._replace(body=whole, packed=None)
        rows = self.service.most_rows
        expect_fitting(request.body, request.json_bytes, model.signature, rows)
        return read(request, model)  # type: ignore[misc]

    @override
    def submit(self, call: Call[Reply]) -> None:
        try:
            self.service.held.take(self._added)
        except Overloaded as error:
            self.failed(error)
            return
        self._held = self._added
        super().submit(call)

    @override
    def written(self, message: Reply) -> None:
        if self._request.fields.evidence:
            headers = evidence_headers(self.service.model, self.evidence)
            message = message._replace(headers=message.headers + headers)
        self._end(message)

    @override
    def failed(self, error: Exception) -> None:
        self._end(failure(error, self._request.fields.id))

    @override
    def withdraw(self) -> None:
        super().withdraw()
        self._let_go()
        seconds = time.monotonic() - self._begun
        self.service.metrics.inference(self._route.protocol, _GONE, seconds, "canceled")

    def _let_go(self) -> None:
        self.service.held.give(self._held)
        self._held = 0

    def _end(self, made: Reply) -> None:
        self._let_go()
        self._route.count(self.service.metrics, made, time.monotonic() - self._begun)
        self._done(made)


def make_routes(
    service: Service, config: ServerConfig, figures: Gather | None = None
) -> tuple[Route, ...]:
    """Make every route; where a configured one takes a fixed one's place, it has it.

    Args:
      service: answers.
      config: names routes, and says whether there are metrics and a page.
      figures: gives the server's counts; those of this process unless it is given.
    """
    figures = figures or functools.partial(figures_of, service)
    found: dict[tuple[str, str], Route] = {}
    for route in [
        *_vertex(service, config),
        *_oip(service, figures),
        *_tfserving(service),
        *_metrics(service, config, figures),
    ]:
        found.setdefault((route.method, route.rule), route)
    if config.page:
        page = _page(service, figures, config, list(found.values()))
        found.setdefault((page.method, page.rule), page)
    return tuple(found.values())


def hot_paths(
    service: Service, routes: tuple[Route, ...]
) -> dict[bytes, tuple[Route, dict[str, str]]]:
    """Give the paths of inferences, as they come over the wire, parts filled in with the loaded model's, to their routes."""
    manifest = service.model.manifest
    names = {"<model>": manifest.name, "<version>": manifest.version}
    found = {}
    for route in routes:
        if route.infers:
            path = functools.reduce(lambda p, part: p.replace(*part), names.items(), route.rule)
            parts = {part[1:-1]: name for part, name in names.items() if part in route.rule}
            found[spelt(path)] = route, parts
    return found


def _telling(tell: Callable[..., Any]) -> Tell:
    """Write what a function gives as JSON."""
    return lambda **parts: reply(tell(**parts))


def _of_model(service: Service, tell: Callable[[], Any]) -> Tell:
    """Write what a function gives about the model, named in the path or not."""

    def told(model: str | None = None, version: str = "") -> Reply:
        if model is not None:
            oip.check_names(service.model.manifest, model, version)
        return reply(tell())

    return told


def _health(service: Service) -> Tell:
    def told() -> Reply:
        status = 200 if service.state is State.READY else 503
        return reply({"status": service.state.value}, status)

    return told


def _ready(service: Service) -> Tell:
    def told(model: str | None = None, version: str = "") -> Reply:
        ready = service.state is State.READY
        if model is None:
            return reply({"ready": ready}, 200 if ready else 503)
        manifest = service.model.manifest
        oip.check_names(manifest, model, version)
        return reply({"name": manifest.name, "ready": ready}, 200 if ready else 503)

    return told


def _vertex(service: Service, config: ServerConfig) -> Iterator[Route]:
    read = functools.partial(vertex.read, most_rows=service.most_rows)
    yield Route("POST", config.predict_route, "vertex", read=read)
    yield Route("GET", config.health_route, "health", _health(service))


def _oip(service: Service, figures: Gather) -> Iterator[Route]:
    def about() -> Any:
        return {
            "name": SERVER_NAME,
            "version": SERVER_VERSION,
            "extensions": list(oip.EXTENSIONS),
        }

    def stats() -> Any:
        manifest = service.model.manifest
        return statistics(figures().metrics, manifest.name, manifest.version)

    describe = _of_model(service, lambda: oip.metadata(service.model.manifest))
    yield Route("GET", "/v2", "oip", _telling(about))
    yield Route("GET", "/v2/health/live", "health", _telling(lambda: {"live": True}))
    yield Route("GET", "/v2/health/ready", "health", _ready(service))
    yield Route("GET", "/v2/models/stats", "oip", _of_model(service, stats))
    for model in ("/v2/models/<model>", "/v2/models/<model>/versions/<version>"):
        yield Route("GET", model, "oip", describe)
        yield Route("GET", f"{model}/ready", "health", _ready(service))
        yield Route("GET", f"{model}/stats", "oip", _of_model(service, stats))
        yield Route("POST", f"{model}/infer", "oip", read=oip_http.read)
    for rule in _UNSERVED:
        for method in ("GET", "POST"):
            yield Route(method, rule, "oip", _unserved)


def _unserved(**_: str) -> Reply:
    raise Unsupported("this extension of the protocol is not served; GET /v2 lists those that are")


def _tfserving(service: Service) -> Iterator[Route]:
    def status() -> Any:
        return tfserving.status(service.model.manifest, service.state)

    def names() -> Any:
        return {"models": [service.model.manifest.name]}

    describe = _of_model(service, lambda: tfserving.metadata(service.model.manifest))
    yield Route("GET", "/v1/models", "tfserving", _telling(names))
    for model in ("/v1/models/<model>", "/v1/models/<model>/versions/<version>"):
        yield Route("GET", model, "tfserving", _of_model(service, status))
        yield Route("GET", f"{model}/metadata", "tfserving", describe)
        read = functools.partial(tfserving.read, most_rows=service.most_rows)
        yield Route("POST", f"{model}:predict", "tfserving", read=read)


def _metrics(service: Service, config: ServerConfig, figures: Gather) -> Iterator[Route]:
    if config.metrics:
        yield Route("GET", "/metrics", "metrics", MetricsPage(service, figures).reply)


def _page(service: Service, figures: Gather, config: ServerConfig, routes: list[Route]) -> Route:
    shown = ((r.protocol, r.method, r.rule) for r in routes if r.tell is not _unserved)
    page = Page(service, figures, shown, config.predict_route, config.port)
    return Route("GET", "/", "page", page.reply)
