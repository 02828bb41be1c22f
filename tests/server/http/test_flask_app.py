"""The Flask application over a fake model."""

import io
import json

from pytest import fixture, mark, param

from runtime.errors import ExecutionError
from server.config import ServerConfig
from server.protocols.body import BODY_S
from tests.server.fakes import FakeModel
from tests.server.flask_client import client_of, refused

LIMIT = 5000


@fixture
def model():
    """A model without jax."""
    return FakeModel()


@fixture
def config():
    """Small limits."""
    return ServerConfig(bundle="unused", max_body_bytes=LIMIT)


@fixture
def client(running, model, config):
    """Flask's test client, in front of a service that is ready."""
    running.open(model)
    return client_of(running, config)


def test_instances_become_predictions(client):
    """A prediction is returned for each instance, in order."""
    answer = client.post("/predict", json={"instances": [[1, 2], [3, 4]], "parameters": {}})

    assert answer.status_code == 200
    assert answer.get_data() == b'{"predictions":[3.0,7.0]}'


def test_health_says_ready_only_when_a_model_is_open(running, config, model):
    """The health route answers 503 until the model is open, then 200."""
    client = client_of(running, config)

    before = client.get("/health")
    predicted = client.post("/predict", json={"instances": []})
    running.open(model)
    after = client.get("/health")

    assert (before.status_code, before.get_json()) == (503, {"status": "loading"})
    assert refused(predicted, 503, "not_ready")
    assert predicted.headers["Retry-After"] == "1"
    assert (after.status_code, after.get_json()) == (200, {"status": "ready"})


def test_a_draining_server_says_so(client, running):
    """A draining server is not healthy but answers; a stopping one refuses new requests."""
    running.service.drain()
    draining = client.get("/health")
    answered = client.post("/predict", json={"instances": [[1, 2]]})
    running.service.stop()
    stopping = client.get("/health")
    refusal = client.post("/predict", json={"instances": [[1, 2]]})

    assert (draining.status_code, draining.get_json()) == (503, {"status": "draining"})
    assert answered.get_json() == {"predictions": [3.0]}
    assert (stopping.status_code, stopping.get_json()) == (503, {"status": "stopping"})
    assert refused(refusal, 503, "draining") == "the server is stopping"


def test_routes_are_those_of_the_configuration(running, model):
    """Vertex AI's routes, colons and all, are served as configured."""
    running.open(model)
    config = ServerConfig(bundle="unused", predict_route="/v1/e/1:predict", health_route="/v1/e/1")
    client = client_of(running, config)

    assert client.post("/v1/e/1:predict", json={"instances": [[1, 2]]}).status_code == 200
    assert client.get("/v1/e/1").status_code == 200
    assert client.get("/health").status_code == 404


