"""The routes: which exist, which one takes precedence, and what is counted."""

import contextlib

import numpy as np
from pytest import fixture, mark

from server.config import ServerConfig
from server.errors import TooLarge
from server.http.flask_app import make_wait
from server.http.routes import Route, make_routes
from server.protocols.body import BodyInfo
from server.protocols.inference import ParsedRequest
from server.protocols.request_options import RequestOptions
from server.protocols.response import json_response
from tests.server.fakes import FakeModel, Running
from tests.server.flask_client import client_for, client_of, refused


@fixture
def client(running):
    """Flask's test client, in front of a model that sums rows."""
    return client_for(running, FakeModel())


def configured(**options):
    """Make a configuration."""
    return ServerConfig(bundle="unused", **options)


def test_a_configured_route_takes_a_fixed_ones_place(running):
    """Where Vertex AI is configured with another protocol's path, that path serves Vertex AI's protocol."""
    config = configured(predict_route="/v1/models/fake:predict", health_route="/v1/models/fake")
    running.open(FakeModel())
    client = client_of(running, config)

    body = {"instances": [[1, 2]], "parameters": {"timeout_ms": 5000}}

    assert client.post("/v1/models/fake:predict", json=body).get_json() == {"predictions": [3.0]}
    assert client.get("/v1/models/fake").get_json() == {"status": "ready"}
    assert client.get("/v1/models/fake/versions/1").get_json()["name"] == "fake"


def test_no_rule_is_there_twice(running):
    """Each path and method has one route, even where a configured one is a fixed one."""
    for config in (configured(), configured(predict_route="/v2", health_route="/metrics")):
        routes = make_routes(running.service, config)
        found = [(route.method, route.rule) for route in routes]

        assert len(found) == len(set(found))


@mark.parametrize("method", ["GET", "POST"])
@mark.parametrize(
    "path",
    [
        "/v2/models/fake/config",
        "/v2/models/fake/versions/1/config",
        "/v2/models/fake/trace/setting",
        "/v2/models/fake/generate",
        "/v2/models/fake/generate_stream",
        "/v2/repository/index",
        "/v2/repository/models/fake/load",
        "/v2/repository/models/fake/unload",
        "/v2/systemsharedmemory/status",
        "/v2/systemsharedmemory/region/r/register",
        "/v2/cudasharedmemory/status",
        "/v2/trace/setting",
        "/v2/logging",
    ],
)
def test_extensions_that_are_not_served_say_so(client, method, path):
    """Requests for Triton's other extensions are answered in JSON, and change nothing."""
    answer = client.open(path, method=method, data=b"[" * 250_000)

    text = "this extension of the protocol is not served; GET /v2 lists those that are"
    assert refused(answer, 501, "unsupported") == text
    assert client.get("/v2/health/live").get_json() == {"live": True}


@mark.parametrize(
    "path",
    ["/debug", "/console", "/?__debugger__=yes&cmd=resource&f=debugger.js", "/debug/pprof", "/admin"],
)  # fmt: skip
@mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_there_is_no_console_and_nothing_to_administrate(client, path, method):
    """No path of the data port debugs, loads or deletes anything."""
    answer = client.open(path, method=method)

    assert answer.status_code in (404, 405)
    assert answer.mimetype == "application/json"
    assert not client.application.debug


def test_slashes_are_not_merged(client):
    """A path with empty parts is no other path, nor a redirection to it."""
    assert refused(client.get("/v2//health/live"), 404, "not_found")
    assert refused(client.get("//v2/health/live"), 404, "not_found")


def test_a_slash_at_the_end_is_another_path(client):
    """A path has one spelling: with a slash at its end it is not there, nor redirected."""
    assert refused(client.get("/v2/health/live/"), 404, "not_found")


@mark.parametrize("path", ["/predict", "/health", "/v2", "/metrics"])
def test_options_lists_the_methods_and_has_no_body(client, path):
    """OPTIONS is answered by the methods alone, without HTML."""
    answer = client.options(path)

    assert (answer.status_code, answer.get_data()) == (200, b"")
    assert "Content-Type" not in answer.headers
    allowed = {"POST"} if path == "/predict" else {"GET", "HEAD"}
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS"} | allowed


