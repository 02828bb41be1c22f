"""Bad requests to a real server: each is refused with a message, and a good one after it gets its golden answer."""

import gzip
import json
import socket
import zlib

import grpc
import numpy as np
from pytest import fixture, mark, param

from runtime.bundle import open_bundle
from server.grpc.server import INFERENCE
from tests.server import grpc_harness
from tests.server.http_harness import read_all
from tests.serving import ROOT, TIMEOUT_S

pytestmark = mark.e2e

INFER, PREDICT = "/v2/models/classifier/infer", "/predict"
ROWS = np.ones((1, 4), np.float32)
GOOD = b'{"instances": [[1, 2, 3, 4]]}'
# What a response must not contain.
INTERNAL = ("Traceback", 'File "', ".py", str(ROOT), "jaxlib", "site-packages", "<html")


@fixture(autouse=True)
def golden_afterwards(classifier_server, classifier_bundle):
    """After every test a good request gets the bundle's golden answer."""
    yield
    bundle = open_bundle(classifier_bundle)
    golden = bundle.map(bundle.manifest.goldens[0].file)
    rows, expected = golden["input/x"], golden["output/output"]
    tensor = {"name": "x", "datatype": "FP32", "shape": rows.shape, "data": rows.ravel().tolist()}
    status, answer = classifier_server.post({"inputs": [tensor]}, INFER)
    assert status == 200
    (output,) = answer["outputs"]
    got = np.float32(output["data"]).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert json.loads(classifier_server.get("/v2/health/live")) == {"live": True}


def exchange(server, data):
    """Write bytes, and read until the server closes the connection; return status and body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(data)
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else None, body


def written(body=b"", *headers, method="POST", path=PREDICT):
    """Write a request that ends its connection."""
    lines = [f"{method} {path} HTTP/1.1", "host: t", "connection: close", *headers]
    if not any(header.startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts):
    """Write a body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def tensor(**changed):
    """Write a tensor of the Open Inference Protocol, but for what is changed."""
    whole = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changed
    return json.dumps({"inputs": [whole]}).encode()


def instances(*rows):
    """Write instances."""
    return json.dumps({"instances": rows}).encode()


def bomb(size):
    """Compress so many blanks."""
    return gzip.compress(b" " * size)


