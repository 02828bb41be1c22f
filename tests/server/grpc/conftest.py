"""Tests of gRPC calls, each run with both fronts."""

from pytest import fixture

from tests.server.grpc_harness import FRONTS, GrpcHarness


@fixture(params=FRONTS, scope="module")
def front(request):
    """Make harnesses use this front; return its name."""
    before, GrpcHarness.front = GrpcHarness.front, request.param
    yield request.param
    GrpcHarness.front = before


@fixture
def calls():
    """Make servers that end with the test."""
    made = []

    def make(*arguments, **options):
        made.append(GrpcHarness(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