@mark.parametrize(
    ("body", "text"),
    [
        param(b"", "body: expected JSON, got ", id="empty"),
        param(b"{", "body: expected JSON, got ", id="broken"),
        param(b'{"instances": [NaN]}', "body: expected JSON, got ", id="nan"),
        param(b'\xef\xbb\xbf{"instances": []}', "body: expected JSON, got ", id="bom"),
        param(b"[]", "body: expected an object, got an array", id="array"),
        param(b"{}", 'body: expected {"instances": [...]}, got no instances', id="missing"),
        param(b'{"instances": 1}', "instances: expected an array, got a number", id="number"),
        param(b'{"instances": [], "parameters": 1}', "parameters: expected an object", id="parameters"),
        param(b'{"instances": [], "signature_name": "x"}', "body: expected instances and", id="unknown"),
        param(b'{"instances": ' + b"[" * 1000 + b"]" * 1000 + b"}", "instances[0]: input 'x': expected float32", id="deep"),
        param(b'{"instances": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", "instances[0]: input 'x': expected float32", id="deep-number"),
        param(b'{"instances": ' + b"[" * 2000 + b"]" * 2000 + b"}", "body: expected JSON, got ", id="too-deep"),
        param(b'{"instances": [[1]]}', "instances[0]: input 'x': expected float32[2], got [1]", id="shape"),
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400_that_says_why(client, body, text):
    """A bad body gets 400 and a readable reason, and a good one after it an answer."""
    bad = client.post("/predict", data=body, content_type="application/json")
    good = client.post("/predict", json={"instances": [[1, 2]]})

    assert refused(bad, 400, "invalid_argument").startswith(text)
    assert good.get_json() == {"predictions": [3.0]}


@mark.parametrize(
    ("headers", "status"),
    [
        param({}, 200, id="none"),
        param({"Content-Type": "application/json"}, 200, id="json"),
        param({"Content-Type": "application/x-www-form-urlencoded"}, 200, id="curl-d"),
        param({"Content-Type": "application/json; charset=UTF-8"}, 200, id="utf-8"),
        param({"Content-Type": "application/json; charset=utf-16"}, 415, id="utf-16"),
        param({"Content-Type": "multipart/form-data; boundary=x"}, 415, id="multipart"),
        param({"Content-Type": "text/plain"}, 415, id="text"),
        param({"Content-Encoding": "br"}, 415, id="brotli"),
    ],
)
def test_media_types_other_than_json_are_415(client, headers, status):
    """JSON in UTF-8 is read, and is the default for a body without a type."""
    answer = client.post("/predict", data=b'{"instances": []}', headers=headers)

    assert answer.status_code == status


def body_of(length):
    """Make a legal body of this many bytes."""
    body = b'{"instances": [[1, 2]]}'
    return body + b" " * (length - len(body))


class Stalled:
    """A body that never arrives, on a socket that has a time limit or waits for ever."""

    def __init__(self):
        self.limits = []

    def settimeout(self, seconds):
        """Set the limit."""
        self.limits.append(seconds)

    def read(self, _):
        """Wait, as a socket does."""
        assert self.limits == [BODY_S]
        raise TimeoutError


def test_a_body_that_stalls_does_not_keep_a_thread(client):
    """Where the WSGI server exposes its socket, as gunicorn does, a body has the usual time limit."""
    stalled = Stalled()
    environ = {"wsgi.input": stalled, "gunicorn.socket": stalled, "CONTENT_LENGTH": "100"}

    answer = client.post("/predict", environ_overrides=environ)

    assert refused(answer, 408, "body_timeout") == "body: expected all of it sooner"
    assert stalled.limits == [BODY_S, None]


def test_the_body_limit_is_exact(client):
    """A body of exactly the limit is read; one byte more is 413."""
    fits = client.post("/predict", data=body_of(LIMIT))
    too_large = client.post("/predict", data=body_of(LIMIT + 1))

    assert fits.status_code == 200
    assert (
        refused(too_large, 413, "too_large")
        == f"body: expected at most {LIMIT} bytes, got {LIMIT + 1}"
    )


def test_a_chunked_body_beyond_the_limit_is_refused_not_cut(client):
    """A body of unknown length is read to one byte beyond the limit, then refused."""
    chunked = {"wsgi.input": io.BytesIO(body_of(LIMIT + 1)), "wsgi.input_terminated": True}

    answer = client.post("/predict", environ_overrides=chunked)

    assert refused(answer, 413, "too_large") == f"body: expected at most {LIMIT} bytes, got more"


def test_a_chunked_body_within_the_limit_is_read_whole(client):
    """A body of unknown length is read to its end."""
    chunked = {"wsgi.input": io.BytesIO(body_of(LIMIT)), "wsgi.input_terminated": True}

    assert client.post("/predict", environ_overrides=chunked).status_code == 200


def test_a_body_shorter_than_announced_is_refused(client):
    """A body shorter than its content-length is refused."""
    short = {"wsgi.input": io.BytesIO(body_of(50)), "CONTENT_LENGTH": "60"}

    answer = client.post("/predict", environ_overrides=short)

    assert refused(answer, 400, "incomplete_body") == "body: expected 60 bytes, got 50"


def test_an_internal_error_discloses_nothing(client, model, caplog):
    """A device error is a 500 with a fixed text; the log has the reason and the id."""

    def fail(_):
        raise ExecutionError("secret /path/of/bundle")

    model.before = fail

    answer = client.post("/predict", json={"instances": [[1, 2]]})

    text = refused(answer, 500, "internal")
    assert text == "internal error; the server's log says more"
    assert answer.get_json()["request_id"] in caplog.text
    assert "secret" in caplog.text


def test_unknown_paths_and_methods_answer_json(client):
    """404 and 405 are JSON as well, and 405 says what is allowed."""
    missing = client.get("/nothing")
    method = client.get("/predict")

    assert refused(missing, 404, "not_found") == (
        "GET /nothing: Not Found; /openapi.json has the paths of this server"
    )
    assert refused(method, 405, "method_not_allowed") == "GET /predict: expected POST, got GET"
    assert method.headers["Allow"] == "OPTIONS, POST"


def test_bodies_are_json(client):
    """Bodies that the server writes are read back by json."""
    assert json.loads(client.get("/health").get_data()) == {"status": "ready"}
