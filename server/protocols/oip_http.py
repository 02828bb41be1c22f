"""The Open Inference Protocol v2 over HTTP: JSON, or JSON followed by binary tensors.

The binary format is
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.errors import MalformedRequest
from runtime.model import Model
from runtime.records.predictions import writable
from runtime.records.raw_rows import raw_or_checked
from runtime.records.tensors import brief, kind_of
from runtime.signature import Signature, TensorSpec
from server.batching.pending_request import InferenceResult
from server.errors import Unsupported
from server.protocols import oip
from server.protocols.inference import ParsedRequest, metadata_of
from server.protocols.response import Headers, Response, json_response, to_json
from server.protocols.strict_json import parse_object


@dataclasses.dataclass(frozen=True, slots=True)
class RequestedResponse:
    """What the response to a request contains.

    Attributes:
      id: the client's id for the request.
      outputs: each with whether it is binary.
      metadata: whether the inference's metadata is included.
    """

    id: str | None
    outputs: tuple[tuple[TensorSpec, bool], ...]
    metadata: bool


def read(body: bytes, json_length: int | None, model: Model) -> ParsedRequest[Response]:
    """Parse a request.

    Args:
      body: the complete body, decompressed.
      json_length: see `BodyInfo`; 0 means that the body is one binary tensor.
      model: has the signature and the checker.

    Raises:
      MalformedRequest: the body is not what the protocol says.
      SignatureMismatch: a tensor does not fit the signature.
    """
    if json_length is None:
        return read_object(parse_object(body), b"", model)
    if json_length == 0:
        inputs = oip.from_body(model.signature, body)
        requested = RequestedResponse(
            None, tuple((spec, True) for spec in model.signature.outputs), False
        )
        return ParsedRequest(
            [model.checker.check(inputs)], lambda result: write(model, requested, result)
        )
    if json_length > len(body):
        raise MalformedRequest(
            f"inference-header-content-length: expected at most {len(body)} as the body "
            f"has, got {json_length}"
        )
    value = parse_object(body[:json_length])
    return read_object(value, memoryview(body)[json_length:], model)


def read_object(
    value: Mapping[str, Any], binary: bytes | memoryview, model: Model
) -> ParsedRequest[Response]:
    """Parse a request from its JSON object and the binary tensors that follow it."""
    _expect_keys(value, ("id", "parameters", "inputs", "outputs"), "body")
    identity = value.get("id")
    if not isinstance(identity, str | None):
        raise MalformedRequest(f"id: expected a string, got {kind_of(identity)}")
    parameters = _parameters(value, "parameters")
    inputs = _inputs(value, binary, model)
    outputs = _outputs(value, model.signature, _flag(parameters, "binary_data_output"))
    requested = RequestedResponse(identity, outputs, _flag(parameters, "evidence"))
    return ParsedRequest(
        raw_or_checked(inputs, model),
        lambda result: write(model, requested, result),
        oip.read_timeout(parameters.get("timeout", 0)),
    )


def _inputs(value: Mapping[str, Any], binary: bytes | memoryview, model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    start = 0
    for i, entry in enumerate(_list(value.get("inputs"), "inputs")):
        tensor = _object(entry, f"inputs[{i}]")
        keys = ("name", "shape", "datatype", "parameters", "data")
        _expect_keys(tensor, keys, f"inputs[{i}]")
        header = oip.read_header(
            model, tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        )
        if header.name in found:
            raise MalformedRequest(f"{header.where}: expected once, got it twice")
        parameters = _parameters(tensor, f"{header.where}: parameters")
        if "binary_data_size" in parameters:
            size = _size(parameters["binary_data_size"], header, "data" in tensor)
            found[header.name] = oip.from_raw(header, binary[start : start + size])
            start += size
        elif "data" in tensor:
            found[header.name] = oip.from_values(header, tensor["data"])
        else:
            raise MalformedRequest(
                f"{header.where}: expected data or binary_data_size, got neither"
            )
    if start != len(binary):
        raise MalformedRequest(
            f"body: expected {start} bytes of binary tensors behind the JSON, got {len(binary)}"
        )
    return found


def _size(value: object, header: oip.InputHeader | oip.RawHeader, has_data: bool) -> int:
    if type(value) is not int or value < 0:
        raise MalformedRequest(
            f"{header.where}: expected binary_data_size of 0 or more, got {brief(value)}"
        )
    if has_data:
        raise MalformedRequest(f"{header.where}: expected data or binary_data_size, got both")
    return value


def _outputs(
    value: Mapping[str, Any], signature: Signature, binary: bool
) -> tuple[tuple[TensorSpec, bool], ...]:
    entries = value.get("outputs")
    if entries is None:
        return tuple((spec, binary) for spec in signature.outputs)
    flags = []
    names = []
    for i, entry in enumerate(_list(entries, "outputs")):
        output = _object(entry, f"outputs[{i}]")
        _expect_keys(output, ("name", "parameters"), f"outputs[{i}]")
        parameters = _parameters(output, f"outputs[{i}]: parameters")
        if parameters.get("classification"):
            raise Unsupported("outputs: the classification extension is not served; see the labels")
        flags.append(_flag(parameters, "binary_data", default=binary))
        names.append(output.get("name"))
    specs = oip.requested(signature, names)
    return tuple(zip(specs, flags or [binary] * len(specs), strict=True))


def write(model: Model, requested: RequestedResponse, result: InferenceResult) -> Response:
    """Return the response for the results of a request: JSON, then the binary outputs."""
    binary: list[bytes] = []
    outputs = []
    arrays = result.outputs
    for spec, as_bytes in requested.outputs:
        array = arrays[spec.name]
        entry: dict[str, Any] = {
            "name": spec.name,
            "datatype": oip.DATATYPES[spec.dtype],
            "shape": list(array.shape),
        }
        if as_bytes:
            binary.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = writable(array, spec, result.nonfinite).reshape(-1)
        outputs.append(entry)
    message: dict[str, Any] = {
        "model_name": model.manifest.name,
        "model_version": model.manifest.version,
    }
    if requested.id is not None:
        message["id"] = requested.id
    if requested.metadata:
        message["parameters"] = metadata_of(model, result.metadata)
    message["outputs"] = outputs
    if not binary:
        return json_response(message)
    head = to_json(message)
    headers: Headers = (
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", str(len(head))),
    )
    return Response(200, headers, b"".join([head, *binary]))


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if type(found) is not bool:
        raise MalformedRequest(f"parameters: expected true or false for {name}")
    return found


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedRequest(f"{where}: expected an object, got {kind_of(value)}")
    return value


def _parameters(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return an object's parameters; none may be left out or null."""
    found = value.get("parameters")
    parameters = {} if found is None else _object(found, where)
    if "shared_memory_region" in parameters:
        raise Unsupported(f"{where}: shared memory is not served; send and ask for the bytes")
    return parameters


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        got = "none" if value is None else kind_of(value)
        raise MalformedRequest(f"{where}: expected an array, got {got}")
    return value


def _expect_keys(value: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise MalformedRequest(f"{where}: expected {', '.join(known)}, got {unknown[:100]!r}")
