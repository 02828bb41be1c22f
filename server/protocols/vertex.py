"""Vertex AI's dialect: `instances` in, `predictions` out.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#prediction
A rawPredict request comes on the same route, with whatever body the client made: the Open
Inference Protocol's, in JSON or binary, is read there as well.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from runtime.errors import MalformedRequest
from runtime.model import Model
from runtime.records.instances import read_rows
from runtime.records.predictions import Nonfinite, predictions_from
from runtime.records.tensors import kind_of
from runtime.tensors import Array
from server.batching.pending_request import InferenceResult, ResultSlice
from server.errors import TooLarge
from server.protocols import oip_http
from server.protocols.inference import ParsedRequest
from server.protocols.request import Request
from server.protocols.response import Response, json_response
from server.protocols.strict_json import parse_object


def read(request: Request, model: Model, *, most_rows: int) -> ParsedRequest[Response]:
    """Read a prediction request.

    Args:
      request: what came.
      model: what it is for.
      most_rows: that a request may have.

    Raises:
      MalformedRequest: not `{"instances": [...], "parameters": {...}}`, nor the Open
        Inference Protocol's.
      SignatureMismatch: an instance does not fit the signature.
      TooLarge: more instances than that.
    """
    if request.json_bytes is not None:
        return oip_http.read(request, model)
    value = parse_object(request.body)
    if "inputs" in value and "instances" not in value:
        return oip_http.read_object(value, b"", model)
    if "instances" not in value:
        raise MalformedRequest('body: expected {"instances": [...]}, got no instances')
    unknown = next((key for key in value if key not in ("instances", "parameters")), None)
    if unknown is not None:
        raise MalformedRequest(f"body: expected instances and parameters, got {unknown[:100]!r}")
    timeout_s = _timeout(value["parameters"]) if "parameters" in value else None
    return read_instances(request.body, value["instances"], model, most_rows, timeout_s)


def read_instances(
    body: bytes, instances: Any, model: Model, most_rows: int, timeout_s: float | None = None
) -> ParsedRequest[Response]:
    """Read `instances`, to be answered by `predictions`.

    Args:
      body: JSON that holds them.
      instances: as they are in it.
      model: what they are for.
      most_rows: refused, before they are read, are more.
      timeout_s: the caller's own time limit.
    """
    if not isinstance(instances, list):
        raise MalformedRequest(f"instances: expected an array, got {kind_of(instances)}")
    if len(instances) > most_rows:
        raise TooLarge(f"instances: expected at most {most_rows}, got {len(instances)}")
    # To look for one letter first is quickest by far, and most bodies lack both.
    booleans = (b"u" in body and b"true" in body) or (b"f" in body and b"false" in body)
    parts = read_rows(instances, model, booleans=booleans)
    return ParsedRequest(parts, functools.partial(write, model), timeout_s)


def _timeout(parameters: Any) -> float | None:
    """Read `{"timeout_ms": …}`, the only parameter that means something here.

    Vertex AI hands over whatever a caller has put in; the others are for somebody else.
    """
    if parameters is None:
        return None
    if not isinstance(parameters, Mapping):
        raise MalformedRequest(f"parameters: expected an object, got {kind_of(parameters)}")
    found = parameters.get("timeout_ms")
    if found is None:
        return None
    if type(found) not in (int, float) or found < 0:
        raise MalformedRequest(
            "parameters: expected timeout_ms in milliseconds, got something else"
        )
    return float(found) / 1e3


def write(model: Model, answer: InferenceResult) -> Response:
    """Write an answer."""
    if len(answer.parts) == 1:
        return json_response(
            {"predictions": _predictions(model, answer.parts[0], answer.nonfinite)}
        )
    parts = (_predictions(model, part, answer.nonfinite) for part in answer.parts)
    return json_response({"predictions": list(itertools.chain.from_iterable(parts))})


def _predictions(model: Model, part: ResultSlice, nonfinite: Nonfinite | None) -> Any:
    """Give the predictions of some rows; whoever shares their batch may have made them already."""

    def make(outputs: dict[str, Array]) -> Any:
        form = model.manifest.output_format
        return predictions_from(outputs, model.signature, form, nonfinite)

    if part.batch is None or nonfinite is not None:
        return make(part.outputs)
    return part.batch.memoize(make)[part.start : part.start + part.rows]
