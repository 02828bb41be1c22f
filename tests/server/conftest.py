"""A service on an event loop in a thread, and a configuration."""

from pytest import fixture

from server.config import ServerConfig
from tests.server.fakes import Running


@fixture
def running():
    """A service that is still loading."""
    running = Running()
    yield running
    running.close()


@fixture
def config():
    """Defaults."""
    return ServerConfig(bundle="unused")
