"""An HTTP server with small limits, for the tests of one module."""

from pytest import fixture

from tests.server.http_harness import LIMIT, HttpHarness


@fixture(scope="module")
def http_server():
    """A server on a real socket, with small limits."""
    http_server = HttpHarness(max_json_bytes=LIMIT, max_body_bytes=2 * LIMIT)
    yield http_server
    http_server.close()


@fixture
def still_answers(http_server):
    """After the test a good request gets its response."""
    yield
    assert http_server.ask((3, 4)) == [7.0]
