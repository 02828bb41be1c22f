"""Which programs take as long on any input: those that measuring says something about."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from pytest import mark, param

from runtime.stablehlo import Contents, contents

X = jax.ShapeDtypeStruct((4, 3), np.float32)
N = jax.ShapeDtypeStruct((), np.int32)


def of(function, *arguments, platforms=("cpu",)):
    """Return what is in a function's program."""
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    return contents(exported.mlir_module_serialized)


def rnn(x):
    """Run an LSTM over a sequence."""
    layer = nn.RNN(nn.LSTMCell(4))
    rows = jnp.zeros((2, 5, 3))
    return layer.apply(layer.init(jax.random.key(0), rows), rows + x[0, 0])


def scan(x):
    """Add rows up one after the other."""
    return lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(3), x)


def nested(x):
    """Loop within a function that is called within a loop."""
    inner = jax.jit(lambda row: lax.fori_loop(0, 3, lambda _, c: c + 1, row))
    return lax.map(inner, x)


def bounded_from_outside(x):
    """Loop in a function that takes how often, the same everywhere."""
    inner = jax.jit(lambda c, n: lax.fori_loop(0, n, lambda _, c: c + 1, c))
    return inner(x, 3) + inner(x, 5)


@mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")], ids=["one-platform", "two-platforms"])
@mark.parametrize(
    "function",
    [
        param(lambda x: x * 2, id="no-loop"),
        param(lambda x: lax.fori_loop(0, 7, lambda i, c: c * 2 + i, x), id="fori"),
        param(scan, id="scan"),
        param(nested, id="nested"),
        param(bounded_from_outside, id="bounded-from-outside"),
        param(lambda x: jnp.cumsum(x, 0), id="cumsum"),
        param(lambda x: jax.random.uniform(jax.random.key(0), (4, 3)) + x, id="random"),
        param(lambda x: jnp.linalg.cholesky(x @ x.T), id="by-platform"),
        param(lambda x: jnp.where(x > 0, x, -x), id="select"),
        param(rnn, id="rnn"),
    ],
)
def test_a_loop_that_counts_to_a_number_takes_as_long_on_any_input(function, platforms):
    """
    What jax makes of loops of a known length, and of a choice of platform, is known to end.
    """
    assert not of(function, X, platforms=platforms).data_dependent


@mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")], ids=["one-platform", "two-platforms"])
@mark.parametrize(
    "function",
    [
        param(
            lambda x: lax.while_loop(lambda c: c[0] < x[0, 0], lambda c: c * 2, x[0]),
            id="until-a-value",
        ),
        param(
            lambda x: lax.fori_loop(0, x[0, 0].astype(int), lambda i, c: c + i, x),
            id="as-often-as-asked",
        ),
        param(
            lambda x: lax.fori_loop(x[0, 0].astype(int), 9, lambda i, c: c + i, x),
            id="from-a-value",
        ),
        param(
            lambda x: lax.while_loop(
                lambda c: c[0] < 9, lambda c: (c[0] + c[1][0, 0].astype(int), c[1]), (0, x)
            ),
            id="in-steps-of-a-value",
        ),
        param(
            lambda x: lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + 2, c[1] * 2), (0, x)),
            id="in-steps-of-two",
        ),
        param(
            lambda x: lax.while_loop(lambda c: c[0] != 9, lambda c: (c[0] + 1, c[1]), (0, x)),
            id="until-equal",
        ),
        param(
            lambda x: lax.while_loop(lambda c: c[0] < 9.0, lambda c: (c[0] + 1.0, c[1]), (0.0, x)),
            id="counting-in-floats",
        ),
        param(
            lambda x: lax.while_loop(
                lambda c: (c[0] < 9) | (c[1][0, 0] > 0), lambda c: (c[0] + 1, c[1]), (0, x)
            ),
            id="or-until-a-value",
        ),
        param(
            lambda x: lax.cond(
                x[0, 0] > 3, lambda y: lax.fori_loop(0, 10**9, lambda _, c: c + 1, y), abs, x
            ),
            id="loop-on-a-branch",
        ),
        param(lambda x: lax.switch(x[0, 0].astype(int), [jnp.abs, jnp.sin], x), id="switch"),
        param(lambda x: jax.random.gamma(jax.random.key(0), jnp.abs(x)), id="rejection"),
    ],
)
def test_a_loop_or_branch_by_a_value_takes_as_long_as_its_inputs_say(function, platforms):
    """
    Whatever is not seen to end after a fixed number of turns may take for ever.
    """
    assert of(function, X, platforms=platforms).data_dependent


def test_a_function_is_as_fixed_as_the_least_of_its_calls():
    """
    A length that is a number in one call and a value in another is no number.
    """
    inner = jax.jit(lambda c, n: lax.fori_loop(0, n, lambda _, c: c + 1, c))

    assert of(lambda x, n: inner(x, 3) + inner(x, n), X, N).data_dependent


def test_custom_calls_are_found_beside_it():
    """
    An artifact is read once for both.
    """
    assert of(lambda x: jnp.linalg.cholesky(x @ x.T), X) == Contents(("lapack_spotrf_ffi",), False)
