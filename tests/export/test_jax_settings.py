"""Settings of JAX in force around an export: honoured where they change numbers, else lifted."""

import contextlib
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.sharding import AxisType, Mesh, PartitionSpec
from pytest import approx, fixture, mark, param

from runtime.jax_settings import LIFTED
from tests.runtime.test_jax_settings import ENVIRONMENT, TROUBLE, everywhere
from tests.serving import ROOT

W = np.ones((3, 2), np.float32)


def dots(export):
    """Return the precisions of the dots of the first program of a bundle."""
    data = (export.path / export.manifest.programs[0].exported.path).read_bytes()
    text = jax.export.deserialize(bytearray(data)).mlir_module()
    return re.findall(r"precision = \[([A-Z, ]+)\]", text)


def matmul(params, x):
    """Multiply, with no word on precision."""
    return x @ params["w"]


def picky(params, x):
    """Multiply twice, once with a precision of its own."""
    return jnp.matmul(x, params["w"], precision="default") + x @ params["w"]


def test_a_precision_of_the_configuration_is_in_the_program(export):
    """Dots are lowered with jax.config's precision; the manifest and the report name it."""
    with everywhere("default_matmul_precision", "highest"):
        made = export(matmul, {"w": W})

    assert dots(made) == ["HIGHEST, HIGHEST"]
    assert made.manifest.matmul_precision == "highest"
    assert made.report.notes == (
        "matmul precision 'highest', as jax_default_matmul_precision says",
    )


@mark.parametrize(
    ("value", "lowered"),
    [
        ("highest", ["HIGHEST, HIGHEST"]),
        ("float32", ["HIGHEST, HIGHEST"]),
        ("tensorfloat32", ["HIGH, HIGH"]),
        ("default", []),
    ],
)
def test_a_precision_of_a_context_is_in_the_program(export, value, lowered):
    """A `with jax.default_matmul_precision(…)` around an export applies to it."""
    with jax.default_matmul_precision(value):
        made = export(matmul, {"w": W})

    assert dots(made) == lowered
    assert made.manifest.matmul_precision == value


@mark.e2e
def test_a_precision_of_the_environment_is_in_the_program(folder):
    """JAX_DEFAULT_MATMUL_PRECISION reaches what the command exports, and what it records."""
    done = command_line(folder, JAX_DEFAULT_MATMUL_PRECISION="highest")

    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "b" / "manifest.json").read_bytes())
    data = (folder / "b" / "programs" / "b1.exported").read_bytes()
    assert manifest["matmul_precision"] == "highest"
    assert "HIGHEST, HIGHEST" in jax.export.deserialize(bytearray(data)).mlir_module()


def test_a_precision_of_the_model_wins(export):
    """The model's precision for one operation applies there, as in JAX; the others have the setting's."""
    with jax.default_matmul_precision("highest"):
        made = export(picky, {"w": W})

    assert dots(made) == ["HIGHEST, HIGHEST"]
    assert made.manifest.matmul_precision == "highest"


def test_a_precision_asked_for_wins(export):
    """The export's own option overrides the precision in force, and the report names both."""
    with jax.default_matmul_precision("highest"):
        made = export(matmul, {"w": W}, matmul_precision="high")

    assert dots(made) == ["HIGH, HIGH"]
    assert made.manifest.matmul_precision == "high"
    assert made.report.notes == (
        (
            "matmul precision 'high', as asked for, and not 'highest', which "
            "jax_default_matmul_precision says"
        ),
    )


def test_one_precision_said_twice_is_no_news(export):
    """Where both are the same nothing is reported."""
    with jax.default_matmul_precision("highest"):
        made = export(matmul, {"w": W}, matmul_precision="highest")

    assert dots(made) == ["HIGHEST, HIGHEST"]
    assert made.report.notes == ()


def careless(params, x):
    """Do all that JAX can be set to object to, and answer well."""
    key = jax.random.PRNGKey(3)
    count = jnp.arange(3)[None] * 2
    odd = jnp.where(x > 1e9, jnp.log(-jnp.abs(x) - 1) + 1 / (x * 0), x + count + jnp.ones((3,)))
    odd = odd + jax.random.uniform(key, (3,)) - jax.random.uniform(key, (3,))
    return jax.lax.scan(lambda c, _: (c * 2.0, None), odd, None, length=2)[0] @ params["w"]


