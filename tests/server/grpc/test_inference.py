"""Inferences over gRPC: tensors in and out, and what is refused. The model is a fake."""

import gc
import tracemalloc

import grpc
import numpy as np
from pytest import fixture, mark, param, raises, skip

from runtime.errors import ExecutionError
from runtime.signature import DTYPE_BYTES, Signature, TensorSpec
from runtime.tensors import numpy_dtype
from server.errors import OutOfMemory
from server.protos import inference_pb2 as pb
from tests.server.fakes import ECHO, EVERY, FakeModel, Gate
from tests.server.grpc_harness import GrpcHarness, array_of, refused, request, rows

pytestmark = mark.usefixtures("front")

LIMIT = 20_000
ROW = np.array([[1, 2]], np.float32)


@fixture(scope="module")
def grpc_server():
    """A server with small limits, before a model that sums rows."""
    grpc_server = GrpcHarness(max_body_bytes=LIMIT)
    yield grpc_server
    grpc_server.close()


@fixture(autouse=True)
def _still_answers(grpc_server):
    """After every test a good request gets its response."""
    yield
    assert grpc_server.ask(3) == [3.0]


def test_an_answer_carries_its_request_s_id_and_the_model(grpc_server):
    """A response names the model, the request's id, and the outputs."""
    answer = grpc_server.infer(rows(1, 2, identity="a request"), timeout=30)

    output = pb.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[2])
    assert answer == pb.ModelInferResponse(
        model_name="fake",
        model_version="1",
        id="a request",
        outputs=[output],
        raw_output_contents=[np.array([1, 2], np.float32).tobytes()],
    )


def identity(*arrays):
    """Return back what came in."""
    return arrays


def test_every_dtype_goes_as_bytes(calls):
    """Every dtype comes back bit for bit, NaN and infinity among them, as raw contents."""
    grpc_server = calls(FakeModel(signature=EVERY, function=identity))
    arrays = {
        name: np.frombuffer(
            bytes([0, 1]) if name == "bool" else bytes(range(249, 251)) * size, numpy_dtype(name)
        ).reshape(1, 2)
        for name, size in DTYPE_BYTES.items()
    }

    answer = grpc_server.infer(request(arrays), timeout=30)

    assert [output.name for output in answer.outputs] == [f"{name}_out" for name in arrays]
    assert list(answer.raw_output_contents) == [array.tobytes() for array in arrays.values()]


