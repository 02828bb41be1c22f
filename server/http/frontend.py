"""The HTTP frontend of `python -m server`: routes requests and answers them on the event loop."""

import functools
from collections.abc import Callable, Iterable

from runtime.errors import MalformedRequest
from server.batching.service import Service
from server.batching.service_state import State
from server.errors import TooLarge, Unsupported
from server.http.cors import NO_CORS, Cors
from server.http.message import Request, RequestHead
from server.http.pipeline import RunningRequest
from server.http.router import Match, Router, path_of
from server.http.routes import OnResponse, Route
from server.limits import BodyLimits
from server.protocols.body import BodyInfo, check_headers, check_length, read_length
from server.protocols.request_options import read_options
from server.protocols.response import Response, exception_response
from server.request_id import request_id
from server.request_target import check_host, check_target

# Duplicates of these are refused: they are how a request is smuggled past a proxy.
_SINGLE = frozenset(
    (
        "host",
        "content-type",
        "content-encoding",
        "content-length",
        "inference-header-content-length",
    )
)


class HttpFrontend:
    """Answers the requests of connections; see `pipeline.RequestHandler`.

    Nothing here takes long: inferences are queued, or parsed in a worker thread where they are large;
    all other routes return what is in memory.

    Args:
      service: runs the model and counts the requests.
      routes: the routes that are served.
      limits: of bodies.
      cors: which other origins may read the responses.

    Attributes:
      memory: counts the bytes of bodies.
    """

    def __init__(
        self, service: Service, routes: Iterable[Route], limits: BodyLimits, cors: Cors = NO_CORS
    ) -> None:
        self._service = service
        self._router = Router(routes)
        self._limits = limits
        self._cors = cors
        self.memory = service.memory

    def on_headers(self, head: RequestHead) -> BodyInfo:
        """Return what the headers say about the body; raises what refuses the request."""
        head.match = self._match_inference(head)
        if not head.duplicates.isdisjoint(_SINGLE):
            name = min(head.duplicates & _SINGLE)
            raise MalformedRequest(f"{name}: expected one header of that name, got several")
        _check_framing(head)
        if head.match is not None:
            raw_types = head.match[0].raw_types(self._service)
            return check_headers(head.headers.get, self._limits, raw_types)
        if head.expects_continue and head.method != "OPTIONS":
            # The client waits with the body to hear whether it is wanted.
            self._router.match_target(head.method, head.target)
        limit = self._limits.binary_bytes
        length = read_length(head.headers.get("content-length", "0"))
        if length > limit:
            raise TooLarge(f"body: expected at most {limit} bytes, got {length}")
        return BodyInfo(None, limit, None, "")

    def answer(self, request: Request, on_response: OnResponse) -> RunningRequest | None:
        """Answer a request; returns what to cancel, unless it is answered already."""
        head = request.head
        info = head.body_info
        if head.match is None or info is None:
            on_response(self._respond(head))
            return None
        if self._cors:
            on_response = functools.partial(self._add_cors, head, on_response)
        route, variables = head.match
        try:
            check_length(request.body, info)
            if head.options is None:
                head.options = read_options(head.headers.get)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            identity = request_id(head.headers.get)
            on_response(route.refuse(self._service.metrics, error, identity))
            return None
        return route.infer(self._service, request.body, info, head.options, variables, on_response)

    def refuse(self, head: RequestHead | None, error: Exception) -> Response:
        """Return the error response for a request that was not read completely."""
        if head is None:
            return self._count_unrouted(exception_response(error))
        identity = request_id(head.headers.get)
        if head.match is None:
            response = self._count_unrouted(exception_response(error, identity))
        else:
            response = head.match[0].refuse(self._service.metrics, error, identity)
        return self._with_cors(head, response)

    def closing(self) -> bool:
        """Whether connections are to be closed after their responses."""
        return self._service.state not in (State.LOADING, State.READY)

    def _match_inference(self, head: RequestHead) -> Match | None:
        """Return the match of an inference; other requests are matched when they are answered."""
        if head.method != "POST":
            return None
        try:
            match = self._router.match_target(head.method, head.target)
        except Exception:  # noqa: BLE001 (raised again by `_respond`)
            return None
        return match if match[0].infers else None

    def _respond(self, head: RequestHead) -> Response:
        """Return the response to a request that is not an inference."""
        identity = request_id(head.headers.get)
        try:
            if head.method == "OPTIONS":
                response = self._router.options(head.target, path_of(head.target))
            else:
                route, variables = self._router.match_target(head.method, head.target)
                response = route.respond(self._service.metrics, variables, identity)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            response = self._count_unrouted(exception_response(error, identity))
        return self._with_cors(head, response)

    def _count_unrouted(self, response: Response) -> Response:
        self._service.metrics.count_request("none", str(response.status))
        return response

    def _add_cors(
        self, head: RequestHead, on_response: Callable[[Response], object], response: Response
    ) -> None:
        on_response(self._with_cors(head, response))

    def _with_cors(self, head: RequestHead, response: Response) -> Response:
        if not self._cors:
            return response
        headers = self._cors.headers(head.method, head.headers.get)
        return response._replace(headers=response.headers + headers)


def _check_framing(head: RequestHead) -> None:
    """Raise for what RFC 9112 has a server refuse, and httptools accepts."""
    if head.version not in ("1.0", "1.1"):
        raise MalformedRequest(f"version: expected HTTP 1.0 or 1.1, got {head.version}")
    host = head.headers.get("host")
    if host is not None:
        check_host(host)
    elif head.version == "1.1":
        raise MalformedRequest("host: expected a header of that name, got none")
    check_target(head.method, head.target)
    coding = head.headers.get("transfer-encoding")
    if coding is not None and head.version == "1.0":
        raise MalformedRequest("transfer-encoding: expected none in HTTP 1.0")
    if coding is not None and coding.strip().lower() != "chunked":
        raise Unsupported(f"transfer-encoding: expected chunked, got {coding[:100]!r}")