class Net(linen.Module):
    """A linen model with statistics and dropout."""

    @linen.compact
    def __call__(self, x, *, train: bool):
        """Score two classes."""
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(x))


class Module(nnx.Module):
    """An nnx model with dropout."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        """Score two classes."""
        return self.dropout(nnx.relu(self.linear(x)))


MODELS = {
    "function": (careless, {"w": W}),
    "linen": (Net(), Net().init(jax.random.key(0), np.ones((1, 3), np.float32), train=False)),
    "nnx": (Module(nnx.Rngs(0)), None),
}


@fixture(scope="module")
def undisturbed(export):
    """The programs of each model, exported where nothing was set."""
    return {kind: programs(export(*MODELS[kind])) for kind in MODELS}


def programs(made):
    """Return the digests of a bundle's programs and goldens."""
    return [p.exported.sha256 for p in made.manifest.programs] + [
        g.file.sha256 for g in made.manifest.goldens
    ]


@mark.parametrize(("name", "value"), [param(*pair, id=f"{pair[0]}={pair[1]}") for pair in TROUBLE])
def test_what_only_checks_does_not_reach_a_model(plan, lowered, name, value):
    """Each guard or check leaves the programs and the expected answers byte for byte as they are."""
    model, params = MODELS["function"]
    undisturbed = plan(model, params)
    with getattr(jax, name)(value):
        disturbed = plan(model, params)

    assert [p.exported for p in lowered(disturbed).values()] == [
        p.exported for p in lowered(undisturbed).values()
    ]
    assert disturbed.goldens[0][2][0].tobytes() == undisturbed.goldens[0][2][0].tobytes()


@mark.parametrize("kind", MODELS)
def test_what_only_checks_does_not_reach_an_export(export, undisturbed, kind):
    """All guards and checks at once leave a bundle of any kind of model as it is."""
    with contextlib.ExitStack() as stack:
        for name, value in TROUBLE:
            stack.enter_context(getattr(jax, name)(value))
        made = export(*MODELS[kind])

    assert programs(made) == undisturbed[kind]
    assert made.report.notes == ()


def test_all_that_the_runtime_lifts_an_export_lifts():
    """The settings tried here are those that are lifted."""
    assert {name for name, _ in TROUBLE} == set(LIFTED)


@mark.parametrize("level", ["disallow", "disallow_explicit"])
def test_a_guard_of_all_directions_does_not_reach_an_export(export, undisturbed, level):
    """jax.transfer_guard, around an export at the end of a training script, is lifted."""
    with jax.transfer_guard(level):
        made = export(*MODELS["nnx"])

    assert programs(made) == undisturbed["nnx"]


@mark.parametrize("default", ["cpu", "device"])
def test_a_default_device_does_not_reach_the_program(export, undisturbed, default):
    """A program is for any device of its platform."""
    with jax.default_device(jax.devices("cpu")[0] if default == "device" else default):
        made = export(*MODELS["function"])

    assert programs(made) == undisturbed["function"]


@mark.parametrize("of", ["nan", "divide", "oob"])
def test_checks_of_jax_numpy_do_not_reach_the_program(export, undisturbed, of):
    """What jax.numpy would check in a trace, by an option of the process, is lifted and then in force again."""
    with everywhere(f"error_checking_behavior_{of}", "raise"):
        made = export(*MODELS["function"])
        after = getattr(jax.config, f"jax_error_checking_behavior_{of}")

    assert programs(made) == undisturbed["function"]
    assert after == "raise"


@mark.parametrize(
    ("name", "value"),
    [
        ("include_full_tracebacks_in_locations", False),
        ("traceback_in_locations_limit", 3),
        ("hlo_source_file_canonicalization_regex", "/.*/"),
        ("log_compiles", True),
        ("explain_cache_misses", True),
        ("traceback_filtering", "off"),
        ("logging_level", "WARNING"),
    ],
)
def test_what_is_written_for_people_is_not_in_the_program(export, undisturbed, name, value):
    """Settings of locations, logs and tracebacks leave a bundle byte for byte as it is."""
    with everywhere(name, value):
        made = export(*MODELS["function"])
        after = getattr(jax.config, f"jax_{name}")

    assert programs(made) == undisturbed["function"]
    assert after == value