CHUNKS = "transfer-encoding: chunked"
BINARY = "content-type: application/octet-stream"
GZIP = "content-encoding: gzip"
LENGTH = "inference-header-content-length: "
TRANSPORT = [
    param(written(b"", "content-length: 1048577"), 413, id="length beyond the limit"),
    param(written(chunked(*[b" " * 65536] * 17), CHUNKS), 413, id="chunks beyond the limit"),
    param(written(bomb(1 << 30), GZIP), 413, id="bomb of a gibibyte"),
    param(written(GOOD, GZIP), 400, id="gzip that is none"),
    param(written(zlib.compress(GOOD)[:-3], "content-encoding: deflate"), 400, id="deflate cut"),
    param(written(GOOD, "content-encoding: br"), 415, id="unknown encoding"),
    param(written(chunked(*[b" "] * 100_000), CHUNKS), 400, id="single bytes"),
    param(written(b"2\r\nxxx\r\n", CHUNKS), 400, id="crooked chunk"),
    param(written(b"xyz", "content-length: 3", "content-length: 4"), 400, id="two lengths"),
    param(written(b"", "content-length: -1"), 400, id="negative length"),
    param(written(b"", "content-length: 1e3"), 400, id="length no number"),
    param(written(GOOD, "x: a\0b"), 400, id="nul in a header"),
    param(written(GOOD, "x: a", " folded"), 400, id="folded header"),
    param(written(GOOD, "host: u"), 400, id="two hosts"),
    param(written(b"", "x: " + "y" * 400_000), 431, id="headers too large"),
    param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
    param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
    param(b"GET / HTTP/9.9\r\n\r\n", 400, id="HTTP/9"),
    param(b"\0" * 100, 400, id="nul"),
    param(written(path="/nothing"), 404, id="unknown path"),
    param(written(path="/../../etc/passwd", method="GET"), 404, id="parent folders"),
    param(written(path="/%2e%2e/%2e%2e/etc/passwd", method="GET"), 404, id="escaped folders"),
    param(written(path="/v2/models/..%2f..%5cetc%00/infer"), 404, id="name of folders"),
    param(written(path=f"/v2/models/{'n' * 10_000}/infer"), 404, id="long name"),
    param(written(path="/v2/models/cl%D0%B0ssifier/infer"), 404, id="look-alike name"),
    param(written(path="/v2/models/classifier/versions/0/infer"), 404, id="other version"),
    param(written(path="/v2/models/classifier/generate"), 501, id="unserved extension"),
    param(written(method="DELETE"), 405, id="method"),
    param(written(method="TRACE"), 405, id="trace"),
    param(written(GOOD, "content-type: text/html"), 415, id="media"),
    param(written(GOOD, "content-type: multipart/form-data; boundary=a"), 415, id="multipart"),
    param(written(GOOD, "content-type: application/json; charset=utf-16"), 415, id="charset"),
    param(written(GOOD, "x-request-timeout: soon"), 400, id="time no number"),
    param(written(GOOD, "x-request-timeout: 0"), 504, id="no time"),
]
BODIES = [
    param(PREDICT, b"", 400, id="nothing"),
    param(PREDICT, b"{", 400, id="cut"),
    param(PREDICT, GOOD + b"{}", 400, id="trailing"),
    param(PREDICT, b"\xef\xbb\xbf" + GOOD, 400, id="byte order mark"),
    param(PREDICT, GOOD.decode().encode("utf-16"), 400, id="utf-16"),
    param(PREDICT, b'{"instances": [["\xff"]]}', 400, id="bad utf-8"),
    param(PREDICT, b'{"instances": [["\\ud800"]]}', 400, id="lone surrogate"),
    param(PREDICT, b'{"instances": [], "instances": []}', 400, id="twice"),
    param(PREDICT, b'{"instances": ' + b"[" * 100_000, 400, id="deep"),
    param(PREDICT, b'{"instances": [[1, 2, 3, ' + b"9" * 5000 + b"]]}", 400, id="digits"),
    param(PREDICT, b'{"instances": [[1, 2, 3, 1e300]]}', 400, id="beyond float32"),
    param(PREDICT, b'{"instances": [[1, 2, 3, NaN]]}', 400, id="nan"),
    param(PREDICT, b"{%s}" % b",".join(b'"%d":0' % i for i in range(90_000)), 400, id="many keys"),
    param(PREDICT, instances([1, 2, 3]), 400, id="short row"),
    param(PREDICT, instances([1, 2, 3, [4]]), 400, id="ragged"),
    param(PREDICT, instances([1, 2, 3, "4"]), 400, id="text"),
    param(PREDICT, instances([1, 2, 3, None]), 400, id="null"),
    param(PREDICT, instances([1, 2, 3, True]), 400, id="boolean"),
    param(PREDICT, instances({"y": [1, 2, 3, 4]}), 400, id="missing input"),
    param(PREDICT, instances({"b64": "AAAA"}), 400, id="short bytes"),
    param(PREDICT, instances(*[[1, 2, 3, 4]] * 17), 413, id="rows"),
    param(INFER, tensor(shape=[16, 2**60 + 4]), 400, id="product overflows"),
    param(INFER, tensor(shape=[2**63, 4]), 400, id="size overflows"),
    param(INFER, tensor(shape=[1] * 100_000), 400, id="many axes"),
    param(INFER, tensor(shape=[-1, 4]), 400, id="negative size"),
    param(INFER, tensor(shape=[1.0, 4]), 400, id="size no integer"),
    param(INFER, tensor(shape=[None, 4]), 400, id="size null"),
    param(INFER, tensor(datatype="BYTES"), 400, id="datatype"),
    param(INFER, tensor(name="y"), 400, id="input unknown"),
    param(INFER, tensor(data=[1, 2, 3]), 400, id="data missing"),
    param(INFER, tensor(shape=[17, 4], data=[0] * 68), 413, id="rows of a tensor"),
    param(INFER, json.dumps({"inputs": [], "outputs": [{"name": "y"}] * 30_000}).encode(), 400, id="outputs"),
    param("/v1/models/classifier:predict", b'{"inputs": [[1]]}', 400, id="short column"),
    param("/v1/models/classifier:predict", b'{"instances": 1}', 400, id="no list"),
]  # fmt: skip