TYPED = [
    ("bool", "bool_contents", [True, False]),
    ("int8", "int_contents", [-128, 127]),
    ("int16", "int_contents", [-(2**15), 2**15 - 1]),
    ("int32", "int_contents", [-(2**31), 2**31 - 1]),
    ("int64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("uint8", "uint_contents", [0, 255]),
    ("uint16", "uint_contents", [0, 2**16 - 1]),
    ("uint32", "uint_contents", [0, 2**32 - 1]),
    ("uint64", "uint64_contents", [0, 2**64 - 1]),
    ("float32", "fp32_contents", [float(np.float32(0.1)), float("-inf")]),
    ("float64", "fp64_contents", [0.1, -0.0]),
]


@fixture(scope="module")
def passing_on():
    """A server for each dtype, with a model that returns its inputs."""
    made = {}

    def make(dtype):
        if dtype not in made:
            signature = Signature(
                inputs=(TensorSpec(name="x", dtype=dtype, shape=("_", 2)),),
                outputs=(TensorSpec(name="y", dtype=dtype, shape=("_", 2)),),
            )
            made[dtype] = GrpcHarness(FakeModel(signature=signature, function=identity))
        return made[dtype]

    yield make
    for each in made.values():
        each.close()


def typed(dtype, field, values):
    """Ask with typed contents."""
    made = pb.ModelInferRequest(model_name="fake")
    datatype = {"float32": "FP32", "float64": "FP64"}.get(dtype, dtype.upper())
    tensor = made.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    return made


@mark.parametrize(("dtype", "field", "values"), TYPED, ids=[dtype for dtype, _, _ in TYPED])
def test_typed_contents_are_read(passing_on, dtype, field, values):
    """Typed contents make the same tensor as bytes do, their extremes included."""
    answer = passing_on(dtype).infer(typed(dtype, field, values), timeout=30)

    assert array_of(answer, "y", dtype).tolist() == [values]


@mark.parametrize(
    ("dtype", "field", "values", "text"),
    [
        ("int8", "int_contents", [0, 128], "input 'x': expected int8, got a value beyond it"),
        (
            "uint16",
            "uint_contents",
            [0, 65536],
            "input 'x': expected uint16, got a value beyond it",
        ),
        (
            "int64",
            "int_contents",
            [1, 2],
            "input 'x': expected 2 values in int64_contents for shape [1, 2], got 0",
        ),
        (
            "float32",
            "fp32_contents",
            [1.0],
            "input 'x': expected 2 values in fp32_contents for shape [1, 2], got 1",
        ),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(passing_on, dtype, field, values, text):
    """Values beyond the dtype, in another dtype's field, or too few of them are refused."""
    grpc_server = passing_on(dtype)

    assert refused(lambda: grpc_server.infer(typed(dtype, field, values), timeout=30)) == (
        "INVALID_ARGUMENT",
        text,
    )


def test_half_precision_has_no_typed_contents(passing_on):
    """BF16 without raw contents is refused: the protocol has no field for it."""
    made = pb.ModelInferRequest(model_name="fake")
    made.inputs.add(name="x", datatype="BF16", shape=[1, 2]).contents.fp32_contents.extend([1, 2])

    assert refused(lambda: passing_on("bfloat16").infer(made, timeout=30)) == (
        "INVALID_ARGUMENT",
        "input 'x': expected raw_input_contents for BF16, got none",
    )


def changed(**fields):
    """Ask for one sum, but for what is changed."""
    made = request({"x": ROW})
    for name, value in fields.items():
        if name in ("name", "datatype"):
            setattr(made.inputs[0], name, value)
        elif name == "shape":
            made.inputs[0].shape[:] = value
        elif name == "raw":
            made.raw_input_contents[:] = value
        else:
            setattr(made, name, value)
    return made


def both_contents():
    """Ask with bytes and with typed contents."""
    made = request({"x": ROW})
    made.inputs[0].contents.fp32_contents.extend([1, 2])
    return made


def doubled_input():
    """Ask with the same input twice."""
    made = request({"x": ROW})
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(ROW.tobytes())
    return made


def parameter_of(part, name):
    """Ask with a parameter on the input or on the output."""
    made = request({"x": ROW}, outputs=["y"])
    getattr(made, part)[0].parameters[name].string_param = "there"
    return made


BAD = [
    param(b"\xff\xff", "INVALID_ARGUMENT", "message: expected a ModelInferRequest, got other bytes", id="garbage"),
    param(changed(model_name="other"), "NOT_FOUND", "model: expected 'fake', got 'other'", id="model"),
    param(changed(model_name="é" * 200), "NOT_FOUND", f"model: expected 'fake', got {'é' * 100!r}", id="long-model"),
    param(changed(model_version="2"), "NOT_FOUND", "model version: expected '1', got '2'", id="version"),
    param(changed(name="y"), "INVALID_ARGUMENT", "input: expected 'x', got 'y'", id="input"),
    param(changed(datatype="FP64"), "INVALID_ARGUMENT", "input 'x': expected datatype FP32, got 'FP64'", id="datatype"),
    param(changed(datatype="BYTES"), "INVALID_ARGUMENT", "input 'x': expected datatype FP32, got 'BYTES'", id="bytes"),
    param(changed(shape=[1, -2]), "INVALID_ARGUMENT", "input 'x': expected sizes of 0 or more in its shape, got -2", id="negative"),
    param(changed(shape=[2**62, 2]), "INVALID_ARGUMENT", f"input 'x': expected float32[_, 2], got {2**62} in its shape", id="overflow"),
    param(changed(shape=[1] * 1000), "INVALID_ARGUMENT", "input 'x': expected float32[_, 2], got 1000 dimensions", id="dimensions"),
    param(changed(shape=[2, 2]), "INVALID_ARGUMENT", "input 'x': expected 16 bytes for shape [2, 2], got 8", id="length"),
    param(changed(shape=[2, 1]), "INVALID_ARGUMENT", "input 'x': expected float32[_, 2], got 1 in its shape", id="shape"),
    param(changed(raw=[b"", b""]), "INVALID_ARGUMENT", "raw_input_contents: expected 1 as there are inputs, got 2", id="count"),
    param(pb.ModelInferRequest(model_name="fake"), "INVALID_ARGUMENT", "input 'x': expected float32[_, 2], got nothing", id="nothing"),
    param(both_contents(), "INVALID_ARGUMENT", "input 'x': expected contents or raw_input_contents, got both", id="both"),
    param(doubled_input(), "INVALID_ARGUMENT", "input 'x': expected once, got it twice", id="input-twice"),
    param(request({"x": ROW}, outputs=["z"]), "INVALID_ARGUMENT", "output: expected 'y', got 'z'", id="output"),
    param(request({"x": ROW}, outputs=["y", "y"]), "INVALID_ARGUMENT", "output 'y': expected once, got it twice", id="output-twice"),
    param(request({"x": ROW}, timeout=("int64", -1)), "INVALID_ARGUMENT", "parameters: expected timeout in microseconds, got something else", id="timeout"),
    param(request({"x": ROW}, timeout=("string", "1")), "INVALID_ARGUMENT", "parameters: expected timeout in microseconds, got something else", id="timeout-text"),
    param(request({"x": ROW}, evidence=("int64", 1)), "INVALID_ARGUMENT", "parameters: expected true or false for evidence", id="evidence"),
    param(parameter_of("inputs", "shared_memory_region"), "UNIMPLEMENTED", "input 'x': shared memory is not served; send and take the bytes", id="memory-in"),
    param(parameter_of("outputs", "shared_memory_region"), "UNIMPLEMENTED", "output 'y': shared memory is not served; send and take the bytes", id="memory-out"),
    param(parameter_of("outputs", "classification"), "UNIMPLEMENTED", "outputs: the classification extension is not served; see the labels", id="classification"),
    param(rows(*range(1025)), "RESOURCE_EXHAUSTED", "rows: expected at most 1024 in a request, got 1025", id="rows"),
]  # fmt: skip


@mark.parametrize(("message", "status", "text"), BAD)
def test_what_is_not_a_request_is_refused(grpc_server, message, status, text):
    """Everything that does not fit is refused with a message that says what was expected."""
    assert refused(lambda: grpc_server.infer(message, timeout=30)) == (status, text)


def test_outputs_come_as_they_are_asked_for(calls):
    """Only the requested outputs are returned, in that order; masks may be left out."""
    grpc_server = calls(FakeModel(signature=ECHO))
    ids = np.array([[5, 6, 7]], np.int32)

    one = grpc_server.infer(request({"ids": ids}, outputs=["total"]), timeout=30)
    both = grpc_server.infer(request({"ids": ids}, outputs=["total", "echo"]), timeout=30)

    assert array_of(one, "total", np.int32).tolist() == [18]
    assert [output.name for output in one.outputs] == ["total"]
    assert [output.name for output in both.outputs] == ["total", "echo"]
    assert array_of(both, "echo", np.int32).tolist() == [[5, 6, 7]]


def test_no_rows_are_answered_by_no_rows(grpc_server):
    """A batch of 0 returns outputs of 0 rows."""
    answer = grpc_server.infer(rows(), timeout=30)

    assert list(answer.outputs[0].shape) == [0]
    assert list(answer.raw_output_contents) == [b""]


def test_an_answer_names_its_evidence_when_asked(grpc_server):
    """With `evidence` a response reports the bundle, the bucket, the padding and the times."""
    answer = grpc_server.infer(rows(1, 2, 3, evidence=("bool", True)), timeout=30)

    metadata = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in answer.parameters.items()
    }
    assert set(metadata) == {"bundle", "bucket", "padded_rows", "queue_us", "compute_us", "device"}
    assert (metadata["bundle"], metadata["bucket"], metadata["padded_rows"]) == ("0" * 64, 4, 1)


def padded(message, size):
    """Make a message of exactly so many bytes, by its id."""
    message.id = ""
    message.id = "i" * (size - message.ByteSize() - 4)
    message.id += "i" * (size - message.ByteSize())
    return message


def test_a_message_may_be_as_large_as_the_limit(grpc_server):
    """A message of exactly the limit is read; one byte more is not."""
    assert len(grpc_server.infer(padded(rows(1), LIMIT), timeout=30).id) > LIMIT - 100
    status, _ = refused(lambda: grpc_server.infer(padded(rows(1), LIMIT + 1), timeout=30))
    assert status == "RESOURCE_EXHAUSTED"


def test_a_compressed_message_is_limited_by_what_it_holds(grpc_server, front):
    """The limit is on what a compressed message inflates to; a smaller one is read."""
    if front == "ngh2":
        skip("it reads no compressed message, which test_http2 shows")
    small = grpc_server.infer(rows(1, identity="i" * 9000), compression=grpc.Compression.Gzip)
    status, _ = refused(
        lambda: grpc_server.infer(rows(1, identity="i" * 10**7), compression=grpc.Compression.Gzip)
    )

    assert array_of(small, "y", np.float32).tolist() == [1.0]
    assert status == "RESOURCE_EXHAUSTED"


def test_large_tensors_are_read_and_written_on_another_thread(calls):
    """A message too large to be handled on the loop is answered all the same."""
    wide = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("_", 100_000)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("_", 100_000)),),
    )
    grpc_server = calls(FakeModel(signature=wide, function=identity), options=[("grpc.max_receive_message_length", -1)])  # fmt: skip
    array = np.arange(400_000, dtype=np.float32).reshape(4, -1)

    answer = grpc_server.infer(request({"x": array}), timeout=30)

    assert (array_of(answer, "y", np.float32) == array).all()


