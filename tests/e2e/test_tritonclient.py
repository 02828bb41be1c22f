"""Triton's own client against the server, over HTTP and over gRPC."""

import queue

import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.http
from pytest import fixture, mark, param, raises
from tritonclient.utils import InferenceServerException

from export import export_model
from server.protocols.oip import SERVER_NAME
from tests.serving import TIMEOUT_S, serving

pytestmark = mark.e2e

# The model's inputs and outputs, by the client's names.
DATATYPES = {
    "real": "FP32",
    "double": "FP64",
    "half": "FP16",
    "brain": "BF16",
    "whole": "INT64",
    "byte": "UINT8",
    "flag": "BOOL",
}
DTYPES = {
    "real": "float32",
    "double": "float64",
    "half": "float16",
    "brain": "bfloat16",
    "whole": "int64",
    "byte": "uint8",
    "flag": "bool",
}
# The client writes FP16 and BF16 as bytes alone.
ROWS = {
    "real": np.array([[0.1, np.finfo(np.float32).max], [-0.0, 1e-30], [3.5, -2.0]], np.float32),
    "double": np.array([[0.1, 1 / 3], [1e300, -1e-300], [0.0, 2.0]], np.float64),
    "half": np.array([[0.1, 65504], [-0.5, 6e-8], [1, 2]], np.float16),
    "brain": np.array([[1.5, -2.25], [3.0, 1e38], [0.0, -0.125]], ml_dtypes.bfloat16),
    "whole": np.array([[2**53 + 1, -(2**63)], [2**63 - 1, 0], [-1, 7]], np.int64),
    "byte": np.array([[0, 255], [1, 2], [3, 4]], np.uint8),
    "flag": np.array([[True, False], [False, True], [True, True]]),
}


def pass_on(params, **inputs):
    """Return what came in, but for what a param adds to the real numbers: nothing."""
    return inputs | {"real": inputs["real"] + params["none"]}


@fixture(scope="module", params=["aio", "ngh2"])
def front(request):
    """Each front of gRPC."""
    return request.param


@fixture(scope="module")
def ports(front, tmp_path_factory):
    """The ports of a server that runs with each front of gRPC: HTTP, gRPC."""
    bundle = tmp_path_factory.mktemp("triton") / "bundle"
    export_model(
        pass_on,
        {"none": np.full((), -0.0, np.float32)},
        inputs=[f"{name}:{dtype}[_,2]" for name, dtype in DTYPES.items()],
        buckets=(1, 8),
        platforms=("cpu",),
        name="every",
        out=bundle,
    )
    with serving("--bundle", str(bundle), "--grpc-front", front) as served:
        yield served.port, served.grpc_port


@fixture(scope="module")
def over_http(ports):
    """A client over HTTP."""
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        yield client


@fixture(scope="module")
def over_grpc(ports):
    """A client over gRPC."""
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        yield client


@fixture(params=["http", "grpc"])
def kind(request):
    """The client's module, tritonclient.http or tritonclient.grpc."""
    return getattr(tritonclient, request.param)


@fixture
def client(kind, over_http, over_grpc):
    """A client of that kind."""
    return over_http if kind is tritonclient.http else over_grpc


def tensors(kind, arrays, **options):
    """Make the client's inputs."""
    made = []
    for name, array in arrays.items():
        made.append(kind.InferInput(name, array.shape, DATATYPES[name]))
        made[-1].set_data_from_numpy(array, **options)
    return made


def differing(answer, rows):
    """Name the outputs that do not have the bits that were sent."""
    found = {name: answer.as_numpy(name) for name in rows}
    return [
        name
        for name, array in rows.items()
        if (found[name].dtype, found[name].shape, found[name].tobytes())
        != (array.dtype, array.shape, array.tobytes())
    ]


def test_every_datatype_comes_back(kind, client):
    """Tensors of every datatype come back bit for bit, as bytes."""
    answer = client.infer("every", tensors(kind, ROWS), request_id="mine")

    assert not differing(answer, ROWS)
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "mine"


@mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
@mark.parametrize("binary_out", [True, False], ids=["binary-out", "json-out"])
def test_json_and_bytes_may_be_mixed_over_http(over_http, binary_in, binary_out):
    """What goes as JSON, in or out, is the same tensor; the client reads halves as bytes only."""
    kind = tritonclient.http
    halves = {name: ROWS[name] for name in ("half", "brain")}
    others = {name: array for name, array in ROWS.items() if name not in halves}
    inputs = tensors(kind, others, binary_data=binary_in) + tensors(kind, halves)
    outputs = [kind.InferRequestedOutput(n, binary_data=binary_out) for n in others]

    assert not differing(over_http.infer("every", inputs, outputs=outputs), others)


def test_arrays_need_not_lie_in_a_row(kind, client):
    """Columns in memory, reversed or strided arrays are sent as they read."""
    apart = {name: np.asfortranarray(array[::-1]) for name, array in ROWS.items()}
    assert not any(array.flags.c_contiguous for array in apart.values())

    answer = client.infer("every", tensors(kind, apart))

    assert not differing(
        answer, {name: np.ascontiguousarray(array) for name, array in apart.items()}
    )


def test_a_client_refuses_byte_swapped_arrays_itself(kind):
    """An array of the other byte order does not come as far as the server."""
    with raises(InferenceServerException, match="got unexpected datatype"):
        tensors(kind, {"whole": ROWS["whole"].astype(">i8")})


@mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_may_be_compressed(kind, front, client, algorithm):
    """A compressed request and a compressed answer are a request and an answer; ngh2 refuses them."""
    if kind is tritonclient.http:
        options = {"request_compression_algorithm": algorithm}
    else:
        options = {"compression_algorithm": algorithm}
        if front == "ngh2":
            with raises(
                InferenceServerException, match="expected no compression, got a compressed"
            ):
                client.infer("every", tensors(kind, ROWS), **options)
            return

    assert not differing(client.infer("every", tensors(kind, ROWS), **options), ROWS)


def test_requests_may_be_asynchronous(over_http, over_grpc):
    """Requests whose answers are called for later get them."""
    pending = over_http.async_infer("every", tensors(tritonclient.http, ROWS))
    answers = queue.SimpleQueue()
    over_grpc.async_infer(
        "every",
        tensors(tritonclient.grpc, ROWS),
        callback=lambda result, error: answers.put((result, error)),
    )

    assert not differing(pending.get_result(), ROWS)
    result, error = answers.get(timeout=TIMEOUT_S)
    assert error is None
    assert not differing(result, ROWS)


@fixture
def stream(ports):
    """A client with a stream, and the queue of its responses."""
    answers = queue.SimpleQueue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        yield client, answers
        client.stop_stream()


def one(number):
    """Make the inputs of one row that has its number in it."""
    rows = {name: array[:1] for name, array in ROWS.items()}
    return tensors(tritonclient.grpc, rows | {"whole": np.array([[number, -number]], np.int64)})


def test_a_stream_answers_each_request(stream):
    """Many requests on a stream get their own responses, in any order."""
    client, answers = stream
    for number in range(300):
        client.async_stream_infer("every", one(number), request_id=str(number))

    found = {}
    for _ in range(300):
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None
        found[result.get_response().id] = result.as_numpy("whole").tolist()
    assert found == {str(n): [[n, -n]] for n in range(300)}


def test_an_error_in_a_stream_is_one_request_s_own(stream):
    """A request that fails returns the reason, and those after it are answered."""
    client, answers = stream
    client.async_stream_infer("other", one(1), request_id="bad")
    client.async_stream_infer("every", one(2), request_id="good")

    found = [answers.get(timeout=TIMEOUT_S) for _ in range(2)]

    (message,) = [error.message() for _, error in found if error is not None]
    (result,) = [result for result, error in found if error is None]
    assert message == "model: expected 'every', got 'other'"
    assert result.get_response().id == "good"


def test_a_stream_may_be_cancelled(ports):
    """A client may disconnect without waiting for its responses; the server keeps serving."""
    received = []
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        client.start_stream(lambda result, error: received.append(result or error))
        for number in range(20):
            client.async_stream_infer("every", one(number))
        client.stop_stream(cancel_requests=True)

        assert received[-1].status() == "StatusCode.CANCELLED"
        assert not differing(client.infer("every", tensors(tritonclient.grpc, ROWS)), ROWS)


