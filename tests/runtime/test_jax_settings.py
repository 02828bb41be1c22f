"""Settings of JAX that the caller has in force: none reaches a load or a prediction."""

import contextlib
import os
import subprocess
import sys
import threading

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from pytest import fixture, mark, param

from export import export_model
from runtime import load
from runtime.device import find_device, named
from runtime.jax_settings import LIFTED
from tests.serving import ROOT

ROWS = np.array([[-1.0, 0.0], [1.0, 2.0]], np.float32)
# What each row answers: of the first the logarithm is NaN, of the second number -infinity.
ANSWER = np.array([[-2.0, 0.0], [2.0, 4.0]], np.float32)

# Each setting that is lifted, as the most troublesome that it can be.
TROUBLE = [
    ("disable_jit", True),
    *[
        (f"transfer_guard_{way}", level)
        for way in ("host_to_device", "device_to_device", "device_to_host")
        for level in ("log_explicit", "disallow", "disallow_explicit")
    ],
    ("array_garbage_collection_guard", "fatal"),
    ("debug_nans", True),
    ("debug_infs", True),
    ("no_execution", True),
    ("check_tracer_leaks", True),
    ("enable_checks", True),
    ("debug_key_reuse", True),
    ("legacy_prng_key", "error"),
    ("no_tracing", True),
    ("numpy_dtype_promotion", "strict"),
    ("numpy_rank_promotion", "raise"),
]
# Those that change numbers elsewhere: in a program they are decided.
HARMLESS = [
    ("enable_x64", True),
    ("default_matmul_precision", "bfloat16"),
    ("default_prng_impl", "rbg"),
    ("threefry_partitionable", False),
    ("softmax_custom_jvp", False),
    ("explain_cache_misses", True),
]
SETTINGS = [param(name, value, id=f"{name}={value}") for name, value in (*TROUBLE, *HARMLESS)]


def doubled(_params, x):
    """Double, by way of NaN and infinity that no answer shows."""
    odd = jax.numpy.log(x) + 1 / x
    return jax.numpy.where(jax.numpy.isfinite(odd), 2 * x, x + x)


@fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle whose program goes through NaN and infinity."""
    out = tmp_path_factory.mktemp("settings") / "bundle"
    export_model(doubled, inputs=["x:float32[_,2]"], buckets=(1, 2), platforms=("cpu",), out=out)
    return out


@fixture(scope="module")
def loaded(bundle):
    """That bundle, loaded where nothing was set."""
    return load(bundle, "cpu")


@contextlib.contextmanager
def everywhere(name, value):
    """Set an option for all threads of this process."""
    before = getattr(jax.config, f"jax_{name}")
    jax.config.update(f"jax_{name}", value)
    try:
        yield
    finally:
        jax.config.update(f"jax_{name}", before)


def test_every_setting_that_is_lifted_is_tried():
    """The settings tried here are those that the runtime lifts."""
    assert {name for name, _ in TROUBLE} == set(LIFTED)


def test_the_table_of_the_docs_has_every_setting():
    """docs/jax-settings.md names each setting that is lifted, and each that is tried here."""
    table = (ROOT / "docs" / "jax-settings.md").read_text()

    missing = [name for name, _ in (*TROUBLE, *HARMLESS) if f"`jax_{name}`" not in table]
    assert missing == []


@mark.parametrize(("name", "value"), SETTINGS)
def test_a_context_around_a_call_changes_nothing(loaded, name, value):
    """A context of the calling thread does not reach a prediction, and stays in force after it."""
    with getattr(jax, name)(value):
        before = getattr(jax.config, f"jax_{name}")
        answer = loaded.predict({"x": ROWS})["output"]
        after = getattr(jax.config, f"jax_{name}")

    assert answer.tolist() == ANSWER.tolist()
    assert answer.dtype == np.float32
    assert after == before


@mark.parametrize(("name", "value"), SETTINGS)
def test_a_context_around_a_load_changes_nothing(bundle, name, value):
    """What a model answers has nothing to do with the contexts that it was loaded in."""
    with getattr(jax, name)(value):
        model = load(bundle, "cpu")

    assert model.predict({"x": ROWS})["output"].tolist() == ANSWER.tolist()


@mark.parametrize(("name", "value"), SETTINGS)
def test_an_option_of_the_process_changes_nothing_in_any_thread(bundle, name, value):
    """An option that every thread has reaches neither a load nor a prediction elsewhere."""
    answers = []
    with everywhere(name, value):
        model = load(bundle, "cpu")
        thread = threading.Thread(
            target=lambda: answers.append(model.predict({"x": ROWS})["output"].tolist())
        )
        thread.start()
        thread.join()

    assert answers == [ANSWER.tolist()]


@mark.parametrize("level", ["disallow", "disallow_explicit"])
def test_a_guard_of_all_directions_changes_nothing(bundle, level):
    """jax.transfer_guard itself, around a load and a prediction, is lifted as its parts are."""
    with jax.transfer_guard(level):
        answer = load(bundle, "cpu").predict({"x": ROWS})["output"]

    assert answer.tolist() == ANSWER.tolist()


@mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_in_force_changes_nothing(bundle, kind):
    """A mesh around a load and a prediction has no part in them, and is in force after them."""
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        answer = load(bundle, "cpu").predict({"x": ROWS})["output"]
        after = jax.sharding.get_mesh()

    assert answer.tolist() == ANSWER.tolist()
    assert after == mesh


def test_the_default_device_is_the_one_that_a_load_takes():
    """Where no device is named it is JAX's default, which a setting may have changed."""
    (cpu, *_) = jax.devices("cpu")
    for default in (cpu, "cpu"):
        with jax.default_device(default):
            assert find_device(None) == cpu
            assert named(None) in {"cpu:0", "cpu"}
    assert named(None) == ""


# Every one of them at once: an environment has no order.
ENVIRONMENT = {
    "JAX_DISABLE_JIT": "1",
    "JAX_TRANSFER_GUARD": "disallow_explicit",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_CHECK_TRACER_LEAKS": "1",
    "JAX_ENABLE_CHECKS": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_LEGACY_PRNG_KEY": "error",
    "JAX_DEBUG_KEY_REUSE": "1",
    "JAX_NO_TRACING": "1",
}


def run(*arguments, **environ):
    """Run a command of `python -m runtime` with variables of the environment."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )


@mark.e2e
def test_an_environment_full_of_settings_verifies_a_bundle(bundle):
    """Goldens come out right, and rows are independent, whatever JAX's settings in its environment."""
    done = run("verify", bundle, "--device", "cpu", **ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: ")


@mark.e2e
@mark.parametrize(
    ("environ", "reason"),
    [
        param(
            {"JAX_TRANSFER_GUARD": "disalow"},
            'Invalid value "disalow" for JAX flag jax_transfer_guard',
            id="choice",
        ),
        param(
            {"JAX_ENABLE_X64": "maybe"},
            "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
            id="truth",
        ),
    ],
)
def test_a_setting_that_jax_refuses_is_one_line(bundle, environ, reason):
    """A variable that JAX cannot read is a wrong configuration, named in one line."""
    done = run("verify", bundle, **environ)

    assert done.returncode == 2
    assert done.stderr == f"error: JAX does not take a setting of the environment: {reason}\n"
