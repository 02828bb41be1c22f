"""HTTP responses: JSON bodies and errors."""

import json
import re

import numpy as np
from pytest import mark, param, raises

from runtime.errors import ExecutionError
from runtime.records.predictions import writable
from runtime.signature import TensorSpec
from runtime.tensors import numpy_dtype
from server.protocols.response import error_response, exception_response, json_response, to_json
from server.status import _TABLE


@mark.parametrize(
    ("value", "text"),
    [
        param(np.float32([0.1, 1e-45, -0.0]), "[0.1,1e-45,-0.0]", id="float32"),
        param(np.float32([[0.1, 2], [0.3, 4]])[:, :1], "[[0.1],[0.3]]", id="not-contiguous"),
        param({"a": np.float32(0.1), "b": np.bool_(True)}, '{"a":0.1,"b":true}', id="scalars"),
        param(np.uint64([2**64 - 1]), "[18446744073709551615]", id="uint64"),
        param(np.int64([-(2**63)]), "[-9223372036854775808]", id="int64"),
        param(np.array([True, False]), "[true,false]", id="bool"),
        param(np.float32([np.nan, np.inf, 1]), "[null,null,1.0]", id="non-finite"),
        param(np.empty((0, 2), np.float32), "[]", id="no-rows"),
        param(np.empty((2, 0), np.float32), "[[],[]]", id="empty-rows"),
        param(np.array(["NaN", 1.5], object), '["NaN",1.5]', id="objects"),
    ],
)
def test_arrays_are_json(value, text):
    """Arrays and scalars of NumPy are written with the shortest digits that read back."""
    assert to_json(value).decode() == text


def test_what_is_no_json_is_a_programming_error():
    """A value that cannot be written in JSON is refused, never converted silently."""
    with raises(TypeError):
        to_json({"a": object()})


@mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16"])
@mark.parametrize("policy", ["null", "string"])
def test_narrow_floats_are_written_as_their_exact_value(dtype, policy):
    """Floats that JSON writers do not know are written as float32 of the same value."""
    array = np.array([1.5, np.nan, -2], numpy_dtype(dtype))
    spec = TensorSpec(name="y", dtype=dtype, shape=("_",))
    nan = "NaN" if policy == "string" else None

    assert json.loads(to_json(writable(array, spec, policy))) == [1.5, nan, -2.0]


@mark.parametrize("error", _TABLE)
def test_a_public_error_is_returned_with_its_code(error):
    """The body has message, code and request id; 503 has Retry-After, 405 has Allow."""
    response = exception_response(error("m"), "mine")
    status = _TABLE[error]

    assert (response.status, response.error_code) == (status.http, status.error_code)
    assert json.loads(response.body) == {
        "error": "m",
        "code": status.error_code,
        "request_id": "mine",
    }
    headers = dict(response.headers)
    assert headers.pop("content-type") == "application/json"
    assert set(headers) == {503: {"retry-after"}, 405: {"allow"}}.get(status.http, set())


@mark.parametrize("error", [ExecutionError("secret"), ValueError("secret"), KeyError("secret")])
def test_an_internal_error_stands_in_the_log_alone(error, caplog):
    """For an internal error a client gets the request id only."""
    made = exception_response(error)

    body = json.loads(made.body)
    assert made.status == 500
    assert b"secret" not in made.body
    assert re.fullmatch(r"[0-9a-f]{32}", body["request_id"])
    assert body["request_id"] in caplog.text
    assert "secret" in caplog.text


def test_ids_are_made_where_there_is_none():
    """Two error responses to requests without an id have different ids."""
    first, second = (json.loads(error_response(404, "not_found", "x").body) for _ in range(2))

    assert first["request_id"] != second["request_id"]


def test_headers_stand_beside_the_type():
    """A json_response carries the headers that it is given."""
    made = json_response([1], 202, (("x-a", "b"),))

    assert (made.status, made.body, made.error_code) == (202, b"[1]", None)
    assert made.headers == (("content-type", "application/json"), ("x-a", "b"))