def check(status, body, expected):
    """Check a refusal against the form that all of them have."""
    error = json.loads(body)
    assert status == expected, error
    assert set(error) == {"error", "code", "request_id"}
    assert len(error["error"]) < 500
    assert not [word for word in INTERNAL if word in error["error"]]


@mark.parametrize(("data", "status"), TRANSPORT)
def test_requests_that_are_no_good_are_refused(classifier_server, data, status):
    """An invalid request is refused in JSON, with a matching status."""
    check(*exchange(classifier_server, data), status)


@mark.parametrize(("path", "body", "status"), BODIES)
def test_bodies_that_do_not_fit_are_refused(classifier_server, path, body, status):
    """An invalid body is refused in JSON, with a matching status."""
    check(*exchange(classifier_server, written(body, path=path)), status)


@mark.parametrize("length", ["-1", "nan", "99999999999", "9" * 5000, "25", "0"])
def test_a_wrong_length_of_the_json_is_refused(classifier_server, length):
    """The JSON before the binary tensors must be exactly as long as the header says."""
    body = tensor(data=None, parameters={"binary_data_size": 16}) + bytes(16)

    check(*exchange(classifier_server, written(body, BINARY, LENGTH + length, path=INFER)), 400)


def test_a_body_that_is_cut_short_is_refused(classifier_server):
    """A client that ends its request in the middle of the body gets a response, if it still reads."""
    with socket.create_connection(("127.0.0.1", classifier_server.port)) as connection:
        connection.sendall(written(GOOD[:9], "content-length: 29"))
        connection.shutdown(socket.SHUT_WR)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")

    check(int(head.split()[1]), body, 400)


def test_clients_that_go_in_the_middle_leave_nothing(classifier_server):
    """Connections that are reset while sending, or before reading, leave nothing behind."""
    linger = b"\1\0\0\0\0\0\0\0"  # a reset instead of an end
    for cut in range(0, len(written(GOOD)), 5):
        with socket.create_connection(("127.0.0.1", classifier_server.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall(written(GOOD)[: cut + 1])


def called(rows, model="classifier"):
    """Write a request of gRPC."""
    made = grpc_harness.request({"x": rows})
    made.model_name = model
    return made


CALLS = [
    param(b"\xff\xff", "INVALID_ARGUMENT", id="no message"),
    param(called(ROWS, "other"), "NOT_FOUND", id="other model"),
    param(called(ROWS[:, :3]), "INVALID_ARGUMENT", id="shape"),
    param(called(ROWS.repeat(17, 0)), "RESOURCE_EXHAUSTED", id="rows"),
    param(b" " * (1 << 20) + b" ", "RESOURCE_EXHAUSTED", id="message beyond the limit"),
]  # fmt: skip


@mark.parametrize(("message", "status"), CALLS)
def test_calls_that_do_not_fit_are_refused(classifier_server, message, status):
    """Over gRPC the same requests are refused with the status that the table lists."""
    with grpc.insecure_channel(f"127.0.0.1:{classifier_server.grpc_port}") as channel:
        call = channel.unary_unary(f"/{INFERENCE}/ModelInfer", grpc_harness.as_bytes)
        found, text = grpc_harness.refused(lambda: call(message, timeout=TIMEOUT_S))

    assert found == status
    assert not [word for word in INTERNAL if word in text]
