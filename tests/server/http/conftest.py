"""An HTTP server with small limits, for the tests of one module."""

from pytest import fixture

from tests.server.http_harness import LIMIT, HttpHarness


@fixture(scope="module")
def entrance():
    """A server on a real socket, with small limits."""
    entrance = HttpHarness(max_json_bytes=LIMIT, max_body_bytes=2 * LIMIT)
    yield entrance
    entrance.close()


@fixture
def still_answers(entrance):
    """After the test a good request gets its answer."""
    yield
    assert entrance.ask((3, 4)) == [7.0]