def test_the_seed_offset_is_in_the_program(export):
    """jax_random_seed_offset changes what a pinned key draws, as it does for the model itself."""
    with everywhere("random_seed_offset", 1):
        made = export(drawing)
        expected = drawing({}, np.zeros((1, 3), np.float32))

    assert made.answer(x=np.zeros((1, 3), np.float32)) == approx(np.asarray(expected), rel=1e-5)
    assert programs(made) != programs(export(drawing))


@mark.e2e
def test_what_jax_writes_and_keeps_is_left_to_it(folder):
    """The environment's compilation cache, dumps, logs and XLA_FLAGS are JAX's own, in each process."""
    environ = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DUMP_IR_TO": str(folder / "dumps"),
        "JAX_TRACEBACK_FILTERING": "off",
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=false",
    }
    done = command_line(folder, **environ)

    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "b" / "manifest.json").read_bytes())["verified"] == ["cpu"]
    assert list((folder / "dumps").iterdir())


@mark.e2e
def test_a_flag_that_xla_does_not_know_ends_no_export_with_half_a_bundle(folder):
    """XLA ends a process that has an unknown flag; nothing is written."""
    done = command_line(folder, XLA_FLAGS="--xla_no_such_flag=1")

    assert done.returncode != 0
    assert not (folder / "b").exists()


def test_wide_types_of_a_context_are_recorded(export):
    """64-bit types that are on around an export are on in the program."""
    with jax.enable_x64(True):
        made = export(lambda _params, x: x.sum(-1, keepdims=True, dtype=jnp.float64))

    assert made.manifest.x64
    assert made.manifest.signature.outputs[0].dtype == "float64"


def drawing(_params, x):
    """Add noise of a key that is pinned, in JAX's default implementation."""
    return x + jax.random.normal(jax.random.key(0), (3,))


REFUSED = (
    "random key: expected threefry2x32 for several platforms, cpu, cuda, got {}, whose bits differ "
    "between them; pin jax.random.key(0, impl='threefry2x32'), or export for one platform"
)


@mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_keys_than_threefry_are_for_one_platform(export, refusal, impl):
    """Keys whose bits each platform makes for itself are refused for two, and fine for one."""

    def pinned(_params, x):
        return x + jax.random.normal(jax.random.key(0, impl=impl), (3,))

    assert refusal(pinned, platforms=("cpu", "cuda")) == REFUSED.format(impl)
    assert export(pinned).manifest.verified == ("cpu",)


@mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_the_default_implementation_of_keys_is_held_to_the_same(export, refusal, impl):
    """A key without an implementation has the one in force, of a context or for the process."""
    with jax.default_prng_impl(impl):
        assert refusal(drawing, platforms=("cpu", "cuda")) == REFUSED.format(impl)
    with everywhere("default_prng_impl", impl):
        assert refusal(drawing, platforms=("cpu", "cuda")) == REFUSED.format(impl)
        made = export(drawing)

    own = np.asarray(jax.random.normal(jax.random.key(0, impl=impl), (3,)))
    assert np.allclose(made.answer(x=np.zeros((1, 3), np.float32)), own, atol=1e-6)


@mark.parametrize(
    ("drawn", "named"),
    [
        param(
            lambda _params, x: (
                x
                + jax.lax.scan(
                    lambda c, _: (c + jax.random.uniform(jax.random.key(1, impl="rbg")), None),
                    jnp.float32(0),
                    None,
                    length=2,
                )[0]
            ),
            "rbg",
            id="in a loop",
        ),
        param(
            lambda _params, x: (
                x
                + jax.random.uniform(jax.random.wrap_key_data(jnp.zeros(4, jnp.uint32), impl="rbg"))
            ),
            "rbg",
            id="of data",
        ),
        param(
            lambda _params, x: (
                x + jax.lax.rng_bit_generator(jnp.zeros(4, jnp.uint32), (3,))[1].astype(jnp.float32)
            ),
            "jax.lax.rng_bit_generator",
            id="without a key",
        ),
    ],
)
def test_such_bits_are_found_wherever_they_are_drawn(refusal, drawn, named):
    """In a loop, of raw data or without any key: bits that differ are refused for two platforms."""
    assert refusal(drawn, platforms=("cpu", "cuda")) == REFUSED.format(named)


