"""The messages: what is checked in is what the .proto says, and what the protocol says."""

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from pytest import mark, param
from tritonclient.grpc import service_pb2 as triton

from server.protos import inference_pb2 as ours
from tests.serving import ROOT

MESSAGES = ours.DESCRIPTOR.message_types_by_name
(SERVICE,) = ours.DESCRIPTOR.services_by_name.values()
# A field that a client may send and that was missing here would be dropped silently.
REQUESTS = [name for name in MESSAGES if name.endswith("Request")]


def whole(message):
    """Return a message and those inside it by their full names."""
    found = {message.full_name: message}
    for nested in message.nested_types:
        found |= whole(nested)
    return found


def fields(message):
    """Return all that matters on the wire, and for JSON, of each field."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type and field.message_type.full_name,
        )
        for field in message.fields
    }


def test_the_generated_module_is_what_the_proto_file_says(tmp_path):
    """The checked-in descriptor is the one that protoc makes of the .proto file."""
    protos = ROOT / "server" / "protos"
    made = tmp_path / "made"

    assert protoc.main(["protoc", f"-I{protos}", f"-o{made}", "inference.proto"]) == 0

    (compiled,) = FileDescriptorSet.FromString(made.read_bytes()).file
    checked_in = FileDescriptorProto()
    ours.DESCRIPTOR.CopyToProto(checked_in)
    for message in compiled.message_type:  # protoc writes names for JSON into a file only
        clear_json_names(message)
    assert checked_in == compiled


def clear_json_names(message):
    """Take the names that fields have in JSON out of a message."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        clear_json_names(nested)


def test_the_stubs_name_every_message():
    """The types that are checked in beside it have the same messages and fields."""
    text = (ROOT / "server" / "protos" / "inference_pb2.pyi").read_text()

    for message in MESSAGES.values():
        for name, inner in whole(message).items():
            if not inner.GetOptions().map_entry:
                assert f"class {name.split('.')[-1]}(_message.Message):" in text
                for field in inner.fields:
                    assert f"    {field.name}: " in text


@mark.parametrize("name", MESSAGES)
def test_a_message_is_the_client_s(name):
    """Each field has the number and the type that it has in a client of the protocol."""
    theirs = whole(triton.DESCRIPTOR.message_types_by_name[name])

    for full_name, message in whole(MESSAGES[name]).items():
        known = fields(theirs[full_name])
        assert {name: known.get(name) for name in fields(message)} == fields(message)


@mark.parametrize("name", REQUESTS)
def test_a_request_has_all_that_a_client_may_send(name):
    """Every field of a client's request is a field here."""
    theirs = whole(triton.DESCRIPTOR.message_types_by_name[name])

    for full_name, message in whole(MESSAGES[name]).items():
        assert set(fields(message)) == set(fields(theirs[full_name]))


@mark.parametrize("method", [param(method, id=method.name) for method in SERVICE.methods])
def test_a_method_is_the_client_s(method):
    """Each method has the same request and response messages, streaming or not."""
    (service,) = triton.DESCRIPTOR.services_by_name.values()
    theirs = service.methods_by_name[method.name]

    def shape(of):
        return (
            of.full_name,
            of.input_type.full_name,
            of.client_streaming,
            of.output_type.full_name,
            of.server_streaming,
        )

    assert shape(method) == shape(theirs)


def test_a_client_s_bytes_read_the_same_here():
    """A request that a client serialized is parsed into the same fields."""
    sent = triton.ModelInferRequest(model_name="m", model_version="1", id="i")
    sent.parameters["timeout"].uint64_param = 5
    sent.inputs.add(name="x", datatype="FP32", shape=[1, -1]).contents.fp32_contents.append(0.5)
    sent.outputs.add(name="y").parameters["classification"].int64_param = 3
    sent.raw_input_contents.append(b"\x00")

    read = ours.ModelInferRequest.FromString(sent.SerializeToString())

    assert str(read) == str(sent)