@mark.parametrize("path", ["/health", "/v2", "/v2/models/fake", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(client, path):
    """HEAD is answered as GET is, without the body."""
    get, head = client.get(path), client.head(path)

    assert (head.status_code, head.get_data()) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_liveness_and_readiness_through_a_servers_life():
    """Live from the start; ready once the model is open, until the server drains."""
    paths = ("/v2/health/ready", "/v2/models/fake/ready", "/v2/models/fake/versions/1/ready", "/health")  # fmt: skip

    def statuses():
        assert client.get("/v2/health/live").status_code == 200
        return {client.get(path).status_code for path in paths}

    with contextlib.closing(Running()) as running:
        client = client_of(running, configured())
        assert statuses() == {503}
        running.open(FakeModel())
        assert statuses() == {200}
        running.service.drain()
        assert statuses() == {503}
        running.service.stop()
        assert statuses() == {503}


@mark.parametrize("path", ["/v2/models/other/ready", "/v2/models/fake/versions/2/ready"])
def test_another_model_is_not_found_rather_than_not_ready(client, path):
    """A model that is not here is not found, rather than not ready."""
    assert refused(client.get(path), 404, "not_found")


def test_the_server_says_what_it_is(client):
    """Name, version and extensions are reported, and the extensions are those that are served."""
    answer = client.get("/v2").get_json()

    assert answer["name"] == "hloserve"
    assert answer["extensions"] == ["binary_tensor_data", "statistics"]


def test_forwarding_headers_are_not_believed(client):
    """Forwarding, trace and baggage headers do not change the response."""
    headers = {
        "X-Forwarded-For": "10.0.0.1, evil",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Prefix": "/../..",
        "Traceparent": "x" * 10_000,
        "Baggage": "x" * 10_000,
        "X-Cloud-Trace-Context": "\x00;o=1".replace("\x00", "%00"),
    }

    answer = client.post("/predict", json={"instances": [[1, 2]]}, headers=headers)

    assert answer.get_json() == {"predictions": [3.0]}
    assert b"evil" not in client.get("/nothing", headers=headers).get_data()


NO_BODY = BodyInfo(0, 0, None, "")


def infer(running, route, on_response):
    """Begin an inference by a route, without a body."""
    return route.infer(running.service, b"", NO_BODY, RequestOptions(), {}, on_response)


def answered(running, route):
    """Return the response of a route that infers."""
    return make_wait(running.loop)(lambda done: infer(running, route, done))


def test_a_request_whose_client_has_gone_is_counted_as_canceled(running):
    """An inference whose client has disconnected is cancelled, and counted as canceled."""
    running.open(FakeModel())
    row = running.service.model.checker.check({"x": np.zeros((1, 2), np.float32)})
    route = Route("POST", "/p", "vertex", read=lambda *_: ParsedRequest([row], print))
    metrics = running.service.metrics

    def leave(done):
        infer(running, route, print).cancel()
        done(json_response({}))

    make_wait(running.loop)(leave)

    assert metrics.requests == {("vertex", "499"): 1}
    assert metrics.failures == {"canceled": 1}
    assert running.service.queued_rows == 0


def test_what_reading_raises_is_answered_and_counted(running):
    """An error of any kind becomes a response, and is counted by its kind."""

    def large(*_):
        raise TooLarge("too much")

    running.open(FakeModel())
    made = answered(running, Route("POST", "/p", "oip", read=large))

    assert (made.status, made.error_code) == (413, "too_large")
    assert running.service.metrics.requests == {("oip", "413"): 1}


def test_what_writing_raises_is_answered_and_counted(running):
    """A response that cannot be written is an error of the server, and reveals nothing more."""
    running.open(FakeModel())
    row = running.service.model.checker.check({"x": np.zeros((1, 2), np.float32)})

    def break_(_):
        raise ValueError("inside")

    made = answered(
        running, Route("POST", "/p", "oip", read=lambda *_: ParsedRequest([row], break_))
    )

    assert (made.status, made.error_code) == (500, "internal")
    assert b"inside" not in made.body


def test_only_inferences_have_durations(running):
    """A health check is counted, but not in the durations of inferences."""
    metrics = running.service.metrics

    route = Route("GET", "/h", "health", lambda: json_response({}))
    make_wait(running.loop)(lambda done: done(route.respond(metrics, {}, None)))

    assert metrics.requests == {("health", "200"): 1}
    assert metrics.durations == {}


@mark.parametrize(
    ("path", "begin"),
    [
        ("/predict", b'{"instances":['),
        ("/v1/models/fake:predict", b'{"inputs":['),
        ("/v2/models/fake/infer", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":['),
    ],
)
def test_millions_of_values_are_refused_before_they_are_made(client, path, begin):
    """A body with more values than any request is not parsed, in any protocol; the next one is."""
    answer = client.post(path, data=begin + b"[]," * (1 << 20))

    text = refused(answer, 413, "too_large")
    assert text.startswith("body: expected at most 7168 arrays and commas, as 1024 rows of the ")
    good = client.post("/predict", json={"instances": [[1, 2]]})
    assert good.get_json() == {"predictions": [3.0]}
