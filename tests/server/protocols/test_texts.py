"""Texts in every protocol of HTTP and gRPC; an input's name decides whether it is a text."""

import base64
import gzip
import http.client
import json

import numpy as np
import tritonclient.grpc
import tritonclient.http
from pytest import fixture, mark, param

from tests.server.fakes import ECHO
from tests.server.grpc_harness import GrpcHarness
from tests.server.http_harness import started_server
from tests.server.text_model import STAGE, WITH_AGE, TextModel
from tests.tokenizer_files import ids

pytestmark = mark.e2e

CAT, SAT = "cat", "the cat sat on a mat"
SUMS = [sum(ids(CAT)), sum(ids(SAT))]
PREDICT, COLUMNS, INFER = "/predict", "/v1/models/fake:predict", "/v2/models/fake/infer"


@fixture(scope="module")
def server():
    """Texts alone."""
    yield from started_server(TextModel())


@fixture(scope="module")
def aged():
    """Texts, and a number beside each."""
    yield from started_server(TextModel(signature=WITH_AGE))


@fixture(scope="module")
def tagged():
    """A number for each token of a text."""
    yield from started_server(TextModel(signature=ECHO))


@fixture(scope="module")
def keyed():
    """Texts, and a key beside each that the model does not see."""
    for started in started_server(TextModel()):
        started.model.manifest.passthrough = ("key",)
        yield started


@fixture(scope="module")
def grpc_server():
    """The same over gRPC."""
    made = GrpcHarness(TextModel())
    yield made
    made.close()


def ask(server, path, body, **headers):
    """Send a request to the WSGI application, and to the server on its socket; return their common response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    done = server.app.test_client().post(path, data=data, headers=named)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", path, data, named)
    answer = connection.getresponse()
    answers = [json.loads(answer.read()), done.get_json()]
    connection.close()
    assert answer.status == done.status_code
    for one in answers:
        one.pop("request_id", None)
    assert answers[0] == answers[1]
    return done.status_code, answers[0]


def b64(text):
    """Return a text as bytes in JSON."""
    return {"b64": base64.b64encode(text.encode()).decode()}


@mark.parametrize(
    "instances",
    [
        [CAT, SAT],
        [{"text": CAT}, {"text": SAT}],
        [b64(CAT), b64(SAT)],
        [{"text": b64(CAT)}, {"text": SAT}],
    ],
    ids=["bare", "named", "b64", "named-b64"],
)
@mark.parametrize("path", [PREDICT, COLUMNS])
def test_rows_are_texts(server, path, instances):
    """Vertex AI's and TensorFlow Serving's rows, by name or by themselves, as strings or bytes."""
    assert ask(server, path, {"instances": instances}) == (200, {"predictions": SUMS})


def test_answers_stand_in_the_order_of_their_texts(server):
    """Texts of several lengths run in separate batches, and their answers keep the order of the texts."""
    texts = [CAT, SAT, "dog", "a dog ran away", "mat"]
    expected = [sum(ids(text)) for text in texts]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [5], "data": texts}

    assert ask(server, PREDICT, {"instances": texts})[1] == {"predictions": expected}
    assert ask(server, COLUMNS, {"inputs": texts})[1] == {"outputs": expected}
    assert ask(server, INFER, {"inputs": [tensor]})[1]["outputs"][0]["data"] == expected


@mark.parametrize("inputs", [[CAT, SAT], {"text": [CAT, SAT]}, [b64(CAT), b64(SAT)]])
def test_columns_are_texts(server, inputs):
    """TensorFlow Serving's columns, by name or by themselves."""
    assert ask(server, COLUMNS, {"inputs": inputs}) == (200, {"outputs": SUMS})


@mark.parametrize(
    ("shape", "data"), [([2], [CAT, SAT]), ([2, 1], [[CAT], [SAT]]), ([2, 1], [CAT, SAT])]
)
def test_tensors_of_bytes_are_texts(server, shape, data):
    """The Open Inference Protocol's BYTES in JSON, flat or each in a list of its own."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": shape, "data": data}

    status, answer = ask(server, INFER, {"inputs": [tensor]})

    assert status == 200
    assert answer["outputs"][0]["data"] == SUMS


@mark.parametrize("binary", [True, False])
@mark.parametrize("shape", [[2], [2, 1]])
def test_tritonclient_sends_texts_over_http(server, shape, binary):
    """Triton's client sends arrays of objects, in binary or in JSON."""
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")
    texts = tritonclient.http.InferInput("text", shape, "BYTES")
    texts.set_data_from_numpy(np.array([CAT, SAT], object).reshape(shape), binary_data=binary)

    assert client.infer("fake", [texts]).as_numpy("total").tolist() == SUMS
    client.close()


