"""What the tests of every engine need: bundles, models of them, and a look at what JAX compiles."""

import os

# Before jax or an engine: only processors are looked for, and no network.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools

from jax import monitoring
from pytest import fixture

from runtime import load
from tests.engines.exported import export_bundles

COMPILE = "/jax/core/compile/backend_compile_duration"


@fixture(scope="session")
def bundles(tmp_path_factory):
    """The folder of all bundles."""
    out = tmp_path_factory.mktemp("bundles")
    export_bundles(out)
    return out


@fixture(scope="session")
def model(bundles):
    """Load a bundle by its name, once."""
    return functools.cache(lambda name: load(bundles / name, "cpu"))


@fixture
def compilations():
    """The compilations that JAX reports from now on."""
    seen = []

    def listen(name, _seconds, **_):
        if name == COMPILE:
            seen.append(name)

    monitoring.register_event_duration_secs_listener(listen)
    yield seen
    monitoring.unregister_event_duration_listener(listen)
