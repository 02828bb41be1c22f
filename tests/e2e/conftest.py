"""Servers that tests of one kind share; each test leaves them in working order."""

from pytest import fixture

from tests.serving import serving


@fixture(scope="session")
def classifier_server(classifier_bundle):
    """A server of x float32[_, 4], which takes 16 rows and 1 MiB a request at most."""
    limits = ("--max-request-rows", "16", "--max-body-bytes", str(1 << 20))
    with serving("--bundle", str(classifier_bundle), *limits) as served:
        yield served


@fixture(scope="session")
def wide_server(wide_bundle):
    """A server of x int64[_, 2], to which it adds 7; buckets 1 and 2."""
    with serving("--bundle", str(wide_bundle)) as served:
        yield served