def failing(error):
    """Make a model that raises."""
    model = FakeModel()
    model.broken = error
    return model


def test_an_internal_error_discloses_nothing(calls, caplog):
    """An internal error is logged, with the id that the client receives."""
    grpc_server = calls(failing(ValueError("secret /etc/passwd")))

    with raises(grpc.RpcError) as error:
        grpc_server.infer(rows(1), timeout=30)

    trailers = dict(error.value.trailing_metadata())
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert error.value.details() == "internal error; the server's log says more"
    assert f"request {trailers['x-request-id']} failed" in caplog.text
    assert "secret" in caplog.text


def test_an_internal_error_is_logged_with_the_callers_trace(calls, caplog):
    """A call's trace id, or its own request id, is read from its metadata."""
    grpc_server = calls(failing(ValueError("secret")))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("traceparent", f"00-{trace}-00f067aa0ba902b7-01"), ("x-request-id", "mine"))

    with raises(grpc.RpcError) as error:
        grpc_server.infer(rows(1), timeout=30, metadata=metadata)

    (logged,) = [record for record in caplog.records if "mine failed" in record.getMessage()]
    assert dict(error.value.trailing_metadata())["x-request-id"] == "mine"
    assert logged.trace == trace


def test_an_id_that_is_unfit_for_a_log_is_replaced(calls, caplog):
    """An id with a line break in it does not get into the log or the trailers."""
    grpc_server = calls(failing(ValueError("secret")))

    status, _ = refused(lambda: grpc_server.infer(rows(1, identity="a\nCRITICAL b"), timeout=30))

    assert status == "INTERNAL"
    assert "CRITICAL b" not in caplog.text


