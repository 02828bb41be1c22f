"""A model that is still in training mode is refused by the name of what is on."""

import dataclasses
import enum

import jax
import numpy as np
import pytest
from flax import linen, nnx

ROWS = np.random.default_rng(3).standard_normal((3, 3)).astype(np.float32)
ONLY = "; only if it samples on purpose: pin one by exporting a function: "
PIN = (
    f"{ONLY}def apply(params, x): return model.apply(params, x, "
    "rngs={'dropout': jax.random.key(0)})"
)


def dropped(x, on):
    """Drop and count units, as a model does that is still training."""
    x = linen.BatchNorm(use_running_average=True)(x)
    return linen.Dense(2)(linen.Dropout(0.5, deterministic=not on)(x))


def variables_of(model, *args, **kwargs):
    """Make variables."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return model.init(keys, ROWS, *args, **kwargs)


class EnableDropout(linen.Module):
    """Calls its switch as T5X does."""

    @linen.compact
    def __call__(self, x, enable_dropout: bool = True):
        return dropped(x, enable_dropout)


class IsEval(linen.Module):
    """Has the switch the other way round, by keyword only."""

    @linen.compact
    def __call__(self, x, *, is_eval: bool = False):
        return dropped(x, not is_eval)


class Inference(linen.Module):
    """Calls its switch as Equinox does."""

    @linen.compact
    def __call__(self, x, inference=False):
        return dropped(x, not inference)


class Stochastic(linen.Module):
    """Calls its switch a name of its own; beside it is one that is none."""

    @linen.compact
    def __call__(self, x, residual: bool = False, stochastic: bool = True):
        return dropped(x, stochastic) + residual


class Mode(linen.Module):
    """Has a mode by name."""

    @linen.compact
    def __call__(self, x, mode: str = "train"):
        return dropped(x, mode == "train")


class Two(linen.Module):
    """Has two switches, of which both are on."""

    @linen.compact
    def __call__(self, x, bias: bool = True, drop_early: bool = True, drop_late: bool = True):
        return dropped(linen.Dropout(0.5, deterministic=not drop_early)(x) + bias, drop_late)


class Attribute(linen.Module):
    """Has its switch as an attribute."""

    train: bool = True

    @linen.compact
    def __call__(self, x):
        return dropped(x, self.train)


class Nest(linen.Module):
    """Has a module with a switch as an attribute, which it leaves on."""

    @linen.compact
    def __call__(self, x):
        return Attribute(name="inner")(x)


class NestOfCalls(linen.Module):
    """Has a module with a switch as an argument, which it leaves on."""

    @linen.compact
    def __call__(self, x):
        return Stochastic()(x)


class Always(linen.Module):
    """Drops units whatever its options."""

    @linen.compact
    def __call__(self, x):
        return dropped(x, on=True)


@pytest.mark.parametrize(
    ("model", "off"),
    [
        (EnableDropout(), {"enable_dropout": False}),
        (IsEval(), {"is_eval": True}),
        (Inference(), {"inference": True}),
    ],
    ids=lambda one: type(one).__name__,
)
def test_switches_with_a_name_of_their_own_are_off(plan, model, off):
    """Switches that can mean one thing only are set for inference."""
    variables = variables_of(model)
    made = plan(model, variables)
    np.testing.assert_allclose(
        made.goldens[0][2][0], model.apply(variables, made.goldens[0][1][0], **off), rtol=1e-5
    )


ON = "the model asks for a `dropout` key: Dropout is still on"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Stochastic(),
            f"Stochastic: {ON} through stochastic=True: try --call-arg stochastic=False{PIN}",
        ),
        (Mode(), f"Mode: {ON} through mode='train': try --call-arg mode='eval'{PIN}"),
        (
            Two(),
            (
                f"Two: {ON} through drop_early=True: try --call-arg drop_early=False, or "
                f"drop_late=True: try --call-arg drop_late=False{PIN}"
            ),
        ),
        (
            Attribute(),
            f"Attribute: {ON} through train=True of Attribute: make it with train=False{PIN}",
        ),
        (
            Nest(),
            f"Nest: {ON} through train=True of Attribute (inner): make it with train=False{PIN}",
        ),
        (
            NestOfCalls(),
            (
                f"NestOfCalls: {ON} through stochastic=True in a call of Stochastic (Stochastic_0): "
                f"call it with stochastic=False{PIN}"
            ),
        ),
        (
            Always(),
            f"Always: {ON}; call it with deterministic=True (or train=False){PIN}",
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_leaves_dropout_on_is_named(refusal, model, message):
    """The argument or attribute that is on is named first, and how to pin a key last."""
    assert refusal(model, variables_of(model)) == message


class Phase(enum.Enum):
    """What a model is run for."""

    TRAIN = 0
    EVAL = 1


class Phased(linen.Module):
    """Takes its mode as a member of an enumeration."""

    @linen.compact
    def __call__(self, x, phase=Phase.TRAIN):
        return dropped(x, phase is Phase.TRAIN)


class Rated(linen.Module):
    """Takes the share of units that it drops."""

    @linen.compact
    def __call__(self, x, dropout_rate=0.1):
        return linen.Dense(2)(linen.Dropout(dropout_rate, deterministic=False)(x))


@dataclasses.dataclass(frozen=True)
class Config:
    """What large models keep their switches in."""

    width: int = 2
    deterministic: bool = False


class Configured(linen.Module):
    """Has its switch inside of an attribute."""

    config: Config | dict

    @linen.compact
    def __call__(self, x):
        config = self.config
        off = config.deterministic if isinstance(config, Config) else config["deterministic"]
        return dropped(x, not off)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Phased(),
            (
                f"Phased: {ON} through phase=Phase.TRAIN: try call_args={{'phase': Phase.EVAL}} of an "
                f"ExportSpec{PIN}"
            ),
        ),
        (Rated(), f"Rated: {ON} through dropout_rate=0.1: try --call-arg dropout_rate=0.0{PIN}"),
        *(
            (
                Configured(config),
                (
                    f"Configured: {ON} through config.deterministic=False of Configured: make it with "
                    f"config.deterministic=True{PIN}"
                ),
            )
            for config in (Config(), {"deterministic": False})
        ),
    ],
    ids=["enumeration", "rate", "dataclass", "mapping"],
)
def test_a_switch_of_another_kind_is_named(refusal, model, message):
    """Members of enumerations, rates, and what is inside of a configuration are found by trying too."""
    assert refusal(model, variables_of(model)) == message


def test_a_function_whose_dropout_is_on_gets_the_same_error(refusal):
    """Functions are refused by their own arguments, and by those of the modules that they call."""
    model = Stochastic()
    variables = variables_of(model)

    def apply(params, x, noisy=True):
        return model.apply(params, x, stochastic=noisy)

    def forgetful(params, x):
        return model.apply(params, x)

    assert refusal(apply, variables) == (
        f"apply: {ON} through noisy=True: try --call-arg noisy=False{PIN}"
    )
    assert refusal(forgetful, variables) == (
        f"forgetful: {ON} through stochastic=True in a call of Stochastic: call it with "
        f"stochastic=False{PIN}"
    )


class Updating(linen.Module):
    """Updates its statistics by default."""

    @linen.compact
    def __call__(self, x, of_batch: bool = True):
        return linen.BatchNorm(use_running_average=not of_batch)(x)


def test_what_leaves_statistics_changing_is_named(refusal):
    """A BatchNorm in training mode is refused by what leaves it so."""
    assert refusal(Updating(), variables_of(Updating())) == (
        'Updating: expected inference to leave its variables alone, got Cannot update variable "mean" '
        'in "/BatchNorm_0" because collection "batch_stats" is immutable.; is it still in training '
        "mode? of_batch=True: try --call-arg of_batch=False"
    )


class NnxNet(nnx.Module):
    """Drops and normalizes by switches of its own."""

    def __init__(self, rngs, *, noisy=False, **attributes):
        """Make the layers."""
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.noisy = noisy
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x, fresh: bool = False, rough: bool = False):
        x = self.norm(self.linear(x), use_running_average=not fresh)
        return self.drop(x, deterministic=not (self.noisy or rough))


class NnxRough(NnxNet):
    """Drops when it is called, by default."""

    def __call__(self, x, rough: bool = True):
        return NnxNet.__call__(self, x, rough=rough)


class NnxFresh(NnxNet):
    """Normalizes by its batch, by default."""

    def __call__(self, x, fresh: bool = True):
        return NnxNet.__call__(self, x, fresh=fresh)


class NnxNest(nnx.Module):
    """Has a module that drops."""

    def __init__(self, rngs):
        """Make it."""
        self.inner = NnxNet(rngs, noisy=True)

    def __call__(self, x):
        return self.inner(x)


class NnxBare(nnx.Module):
    """Drops without any random state to draw from."""

    def __init__(self):
        """Make the layer."""
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, rough: bool = True):
        return self.drop(x, deterministic=not rough)


NNX_PIN = (
    f"{ONLY}graph, rngs, params = nnx.split(model, nnx.RngState, ...); "
    "def apply(params, x): return nnx.merge(graph, rngs, params, copy=True)(x)"
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            NnxRough(nnx.Rngs(0)),
            f"NnxRough: {ON} through rough=True: try --call-arg rough=False{NNX_PIN}",
        ),
        (NnxBare(), f"NnxBare: {ON} through rough=True: try --call-arg rough=False{NNX_PIN}"),
        (
            NnxNest(nnx.Rngs(0)),
            f"NnxNest: {ON} through noisy=True of NnxNet: make it with noisy=False{NNX_PIN}",
        ),
        (
            NnxFresh(nnx.Rngs(0)),
            (
                "NnxFresh: expected inference to use its statistics, got norm/mean that no answer "
                "depends on; is it still in training mode? fresh=True: try --call-arg fresh=False"
            ),
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_on_in_an_nnx_module_is_named(refusal, model, message):
    """nnx Modules with switches that `eval` does not set are refused with the names of these."""
    assert refusal(model) == message
