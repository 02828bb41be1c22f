"""Faults of a gRPC client leave nothing in the server's log."""

import signal
import socket
import struct

from pytest import mark

from server.grpc.server import INFERENCE
from server.protos import inference_pb2 as pb
from tests.serving import TIMEOUT_S, started

pytestmark = [mark.e2e, mark.parametrize("front", ["aio", "ngh2"])]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, CONTINUATION = 0, 1, 4, 9
END_STREAM, END_HEADERS = 1, 4
NO_WINDOW = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE
CALLS = 20


def frame(kind, flags, stream, payload=b""):
    """Return a frame of HTTP/2 (RFC 9113, 4.1)."""
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def headers(*more):
    """Return the header block of a call, each field a literal without indexing (RFC 7541, 6.2.2)."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/{INFERENCE}/ModelInfer"),
        (":authority", "t"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]
    return b"".join(b"\0" + text(name) + text(value) for name, value in fields)


def text(value):
    """Return a string without Huffman coding, its length in the prefix of 7 bits."""
    data, size = value.encode(), len(value)
    length = (
        bytes([size]) if size < 127 else bytes([127, (size - 127) & 127 | 128, (size - 127) >> 7])
    )
    return length + data


def read_kind(responses):
    """Read a frame; return its kind, None at the end."""
    head = responses.read(4)
    if not head:
        return None
    size, kind = struct.unpack(">IB", b"\0" + head)
    responses.read(5 + size)
    return kind


def test_clients_that_read_no_response_and_go_leave_no_traceback(wide_bundle, front):
    """A response that cannot be delivered is not an error of the server, and a flood of them is not logged."""
    request = pb.ModelInferRequest(model_name="wide", raw_input_contents=[struct.pack("<2q", 1, 2)])
    request.inputs.add(name="x", datatype="INT64", shape=[1, 2])
    message = request.SerializeToString()
    body = b"\0" + struct.pack(">I", len(message)) + message
    with started("--bundle", str(wide_bundle), "--grpc-front", front) as served:
        with socket.create_connection(("127.0.0.1", served.grpc_port), TIMEOUT_S) as client:
            client.sendall(PREFACE + frame(SETTINGS, 0, 0, NO_WINDOW))
            for stream in range(1, 2 * CALLS, 2):
                client.sendall(frame(HEADERS, END_HEADERS, stream, headers()))
                client.sendall(frame(DATA, END_STREAM, stream, body))
            while served.counts()["hloserve_queue_duration_seconds_count"] < CALLS:
                pass
        ended = served.end(signal.SIGTERM)

    assert ended == (0, "")
    assert "Error" not in served.log


def test_metadata_beyond_the_limit_leaves_no_line(wide_bundle, front):
    """The library's own line for each is silenced."""
    with started("--bundle", str(wide_bundle), "--grpc-front", front) as served:
        with socket.create_connection(("127.0.0.1", served.grpc_port), TIMEOUT_S) as client:
            client.sendall(PREFACE + frame(SETTINGS, 0, 0))
            # One field of 3,900 bytes kept in the table, and named there 20,000 times.
            block = headers() + b"\x40" + text("z") + text("a" * 3_900) + b"\xbe" * 20_000
            parts = [block[i : i + 16_000] for i in range(0, len(block), 16_000)]
            client.sendall(frame(HEADERS, 0, 1, parts[0]))
            for part in parts[1:-1]:
                client.sendall(frame(CONTINUATION, 0, 1, part))
            client.sendall(frame(CONTINUATION, END_HEADERS, 1, parts[-1]))
            with client.makefile("rb") as responses:
                # A front may end the connection in place of the call.
                while read_kind(responses) not in (HEADERS, None):
                    pass
        ended = served.end(signal.SIGTERM)

    assert ended == (0, "")
