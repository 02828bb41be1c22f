"""The table of error codes: every exception of the server has a status."""

import http
import inspect

from pytest import mark

from runtime.errors import InvalidInput, MalformedRequest
from server import errors
from server.errors import Unavailable
from server.status import _TABLE, INTERNAL, explain, status_of

ERRORS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]


@mark.parametrize("error", [e for e in ERRORS if e is not Unavailable])
def test_every_error_of_the_server_is_public(error):
    """Each exception class is in the table itself or by a base class, with its message."""
    assert status_of(error("m")) is not INTERNAL
    assert explain(error("m"), "id")[1] == "m"


@mark.parametrize("error", [*ERRORS, *_TABLE])
def test_a_retry_is_suggested_exactly_while_the_server_is_unavailable(error):
    """HTTP 503 and gRPC UNAVAILABLE stand for `Unavailable` only, which clients may retry."""
    status = status_of(error("m"))
    unavailable = issubclass(error, Unavailable) and error is not Unavailable

    assert (status.http == http.HTTPStatus.SERVICE_UNAVAILABLE) == unavailable
    assert (status.grpc == "UNAVAILABLE") == unavailable


@mark.parametrize("error", [e for e in (*ERRORS, *_TABLE) if issubclass(e, InvalidInput)])
def test_invalid_input_is_an_error_of_the_client(error):
    """No exception for an invalid request has a 5xx status."""
    assert 400 <= status_of(error("m")).http < 500


def test_codes_name_one_status_each():
    """A client that knows the error code knows the HTTP status and the gRPC status."""
    statuses = {*_TABLE.values(), INTERNAL}

    assert len({status.error_code for status in statuses}) == len(statuses)


def test_subclasses_have_the_status_of_their_base():
    """An exception class that is not in the table is reported as the nearest base that is."""

    class Special(MalformedRequest):
        pass

    assert status_of(Special("m")) == status_of(MalformedRequest("m"))
    assert status_of(ValueError("m")) is INTERNAL