@mark.parametrize("shape", [[2], [2, 1]])
def test_tritonclient_sends_texts_over_grpc(grpc_server, shape):
    """And over gRPC."""
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_server.port}") as client:
        texts = tritonclient.grpc.InferInput("text", shape, "BYTES")
        texts.set_data_from_numpy(np.array([CAT, SAT], object).reshape(shape))

        assert client.infer("fake", [texts]).as_numpy("total").tolist() == SUMS
        assert client.get_model_metadata("fake", as_json=True)["inputs"] == [
            {"name": "text", "datatype": "BYTES", "shape": ["-1"]}
        ]


def test_a_body_is_a_text(server):
    """A body of plain text is one text, for curl; compressed as any other."""
    for path in (PREDICT, COLUMNS):
        answer = ask(server, path, CAT.encode(), content_type="text/plain; charset=utf-8")
        assert answer == (200, {"predictions": SUMS[:1]})
    packed = gzip.compress(CAT.encode())
    answer = ask(server, PREDICT, packed, content_type="text/plain", content_encoding="gzip")
    assert answer == (200, {"predictions": SUMS[:1]})


def test_tensors_are_taken_as_before(server):
    """The ids themselves are tensors, in every protocol."""
    array = [ids(CAT)]

    for instance in (array[0], {"ids": array[0]}):
        assert ask(server, PREDICT, {"instances": [instance]})[1] == {"predictions": SUMS[:1]}
    assert ask(server, COLUMNS, {"inputs": {"ids": array}})[1] == {"outputs": SUMS[:1]}
    tensor = {"name": "ids", "datatype": "INT32", "shape": [1, 3], "data": array}
    assert ask(server, INFER, {"inputs": [tensor]})[1]["outputs"][0]["data"] == SUMS[:1]


def test_tensors_stand_beside_texts(aged):
    """An input other than the text is a tensor beside it, in every protocol."""
    expected = [SUMS[0] + 3, SUMS[1] + 6]
    rows = [{"text": CAT, "age": 1}, {"text": SAT, "age": 2}]
    tensors = [
        {"name": "text", "datatype": "BYTES", "shape": [2], "data": [CAT, SAT]},
        {"name": "age", "datatype": "INT32", "shape": [2], "data": [1, 2]},
    ]

    assert ask(aged, PREDICT, {"instances": rows})[1] == {"predictions": expected}
    columns = {"text": [CAT, SAT], "age": [1, 2]}
    assert ask(aged, COLUMNS, {"inputs": columns})[1] == {"outputs": expected}
    assert ask(aged, INFER, {"inputs": tensors})[1]["outputs"][0]["data"] == expected


def test_outputs_of_tokens_are_as_long_as_their_texts(tagged):
    """Rows have as many numbers as their texts have tokens; columns must be of one length."""
    status, answer = ask(tagged, PREDICT, {"instances": [SAT, CAT]})

    assert status == 200
    assert [row["echo"] for row in answer["predictions"]] == [ids(SAT), ids(CAT)]
    assert ask(tagged, COLUMNS, {"inputs": [CAT, "dog"]})[1]["outputs"]["echo"] == [
        ids(CAT),
        ids("dog"),
    ]
    assert ask(tagged, COLUMNS, {"inputs": [CAT, SAT]}) == (
        400,
        {
            "error": "output 'echo': expected texts of the same number of tokens, of which it has a row "
            "each, got others; ask for them one by one, or by instances",
            "code": "invalid_argument",
        },
    )


def test_evidence_describes_the_text(server):
    """On request the metadata report the time, the tokens and what was truncated."""
    done = server.app.test_client().post(
        PREDICT, json={"instances": [CAT]}, headers={"x-hloserve-evidence": "1"}
    )

    assert int(done.headers["x-hloserve-preprocess-us"]) > 0
    assert done.headers["x-hloserve-tokens"] == "3"
    assert done.headers["x-hloserve-truncated"] == "0"


