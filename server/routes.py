"""The routes of the data port: which coroutine answers what. No HTTP server is known here.

Both entrances serve these routes: `http_app` all of them, `http_front` the hot ones itself.
"""

import asyncio
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from server import oip, oip_http, tfserving, vertex
from server.config import ServerConfig
from server.dialect import Read, infer
from server.errors import Unsupported
from server.exposition import MetricsPage, statistics
from server.metrics import Metrics
from server.page import Page
from server.reply import Reply, failure, reply
from server.request import Request
from server.service import Service, State

SERVER_NAME = "hloserve"
SERVER_VERSION = "0.1.0"
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

Handler = Callable[..., Awaitable[Reply]]


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
      method: GET or POST.
      rule: its path, names of parts in <>, as Flask writes them.
      protocol: what its requests are counted as.
      handler: takes the request, and the named parts as keywords.
      infers: whether it asks the model.
    """

    method: str
    rule: str
    protocol: str
    handler: Handler
    infers: bool = False

    async def answer(self, metrics: Metrics, request: Request, parts: Mapping[str, str]) -> Reply:
        """Answer a request, whatever happens, and count it."""
        begun = time.monotonic()
        try:
            made = await self.handler(request, **parts)
        except asyncio.CancelledError:  # its client has gone: nobody reads an answer
            if self.infers:
                metrics.inference(self.protocol, _GONE, time.monotonic() - begun, "canceled")
            raise
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            made = failure(error, request.id)
        self.count(metrics, made, time.monotonic() - begun)
        return made

    async def refuse(self, metrics: Metrics, error: Exception, identity: str | None) -> Reply:
        """Answer a request that could not be read, and count it."""
        made = failure(error, identity)
        self.count(metrics, made, 0.0)
        return made

    def count(self, metrics: Metrics, made: Reply, seconds: float) -> None:
        """Count a request that was answered, or refused."""
        if self.infers:
            metrics.inference(self.protocol, str(made.status), seconds, made.slug)
        else:
            metrics.other(self.protocol, str(made.status))


def make_routes(service: Service, config: ServerConfig) -> tuple[Route, ...]:
    """Make every route; where a configured one takes a fixed one's place, it has it."""
    found: dict[tuple[str, str], Route] = {}
    for route in [
        *_vertex(service, config),
        *_oip(service),
        *_tfserving(service),
        *_counts(service),
    ]:
        found.setdefault((route.method, route.rule), route)
    if config.page:
        page = _page(service, config, list(found.values()))
        found.setdefault((page.method, page.rule), page)
    return tuple(found.values())


def hot_paths(
    service: Service, routes: tuple[Route, ...]
) -> dict[str, tuple[Route, dict[str, str]]]:
    """Give the paths of inferences, parts filled in with the loaded model's, to their routes."""
    manifest = service.model.manifest
    names = {"<model>": manifest.name, "<version>": manifest.version}
    found = {}
    for route in routes:
        if route.infers:
            path = functools.reduce(lambda p, part: p.replace(*part), names.items(), route.rule)
            parts = {part[1:-1]: name for part, name in names.items() if part in route.rule}
            found[path] = route, parts
    return found


def _inference(service: Service, read: Read) -> Handler:
    async def handler(request: Request, model: str | None = None, version: str = "") -> Reply:
        if model is not None:
            oip.check_names(service.model.manifest, model, version)
        return await infer(service, request, read)

    return handler


def _telling(tell: Callable[..., Any]) -> Handler:
    """Make a handler of a function that gives what is written as JSON."""

    async def handler(_: Request, **parts: str) -> Reply:
        return reply(tell(**parts))

    return handler


def _of_model(service: Service, tell: Callable[[], Any]) -> Handler:
    """Make a handler of a function that tells about the model, named in the path or not."""

    async def handler(_: Request, model: str | None = None, version: str = "") -> Reply:
        if model is not None:
            oip.check_names(service.model.manifest, model, version)
        return reply(tell())

    return handler


def _health(service: Service) -> Handler:
    async def handler(_: Request) -> Reply:
        status = 200 if service.state is State.READY else 503
        return reply({"status": service.state.value}, status)

    return handler


def _ready(service: Service) -> Handler:
    async def handler(_: Request, model: str | None = None, version: str = "") -> Reply:
        ready = service.state is State.READY
        if model is None:
            return reply({"ready": ready}, 200 if ready else 503)
        manifest = service.model.manifest
        oip.check_names(manifest, model, version)
        return reply({"name": manifest.name, "ready": ready}, 200 if ready else 503)

    return handler


def _vertex(service: Service, config: ServerConfig) -> Iterator[Route]:
    read = functools.partial(vertex.read, most_rows=service.most_rows)
    predict = _inference(service, read)
    yield Route("POST", config.predict_route, "vertex", predict, infers=True)
    yield Route("GET", config.health_route, "health", _health(service))


def _oip(service: Service) -> Iterator[Route]:
    def about() -> Any:
        return {
            "name": SERVER_NAME,
            "version": SERVER_VERSION,
            "extensions": list(oip.EXTENSIONS),
        }

    def stats() -> Any:
        manifest = service.model.manifest
        return statistics(service.metrics, manifest.name, manifest.version)

    describe = _of_model(service, lambda: oip.metadata(service.model.manifest))
    yield Route("GET", "/v2", "oip", _telling(about))
    yield Route("GET", "/v2/health/live", "health", _telling(lambda: {"live": True}))
    yield Route("GET", "/v2/health/ready", "health", _ready(service))
    yield Route("GET", "/v2/models/stats", "oip", _of_model(service, stats))
    for model in ("/v2/models/<model>", "/v2/models/<model>/versions/<version>"):
        yield Route("GET", model, "oip", describe)
        yield Route("GET", f"{model}/ready", "health", _ready(service))
        yield Route("GET", f"{model}/stats", "oip", _of_model(service, stats))
        infer_there = _inference(service, oip_http.read)
        yield Route("POST", f"{model}/infer", "oip", infer_there, infers=True)
    for rule in _UNSERVED:
        for method in ("GET", "POST"):
            yield Route(method, rule, "oip", _unserved)


async def _unserved(_: Request, **__: str) -> Reply:
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
        predict = _inference(service, read)
        yield Route("POST", f"{model}:predict", "tfserving", predict, infers=True)


def _counts(service: Service) -> Iterator[Route]:
    metrics = MetricsPage(service)

    async def scrape(_: Request) -> Reply:
        return metrics.reply()

    yield Route("GET", "/metrics", "metrics", scrape)


def _page(service: Service, config: ServerConfig, routes: list[Route]) -> Route:
    shown = ((r.protocol, r.method, r.rule) for r in routes if r.handler is not _unserved)
    page = Page(service, shown, config.predict_route, config.port)

    async def show(_: Request) -> Reply:
        return page.reply()

    return Route("GET", "/", "page", show)
