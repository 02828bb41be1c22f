"""Inputs by name and by place, plain functions, and models that fail."""

import jax
import numpy as np
import pytest
from flax import linen, nnx

from tests.export.models.test_flax import close


class TwoInputs(linen.Module):
    """Takes two inputs by name or place."""

    @linen.compact
    def __call__(self, ids, scale):
        return linen.Embed(10, 4)(ids).sum(1) * scale


@pytest.mark.parametrize(
    "names", [("ids", "scale"), ("scale", "ids"), ("tokens", "factor")], ids="-".join
)
def test_several_inputs_go_by_name_or_by_place(plan, names):
    """Inputs with the model's names may come in any order; other names go by place."""
    specs = {"ids": "int32[_,5]", "tokens": "int32[_,5]"}
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    scale = np.ones((2, 4), np.float32)
    model = TwoInputs()
    variables = model.init(jax.random.key(0), ids, scale)
    made = plan(model, variables, inputs=[f"{n}:{specs.get(n, 'float32[_,4]')}" for n in names])

    by_name = dict(zip(names, made.goldens[0][1], strict=True))
    ids, scale = (
        by_name.get(a, by_name.get(b)) for a, b in (("ids", "tokens"), ("scale", "factor"))
    )
    assert close(made.goldens[0][2][0], model.apply(variables, ids, scale))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("idz", "scale"),
            "inputs: expected ids, scale as the model has them, got idz, scale; did you mean 'ids'?",
        ),
        (
            ("ids",),
            (
                "inputs: expected ids, scale as the model has them, got ids; what is no input, pass "
                "in a function apply(params, …) that calls the model"
            ),
        ),
        (
            ("a", "b", "c"),
            "inputs: expected ids, scale as the model has them, got a, b, c",
        ),
    ],
)
def test_inputs_that_only_partly_fit_are_refused(refusal, names, message):
    """Some names right and some wrong would be a guess: it is refused, with the nearest."""
    variables = TwoInputs().init(
        jax.random.key(0), np.zeros((1, 5), np.int32), np.ones((1, 4), np.float32)
    )
    assert refusal(TwoInputs(), variables, inputs=[f"{n}:int32[_,5]" for n in names]) == message


def test_keyword_and_variadic_models_get_their_inputs(plan):
    """Models that take any keywords get names, and those that take any places get places."""
    inputs = ["a:float32[_,3]", "b:float32[_,3]"]

    def keywords(_params, **given):
        return given["a"] - given["b"]

    def places(_params, *given):
        return given[0] - given[1]

    for function in (keywords, places):
        made = plan(function, inputs=inputs)
        a, b = made.goldens[0][1]
        assert close(made.goldens[0][2][0], a - b)


def test_containers_get_their_input_by_place(plan):
    """Modules that pass on whatever they get, such as Sequential, get places."""
    parts = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    made = plan(parts)
    parts.eval()
    assert close(made.goldens[0][2][0], parts(made.goldens[0][1][0]))


def test_functions_infer(plan):
    """A plain function with an argument that switches training is called for inference."""

    def apply(_params, x, train=True, scale=2.0):
        return x * (0 if train else scale)

    def apply_dict(_params, inputs, *, deterministic=False, scale=2.0):
        return inputs["x"] * (scale if deterministic else 0)

    for function in (apply, apply_dict):
        made = plan(function)
        assert close(made.goldens[0][2][0], made.goldens[0][1][0] * 2)


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (
            lambda x: x,
            None,
            (
                "model: expected a function apply(params, inputs), got one of (x); pass its params as "
                "the first argument, {} where it has none"
            ),
        ),
        (
            lambda _params, x: x * 1j,
            None,
            (
                "output 'output': expected a dtype of bool, int8, int16, int32, int64, uint8, uint16, "
                "uint32, uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2, got "
                "complex64"
            ),
        ),
        (
            lambda _params, x: x,
            {"when": np.zeros(3, "datetime64[s]")},
            (
                "params: 'when': expected a dtype of bool, int8, int16, int32, int64, uint8, uint16, "
                "uint32, uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2, "
                "complex64, complex128, int2, int4, uint2, uint4, float8_e3m4, float8_e4m3, "
                "float8_e4m3b11fnuz, float8_e4m3fnuz, float8_e5m2fnuz, float8_e8m0fnu, got "
                "datetime64[s]"
            ),
        ),
        (
            lambda _params, x: x,
            {"key": jax.random.key(0)},
            "params: 'key': expected an array of numbers, got a random key",
        ),
    ],
    ids=["one argument", "complex output", "dates", "key"],
)
def test_what_a_bundle_cannot_hold_is_refused(refusal, model, params, message):
    """Functions of one argument, and arrays that no bundle has, are refused by name."""
    assert refusal(model, params) == message


def test_odd_arrays_are_kept_as_they_are(export):
    """Empty, transposed, scalar and boxed params are exported unchanged."""

    class Boxed(linen.Module):
        """Has a param with a partitioning."""

        @linen.compact
        def __call__(self, x):
            boxed = linen.with_partitioning(linen.initializers.ones, (None, "model"))
            return linen.Dense(2, kernel_init=boxed)(x)

    x = np.ones((2, 3), np.float32)
    params = {
        "empty": np.ones((0, 3), np.float32),
        "transposed": np.arange(9, dtype=np.float32).reshape(3, 3).T,
        "number": 2.0,
        "none": None,
        "ein Name mit Lücken": np.arange(3, dtype=np.float32),
    }

    def apply(p, x):
        return p["number"] * x @ p["transposed"] + p["empty"].sum() + p["ein Name mit Lücken"]

    assert close(export(apply, params).answer(x=x), apply(params, x))
    variables = Boxed().init(jax.random.key(0), x)
    assert close(export(Boxed(), variables).answer(x=x), np.full((2, 2), 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            linen.Conv(2, (3, 3)),
            "the model cannot be traced: ",
        ),
        (
            lambda params, x: x @ params["kernel"],
            "the model cannot be traced: KeyError: 'kernel'",
        ),
        (
            lambda _params, x: x if x.sum() > 0 else -x,
            (
                "the model cannot be traced: TracerBoolConversionError: Attempted boolean conversion "
                "of traced array with shape bool[]."
            ),
        ),
        (
            lambda _params, x: x @ np.ones((5, 2)),
            (
                "the model cannot be traced: TypeError: dot_general requires contracting dimensions to "
                "have the same shape, got (3,) and (5,)."
            ),
        ),
        (
            lambda _params, x: x if isinstance(x, jax.core.Tracer) else 1 / 0,
            "the model cannot be run op by op: ZeroDivisionError: division by zero",
        ),
    ],
    ids=["linen", "key", "branch", "shape", "untraced"],
)
def test_a_model_that_fails_is_one_line(refusal, model, message):
    """Any exception of a model is reported in one line with its type and message."""
    assert refusal(model, {"params": {"w": np.ones(3, np.float32)}}).startswith(message)


def test_a_models_own_line_is_named(refusal):
    """An error deep inside of Flax is reported with the line of the model that led to it."""

    def deep(_params, x):
        return linen.Conv(2, (3, 3)).apply({}, x)

    line = deep.__code__.co_firstlineno + 1
    assert refusal(deep).endswith(f" (test_functions.py, line {line})")
