"""Tests of calls run before each front."""

from pytest import fixture

from tests.server.grpc_harness import FRONTS, GrpcHarness


@fixture(params=FRONTS, scope="module")
def front(request):
    """Have harnesses make this front; return its name."""
    before, GrpcHarness.front = GrpcHarness.front, request.param
    yield request.param
    GrpcHarness.front = before


@fixture
def calls():
    """Makes servers that end with the test."""
    made = []

    def make(*arguments, **options):
        made.append(GrpcHarness(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