def test_metadata_is_of_the_text(server):
    """Metadata describe what callers send: the text, and not the inputs made of it."""
    client = server.app.test_client()

    assert client.get("/v2/models/fake").get_json()["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1]}
    ]
    found = client.get("/v1/models/fake/metadata").get_json()["metadata"]["signature_def"]
    inputs = found["signature_def"]["serving_default"]["inputs"]
    assert {name: info["dtype"] for name, info in inputs.items()} == {"text": "DT_STRING"}


def test_the_page_shows_a_text(server):
    """The page's example is a text."""
    page = server.app.test_client().get("/").get_data(as_text=True)

    assert "A short sentence." in page
    assert f"at most {STAGE.max_tokens} tokens" in page


LONG = "cat " * 7


@mark.parametrize(
    ("path", "body", "message"),
    [
        param(PREDICT, {"instances": [CAT, LONG]}, "instances[1]: input 'text': expected at most 8 tokens, got 9", id="tokens"),
        param(PREDICT, {"instances": ["x" * 61]}, "instances[0]: input 'text': expected at most 60 bytes, got 61", id="bytes"),
        param(PREDICT, {"instances": [CAT, 1]}, "instances[1]: expected a text like the others, got a number", id="number"),
        param(PREDICT, {"instances": [CAT, {"text": CAT}]}, "instances[1]: expected a text like the others, got an object", id="mixed"),
        param(PREDICT, {"instances": [{"text": CAT}, CAT]}, "instances[1]: expected an object like the others, got a string", id="mixed-named"),
        param(PREDICT, {"instances": [{"text": 1}]}, "instances[0]: input 'text': expected a text, got a number", id="value"),
        param(PREDICT, {"instances": [{"text": None}]}, "instances[0]: input 'text': expected a text, got null", id="null"),
        param(PREDICT, {"instances": [{"text": [CAT]}]}, "instances[0]: input 'text': expected a text, got an array", id="array"),
        param(PREDICT, {"instances": [{"text": CAT, "ids": [1]}]}, "instances[0]: expected 'text', got 'ids'", id="both"),
        param(PREDICT, {"instances": [{"text": CAT}, {"txt": CAT}]}, "instances[1]: expected 'text', got 'txt'", id="unknown"),
        param(PREDICT, {"instances": [{"texts": CAT}]}, "instances[0]: expected 'text', or 'ids', 'mask', got 'texts'; did you mean 'text'?", id="misspelled"),
        param(PREDICT, {"instances": [{"b64": "%"}]}, "instances[0]: input 'text': expected base64, got other characters", id="b64"),
        param(PREDICT, {"instances": [{"b64": "data:text/plain;base64,AAAA"}]}, "instances[0]: input 'text': expected base64, got a data URL; send what is behind its comma", id="data-url"),
        param(PREDICT, {"instances": [{"b64": "/w=="}]}, "instances[0]: input 'text': expected a text in UTF-8, got the byte 0xff at 0", id="utf-8"),
        param(COLUMNS, {"inputs": [CAT, LONG]}, "input 'text'[1]: expected at most 8 tokens, got 9", id="column"),
        param(COLUMNS, {"inputs": {"text": CAT}}, "input 'text': expected a list of texts, got a string", id="no-list"),
        param(COLUMNS, {"inputs": {"text": [CAT], "ids": [[1]]}}, "inputs: expected 'ids', or 'text' that it is made of, got both", id="columns-both"),
        param(INFER, {"inputs": [{"name": "text", "datatype": "INT32", "shape": [1], "data": [1]}]}, "input 'text': expected datatype BYTES, got 'INT32'", id="datatype"),
        param(INFER, {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 2], "data": [CAT, SAT]}]}, "input 'text': expected shape [n] or [n, 1], got '[1, 2]'", id="shape"),
        param(INFER, {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": [CAT]}]}, "input 'text': expected 2 texts as its shape says, got 1", id="count"),
        param(INFER, {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [1]}]}, "input 'text'[0]: expected a text, got a number", id="element"),
        param(INFER, {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1], "data": []}]}, "input 'text': expected sizes of 0 or more in its shape", id="negative"),
        param(INFER, {"inputs": [{"name": "txt", "datatype": "BYTES", "shape": [1], "data": [CAT]}]}, "input: expected 'text', 'ids', 'mask', got 'txt'; did you mean 'text'?", id="name"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(server, path, body, message):
    """What does not fit is named with its place in the request."""
    assert ask(server, path, body) == (400, {"error": message, "code": "invalid_argument"})


@mark.parametrize(
    ("data", "message"),
    [
        (b"\x03\0\0", "input 'text': expected 3 bytes behind a length, got 0"),
        (b"\xff\xff\xff\xffcat", "input 'text': expected 4294967295 bytes behind a length, got 3"),
        (b"\x01\0\0\0\xff", "input 'text'[0]: expected a text in UTF-8, got the byte 0xff at 0"),
        (b"\x01\0\0\0a\x01\0\0\0b", "input 'text': expected 1 texts as its shape says, got 2"),
        (b"", "input 'text': expected 1 texts as its shape says, got 0"),
    ],
    ids=["cut", "lies", "utf-8", "more", "none"],
)
def test_binary_texts_that_lie_are_refused(server, data, message):
    """Lengths are compared with the number of bytes, before anything is allocated."""
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {
        "content_type": "application/octet-stream",
        "inference_header_content_length": str(len(head)),
    }

    assert ask(server, INFER, head + data, **headers) == (
        400,
        {"error": message, "code": "invalid_argument"},
    )


def test_a_body_that_is_no_text_is_refused(server, aged):
    """Plain text is one text in UTF-8, for a model that takes nothing else."""
    text = {"content_type": "text/plain"}
    refused = {
        "error": "content-type: expected application/json, got 'text/plain'",
        "code": "unsupported_media",
    }

    assert ask(server, PREDICT, b"\xff", **text) == (
        400,
        {
            "error": "body: expected a text in UTF-8, got the byte 0xff at 0",
            "code": "invalid_argument",
        },
    )
    assert ask(server, PREDICT, LONG.encode(), **text)[1]["error"] == (
        "body: input 'text': expected at most 8 tokens, got 9"
    )
    assert ask(server, INFER, b"cat", **text) == (415, refused)
    assert ask(aged, PREDICT, b"cat", **text) == (415, refused)


@mark.parametrize(
    "instances",
    [
        [{"text": CAT, "key": 7}, {"text": SAT, "key": 8}],
        [CAT, SAT],
        [[CAT], [SAT]],
        [b64(CAT), b64(SAT)],
        [b64(CAT) | {"key": 7}, b64(SAT) | {"key": 8}],
    ],
    ids=["jsonl", "jsonl-bare", "csv-and-bigquery", "tf-record-and-file-list", "with-keys"],
)
def test_batch_predictions_bodies_are_answered(keyed, instances):
    """What Vertex AI's batch prediction makes of its formats is answered, row by row."""
    assert ask(keyed, PREDICT, {"instances": instances}) == (200, {"predictions": SUMS})


def test_arrays_have_inputs_in_order(aged):
    """An instance that is an array has the text first, and then the other inputs."""
    status, answer = ask(aged, PREDICT, {"instances": [[CAT, 1], [SAT, 2]]})

    assert (status, answer) == (200, {"predictions": [SUMS[0] + 3, SUMS[1] + 6]})
    assert ask(aged, PREDICT, {"instances": [[CAT, 1], [SAT]]})[1]["error"] == (
        "instances[1]: expected an array of 2 inputs like the others, got an array"
    )


def test_fields_that_were_not_declared_are_refused(server):
    """A key that the bundle does not declare is an unknown input, as before."""
    answer = ask(server, PREDICT, {"instances": [{"text": CAT, "key": 7}]})

    assert answer[1]["error"] == "instances[0]: expected 'text', got 'key'"


def test_fields_pass_through_beside_tensors(keyed):
    """Declared fields stand beside tensors as well, in rows of either protocol."""
    instances = [{"ids": ids(CAT), "key": "a"}]

    for path in (PREDICT, COLUMNS):
        assert ask(keyed, path, {"instances": instances}) == (200, {"predictions": SUMS[:1]})
