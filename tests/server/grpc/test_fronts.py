"""Which front of gRPC a server has."""

import sys

from pytest import mark, raises

from server.config import ConfigError, ServerConfig
from server.grpc.fronts import make_front
from tests.server.fakes import Running
from tests.server.grpc_harness import FRONTS


def made(front):
    """Return the front that a server makes for an option."""
    running = Running()

    async def make():
        return make_front(running.service, ServerConfig(bundle="b", grpc_front=front))

    try:
        return running.wait(make())
    finally:
        running.close()


@mark.parametrize("name", FRONTS)
def test_a_server_has_the_front_that_is_asked_for(name):
    """Each name stands for a front of its own."""
    assert type(made(name)) is FRONTS[name]


def test_a_front_without_its_package_is_refused(monkeypatch):
    """Where the package is missing the error names it, and what to do."""
    monkeypatch.setitem(sys.modules, "ngh2", None)
    monkeypatch.delitem(sys.modules, "server.grpc.http2_server")
    monkeypatch.delitem(sys.modules, "server.grpc.http2_connection")

    with raises(ConfigError) as error:
        made("ngh2")

    assert str(error.value) == (
        "grpc_front: expected the package ngh2 for ngh2, got none; pip install "
        "'hloserve[fastgrpc]', or pass --grpc-front aio"
    )
