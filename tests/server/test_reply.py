"""What goes back: JSON, and errors that all look the same."""

import json
import re

import numpy as np
from pytest import mark, param, raises

from runtime.errors import ExecutionError, SignatureMismatch
from runtime.signature import TensorSpec
from runtime.tensors import numpy_dtype
from server.errors import (
    DeadlineExceeded,
    Draining,
    MalformedRequest,
    NonFiniteOutput,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    TooLarge,
    Unsupported,
    UnsupportedMedia,
)
from server.predictions import writable
from server.reply import failure, refusal, reply, to_json


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
    """Nothing is written as something else in silence."""
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


@mark.parametrize(
    ("error", "status", "slug"),
    [
        (MalformedRequest("m"), 400, "invalid_argument"),
        (SignatureMismatch("m"), 400, "invalid_argument"),
        (NotFound("m"), 404, "not_found"),
        (TooLarge("m"), 413, "too_large"),
        (UnsupportedMedia("m"), 415, "unsupported_media"),
        (Unsupported("m"), 501, "unsupported"),
        (Overloaded("m"), 503, "queue_full"),
        (Draining("m"), 503, "draining"),
        (NotReady("m"), 503, "not_ready"),
        (OutOfMemory("m"), 503, "out_of_memory"),
        (DeadlineExceeded("m"), 504, "deadline"),
        (NonFiniteOutput("m"), 500, "non_finite_output"),
    ],
)
def test_each_error_has_its_status_and_slug(error, status, slug):
    """An error of the caller's, or one that another try may mend, is told as it is."""
    made = failure(error, "mine")

    assert (made.status, made.slug) == (status, slug)
    assert json.loads(made.body) == {"error": "m", "code": slug, "request_id": "mine"}
    assert (("retry-after", "1") in made.headers) == (status == 503)
    assert ("content-type", "application/json") in made.headers


@mark.parametrize("error", [ExecutionError("secret"), ValueError("secret"), KeyError("secret")])
def test_an_internal_error_is_told_to_the_log_alone(error, caplog):
    """Of what went wrong inside a client learns no more than where to look."""
    made = failure(error)

    body = json.loads(made.body)
    assert made.status == 500
    assert b"secret" not in made.body
    assert re.fullmatch(r"[0-9a-f]{32}", body["request_id"])
    assert body["request_id"] in caplog.text
    assert "secret" in caplog.text


def test_ids_are_made_where_there_is_none():
    """Two refusals without an id get different ones."""
    first, second = (json.loads(refusal(404, "not_found", "x").body) for _ in range(2))

    assert first["request_id"] != second["request_id"]


def test_headers_stand_beside_the_type():
    """A reply carries the headers that it is given."""
    made = reply([1], 202, (("x-a", "b"),))

    assert (made.status, made.body, made.slug) == (202, b"[1]", None)
    assert made.headers == (("content-type", "application/json"), ("x-a", "b"))
