"""Request headers that control an inference: timeout, metadata, id."""

import math

from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, raises

from runtime.errors import MalformedRequest
from server.protocols.request_options import RequestOptions, read_options


def read(**headers):
    """Return the options of headers, which are named with underscores."""
    return read_options({k.replace("_", "-"): v for k, v in headers.items()}.get)


def test_without_headers_there_are_no_options():
    """Without headers a request has no timeout of its own, no metadata and no id."""
    assert read() == RequestOptions(None, False, None)


@mark.property
@given(st.floats(0, 1e9))
def test_a_timeout_is_a_number_of_seconds(seconds):
    """Any non-negative number is read exactly."""
    assert read(x_request_timeout=repr(seconds)).timeout_s == seconds


@mark.property
@given(st.text(max_size=20) | st.floats().map(repr))
def test_another_timeout_is_refused(text):
    """What is not such a number is 400, with at most 100 characters of it."""
    try:
        seconds = math.nan if "_" in text else float(text)
    except ValueError:
        seconds = math.nan
    if 0 <= seconds < math.inf:
        assert read(x_request_timeout=text).timeout_s == seconds
        return
    with raises(MalformedRequest) as caught:
        read(x_request_timeout=text)

    assert str(caught.value) == f"x-request-timeout: expected seconds, got {text!r}"


@mark.parametrize(("text", "evidence"), [("1", True), ("true", True), ("0", False), ("yes", False)])
def test_metadata_is_returned_on_request(text, evidence):
    """The header is 1 or true."""
    assert read(x_hloserve_evidence=text).metadata is evidence


TRACE = "0af7651916cd43dd8448eb211c80319c"


@mark.parametrize(
    ("headers", "name", "trace"),
    [
        ({"x_request_id": "mine"}, "mine", None),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, TRACE, TRACE),
        ({"x_cloud_trace_context": f"{TRACE}/1;o=1"}, TRACE, TRACE),
        ({"x_request_id": "mine", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, "mine", TRACE),
        ({"x_request_id": "not an id", "x_cloud_trace_context": TRACE}, TRACE, TRACE),
    ],
)
def test_the_id_is_the_clients_own_or_that_of_its_trace(headers, name, trace):
    """X-Request-Id precedes a trace; the trace goes into the log with it."""
    found = read(**headers).id

    assert (found, found.trace) == (name, trace)


@mark.parametrize(
    "headers",
    [
        {"x_request_id": ""},
        {"x_request_id": "a" * 129},
        {"x_request_id": "a\nb"},
        {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"},
        {"traceparent": TRACE[:-1]},
    ],
)
def test_an_id_that_is_not_valid_is_ignored(headers):
    """Neither log nor response repeats an invalid id."""
    assert read(**headers).id is None