@mark.parametrize(
    ("model", "version", "text"),
    [
        param("other", "", "model: expected 'every', got 'other'", id="model"),
        param("every", "9", "model version: expected '1', got '9'", id="version"),
    ],
)
def test_a_model_that_is_not_there_is_an_error(kind, client, model, version, text):
    """Another model or another version is refused with the same message over HTTP and gRPC."""
    with raises(InferenceServerException) as error:
        client.infer(model, tensors(kind, ROWS), model_version=version)

    assert error.value.message() == text
    assert error.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_inputs_that_do_not_fit_are_an_error(kind, client):
    """A missing input and a wrong shape are refused, and a good request is answered then."""
    with raises(InferenceServerException) as missing:
        client.infer("every", tensors(kind, ROWS)[:-1])
    with raises(InferenceServerException) as shape:
        client.infer("every", tensors(kind, ROWS | {"flag": ROWS["flag"][:, :1]}))

    assert missing.value.message() == "input 'flag': expected bool[_, 2], got nothing"
    assert shape.value.message() == "input 'flag': expected bool[_, 2], got 1 in its shape"
    assert not differing(client.infer("every", tensors(kind, ROWS)), ROWS)


def test_outputs_are_those_asked_for(kind, client):
    """Only the outputs that are named come back."""
    answer = client.infer("every", tensors(kind, ROWS), outputs=[kind.InferRequestedOutput("byte")])

    assert answer.as_numpy("byte").tolist() == ROWS["byte"].tolist()
    assert answer.as_numpy("real") is None


def test_classes_are_not_served(kind, client):
    """The classification extension is refused, not ignored."""
    with raises(InferenceServerException, match="the classification extension is not served"):
        client.infer(
            "every",
            tensors(kind, ROWS),
            outputs=[kind.InferRequestedOutput("real", class_count=2)],
        )


def test_health_is_reported(client):
    """The server is live and ready, and so is the model; another one is not."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("every")
    assert client.is_model_ready("every", "1")


def test_metadata_are_reported(kind, client):
    """Names, datatypes and shapes are those of the signature."""
    options = {"as_json": True} if kind is tritonclient.grpc else {}
    server = client.get_server_metadata(**options)
    model = client.get_model_metadata("every", **options)

    assert (server["name"], server["extensions"]) == (
        SERVER_NAME,
        ["binary_tensor_data", "statistics"],
    )
    assert (model["name"], model["versions"]) == ("every", ["1"])
    for part in ("inputs", "outputs"):
        found = {tensor["name"]: tensor["datatype"] for tensor in model[part]}
        assert found == DATATYPES
        assert {tuple(map(int, tensor["shape"])) for tensor in model[part]} == {(-1, 2)}


def test_statistics_are_reported(kind, client):
    """Rows and batches are counted, under the same names either way."""
    options = {"as_json": True} if kind is tritonclient.grpc else {}

    def count():
        (stats,) = client.get_inference_statistics("every", **options)["model_stats"]
        success = stats["inference_stats"]["success"]
        return int(stats["inference_count"]), int(success["count"]), int(success["ns"])

    before = count()
    client.infer("every", tensors(kind, ROWS))
    after = count()

    assert (after[0] - before[0], after[1] - before[1]) == (3, 1)
    assert after[2] > before[2]


@mark.parametrize(
    "call",
    [
        lambda client: client.get_model_config("every"),
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model("every"),
        lambda client: client.unload_model("every"),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("region", "/key", 8),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.get_trace_settings(),
        lambda client: client.get_log_settings(),
    ],
    ids=["config", "index", "load", "unload", "memory", "register", "cuda", "trace", "log"],
)
def test_what_is_not_served_says_so(client, call):
    """Triton's other extensions are refused with a message, not with a page that is not found."""
    with raises(InferenceServerException, match="of the protocol is not served") as error:
        call(client)

    assert error.value.status() in ("501", "StatusCode.UNIMPLEMENTED")


def test_a_client_s_time_limit_is_kept(kind, client):
    """A request with less time than a batch takes is refused, and the next one is answered."""
    with raises(InferenceServerException, match="less than a batch takes here") as error:
        client.infer("every", tensors(kind, ROWS), timeout=1)

    assert error.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")
    assert not differing(client.infer("every", tensors(kind, ROWS)), ROWS)
