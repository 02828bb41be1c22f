"""Many small arrays that a model's code closes over count together, as one large array does."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from export import symbolic
from export.constants import HOIST_BYTES
from export.report import size

WIDTH = 96
ADVICE = "weights that a function closes over have names if it takes them as params"
INPUT = [f"x:float32[_,{WIDTH}]"]
ROWS = np.random.default_rng(7).standard_normal((3, WIDTH)).astype(np.float32)


def layers(count, seed=0):
    """Make kernels of 36 KiB and biases, as a model of another library holds them."""
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((count, WIDTH, WIDTH)).astype(np.float32) / 10
    biases = rng.standard_normal((count, WIDTH)).astype(np.float32)
    return list(zip(kernels, biases, strict=True))


# Of 32 layers the sum is 1.1 MiB, of 20 it is 0.7.
MANY, FEW = layers(32), layers(20)


def through(x, weights):
    """Go through all layers."""
    for kernel, bias in weights:
        x = jnp.tanh(x @ kernel + bias)
    return x


@jax.custom_jvp
def with_jvp(x):
    """Go through all layers, with a derivative of its own."""
    return through(x, MANY)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_vjp(x):
    """Go through all layers, with a transpose of its own."""
    return through(x, MANY)


with_vjp.defvjp(lambda x: (with_vjp(x), ()), lambda _, g: (g,))


@jax.custom_batching.custom_vmap
def with_vmap(x):
    """Go through all layers, with a batched form of its own."""
    return jax.jit(lambda y: through(y, MANY))(x)


with_vmap.def_vmap(lambda _size, batched, x: (with_vmap(x), batched[0]))

INSIDE = jax.jit(lambda x: through(x, MANY))
FORMS = {
    "top": lambda x: through(x, MANY),
    "device arrays": lambda x: through(x, [(jnp.asarray(k), jnp.asarray(b)) for k, b in MANY]),
    "jit": INSIDE,
    "jit in jit": jax.jit(lambda x: INSIDE(x) + 0),
    "scan": lambda x: jax.lax.scan(lambda c, _: (INSIDE(c), None), x, None, length=2)[0],
    "while": lambda x: jax.lax.fori_loop(0, 2, lambda _, c: INSIDE(c), x),
    "cond": lambda x: jax.lax.cond(x[0, 0] < 99, INSIDE, lambda y: y, x),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "custom_vmap": with_vmap,
    "jit of custom_jvp": jax.jit(with_jvp),
    "remat": jax.checkpoint(INSIDE),
    "each in a jit": lambda x: functools.reduce(
        lambda y, layer: jax.jit(lambda z: jnp.tanh(z @ layer[0] + layer[1]))(y), MANY, x
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_constants_that_are_large_together_are_hoisted(plan, lowered, form):
    """Wherever the arrays of a closure are, all of them become params if their sum is large."""
    made = plan(lambda _params, x: FORMS[form](x), inputs=INPUT)

    held = [array for layer in MANY for array in layer]
    assert len(made.constants) == len(held)
    assert sum(a.nbytes for a in made.arguments.values()) >= sum(a.nbytes for a in held)
    assert all(len(program.stablehlo) < HOIST_BYTES / 20 for program in lowered(made).values())
    (note,) = made.notes
    assert note.startswith("64 constants of the model's code (1.1 MiB)")
    assert note.endswith(" became the params 'constant/0' to 'constant/63'; " + ADVICE)


def test_a_closure_over_many_arrays_answers_as_before(export):
    """Small constants are packed as small params are, beside those, and answers are the model's."""

    def apply(params, x):
        return through(x, MANY) * params["scale"]

    params = {"scale": np.float32(2), "shift": np.ones(WIDTH, np.float32), "unread": None}
    made = export(lambda p, x: apply(p, x) + p["shift"], params, inputs=INPUT)

    np.testing.assert_allclose(made.answer(x=ROWS), apply(params, ROWS) + 1, rtol=1e-4, atol=1e-5)
    assert [a.name for a in made.manifest.params.arguments][:3] == [
        *("packed/float32", "constant/0", "constant/float32"),
    ]
    held = (made.path / "params.safetensors").stat().st_size
    assert made.report.params_bytes > HOIST_BYTES
    assert held < HOIST_BYTES * 1.3, size(held)
    assert all(p.exported.bytes + p.stablehlo.bytes < 50_000 for p in made.manifest.programs)


