"""The gRPC port of the server as a process: taken, drained, and shut."""

import collections
import contextlib
import signal
import socket
import threading

import grpc
import ngh2
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from pytest import mark, raises

from server.grpc.server import HEALTH, INFERENCE
from server.protos import inference_pb2 as pb
from tests.serving import TIMEOUT_S, free_port, ready_line, start

pytestmark = mark.e2e


def test_a_taken_grpc_port_ends_the_process(classifier_bundle):
    """A gRPC port that is taken is exit status 2 and one line, before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(
            free_port(), "--bundle", str(classifier_bundle), HLOSERVE_GRPC_PORT=str(port)
        )
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 2
    assert errors == (
        f"error: listen on 127.0.0.1 port {port}: Address already in use; "
        "pass another --grpc-port, or -1 for none\n"
    )


@mark.parametrize("front", ["aio", "ngh2"])
def test_sigterm_answers_a_stream_and_ends_it(classifier_bundle, front):
    """A stream and a watch that clients keep open end when the process ends, which exits with 0."""
    port = free_port()
    process = start(
        free_port(),
        "--bundle",
        str(classifier_bundle),
        HLOSERVE_GRPC_PORT=str(port),
        HLOSERVE_GRPC_FRONT=front,
        HLOSERVE_DRAIN_DELAY_S="1",
    )
    request = pb.ModelInferRequest(model_name="classifier", id="a")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(np.zeros(4, np.float32).tobytes())
    with process, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ready_line(process)
        watch = channel.unary_stream(
            f"/{HEALTH}/Watch",
            HealthCheckRequest.SerializeToString,
            HealthCheckResponse.FromString,
        )(HealthCheckRequest(service="classifier"))
        stream = channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        watched = [next(watch).status]
        answers = stream(until_drained(request, watch, watched))
        found = [next(answers).infer_response.id]

        process.send_signal(signal.SIGTERM)
        found.append(next(answers).infer_response.id)
        with raises(grpc.RpcError) as ended:
            next(answers)
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert watched == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]
    assert found == ["a", "a"]
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (process.returncode, errors) == (0, "")


@mark.parametrize(
    ("front", "processes"), [("aio", "1"), ("aio", "2"), ("ngh2", "1"), ("ngh2", "2")]
)
def test_no_call_is_cancelled_as_the_server_stops(classifier_bundle, front, processes):
    """Calls that arrive without a pause until the end are answered, or refused with UNAVAILABLE, which is retryable."""
    port = free_port()
    process = start(
        free_port(),
        "--bundle",
        str(classifier_bundle),
        HLOSERVE_GRPC_PORT=str(port),
        HLOSERVE_GRPC_FRONT=front,
        HLOSERVE_DRAIN_DELAY_S="0",
        HLOSERVE_PROCESSES=processes,
    )
    request = pb.ModelInferRequest(model_name="classifier")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(np.zeros(4, np.float32).tobytes())
    message = request.SerializeToString()
    found, over = collections.Counter(), threading.Event()

    def ask():
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_unary(f"/{INFERENCE}/ModelInfer")
            while not over.is_set():
                try:
                    call(message, timeout=TIMEOUT_S)
                    found["OK"] += 1
                except grpc.RpcError as error:
                    found[error.code().name] += 1

    with process:
        ready_line(process)
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        while found["OK"] < 100:
            pass
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        over.set()
        for thread in threads:
            thread.join()

    assert set(found) == {"OK", "UNAVAILABLE"}
    assert (process.returncode, errors) == (0, "")


@mark.parametrize("front", ["aio", "ngh2"])
def test_a_connection_ends_behind_an_announcement(classifier_bundle, front):
    """A client receives GOAWAY, and the results of its calls, before the connection closes."""
    port = free_port()
    process = start(
        free_port(),
        "--bundle",
        str(classifier_bundle),
        HLOSERVE_GRPC_PORT=str(port),
        HLOSERVE_GRPC_FRONT=front,
    )
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection()
    fields = {":method": "POST", ":scheme": "http", ":path": f"/{INFERENCE}/ModelInfer"}
    fields |= {":authority": "t", "te": "trailers", "content-type": "application/grpc"}
    with process:
        ready_line(process)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(TIMEOUT_S)
            client.send_request([(k.encode(), v.encode()) for k, v in fields.items()])
            client.ping(b"arrived?")
            events = []
            while not any(isinstance(event, ngh2.PingAcknowledged) for event in events):
                connection.sendall(client.data_to_send())
                client.receive_data(connection.recv(1 << 16))
                events += client.events()
            process.send_signal(signal.SIGTERM)
            while data := connection.recv(1 << 16):
                with contextlib.suppress(ngh2.ConnectionStateError):  # after its GOAWAY
                    client.receive_data(data)
                events += client.events()
        _, errors = process.communicate(timeout=TIMEOUT_S)

    ended = [e.last_stream_id for e in events if isinstance(e, ngh2.GoAwayReceived)]
    responses = [dict(e.headers) for e in events if isinstance(e, ngh2.ResponseReceived)]
    assert ended[0] == 2**31 - 1
    assert [each[b"grpc-message"] for each in responses] == [b"the server is stopping"]
    assert (process.returncode, errors) == (0, "")


def until_drained(request, watch, watched):
    """Send a request, and another one once the server drains; never end."""
    yield request
    watched.append(next(watch).status)
    yield request
    list(watch)
