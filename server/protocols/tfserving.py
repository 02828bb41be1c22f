"""TensorFlow Serving's REST protocol, and with it KServe's v1.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md
https://kserve.github.io/website/latest/modelserving/data_plane/v1_protocol/
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.manifest import Manifest
from runtime.model import Model
from runtime.preprocessing.preparation import RawRows
from runtime.records.predictions import writable
from runtime.records.raw_rows import raw_or_checked, read_raw_column
from runtime.records.tensors import brief, convert, kind_of, refuse
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype
from server.batching.pending_request import InferenceResult
from server.batching.service_state import State
from server.errors import TooLarge, UnsupportedMedia
from server.protocols import oip, vertex
from server.protocols.inference import ParsedRequest
from server.protocols.response import Response, json_response
from server.protocols.strict_json import parse_object

SIGNATURE_NAME = "serving_default"
# tensorflow/core/framework/types.proto
_DTYPES = {
    "bool": "DT_BOOL",
    "int8": "DT_INT8",
    "int16": "DT_INT16",
    "int32": "DT_INT32",
    "int64": "DT_INT64",
    "uint8": "DT_UINT8",
    "uint16": "DT_UINT16",
    "uint32": "DT_UINT32",
    "uint64": "DT_UINT64",
    "float16": "DT_HALF",
    "bfloat16": "DT_BFLOAT16",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "float8_e4m3fn": "DT_FLOAT8_E4M3FN",
    "float8_e5m2": "DT_FLOAT8_E5M2",
}
# tensorflow_serving/apis/get_model_status.proto
_STATES = {
    State.LOADING: "LOADING",
    State.READY: "AVAILABLE",
    State.DRAINING: "UNLOADING",
    State.STOPPING: "UNLOADING",
    State.FAILED: "END",
}


def read(
    body: bytes, json_length: int | None, model: Model, *, max_rows: int
) -> ParsedRequest[Response]:
    """Parse a predict request, in row or in columnar format.

    Args:
      body: the complete body, decompressed.
      json_length: see `BodyInfo`; binary tensors are refused.
      model: has the signature and the checker.
      max_rows: limit of rows in a request.

    Raises:
      MalformedRequest: neither `instances` nor `inputs`, or both.
      SignatureMismatch: a tensor does not fit the signature.
    """
    if json_length is not None:
        raise UnsupportedMedia("content-type: expected application/json, got binary tensors")
    value = parse_object(body)
    unknown = next((key for key in value if key not in _KEYS), None)
    if unknown is not None:
        raise MalformedRequest(f"body: expected {', '.join(_KEYS)}, got {unknown[:100]!r}")
    name = value.get("signature_name", SIGNATURE_NAME)
    if name not in ("", SIGNATURE_NAME):
        raise MalformedRequest(f"signature_name: expected {SIGNATURE_NAME!r}, got {brief(name)}")
    if ("instances" in value) == ("inputs" in value):
        got = "both" if "inputs" in value else "neither"
        raise MalformedRequest(f"body: expected instances or inputs, got {got}")
    if "instances" in value:
        return vertex.parse_instances(body, value["instances"], model, max_rows)
    parts = raw_or_checked(_columns(value["inputs"], model), model)
    if isinstance(parts, RawRows) and parts.rows > max_rows:
        raise TooLarge(f"inputs: expected at most {max_rows} rows, got {parts.rows}")
    return ParsedRequest(parts, functools.partial(_write_columns, model.signature))


_KEYS = ("signature_name", "instances", "inputs")


def _columns(inputs: Any, model: Model) -> dict[str, Any]:
    """Return tensors, and lists of raw values, by input name; a model's only input needs no name."""
    preparer = model.preparer
    raw = preparer.raw_names if preparer else ()
    specs = {spec.name: spec for spec in model.signature.inputs}
    required = [spec.name for spec in specs.values() if not spec.mask]
    if preparer and _is_raw(inputs):
        if len(preparer.expected_names) > 1:
            raise MalformedRequest(f"inputs: expected an object, got {kind_of(inputs)}")
        inputs = {raw[0]: inputs}
    if not isinstance(inputs, dict):
        if len(required) > 1:
            raise MalformedRequest(f"inputs: expected an object, got {kind_of(inputs)}")
        inputs = {required[0]: inputs}
    unknown = next((name for name in inputs if name not in specs and name not in raw), None)
    if unknown is not None:
        expected = ", ".join(map(repr, dict.fromkeys([*raw, *specs])))
        raise SignatureMismatch(f"inputs: expected {expected}, got {unknown[:100]!r}")
    smallest = {axis.name: axis.sizes[0] for axis in model.signature.axes}
    return {
        name: read_raw_column(name, values, preparer.kinds[name])
        if preparer and preparer.is_raw_json(name, _first(values))
        else _tensor(specs[name], values, smallest)
        for name, values in inputs.items()
    }


def _is_raw(inputs: Any) -> bool:
    """Whether a column without a name is of raw values: its type in JSON says so."""
    return isinstance(inputs, list) and isinstance(_first(inputs), str | dict)


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else values


def _tensor(spec: TensorSpec, values: Any, smallest: Mapping[str, int]) -> Array:
    if values == []:  # no rows: nested lists cannot express the shape
        return np.empty(spec.concrete(0, smallest), numpy_dtype(spec.dtype))
    array = convert(spec.dtype, values)
    if array is None:
        raise refuse(spec.dtype, values, f"input {spec.name!r}")
    return array


def _write_columns(signature: Signature, result: InferenceResult) -> Response:
    outputs = {
        spec.name: writable(result.outputs[spec.name], spec, result.nonfinite)
        for spec in signature.outputs
    }
    only = next(iter(outputs.values())) if len(outputs) == 1 else outputs
    return json_response({"outputs": only})


def status(manifest: Manifest, state: State) -> dict[str, Any]:
    """Return the model's state in TensorFlow Serving's form, with KServe's `ready`."""
    version = {
        "version": manifest.version,
        "state": _STATES[state],
        "status": {"error_code": "OK", "error_message": ""},
    }
    ready = state is State.READY
    return {"name": manifest.name, "ready": ready, "model_version_status": [version]}


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the signature in TensorFlow Serving's form."""
    signature = {
        "inputs": {**_raw_info(manifest), **{s.name: _info(s) for s in oip.given(manifest)}},
        "outputs": {spec.name: _info(spec) for spec in manifest.signature.outputs},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    return {
        "model_spec": {
            "name": manifest.name,
            "signature_name": "",
            "version": manifest.version,
        },
        "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: signature}}},
    }


def _raw_info(manifest: Manifest) -> dict[str, Any]:
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    names = [name for stage in manifest.preprocess for name in stage.raw_names]
    return {n: {"dtype": "DT_STRING", "tensor_shape": shape, "name": n} for n in names}


def _info(spec: TensorSpec) -> dict[str, Any]:
    sizes = (dim if isinstance(dim, int) else -1 for dim in spec.shape)
    dims = [{"size": str(size), "name": ""} for size in sizes]
    return {
        "dtype": _DTYPES[spec.dtype],
        "tensor_shape": {"dim": dims, "unknown_rank": False},
        "name": spec.name,
    }
