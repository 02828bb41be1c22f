"""Which outputs of a model depend on which dtypes, and what that makes of their tolerances."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from export.jaxprs import read_inputs
from export.writing import tolerances


def sixteen(x):
    """Convert to bfloat16 and back."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def in_scan(x):
    """Carry two values through a scan, of which one step's output is in bfloat16."""
    step = jax.lax.scan(
        lambda c, n: ((c[0] * 2, sixteen(c[1])), (c[0] + n, c[1])), (x, x), jnp.arange(3.0)
    )
    return step[0][0] + step[1][0].sum(0), step[1][1].sum(0)


def through_carry(x):
    """Pass bfloat16 along from carry to carry, so that it is returned two steps later."""
    out = jax.lax.fori_loop(0, 3, lambda _, c: (c[0], sixteen(c[1]), c[1], c[2]), (x, x, x, x))
    return out[0], out[3]


def swapped(x):
    """Swap a value that passed through bfloat16 with one that did not, again and again."""
    out = jax.lax.fori_loop(0, 3, lambda _, c: (c[0], c[2], c[1]), (x, x, sixteen(x)))
    return out[0], out[1]


def by_test(x):
    """Loop on a condition in bfloat16, and on another one in float32."""
    more = jax.lax.while_loop(lambda c: sixteen(c).sum() < 99.0, lambda c: c + 100.0, x)
    return jax.lax.while_loop(lambda c: c.sum() < 99.0, lambda c: c + 100.0, x), more


def by_branch(x):
    """Branch: one branch has bfloat16 in its second result."""
    return jax.lax.cond(x.sum() > 0, lambda y: (y, sixteen(y)), lambda y: (y + 1, y), x)


def by_index(x):
    """Choose a branch in bfloat16."""
    return x, jax.lax.cond(sixteen(x).sum() > 0, lambda y: y, lambda y: y + 1, x)


@jax.custom_jvp
def with_jvp(x):
    """Have a derivative of its own."""
    return x * 2, sixteen(x)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), with_jvp(*tangents)))


@jax.custom_vjp
def with_vjp(x):
    """Have a transpose of its own."""
    return x * 2, sixteen(x)


with_vjp.defvjp(lambda x: (with_vjp(x), ()), lambda _, g: (g[0],))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: (x * 2, sixteen(x)),
        jax.jit(lambda x: (x * 2, sixteen(x))),
        jax.checkpoint(lambda x: (x * 2, sixteen(x))),
        jax.jit(jax.checkpoint(lambda x: (jax.jit(lambda y: y * 2)(x), jax.jit(sixteen)(x)))),
        with_jvp,
        with_vjp,
        in_scan,
        through_carry,
        swapped,
        by_test,
        by_branch,
        by_index,
    ],
    ids=[
        *("plain", "jit", "remat", "nested", "custom_jvp", "custom_vjp"),
        *("scan", "carry", "swap", "while", "cond", "cond_index"),
    ],
)
def test_a_cast_loosens_the_outputs_that_pass_through_it_alone(plan, form):
    """Of two outputs, only the one that really depends on bfloat16 gets its tolerance."""
    made = plan(lambda _params, x: form(x), buckets=(1,))
    found = tolerances(made)["cpu"]

    assert found["output_0"].rtol == 1e-4
    assert found["output_1"].rtol == 3e-2


@pytest.mark.parametrize(
    ("form", "read"),
    [
        (lambda a, b, _c: a + 0 * b.shape[0], [1, 0, 0]),
        (jax.jit(lambda a, b, c: jax.jit(lambda x, y: (x, y))(a, b + c)[0]), [1, 0, 0]),
        (jax.checkpoint(lambda a, _b, c: jnp.sin(a) * c), [1, 0, 1]),
        (
            lambda a, b, c: jax.lax.cond(b[0] > 0, lambda x, _y: x, lambda x, _y: x + 1, a, c),
            [1, 1, 0],
        ),
        (lambda a, b, c: jax.lax.cond(b[0] > 0, lambda x, _y: x, lambda _x, y: y, a, c), [1, 1, 1]),
        # The second carry is read two steps later, the third never.
        (
            lambda a, b, c: jax.lax.fori_loop(0, 3, lambda _, s: (s[1], s[1], s[2] * 2), (a, b, c))[
                0
            ],
            [1, 1, 0],
        ),
        (
            lambda a, b, c: jax.lax.while_loop(
                lambda s: s[1][0] < 9, lambda s: (s[0] * 2, s[1] + 1, s[2]), (a, b, c)
            )[0],
            [1, 1, 0],
        ),
        (lambda a, b, c: jax.lax.scan(lambda s, x: (s + x[0], x[1]), a, (b, c))[0], [1, 1, 0]),
        (lambda a, b, c: jax.lax.scan(lambda s, x: (s + x[0], x[1]), a, (b, c))[1], [0, 0, 1]),
    ],
    ids=["shape", "jit", "remat", "cond", "cond both", "carry", "while", "scan", "slices"],
)
def test_inputs_that_no_output_depends_on_are_found(form, read):
    """An input is read if an output depends on its values, through whatever is in between."""
    jaxpr = jax.make_jaxpr(form)(*[jnp.ones(3)] * 3)
    assert read_inputs(jaxpr) == [bool(flag) for flag in read]


def test_with_references_every_input_is_read():
    """Where values are passed on in place, no input is reported as unread."""

    def apply(a, b):
        kept = jax.new_ref(a)
        return kept[...] + 0 * b.shape[0]

    assert read_inputs(jax.make_jaxpr(apply)(jnp.ones(3), jnp.ones(3))) == [True, True]


def test_what_goes_through_references_counts_for_all_outputs(plan):
    """Where values are passed on in place, every dtype counts for every output."""

    def apply(_params, x):
        kept = jax.new_ref(x)
        kept[...] = sixteen(x)
        return x * 2, kept[...]

    assert {t.rtol for t in tolerances(plan(apply, buckets=(1,)))["cpu"].values()} == {3e-2}


def test_an_unused_cast_loosens_nothing(plan):
    """What no output needs does not count, not even a param."""

    def apply(params, x):
        sixteen(params["other"])
        return x @ params["w"]

    params = {"w": np.ones((3, 2), np.float32), "other": np.ones((3, 2), ml_dtypes.bfloat16)}
    assert tolerances(plan(apply, params, buckets=(1,)))["cpu"]["output"].rtol == 1e-4
