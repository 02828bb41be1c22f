"""Vertex AI's protocol: `instances` in, `predictions` out.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#prediction
A rawPredict request arrives at the same route with any body: the Open Inference Protocol's, in JSON
or binary, is read as well.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.errors import InvalidInput, MalformedRequest, NonFiniteOutput
from runtime.model import Model
from runtime.preprocessing.preparation import RawRows
from runtime.records.each_row import EachRow, read_each, read_instances
from runtime.records.instances import read_rows
from runtime.records.predictions import Nonfinite, predictions_from
from runtime.records.raw_values import FORMS, RawValue
from runtime.records.tensors import brief, kind_of
from runtime.tensors import Array
from server.batching.pending_request import InferenceResult, ResultSlice
from server.errors import TooLarge
from server.protocols import oip_http
from server.protocols.inference import ParsedRequest
from server.protocols.response import Response, json_response
from server.protocols.strict_json import parse_object
from server.status import status_of


def read(
    body: bytes, json_length: int | None, model: Model, *, max_rows: int
) -> ParsedRequest[Response]:
    """Parse a prediction request.

    Args:
      body: the complete body, decompressed.
      json_length: see `BodyInfo`.
      model: has the signature and the checker.
      max_rows: limit of rows in a request.

    Raises:
      MalformedRequest: not `{"instances": [...], "parameters": {...}}`, nor the Open
        Inference Protocol's.
      SignatureMismatch: an instance does not fit the signature.
      TooLarge: more instances than max_rows.
    """
    if json_length is not None:
        return oip_http.read(body, json_length, model)
    value = parse_object(body)
    if "inputs" in value and "instances" not in value:
        return oip_http.read_object(value, b"", model)
    if "instances" not in value:
        raise MalformedRequest('body: expected {"instances": [...]}, got no instances')
    unknown = next((key for key in value if key not in ("instances", "parameters")), None)
    if unknown is not None:
        raise MalformedRequest(f"body: expected instances and parameters, got {unknown[:100]!r}")
    instances, given = value["instances"], value.get("parameters")
    if given is None:  # as in most requests, each of which costs what is called for it
        return parse_instances(body, instances, model, max_rows)
    parameters = _parameters(given)
    timeout_s, top_k = _timeout(parameters), _top_k(parameters, model)
    each = _row_errors(parameters)
    return parse_instances(body, instances, model, max_rows, timeout_s, top_k, row_errors=each)


def parse_instances(
    body: bytes,
    instances: Any,
    model: Model,
    max_rows: int,
    timeout_s: float | None = None,
    top_k: int | None = None,
    *,
    row_errors: bool = False,
) -> ParsedRequest[Response]:
    """Parse `instances`; the response will have `predictions`.

    Args:
      body: the JSON that contains them.
      instances: the parsed value.
      model: has the signature and the checker.
      max_rows: limit of rows in a request.
      timeout_s: the client's own time limit.
      top_k: see `predictions_from`.
      row_errors: whether an instance that does not fit fails by itself.

    Raises:
      MalformedRequest: the value is no array.
      SignatureMismatch: an instance does not fit the signature.
      TooLarge: more instances than max_rows.
    """
    if not isinstance(instances, list):
        raise MalformedRequest(f"instances: expected an array, got {kind_of(instances)}")
    if len(instances) > max_rows:
        raise TooLarge(f"instances: expected at most {max_rows}, got {len(instances)}")
    if model.manifest.passthrough:
        instances = _without(model.manifest.passthrough, instances)
    if row_errors:
        rows = read_each(instances, model)
        serialize = functools.partial(write_each, model, rows, top_k=top_k)
        return ParsedRequest(rows.parts, serialize, timeout_s, len(rows.errors))
    # A search for one letter is the fastest, and most bodies contain neither.
    booleans = (b"u" in body and b"true" in body) or (b"f" in body and b"false" in body)
    read = read_rows if model.preparer is None else read_instances
    parts = read(instances, model, booleans=booleans)
    return ParsedRequest(parts, functools.partial(write, model, top_k=top_k), timeout_s)


def _parameters(parameters: Any) -> Mapping[str, Any]:
    """Return a request's parameters; those without a meaning here are ignored.

    Vertex AI passes on all parameters of a client; some are meant for other servers.
    """
    if not isinstance(parameters, Mapping):
        raise MalformedRequest(f"parameters: expected an object, got {kind_of(parameters)}")
    return parameters


def _top_k(parameters: Mapping[str, Any], model: Model) -> int | None:
    """Return `top_k` of the parameters, which means something to a classification alone."""
    found = parameters.get("top_k")
    if found is None or model.manifest.output_format.kind != "classification":
        return None
    if type(found) is not int or found < 1:
        raise MalformedRequest(f"parameters: expected top_k of 1 or more, got {brief(found)}")
    return found


def _row_errors(parameters: Mapping[str, Any]) -> bool:
    """Return `row_errors` of the parameters: whether a row that does not fit fails by itself."""
    found = parameters.get("row_errors", False)
    if type(found) is not bool:
        raise MalformedRequest(f"parameters: expected row_errors true or false, got {brief(found)}")
    return found


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Return `timeout_ms` of the parameters, in seconds."""
    found = parameters.get("timeout_ms")
    if found is None:
        return None
    if type(found) not in (int, float) or found < 0:
        raise MalformedRequest(
            "parameters: expected timeout_ms in milliseconds, got something else"
        )
    return float(found) / 1e3


