"""How a model is called: arguments by hand, by place, and once."""

import re

import jax
import numpy as np
import pytest
from flax import linen, nnx

from export.calling import calls
from tests.export.test_switches import (
    ROWS,
    EnableDropout,
    Mode,
    NnxFresh,
    NnxNet,
    NnxRough,
    Stochastic,
    Two,
    Updating,
    dropped,
    variables_of,
)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Stochastic(), {"stochastic": False}),
        (Mode(), {"mode": "eval"}),
        (Two(), {"drop_early": False, "drop_late": False, "bias": False}),
        (Updating(), {"of_batch": False}),
    ],
    ids=lambda one: type(one).__name__,
)
def test_arguments_of_the_call_are_said_by_hand(export, model, said):
    """The model is called with `call_args`."""
    variables = variables_of(model)
    made = export(model, variables, call_args=said, buckets=(1, 2))
    np.testing.assert_allclose(
        made.answer(x=ROWS), model.apply(variables, ROWS, **said), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", [NnxRough, NnxFresh])
def test_arguments_of_an_nnx_call_are_said_by_hand(plan, kind):
    """nnx Modules are called with `call_args` too."""
    model = kind(nnx.Rngs(0))
    made = plan(model, call_args={"rough" if kind is NnxRough else "fresh": False})
    model.eval()
    expected = NnxNet.__call__(model, made.goldens[0][1][0])
    np.testing.assert_allclose(made.goldens[0][2][0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"mood": "eval"},
            "call_args: expected mode as the model has them, got 'mood'; did you mean 'mode'?",
        ),
        ({"x": 1}, "call_args: expected no input, got 'x', which is one"),
        (["mode"], "call_args: expected arguments by name such as {'train': False}, got ['mode']"),
    ],
)
def test_arguments_that_the_model_does_not_take_are_refused(refusal, said, message):
    """Unknown arguments are refused with the nearest name, and so are inputs."""
    assert refusal(Mode(), variables_of(Mode()), call_args=said) == message


def test_the_command_line_reads_python_literals(command, folder):
    """`--call-arg` takes a literal; a bare word would be a text, which is always true."""
    (folder / "moody.py").write_text(
        "def apply(params, x, mode='train', layers=1):\n"
        "    return x * layers if mode == 'eval' else x @ 1\n"
    )
    words = ("moody.py:apply", "--input", "x:float32[_,3]", "--buckets", "1,2", "--dry-run")
    words += ("--out", "b", "--platforms", "cpu", "--json")

    good = command(*words, "--call-arg", "mode='eval'", "--call-arg", "layers=3")
    assert good.status == 0, good.err
    for text, meant in (("mode=eval", "mode='eval'"), ("mode=false", "mode=False")):
        bad = command(*words, "--call-arg", text)
        assert bad.status == 2
        assert bad.error == (
            "call_args: expected NAME=VALUE with a Python literal such as train=False, layers=2 or "
            f"mode='eval', got {text!r}; did you mean {meant}?"
        )
    assert command(*words, "--call-arg", "mode").error == (
        "call_args: expected NAME=VALUE with a Python literal such as train=False, layers=2 or "
        "mode='eval', got 'mode'"
    )


def test_an_argument_that_has_to_be_said_is_asked_for(refusal):
    """A plain argument without a default is no input: the error names the option that sets it."""

    def apply(_params, x, depth: int):
        return x * depth

    assert refusal(apply) == (
        "inputs: expected x, depth as the model has them, got x; say what depth is with --call-arg "
        "depth=VALUE"
    )


class ByPlace(linen.Module):
    """Takes its switches by place when it is rematerialized, behind a mask that it may lack."""

    @linen.compact
    def __call__(self, x, mask=None, train: bool = False, *, scale: float = 2.0):
        if train:
            x = x / 0
        return dropped(x if mask is None else x * mask, train) * scale


class Required(linen.Module):
    """Requires an argument that switches training."""

    @linen.compact
    def __call__(self, x, train):
        return dropped(x / 0 if train else x, train)


@pytest.mark.parametrize(
    ("kind", "place", "off"),
    [(Required, 2, (False,)), (ByPlace, 3, (None, False)), (EnableDropout, 2, (False,))],
    ids=["required", "behind a default", "default on"],
)
def test_remat_takes_its_switches_by_place(export, kind, place, off):
    """A rematerialized module's switch is static: it is passed by position, as in training."""
    model = linen.remat(kind, static_argnums=(place,))()
    variables = variables_of(model, *off)
    made = export(model, variables, buckets=(1, 2))
    np.testing.assert_allclose(
        made.answer(x=ROWS), model.apply(variables, ROWS, *off), rtol=1e-5, atol=1e-6
    )


def test_remat_of_a_function_takes_its_switch_by_place(plan):
    """`jax.checkpoint(static_argnums=…)` identifies arguments by position only."""
    function = jax.checkpoint(lambda p, x, train: x / 0 if train else x * p, static_argnums=(2,))
    made = plan(function, np.float32(3))
    np.testing.assert_array_equal(made.goldens[0][2][0], made.goldens[0][1][0] * np.float32(3))


def test_a_switch_before_the_input_keeps_its_place(plan):
    """Inputs by place go where inputs are, whatever stands before them."""

    def apply(params, train, y):
        return y / 0 if train else y * params

    made = plan(apply, np.float32(3))
    np.testing.assert_array_equal(made.goldens[0][2][0], made.goldens[0][1][0] * np.float32(3))


class Merged(linen.Module):
    """Takes its switch as an attribute or as an argument, but once."""

    deterministic: bool | None = None

    @linen.compact
    def __call__(self, x, deterministic: bool | None = None):
        known = linen.merge_param("deterministic", self.deterministic, deterministic)
        return dropped(x, not known)


@pytest.mark.parametrize("model", [Merged(), Merged(deterministic=True)], ids=["call", "module"])
def test_a_switch_is_said_once(plan, model):
    """A module that was made for inference is not passed the switch again."""
    variables = variables_of(Merged(deterministic=True))
    made = plan(model, variables)
    expected = Merged().apply(variables, made.goldens[0][1][0], deterministic=True)
    np.testing.assert_allclose(made.goldens[0][2][0], expected, rtol=1e-5)


def test_a_module_that_was_made_for_training_is_refused(refusal):
    """An attribute that keeps dropout on is named, though the call has a switch of that name."""
    assert re.fullmatch(
        "Merged: the model asks for a `dropout` key: .*deterministic=False of Merged: make it with "
        "deterministic=True; only if .*",
        refusal(Merged(deterministic=False), variables_of(Merged(deterministic=True))),
    )


def test_a_call_binds_by_name_then_by_place_then_with_all_defaults():
    """The ways of a call are tried in this order, and no argument is given twice."""

    def function(_model, train, x, mask=None, *, layers=2):
        """A stand-in for a model; only its parameters are inspected."""

    ways = calls(function, {"x": 1}, {"layers": 3})
    assert [way.bind({"x": 1}) for way in ways] == [
        ((), {"x": 1, "train": False, "layers": 3}),
        ((False, 1), {"layers": 3}),
        ((False, 1, None), {"layers": 3}),
    ]