def test_a_key_that_nothing_depends_on_is_no_matter(plan):
    """What is drawn and not used has no part in any answer."""

    def unused(_params, x):
        jax.random.normal(jax.random.key(0, impl="rbg"), (3,))
        return x * 2

    assert plan(unused, platforms=("cpu", "cuda")).notes == ()


def test_threefry_is_for_all_platforms(plan, lowered):
    """A threefry key is pinned for several platforms, partitionable or not as is in force."""
    made = {}
    for partitionable in (False, True):
        with jax.threefry_partitionable(partitionable):
            planned = plan(drawing, platforms=("cpu", "cuda"))
            lowered(planned)
            made[partitionable] = planned.goldens[0][2][0] - planned.goldens[0][1][0]
            own = np.asarray(jax.random.normal(jax.random.key(0), (3,)))
        assert np.allclose(made[partitionable], own, atol=1e-5)


def command_line(folder, **environ):
    """Export models.py of a folder to b, as a process."""
    return subprocess.run(
        [sys.executable, "-m", "export", "models.py:spec", "--out", "b"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
    )


@mark.e2e
def test_an_environment_full_of_settings_exports(folder):
    """The command, and the processes that it starts, export and verify whatever JAX's settings."""
    done = command_line(folder, **ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "b" / "manifest.json").read_bytes())
    assert (manifest["verified"], manifest["x64"]) == (["cpu"], True)
    assert manifest["matmul_precision"] == "highest"


@mark.e2e
def test_a_setting_that_jax_refuses_is_one_line_of_the_export(folder):
    """A variable that JAX cannot read ends the command before anything is done."""
    done = command_line(folder, JAX_TRANSFER_GUARD="disalow")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: JAX does not take a setting of the environment: "
        'Invalid value "disalow" for JAX flag jax_transfer_guard'
    )
    assert not (folder / "b").exists()


@mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_one_device_is_honoured(export, kind):
    """A model that shards over the only device of a mesh in force is exported as it is."""
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), ("data",), axis_types=(kind,))

    def shard(x):
        spec = PartitionSpec("data")
        if kind is AxisType.Explicit:
            return jax.sharding.reshard(x, spec)
        return jax.lax.with_sharding_constraint(x, spec)

    with jax.set_mesh(mesh):
        made = export(lambda params, x: shard(x) @ params["w"], {"w": W})
        after = jax.sharding.get_mesh()

    assert made.answer(x=np.ones((3, 3), np.float32)).tolist() == [[3.0, 3.0]] * 3
    assert after == mesh


def test_sharding_without_a_mesh_says_what_to_do(refusal):
    """Names of axes mean nothing where no mesh is in force; a larger one would be refused."""

    def sharded(params, x):
        return jax.lax.with_sharding_constraint(x, PartitionSpec("data")) @ params["w"]

    message = re.sub(r"line \d+", "line N", refusal(sharded, {"w": W}))
    assert message == (
        "the model cannot be traced: RuntimeError: it shards by names of axes, and no mesh is in "
        "force (test_jax_settings.py, line N); leave that out for inference, or export in a mesh "
        "of one device"
    )


def test_settings_are_in_force_again_after_a_refusal(refusal):
    """An export that is refused leaves every setting as it found it."""
    with contextlib.ExitStack() as stack:
        for name, value in TROUBLE:
            stack.enter_context(getattr(jax, name)(value))
        before = [str(getattr(jax.config, f"jax_{name}")) for name in LIFTED]

        message = refusal(lambda _params, x: x.sum(0))

        assert [str(getattr(jax.config, f"jax_{name}")) for name in LIFTED] == before
    assert message.startswith("output 'output': expected the batch as its leading axis")