def _without(fields: Sequence[str], instances: list[Any]) -> list[Any]:
    """Return instances without fields that the bundle declares to be no inputs, such as `key`."""
    return [
        {name: value for name, value in instance.items() if name not in fields}
        if type(instance) is dict
        else instance
        for instance in instances
    ]


def read_one(body: bytes, model: Model) -> ParsedRequest[Response]:
    """Parse a body that is one text or image; the response will have `predictions` of one row.

    Args:
      body: the complete body, decompressed.
      model: takes one raw input, and nothing else.

    Raises:
      SignatureMismatch: a text is no UTF-8.
    """
    [name] = model.preparer.expected_names if model.preparer else ()
    value = _form_of(name, model)(body, "body")
    raw = RawRows({name: [value]}, 1, lambda name, _: f"body: input {name!r}")
    return ParsedRequest(raw, functools.partial(write, model))


def read_form(columns: Mapping[str, Sequence[bytes]], model: Model) -> ParsedRequest[Response]:
    """Parse the parts of a form, a row for each of an input's; the response will have `predictions`.

    Args:
      columns: raw input to what its parts have.
      model: takes these.

    Raises:
      SignatureMismatch: a text is no UTF-8.
    """
    inputs = {
        name: [
            _form_of(name, model)(value, f"body: input {name!r}[{i}]")
            for i, value in enumerate(values)
        ]
        for name, values in columns.items()
    }
    rows = max(map(len, inputs.values()))
    if not rows:
        raise MalformedRequest("body: expected a part for each row, got none")
    raw = RawRows(inputs, rows, lambda name, row: f"body: input {name!r}[{row}]")
    return ParsedRequest(raw, functools.partial(write, model))


def _form_of(name: str, model: Model) -> Callable[[bytes, str], RawValue]:
    """Return what reads the bytes of a raw input."""
    return FORMS[model.preparer.kinds[name] if model.preparer else ""].from_bytes


def write(model: Model, result: InferenceResult, *, top_k: int | None = None) -> Response:
    """Return the response for the results of a request."""
    if len(result.parts) == 1:
        return json_response(
            {"predictions": _predictions(model, result.parts[0], result.nonfinite, top_k)}
        )
    parts = [_predictions(model, part, result.nonfinite, top_k) for part in result.parts]
    return json_response({"predictions": result.in_order(parts)})


def write_each(
    model: Model, read: EachRow, result: InferenceResult, *, top_k: int | None = None
) -> Response:
    """Return the response for rows that fail by themselves; an error stands at its row's place.

    Args:
      model: that ran.
      read: the rows that ran, and the errors of the others.
      result: of the rows that were read.
      top_k: see `predictions_from`.
    """
    parts = [_each_prediction(model, part, result.nonfinite, top_k) for part in result.parts]
    found = result.in_order(parts)
    for row, error in result.errors.items():
        found[row] = row_error(error)
    predictions = {i: row_error(error) for i, error in read.errors.items()}
    predictions |= zip(read.good, found, strict=True)
    return json_response({"predictions": [predictions[i] for i in range(len(predictions))]})


def _each_prediction(
    model: Model, part: ResultSlice, nonfinite: Nonfinite | None, top_k: int | None
) -> Any:
    """Return the predictions of some rows; one that JSON cannot write becomes an error."""
    try:
        return _predictions(model, part, nonfinite, top_k)
    except NonFiniteOutput:
        rows: list[Any] = []
    for i in range(part.rows):
        outputs = {name: array[i : i + 1] for name, array in part.outputs.items()}
        try:
            rows.extend(_predictions(model, ResultSlice(outputs, None, 0, 1), nonfinite, top_k))
        except NonFiniteOutput as error:
            rows.append(row_error(error))
    return rows


def row_error(error: InvalidInput | NonFiniteOutput) -> dict[str, dict[str, str]]:
    """Return what stands in the place of a row's prediction."""
    return {"error": {"code": status_of(error).error_code, "message": str(error)}}


def _predictions(
    model: Model, part: ResultSlice, nonfinite: Nonfinite | None, top_k: int | None
) -> Any:
    """Return the predictions of some rows; those of a whole batch are formatted once."""

    def make(outputs: dict[str, Array]) -> Any:
        form = model.manifest.output_format
        return predictions_from(outputs, model.signature, form, nonfinite, top_k=top_k)

    if part.batch is None or nonfinite is not None or top_k is not None:
        return make(part.outputs)
    return part.batch.memoize(make)[part.start : part.start + part.rows]
