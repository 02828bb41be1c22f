"""The frontend: requests other than inferences are answered in the call itself, without a thread."""

import contextlib
import json

from pytest import fixture, mark, raises

from server.config import ServerConfig
from server.errors import MethodNotAllowed, NotFound
from server.http.frontend import HttpFrontend
from server.http.message import Request, RequestHead
from server.http.routes import make_routes
from tests.server.fakes import FakeModel, Running


@fixture(scope="module")
def frontend():
    """A frontend with a model that is ready."""
    with contextlib.closing(Running()) as running:
        running.open(FakeModel())
        config = ServerConfig(bundle="unused")
        routes = make_routes(running.service, config)
        yield HttpFrontend(running.service, routes, config.bodies)


@mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", b"/health", 200),
        ("HEAD", b"/health", 200),
        ("GET", b"/metrics", 200),
        ("GET", b"/", 200),
        ("GET", b"/v2/models/fake", 200),
        ("GET", b"/v2/models/other", 404),
        ("OPTIONS", b"/predict", 200),
        ("OPTIONS", b"*", 200),
        ("GET", b"/predict", 405),
        ("POST", b"/nothing", 404),
    ],
)
def test_a_request_without_inference_is_answered_at_once(frontend, method, target, status):
    """The response is passed on before `answer` returns, so that no thread is involved."""
    head = RequestHead(method, target, "1.1", {"host": "t", "x-request-id": "mine"}, set())
    responses = []

    head.body_info = frontend.on_headers(head)
    running = frontend.answer(Request(head, b""), responses.append)

    assert running is None
    (response,) = responses
    assert response.status == status
    if status >= 400:
        assert json.loads(response.body)["request_id"] == "mine"


@mark.parametrize(("target", "error"), [(b"/nothing", NotFound), (b"/health", MethodNotAllowed)])
def test_a_body_that_no_route_takes_is_not_asked_for(frontend, target, error):
    """A client that expects 100 Continue is refused before it sends its body."""
    headers = {"host": "t", "content-length": "5", "expect": "100-continue"}

    with raises(error):
        frontend.on_headers(RequestHead("POST", target, "1.1", headers, set()))
