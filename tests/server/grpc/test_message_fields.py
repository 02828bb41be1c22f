"""Messages of gRPC that take far more memory parsed than they do on the wire."""

from pytest import mark

from server.protocols import oip_grpc
from server.protos import inference_pb2 as pb
from tests.server.fakes import FakeModel
from tests.server.grpc_harness import refused

pytestmark = mark.usefixtures("front")


def field(number, data=b""):
    """Write a field of a message: its length has to fit into four bytes of seven bits."""
    size = [len(data) >> shift & 127 | 128 * (shift < 21) for shift in (0, 7, 14, 21)]
    return bytes([number << 3 | 2, *size]) + data


NUMBERS = {f.name: f.number for f in pb.ModelInferRequest.DESCRIPTOR.fields}
IN_TENSOR = {f.name: f.number for f in pb.ModelInferRequest.InferInputTensor.DESCRIPTOR.fields}
IN_CONTENTS = {f.name: f.number for f in pb.InferTensorContents.DESCRIPTOR.fields}
MANY = 1 << 16


def tiny(number):
    """Write very many empty fields of a number."""
    return bytes([number << 3 | 2, 0]) * MANY


BOMBS = {
    "inputs": tiny(NUMBERS["inputs"]),
    "outputs": tiny(NUMBERS["outputs"]),
    "parameters": tiny(NUMBERS["parameters"]),
    "raw": tiny(NUMBERS["raw_input_contents"]),
    "unknown": b"\xf8\x07\x01" * MANY,
    "fixed": b"\xfd\x07\x01\x01\x01\x01" * MANY,
    "in-a-tensor": field(NUMBERS["inputs"], tiny(IN_TENSOR["parameters"])),
    "in-contents": field(
        NUMBERS["inputs"], field(IN_TENSOR["contents"], tiny(IN_CONTENTS["bytes_contents"]))
    ),
}


@mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_message_of_very_many_fields_is_refused_unread(calls, bomb, monkeypatch):
    """Fields of two bytes would become objects of hundreds; of honest messages most is bytes."""
    grpc_server = calls(FakeModel())
    read = []
    monkeypatch.setattr(oip_grpc, "read", lambda *_, **__: read.append("read"))

    status, text = refused(lambda: grpc_server.infer(field(1, b"fake") + bomb, timeout=30))

    assert (status, text) == (
        "INVALID_ARGUMENT",
        "message: expected at most 65536 fields, got more",
    )
    assert read == []


def test_groups_of_fields_are_refused(calls):
    """Deprecated group fields are refused, since they may hide others."""
    grpc_server = calls(FakeModel())
    group = b"\xfb\x07" + tiny(NUMBERS["inputs"]) + b"\xfc\x07"

    status, text = refused(lambda: grpc_server.infer(group, timeout=30))

    assert (status, text) == (
        "INVALID_ARGUMENT",
        "message: expected a ModelInferRequest, got other bytes",
    )