def test_an_nnx_module_in_a_closure_is_hoisted(export):
    """A function that closes over a whole module has the module's weights as params."""
    model = nnx.Sequential(*(nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(i)) for i in range(32)))
    made = export(lambda _params, x: model(x), inputs=INPUT, buckets=(1, 2))

    np.testing.assert_allclose(made.answer(x=ROWS), model(ROWS), rtol=1e-4, atol=1e-4)
    # Equal constants are one: here the biases, which are zeros.
    assert len(made.manifest.params.entries) == 33
    assert made.report.notes[0].startswith("33 constants of the model's code (1.1 MiB), ")


def test_the_line_that_uses_them_is_named(plan):
    """Where the trace has the line of the user's code with the constants, the note names it."""

    def apply(_params, x):
        return through(x, MANY)

    line = through.__code__.co_firstlineno + 3
    assert plan(apply, inputs=INPUT).notes == (
        (
            f"64 constants of the model's code (1.1 MiB), first used at test_constants.py, line "
            f"{line}, became the params 'constant/0' to 'constant/63'; {ADVICE}"
        ),
    )


def test_constants_that_are_small_together_stay(plan):
    """Up to 1 MiB of tables, masks and literals stay in the program; floats are noted, as they may be weights."""
    mask = np.tril(np.ones((WIDTH, WIDTH), bool))
    made = plan(
        lambda _params, x: jnp.where(mask[0], through(x, FEW), np.float32([1]) * x), inputs=INPUT
    )
    (note,) = made.notes
    assert note.endswith(
        " stay inside every program; weights that a function closes over have names if it takes them "
        "as params"
    )
    assert (made.arguments, made.constants) == ({}, {})


def test_constants_of_each_program_are_counted_alone(plan):
    """Tables that every bucket has another one of are as small as the largest of them."""
    made = plan(
        lambda _params, x: x + np.ones((len(x), WIDTH, 600), np.float32).sum(-1),
        inputs=INPUT,
        buckets=(1, 2, 3, 4),
    )
    assert made.constants == {}


def test_no_scalar_and_no_key_is_hoisted(plan):
    """What params cannot hold, and what is a number, stays where it is."""
    key = jax.random.split(jax.random.key(0), 3)
    half = np.float32(0.5)

    def apply(_params, x):
        return through(x, MANY) * half + jax.random.normal(key[1], (WIDTH,))

    assert {a.ndim for a in plan(apply, inputs=INPUT).constants.values()} == {1, 2}


def test_hoisted_constants_keep_their_dtypes(export):
    """Constants of several dtypes are packed separately, and restored unchanged."""
    kinds = [np.int8, np.uint16, np.bool_, ml_dtypes.bfloat16, np.float16]
    held = [np.full((WIDTH,), 3, kind) for kind in kinds for _ in range(2)]

    def apply(_params, x):
        return through(x, MANY) + sum(a.astype(jnp.float32) for a in held)

    made = export(apply, inputs=INPUT, buckets=(1, 2))
    np.testing.assert_allclose(made.answer(x=ROWS), apply(None, ROWS), rtol=1e-4, atol=1e-4)


def test_many_constants_that_cannot_be_hoisted_are_said_together(plan):
    """Arrays inside of an operation that stays as it is are counted in one note."""

    def apply(_params, x):
        inside = jax.jit(lambda b: through(b, MANY))
        return jax.lax.custom_linear_solve(lambda c: c, x, lambda _, b: inside(b), symmetric=True)

    assert plan(apply, inputs=INPUT).notes == (
        "64 constants of the model's code (1.1 MiB) stay inside every program",
    )


def test_functions_for_tensorflow_take_them_as_variables(plan):
    """A function of any batch has the constants of a closure as arguments, by their names."""
    made = plan(lambda params, x: through(x, MANY) * params, np.float32(2), inputs=INPUT)
    (function,), notes = symbolic.lower(made, lambda _: None)

    assert (function.name, notes) == ("predict", [])
    assert function.params == ("params", *made.constants)
    assert len(function.exported) < HOIST_BYTES / 20
