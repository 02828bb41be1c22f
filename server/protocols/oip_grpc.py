"""The Open Inference Protocol v2 over gRPC: requests to arrays, results to responses."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.model import Model
from runtime.records.raw_rows import raw_or_checked
from runtime.signature import TensorSpec
from runtime.tensors import numpy_dtype
from server.batching.pending_request import InferenceResult
from server.errors import Unsupported
from server.protocols import oip
from server.protocols.inference import ParsedRequest, metadata_of
from server.protos.inference_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

Parameters = Mapping[str, InferParameter]

# In larger messages the fields are counted; a packed tensor is one field.
_COUNTED_BYTES = 1 << 16
_MAX_FIELDS = 1 << 16
# Wire types: https://protobuf.dev/programming-guides/encoding/
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}

# Field of a message with the elements of a dtype; the other dtypes are sent as bytes only.
_FIELDS = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


def parse[M](kind: type[M], data: bytes) -> M:
    """Return a message parsed from bytes.

    Raises:
      MalformedRequest: the bytes do not parse, or have more fields than a valid request needs.
    """
    if len(data) > _COUNTED_BYTES:
        _count_fields(kind.DESCRIPTOR, memoryview(data), _MAX_FIELDS)  # type: ignore[attr-defined]
    try:
        return kind.FromString(data)  # type: ignore[attr-defined, no-any-return]
    except DecodeError:
        raise MalformedRequest(f"message: expected a {kind.__name__}, got other bytes") from None


def _count_fields(kind: Descriptor, data: memoryview, remaining: int) -> int:
    """Return how many of the remaining fields a message and its submessages leave.

    A field of two bytes can become an object of hundreds, so a large message of such fields
    would use up all memory. A valid request has its data in a few large fields.

    Raises:
      MalformedRequest: there are more fields than that.
    """
    at = 0
    while at < len(data):
        remaining -= 1
        if remaining < 0:
            raise MalformedRequest(f"message: expected at most {_MAX_FIELDS} fields, got more")
        key, at = _varint(data, at)
        if key & 7 == _VARINT:
            _, at = _varint(data, at)
        elif key & 7 == _BYTES:
            size, at = _varint(data, at)
            field = kind.fields_by_number.get(key >> 3)
            if field is not None and field.message_type is not None:
                remaining = _count_fields(field.message_type, data[at : at + size], remaining)
            at += size
        elif key & 7 in _FIXED:
            at += _FIXED[key & 7]
        else:
            raise MalformedRequest(f"message: expected a {kind.name}, got other bytes")
    return remaining


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a varint and the offset behind it; an invalid one fails when protobuf parses the message."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:
            break
        shift += 7
    return value, at


def read(request: ModelInferRequest, model: Model, *, stream: bool = False) -> ParsedRequest[bytes]:
    """Parse a request; its response will be a ModelInferResponse.

    Args:
      request: the message.
      model: has the signature and the checker.
      stream: whether the response is wrapped in a ModelStreamInferResponse.

    Raises:
      NotFound: the request names another model.
      MalformedRequest: the message violates the protocol.
      SignatureMismatch: a tensor does not match the signature.
      Unsupported: the request uses an extension that is not served.
    """
    oip.check_names(model.manifest, request.model_name, request.model_version)
    inputs = _raw(request, model) if request.raw_input_contents else _typed(request, model)
    outputs = oip.requested(model.signature, _names(request))
    metadata = _parameter(request.parameters, "evidence", default=False)
    if type(metadata) is not bool:
        raise MalformedRequest("parameters: expected true or false for evidence")
    timeout = _parameter(request.parameters, "timeout", default=0)
    return ParsedRequest(
        raw_or_checked(inputs, model),
        functools.partial(_write, model, request.id, outputs, metadata, stream),
        oip.read_timeout(timeout),
    )


def _raw(request: ModelInferRequest, model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    contents = request.raw_input_contents
    if len(contents) != len(request.inputs):
        raise MalformedRequest(
            f"raw_input_contents: expected {len(request.inputs)} as there are inputs, "
            f"got {len(contents)}"
        )
    for tensor, data in zip(request.inputs, contents, strict=True):
        header = _header(tensor, model, found)
        if tensor.HasField("contents"):
            raise MalformedRequest(
                f"{header.where}: expected contents or raw_input_contents, got both"
            )
        found[header.name] = oip.from_raw(header, data)
    return found


def _typed(request: ModelInferRequest, model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tensor in request.inputs:
        header = _header(tensor, model, found)
        if isinstance(header, oip.RawHeader):
            found[header.name] = oip.from_values(header, tensor.contents.bytes_contents)
            continue
        dtype = header.spec.dtype
        if dtype not in _FIELDS:
            raise MalformedRequest(
                f"{header.where}: expected raw_input_contents for {tensor.datatype}, got none"
            )
        values = getattr(tensor.contents, _FIELDS[dtype])
        if len(values) != header.elements:
            raise SignatureMismatch(
                f"{header.where}: expected {header.elements} values in {_FIELDS[dtype]} for shape "
                f"{list(header.shape)}, got {len(values)}"
            )
        try:
            array = np.fromiter(values, numpy_dtype(dtype), len(values))
        except OverflowError:
            raise SignatureMismatch(
                f"{header.where}: expected {dtype}, got a value beyond it"
            ) from None
        found[header.spec.name] = array.reshape(header.shape)
    return found


def _header(
    tensor: ModelInferRequest.InferInputTensor, model: Model, found: Mapping[str, Any]
) -> oip.InputHeader | oip.RawHeader:
    header = oip.read_header(model, tensor.name, tensor.datatype, tuple(tensor.shape))
    if header.name in found:
        raise MalformedRequest(f"{header.where}: expected once, got it twice")
    if tensor.parameters:
        _refuse_shared_memory(tensor.parameters, header.where)
    return header


def _names(request: ModelInferRequest) -> list[str]:
    names = []
    for output in request.outputs:
        if output.parameters:
            _refuse_shared_memory(output.parameters, f"output {output.name[:100]!r}")
            if "classification" in output.parameters:
                raise Unsupported(
                    "outputs: the classification extension is not served; see the labels"
                )
        names.append(output.name)
    return names


def _refuse_shared_memory(parameters: Parameters, where: str) -> None:
    if "shared_memory_region" in parameters:
        raise Unsupported(f"{where}: shared memory is not served; send and take the bytes")


def _parameter(parameters: Parameters, name: str, *, default: Any) -> Any:
    # Indexing a map of messages adds an entry for a missing key.
    if name not in parameters:
        return default
    choice = parameters[name].WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameters[name], choice)


def _write(
    model: Model,
    identity: str,
    outputs: list[TensorSpec],
    metadata: bool,
    stream: bool,
    result: InferenceResult,
) -> bytes:
    """Return the serialized response; NaN and infinity are sent as they are."""
    message: ModelInferResponse | ModelStreamInferResponse
    if stream:
        message = ModelStreamInferResponse()
        response = message.infer_response
    else:
        message = response = ModelInferResponse()
    response.model_name = model.manifest.name
    response.model_version = model.manifest.version
    response.id = identity
    arrays = result.outputs
    for spec in outputs:
        array = arrays[spec.name]
        response.outputs.add(name=spec.name, datatype=oip.DATATYPES[spec.dtype], shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    if metadata:
        for name, value in metadata_of(model, result.metadata).items():
            if isinstance(value, str):
                response.parameters[name].string_param = value
            else:
                response.parameters[name].int64_param = value
    return message.SerializeToString()  # type: ignore[no-any-return]


def refusal(identity: str, text: str) -> bytes:
    """Return the serialized error response to one request of a stream."""
    response = ModelStreamInferResponse(error_message=text)
    response.infer_response.id = identity
    return response.SerializeToString()  # type: ignore[no-any-return]
