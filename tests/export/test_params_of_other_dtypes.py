"""Params of dtypes that bundles do not have: stored in others, put together in the program."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen, nnx

from export.constants import HOIST_BYTES
from export.jaxprs import floating_dtypes
from export.lowering import trace
from export.storage import restored, stored

RNG = np.random.default_rng(0)
COMPLEX = (RNG.normal(size=(3, 2)) + 1j * RNG.normal(size=(3, 2))).astype(np.complex64)
INT4 = RNG.integers(-8, 8, (3, 2)).astype(ml_dtypes.int4)


def through_a_spectrum(params, x):
    """Multiply by complex weights, as state space models and Fourier operators do."""
    return jnp.real(x @ params["w"]) + params["b"]


def dequantized(params, x):
    """Multiply by narrow integers with a scale."""
    return x @ params["w"].astype(jnp.float32) * params["b"]


SPECIAL = [
    ("complex64", COMPLEX, "float32", [3, 2, 2]),
    ("int4", INT4, "int8", [3, 2]),
    ("uint4", RNG.integers(0, 16, (3, 2)).astype(ml_dtypes.uint4), "uint8", [3, 2]),
    ("int2", RNG.integers(-2, 2, (3, 2)).astype(ml_dtypes.int2), "int8", [3, 2]),
    ("uint2", RNG.integers(0, 4, (3, 2)).astype(ml_dtypes.uint2), "uint8", [3, 2]),
    *(
        (name, RNG.normal(size=(3, 2)).astype(getattr(ml_dtypes, name)), "uint8", [3, 2])
        for name in (
            *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"),
            *("float8_e4m3fnuz", "float8_e5m2fnuz"),
        )
    ),
]


@pytest.mark.parametrize(("name", "w", "dtype", "shape"), SPECIAL, ids=[s[0] for s in SPECIAL])
def test_params_are_stored_in_dtypes_that_bundles_have(export, rows, name, w, dtype, shape):
    """A bundle of the first format has the param, and answers as the model does."""
    function = through_a_spectrum if name == "complex64" else dequantized
    params = {"w": w, "b": np.float32([1, 2])}
    made = export(function, params)

    (entry,) = (e for e in made.manifest.params.entries if e.name == "w")
    assert (entry.dtype, list(entry.shape)) == (dtype, shape)
    assert made.manifest.format_version == 1
    pairs = "pairs of " if name == "complex64" else ""
    assert f"{name} params are stored as {pairs}{dtype}: w" in made.report.notes
    expected = function(jax.tree.map(jnp.asarray, params), rows)
    np.testing.assert_allclose(made.answer(x=rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "w", "dtype", "shape"), SPECIAL, ids=[s[0] for s in SPECIAL])
def test_what_was_stored_comes_back_bit_for_bit(name, w, dtype, shape):
    """Storing and putting together changes no bit, NaN and signed zeros included."""
    if name == "complex64":
        w = np.array([complex(-0.0, np.nan), complex(np.inf, -0.0)], np.complex64)
    back = np.asarray(jax.jit(lambda a: restored(a, w.dtype))(stored(w)))
    assert stored(w).dtype.name == dtype
    assert (name, back.dtype, back.tobytes()) == (w.dtype.name, w.dtype, w.tobytes())
    assert len(shape) == (3 if name == "complex64" else 2)


@pytest.mark.parametrize("x64", [False, True])
def test_complex128_is_narrowed_as_other_64_bit_params_are(export, x64):
    """With 64-bit inputs all bits are kept; without them a note says that they are not."""
    w = COMPLEX.astype(np.complex128) + 1e-12j
    x = RNG.normal(size=(3, 3)).astype("f8" if x64 else "f4")
    made = export(
        lambda p, x: jnp.imag(x @ p["w"]), {"w": w}, inputs=[f"x:float{64 if x64 else 32}[_,3]"]
    )
    (entry,) = made.manifest.params.entries
    assert entry.dtype == ("float64" if x64 else "float32")
    narrowed = "64-bit params become 32-bit ones, as JAX makes them in 32-bit mode: w"
    assert (narrowed in made.report.notes) != x64
    np.testing.assert_allclose(made.answer(x=x), (x @ w).imag, rtol=1e-12 if x64 else 1e-4)


class Spectral(linen.Module):
    """Has a complex param and a real one."""

    @linen.compact
    def __call__(self, x):
        def init(key):
            return jax.random.normal(key, (3, 2), jnp.complex64)

        w = self.param("w", linen.with_partitioning(init, (None, "m")))
        return linen.Dense(2)(jnp.real(x @ w))


class Quantized(nnx.Module):
    """Has int4 weights."""

    def __init__(self, rngs: nnx.Rngs):
        """Make them."""
        self.w = nnx.Variable(jnp.asarray(INT4))
        self.scale = nnx.Param(rngs.params.normal((2,)))

    def __call__(self, x):
        return x @ self.w[...].astype(jnp.float32) * self.scale


def test_modules_have_such_params_too(export, rows):
    """linen's boxed complex params and nnx's narrow integers are stored likewise."""
    variables = Spectral().init(jax.random.key(0), rows)
    np.testing.assert_allclose(
        export(Spectral(), variables, dtype="bfloat16").answer(x=rows),
        Spectral().apply(variables, rows),
        atol=0.1,
    )
    model = Quantized(nnx.Rngs(0))
    np.testing.assert_allclose(export(model).answer(x=rows), model(rows), rtol=1e-4)


def test_casting_leaves_stored_bytes_alone(plan):
    """--dtype does not take the bytes of a small float for its values."""
    w = np.float32([[1, 2], [3, 4], [5, 6]]).astype(ml_dtypes.float8_e4m3fnuz)
    made = plan(dequantized, {"w": w, "b": np.float32([1, 1])}, dtype="bfloat16")
    assert {n: a.dtype.name for n, a in made.params.items()} == {"b": "bfloat16", "w": "uint8"}
    x = made.goldens[0][1][0]
    np.testing.assert_allclose(made.goldens[0][2][0], x @ w.astype(np.float32), rtol=0.02)


def test_a_large_complex_constant_is_hoisted(export, rows):
    """What a model closes over, such as an S4 matrix, is stored as params are."""
    count = HOIST_BYTES // 8 // 3 + 1
    matrix = (RNG.normal(size=(3, count)) + 1j * RNG.normal(size=(3, count))).astype(np.complex64)
    made = export(lambda _, x: jnp.real(x @ matrix)[:, :2], buckets=(1, 2))

    (entry,) = made.manifest.params.entries
    assert (entry.name, entry.dtype, entry.shape) == ("constant/0", "float32", (3, count, 2))
    np.testing.assert_allclose(made.answer(x=rows), (rows @ matrix).real[:, :2], rtol=1e-3)


def test_many_small_constants_of_such_dtypes_are_hoisted(export, rows):
    """Complex and int4 arrays that are over 1 MiB together become params, and are restored unchanged."""
    size = (3, HOIST_BYTES // 12 // 8)
    parts = [(RNG.normal(size=size) + 1j).astype(np.complex64) for _ in range(6)]
    narrow = [np.full(size, i, ml_dtypes.int4) for i in range(-8, 8)]

    def closing(_, x):
        found = sum(x @ jnp.asarray(part) for part in parts)
        found += sum(x @ jnp.asarray(array).astype(jnp.float32) for array in narrow)
        return jnp.real(found)[:, :2]

    made = export(closing, buckets=(1, 2))

    dtypes = [entry.dtype for entry in made.manifest.params.entries]
    assert dtypes == ["float32"] * 6 + ["int8"] * 16
    whole = sum(parts) + sum(array.astype(np.float32) for array in narrow)
    expected = (rows @ whole).real[:, :2]
    np.testing.assert_allclose(made.answer(x=rows), expected, rtol=1e-3, atol=1e-3)


def test_complex_numbers_count_for_tolerance_by_their_parts():
    """What passes through complex64 is no more exact than float32."""
    with jax.enable_x64(True):
        shape = jax.ShapeDtypeStruct((2,), np.float64)
        traced = trace(
            lambda _, x: (jnp.real(x[0].astype(jnp.complex64)).astype("f8"),), (), (shape,)
        )
        assert floating_dtypes(traced.jaxpr) == [frozenset({"float64", "float32"})]
