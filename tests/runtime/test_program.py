"""One program: devices by name, and what happens when the device fails."""

from types import SimpleNamespace

import jax
import numpy as np
from jax.extend import mlir
from jax.extend.mlir import ir
from pytest import mark, param, raises

from runtime.device import find_device, live_arrays, platform_of
from runtime.errors import ExecutionError
from runtime.program import Program, count_compiles, put


@mark.parametrize("wanted", [None, "cpu", "cpu:0"])
def test_device_is_found_by_name(wanted):
    """
    A platform means its first device; no name means JAX's default.
    """
    assert find_device(wanted) == jax.local_devices(backend=wanted and "cpu")[0]


def test_device_of_jax_is_taken_as_it_is():
    """
    A jax device needs no looking up.
    """
    device = jax.local_devices()[0]

    assert find_device(device) is device


@mark.parametrize(
    ("platform", "version", "name"),
    [
        param("cpu", "", "cpu", id="cpu"),
        param("tpu", "", "tpu", id="tpu"),
        param("gpu", "PJRT C API\ncuda 12090", "cuda", id="cuda"),
        param("gpu", "PJRT C API\nrocm 60303", "rocm", id="rocm"),
    ],
)
def test_platform_is_named_as_exports_name_it(platform, version, name):
    """
    JAX calls every GPU gpu; programs are lowered for cuda or rocm.
    """
    device = SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))

    assert platform_of(device) == name


def test_failing_device_is_an_execution_error():
    """
    The device's message is in an ExecutionError, which names the program and is no BundleError.
    """

    def fails(_params, _inputs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    program = Program(8, {}, fails, False)

    with raises(ExecutionError) as caught:
        program.call((), ())

    assert str(caught.value) == "program b8: RESOURCE_EXHAUSTED: out of memory"


def test_mistake_of_the_caller_is_not_the_devices():
    """
    A call with the wrong arguments stays a TypeError: it is a bug, not a failure of the device.
    """

    def takes_nothing():
        """Take no arguments."""

    with raises(TypeError):
        Program(8, {}, takes_nothing, False).call((), ())


def test_64_bit_params_stay_64_bits():
    """
    Params of a 64-bit bundle are put on the device with all their bits.
    """
    wide = np.array([2**40 + 5], np.int64)

    (placed,) = put([wide], jax.local_devices(backend="cpu")[0], x64=True)

    assert placed.dtype == np.int64
    assert np.asarray(placed).tolist() == [2**40 + 5]


def test_compiles_are_counted_from_now_on():
    """
    A program that XLA has not seen counts, one that is there already does not.
    """
    double = jax.jit(lambda x: x * 2)
    double(np.zeros(3, np.float32))
    compiles = count_compiles()

    double(np.ones(3, np.float32))
    seen = compiles()
    double(np.zeros(5, np.float32))

    assert (seen, compiles()) == (0, 1)


def test_arrays_count_while_they_are_held():
    """
    Arrays without references no longer count.
    """
    before = live_arrays("cpu")
    placed = put([np.zeros(2), np.zeros(3)], jax.local_devices(backend="cpu")[0], x64=True)
    during = live_arrays("cpu")
    del placed

    assert (during, live_arrays("cpu")) == (before + 2, before)


@mark.parametrize(
    ("name", "index"), [("classifier_bundle", "tensor<i32>"), ("wide_bundle", "tensor<i64>")]
)
def test_platform_comes_before_the_params(request, name, index):
    """
    StableHLO for several platforms takes the platform's index as its first argument, as the format says.
    """
    bundle = request.getfixturevalue(name)
    with ir.Context():
        module = mlir.deserialize_portable_artifact((bundle / "programs/b1.stablehlo").read_bytes())
        (main,) = (op for op in module.body if op.attributes["sym_name"].value == "main")
        first = str(main.attributes["function_type"].value.inputs[0])

    assert first == index