@mark.parametrize(
    ("error", "status", "text"),
    [
        (OutOfMemory("the device has no memory"), "UNAVAILABLE", "the device has no memory"),
        (
            ExecutionError("RESOURCE_EXHAUSTED: 3 GiB"),
            "UNAVAILABLE",
            "the device has no memory for this batch now",
        ),
        (ExecutionError("secret"), "INTERNAL", "internal error; the server's log says more"),
    ],
)
def test_the_device_s_errors_have_their_status(calls, error, status, text):
    """Out of memory is retryable; any other failure of the device is internal."""
    grpc_server = calls(failing(error))

    assert refused(lambda: grpc_server.infer(rows(1), timeout=30)) == (status, text)


def test_a_full_queue_refuses_before_grpc_does(calls):
    """Beyond the queue's capacity a request is refused at once, as retryable."""
    model = FakeModel(buckets=(1,))
    model.before = gate = Gate()
    grpc_server = calls(model, limits={"queue_rows": 2}, max_queue_rows=2)

    first = grpc_server.infer.future(rows(1), timeout=30)
    grpc_server.running.wait(gate.reached())
    waiting = [grpc_server.infer.future(rows(n), timeout=30) for n in (2, 3)]
    while grpc_server.on_loop(lambda: grpc_server.service.queued_rows) < 2:
        pass
    status, text = refused(lambda: grpc_server.ask(4))
    gate.open(runs=3)

    assert (status, text) == ("UNAVAILABLE", "the queue is full: 2 of 2 rows wait")
    answers = [array_of(each.result(), "y", np.float32).tolist() for each in (first, *waiting)]
    assert answers == [[1.0], [2.0], [3.0]]


@mark.parametrize("how", ["unary", "stream"])
def test_a_refused_message_is_let_go_of(calls, how):
    """A refused message is freed at once, without the garbage collector: messages are large."""
    grpc_server = calls(FakeModel())
    size = 1 << 20
    bad = request({"x": np.zeros((1, size // 4), np.float32)}).SerializeToString()

    def refuse():
        if how == "unary":
            assert refused(lambda: grpc_server.infer(bad, timeout=30))[0] == "INVALID_ARGUMENT"
        else:
            assert all(
                answer.error_message for answer in grpc_server.stream(iter([bad]), timeout=30)
            )

    refuse()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            refuse()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()

    assert held < 5 * size
