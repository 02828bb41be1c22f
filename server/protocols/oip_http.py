"""The Open Inference Protocol v2 over HTTP: JSON, or JSON with binary tensors behind it.

The binary form is
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.errors import MalformedRequest
from runtime.model import Model
from runtime.records.predictions import writable
from runtime.records.tensors import brief, kind_of
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array
from server.batching.pending_request import InferenceResult
from server.errors import Unsupported
from server.protocols import oip
from server.protocols.inference import ParsedRequest, evidence_of
from server.protocols.request import Request
from server.protocols.response import Headers, Response, json_response, to_json
from server.protocols.strict_json import parse_object


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What the client wants back.

    Attributes:
      id: its name for the request, given back.
      outputs: each with whether it is to be binary.
      evidence: whether to say how the answer came about.
    """

    id: str | None
    outputs: tuple[tuple[TensorSpec, bool], ...]
    evidence: bool


def read(request: Request, model: Model) -> ParsedRequest[Response]:
    """Read a request.

    Raises:
      MalformedRequest: the body is not what the protocol says.
      SignatureMismatch: a tensor does not fit the signature.
    """
    if request.json_bytes is None:
        return read_object(parse_object(request.body), b"", model)
    if request.json_bytes == 0:
        inputs = oip.from_body(model.signature, request.body)
        wanted = Wanted(None, tuple((spec, True) for spec in model.signature.outputs), False)
        return ParsedRequest(
            [model.checker.check(inputs)], lambda answer: write(model, wanted, answer)
        )
    if request.json_bytes > len(request.body):
        raise MalformedRequest(
            f"inference-header-content-length: expected at most {len(request.body)} as the body "
            f"has, got {request.json_bytes}"
        )
    value = parse_object(request.body[: request.json_bytes])
    return read_object(value, memoryview(request.body)[request.json_bytes :], model)


def read_object(
    value: Mapping[str, Any], binary: bytes | memoryview, model: Model
) -> ParsedRequest[Response]:
    """Read a request whose JSON is parsed, and the binary tensors behind it."""
    _expect_keys(value, ("id", "parameters", "inputs", "outputs"), "body")
    identity = value.get("id")
    if not isinstance(identity, str | None):
        raise MalformedRequest(f"id: expected a string, got {kind_of(identity)}")
    parameters = _parameters(value, "parameters")
    inputs = _inputs(value, binary, model.signature)
    outputs = _outputs(value, model.signature, _flag(parameters, "binary_data_output"))
    wanted = Wanted(identity, outputs, _flag(parameters, "evidence"))
    return ParsedRequest(
        [model.checker.check(inputs)],
        lambda answer: write(model, wanted, answer),
        oip.read_timeout(parameters.get("timeout", 0)),
    )


def _inputs(
    value: Mapping[str, Any], binary: bytes | memoryview, signature: Signature
) -> dict[str, Array]:
    found: dict[str, Array] = {}
    start = 0
    for i, entry in enumerate(_list(value.get("inputs"), "inputs")):
        tensor = _object(entry, f"inputs[{i}]")
        keys = ("name", "shape", "datatype", "parameters", "data")
        _expect_keys(tensor, keys, f"inputs[{i}]")
        head = oip.read_head(
            signature, tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        )
        if head.spec.name in found:
            raise MalformedRequest(f"{head.where}: expected once, got it twice")
        parameters = _parameters(tensor, f"{head.where}: parameters")
        if "binary_data_size" in parameters:
            size = _size(parameters["binary_data_size"], head, "data" in tensor)
            found[head.spec.name] = oip.from_raw(head, binary[start : start + size])
            start += size
        elif "data" in tensor:
            found[head.spec.name] = oip.from_values(head, tensor["data"])
        else:
            raise MalformedRequest(f"{head.where}: expected data or binary_data_size, got neither")
    if start != len(binary):
        raise MalformedRequest(
            f"body: expected {start} bytes of binary tensors behind the JSON, got {len(binary)}"
        )
    return found


def _size(value: object, head: oip.RequestFields, has_data: bool) -> int:
    if type(value) is not int or value < 0:
        raise MalformedRequest(
            f"{head.where}: expected binary_data_size of 0 or more, got {brief(value)}"
        )
    if has_data:
        raise MalformedRequest(f"{head.where}: expected data or binary_data_size, got both")
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


def write(model: Model, wanted: Wanted, answer: InferenceResult) -> Response:
    """Write an answer: JSON, and behind it the outputs that are to be binary."""
    binary: list[bytes] = []
    outputs = []
    for spec, as_bytes in wanted.outputs:
        array = answer.outputs[spec.name]
        entry: dict[str, Any] = {
            "name": spec.name,
            "datatype": oip.DATATYPES[spec.dtype],
            "shape": list(array.shape),
        }
        if as_bytes:
            binary.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = writable(array, spec, answer.nonfinite).reshape(-1)
        outputs.append(entry)
    message: dict[str, Any] = {
        "model_name": model.manifest.name,
        "model_version": model.manifest.version,
    }
    if wanted.id is not None:
        message["id"] = wanted.id
    if wanted.evidence:
        message["parameters"] = evidence_of(model, answer.evidence)
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
    """Give an object's parameters; clients that have none leave them out, or write null."""
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
