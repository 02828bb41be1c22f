"""From a function to programs: weights outside, nothing of this machine inside."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax.experimental import io_callback
from jax.experimental import pallas as pl

from export import ExportError
from export.lowering import lower, trace

# 1.2 MiB and 0.9 MiB: on both sides of what is hoisted.
BIG = np.random.default_rng(0).standard_normal((550, 550)).astype(np.float32) / 50
SMALL = np.random.default_rng(1).standard_normal((550, 420)).astype(np.float32)
ON_DEVICE = jnp.asarray(BIG)
INPUT = ["x:float32[_,550]"]
NOTE = "a constant float32[550, 550] (1.2 MiB) of the model's code became the param 'constant/0'"


def text_of(lowered):
    """Return a program's StableHLO as text."""
    return jax_export.deserialize(bytearray(lowered.exported)).mlir_module()


@jax.custom_jvp
def with_jvp(x):
    """Multiply by the large constant, with a derivative of its own."""
    return x @ BIG


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0] @ BIG))


@jax.custom_vjp
def with_vjp(x):
    """Multiply by the large constant, with a transpose of its own."""
    return x @ BIG


with_vjp.defvjp(lambda x: (with_vjp(x), ()), lambda _, g: (g,))

FORMS = {
    "top": lambda x: jax.nn.relu(x @ BIG),
    "device array": lambda x: x @ ON_DEVICE,
    "jit": jax.jit(lambda x: x @ BIG),
    "jit in jit": jax.jit(lambda x: jax.jit(lambda y: y @ BIG)(x) + 1),
    "scan": lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ BIG), None), x, None, length=2)[0],
    "while": lambda x: jax.lax.fori_loop(0, 2, lambda _, c: jnp.tanh(c @ BIG), x),
    "cond": lambda x: jax.lax.cond(x[0, 0] > 9, lambda y: y @ BIG, lambda y: y, x),
    "map": lambda x: jax.lax.map(lambda y: y @ BIG, x),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "jit of custom_jvp": jax.jit(with_jvp),
    "remat": jax.checkpoint(jax.jit(lambda x: x @ BIG)),
}


@pytest.mark.parametrize("form", FORMS)
def test_large_constants_are_hoisted_and_named(plan, lowered, form):
    """Wherever code closes over a large array, it becomes a param of every program."""
    made = plan(lambda _params, x: FORMS[form](x), inputs=INPUT)

    assert made.notes == (NOTE,)
    assert list(made.arguments) == ["constant/0"]
    np.testing.assert_array_equal(made.arguments["constant/0"], BIG)
    assert all(len(program.exported) < 20_000 for program in lowered(made).values())


def test_a_hoisted_constant_is_stored_once_and_answers(export):
    """Buckets share what was hoisted, beside the params, and answers are the model's."""
    table = np.random.default_rng(2).standard_normal((550, 550)).astype(np.float32)

    def apply(params, x):
        return jax.nn.silu(x @ BIG) @ params["table"] + params["bias"] + (x * 2) @ BIG

    params = {"table": table, "bias": np.ones(550, np.float32)}
    made = export(apply, params, inputs=INPUT)
    x = np.random.default_rng(3).standard_normal((3, 550)).astype(np.float32)

    np.testing.assert_allclose(made.answer(x=x), apply(params, x), rtol=1e-3, atol=1e-3)
    assert made.report.notes == (NOTE,)
    assert [a.name for a in made.manifest.params.arguments] == ["bias", "table", "constant/0"]
    size = (made.path / "params.safetensors").stat().st_size
    assert size < BIG.nbytes + table.nbytes + 10_000
    assert all(p.exported.bytes + p.stablehlo.bytes < 20_000 for p in made.manifest.programs)


def test_each_large_constant_is_hoisted_once(plan):
    """Equal constants are one param, different ones are several."""
    twin, other = BIG.copy(), BIG + 1
    made = plan(lambda _params, x: x @ BIG + x @ twin + x @ other, inputs=INPUT)

    assert list(made.arguments) == ["constant/0", "constant/1"]
    assert [note[-12:] for note in made.notes] == ["'constant/0'", "'constant/1'"]


def test_constants_of_one_bucket_are_hoisted_too(plan):
    """A constant whose size follows the batch is another one in each bucket."""
    made = plan(
        lambda _params, x: (x[:, :, None] * np.ones((len(x), 550, 600), np.float32)).sum(-1),
        inputs=INPUT,
    )
    assert [a.shape for a in made.arguments.values()] == [(1, 550, 600), (2, 550, 600)]


def test_small_constants_stay(plan, lowered):
    """Constants under 1 MiB stay in the program; where they may be the weights, a note says so."""
    made = plan(lambda _params, x: x @ SMALL, inputs=INPUT)

    line = test_small_constants_stay.__code__.co_firstlineno + 2
    (note,) = made.notes
    assert note == (
        "a constant float32[550, 420] (0.9 MiB) of the model's code, first used at test_lowering.py, "
        f"line {line}, stays inside every program; weights that a function closes over have names if "
        "it takes them as params"
    )
    assert made.arguments == {}
    assert all(len(p.stablehlo) > SMALL.nbytes for p in lowered(made).values())


STEP = jax.jit(lambda c: jnp.tanh(c @ BIG))


def scanned(x):
    """Carry the rows through a scan whose body is under jit; keep what each step made."""
    last, each = jax.lax.scan(lambda c, n: (STEP(c) + n, STEP(c)), x, jnp.arange(3.0), reverse=True)
    return last + each.sum(0)


def looped(x):
    """Go on three times, by a test that has the constant in it as well, and is always true."""
    more = jax.jit(lambda c: ~((c @ BIG).sum() > jnp.inf))
    return jax.lax.while_loop(
        lambda c: more(c[1]) & (c[0] < 3), lambda c: (c[0] + 1, STEP(c[1])), (0, x)
    )[1]


def branched(x):
    """Take one of three ways, two of which have the constant, at each step of a loop."""
    ways = [STEP, lambda c: c + 1, lambda c: STEP(c) * 2]
    return jax.lax.fori_loop(0, 4, lambda i, c: jax.lax.switch(i, ways, c), x)


@pytest.mark.parametrize("form", [scanned, looped, branched])
def test_constants_under_jit_inside_of_control_flow_are_hoisted(export, form):
    """What a jitted function inside of loops and branches closes over is a param as well."""
    made = export(lambda _params, x: form(x), inputs=INPUT, buckets=(1, 2))
    x = np.random.default_rng(3).standard_normal((2, 550)).astype(np.float32)

    assert made.report.notes == (NOTE,)
    assert all(p.exported.bytes + p.stablehlo.bytes < 20_000 for p in made.manifest.programs)
    np.testing.assert_allclose(made.answer(x=x), form(x), rtol=1e-4, atol=1e-4)


def test_a_constant_that_cannot_be_hoisted_is_said(plan):
    """A large array inside of an operation that stays as it is stays too, and a note says so."""

    def apply(_params, x):
        times = jax.jit(lambda b: b @ BIG)
        return jax.lax.custom_linear_solve(lambda c: c, x, lambda _, b: times(b), symmetric=True)

    def beside_another(params, x):
        return apply(params, x @ (BIG + 1))

    stays = "a constant float32[550, 550] (1.2 MiB) of the model's code stays inside every program"
    assert plan(apply, inputs=INPUT).notes == (stays,)
    assert plan(beside_another, inputs=INPUT).notes == (NOTE, stays)


def test_a_param_with_a_constants_name_is_refused(refusal):
    """Params called as hoisted constants are would be mixed up with them."""
    message = refusal(
        lambda params, x: x @ BIG + params["constant/0"],
        {"constant/0": np.ones(550, np.float32)},
        inputs=INPUT,
    )
    assert message == "params: expected no param named 'constant/…', got one"


def test_weights_are_arguments_and_stored_once(export):
    """No program holds weights; the bundle holds one copy for all of them."""
    made = export(lambda params, x: x @ params, BIG, inputs=INPUT, buckets=(1, 2, 4, 8))
    files = {p.name: p.stat().st_size for p in made.path.rglob("*") if p.is_file()}

    assert files.pop("params.safetensors") < BIG.nbytes + 1000
    assert files.pop("0.safetensors") < 64 * 550 * 8 + 1000
    assert sum(files.values()) < 40_000


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        (None, None),
        ("high", "precision = [HIGH, HIGH]"),
        ("tensorfloat32", "precision = [HIGH, HIGH]"),
        ("highest", "precision = [HIGHEST, HIGHEST]"),
        ("float32", "precision = [HIGHEST, HIGHEST]"),
    ],
)
def test_matmul_precision_is_in_the_program(plan, lowered, precision, text):
    """--matmul-precision is what every dot of every program is lowered with."""
    made = plan(lambda _params, x: x @ SMALL, inputs=INPUT, matmul_precision=precision)
    for program in lowered(made).values():
        assert re.findall(r"precision = \[[A-Z, ]+\]", text_of(program)) == [text] * bool(text)


def test_matmul_precision_survives_hoisting_and_is_recorded(export):
    """A model whose constants are hoisted keeps its precision; the manifest records it."""
    made = export(
        lambda _params, x: jax.nn.relu(x @ BIG),
        inputs=INPUT,
        buckets=(1,),
        matmul_precision="highest",
    )
    data = (made.path / "programs/b1.exported").read_bytes()

    assert made.manifest.matmul_precision == "highest"
    assert "precision = [HIGHEST, HIGHEST]" in jax_export.deserialize(bytearray(data)).mlir_module()


def debug_print(x):
    """Print while running."""
    jax.debug.print("{}", x)
    return x


def debug_callback(x):
    """Call a function while running."""
    jax.debug.callback(lambda _: None, x)
    return x


def pure_callback(x):
    """Compute in Python."""
    return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def ordered_callback(x):
    """Compute in Python, in order."""
    return io_callback(lambda a: a, jax.ShapeDtypeStruct(x.shape, x.dtype), x, ordered=True)


def deep_inside(x):
    """Compute in Python in a branch of a loop."""

    def step(carry, _):
        return jax.lax.cond(carry[0, 0] > 0, jax.jit(pure_callback), lambda y: y, carry), None

    return jax.lax.scan(step, x, None, length=2)[0]


@pytest.mark.parametrize(
    ("function", "through"),
    [
        (debug_print, "jax.debug.print"),
        (debug_callback, "jax.debug.print or jax.debug.callback"),
        (pure_callback, "jax.pure_callback"),
        (ordered_callback, "jax.experimental.io_callback"),
        (deep_inside, "jax.pure_callback"),
    ],
)
def test_callbacks_are_refused_by_name(refusal, function, through):
    """Whatever calls back into Python is found in the trace, however deep, and named."""
    message = refusal(lambda _params, x: function(x))
    assert message.startswith(f"the model calls back into Python through {through}")
    assert message.endswith("), and a program cannot; remove it from the inference path")


def test_unlisted_custom_calls_are_refused_by_name():
    """Kernels that no later jax promises to have are named, all of them."""

    def function(_params, inputs):
        shape = jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype)
        return (jax.ffi.ffi_call("mine", shape)(jax.ffi.ffi_call("yours.v2", shape)(inputs[0])),)

    traced = trace(function, [], [jax.ShapeDtypeStruct((2, 3), np.float32)])
    with pytest.raises(ExportError) as caught:
        lower(traced, ["cpu"])
    assert str(caught.value) == (
        "the model cannot be lowered for cpu: it calls kernels that no later jax promises to have: "
        "mine, yours.v2; use jax's own operations in their place for inference"
    )


def test_listed_custom_calls_are_recorded(plan, lowered):
    """Custom calls that jax.export promises to keep are allowed, and named per program."""
    made = plan(
        lambda _params, x: jnp.linalg.cholesky(x[:, :, None] * x[:, None, :] + 9 * jnp.eye(3)),
        inputs=["x:float32[_,3]"],
    )
    for program in lowered(made).values():
        assert "lapack_spotrf_ffi" in program.custom_calls


ORDINARY = {
    "conv": lambda x: jax.lax.conv(x.reshape(-1, 1, 4, 4), jnp.ones((2, 1, 3, 3)), (1, 1), "SAME"),
    "sort": lambda x: jnp.sort(x, axis=1),
    "top_k": lambda x: jax.lax.top_k(x, 2),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x)),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "cholesky": lambda x: jnp.linalg.cholesky(x.reshape(-1, 4, 4) * 0.01 + jnp.eye(4)),
    "eigh": lambda x: jnp.linalg.eigh(x.reshape(-1, 4, 4) + x.reshape(-1, 4, 4).mT)[0],
    "solve": lambda x: jnp.linalg.solve(x.reshape(-1, 4, 4) + 9 * jnp.eye(4), jnp.ones((4, 1))),
    "attention": lambda x: jax.nn.dot_product_attention(*[x.reshape(-1, 4, 2, 2)] * 3),
}


@pytest.mark.parametrize("operation", ORDINARY)
def test_ordinary_operations_lower_for_cuda_without_one(operation):
    """What most models are made of is lowered for CUDA on a machine that has none."""
    traced = trace(
        lambda _params, inputs: (ORDINARY[operation](inputs[0]),),
        [],
        [jax.ShapeDtypeStruct((2, 16), np.float32)],
    )
    exported = jax_export.deserialize(bytearray(lower(traced, ["cpu", "cuda"]).exported))
    assert exported.platforms == ("cpu", "cuda")


def cudnn_attention(x):
    """Attend with a kernel of NVIDIA GPUs."""
    q = x.reshape(len(x), 4, 2, 8).astype(jnp.bfloat16)
    return jax.nn.dot_product_attention(q, q, q, implementation="cudnn")


def pallas_kernel(x):
    """Double with a kernel that has no CPU form."""

    def double(i, o):
        o[...] = i[...] * 2

    return pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def unknown_kernel(x):
    """Call a kernel that is not registered."""
    return jax.ffi.ffi_call("nowhere", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (cudnn_attention, "the model cannot be traced: RuntimeError: cuDNN is not detected."),
        (
            pallas_kernel,
            (
                "the model cannot be run op by op: ValueError: Only interpret mode is supported on CPU "
                "backend."
            ),
        ),
        (
            unknown_kernel,
            (
                "the model cannot be run op by op: JaxRuntimeError: NOT_FOUND: No FFI handler "
                "registered for nowhere on a platform Host (canonical host)"
            ),
        ),
    ],
)
def test_kernels_that_are_not_here_are_one_line(refusal, function, what):
    """A kernel that this machine cannot lower or run is refused, with what to do."""
    message = refusal(
        lambda _params, x: function(x), inputs=["x:float32[_,64]"], platforms=("cpu", "cuda")
    )
    assert message == (
        f"{what}; this machine does not have that kernel: use jax's own operations in its place "
        "for inference, or export where it runs"
    )


MODEL = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from export import ExportSpec

TABLE = np.arange(300000, dtype=np.float32).reshape(3, 100000) / 1e6

class Model(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.relu(linen.Dense(3)(x))
        x = jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=2)[0]
        top, _ = jax.lax.top_k(x @ TABLE, 2)
        return {"top": top, "x": linen.gelu(x)}

model = Model()
spec = ExportSpec(
    model=model, params=model.init(jax.random.key(0), np.ones((1, 3), np.float32), train=False),
    inputs=["x:float32[_,3]"], buckets=(1, 2),
)
"""


@pytest.mark.e2e
def test_equal_exports_give_equal_bytes_and_no_paths(tmp_path):
    """
    Given SOURCE_DATE_EPOCH, two processes in two folders write the same bytes, and none
    of them is a path of this machine.
    """
    root = Path(__file__).parents[2]
    running = []
    for place in ("one", "two/deeper"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
        words = ["model.py:spec"] if place == "one" else [f"{folder}/model.py:spec"]
        env = {**os.environ, "PYTHONPATH": str(root), "SOURCE_DATE_EPOCH": "1700000000"}
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "export", *words, "--out", str(folder / "b")],
                cwd=folder if place == "one" else tmp_path,
                env={**env, "PYTHONHASHSEED": str(len(place))},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()

    one, two = (
        {
            str(p.relative_to(bundle)): p.read_bytes()
            for p in sorted(bundle.rglob("*"))
            if p.is_file()
        }
        for bundle in (tmp_path / "one/b", tmp_path / "two/deeper/b")
    )
    assert list(one) == [
        "golden/0.safetensors",
        "manifest.json",
        "params.safetensors",
        *(f"programs/b{n}.{form}" for n in (1, 2) for form in ("exported", "stablehlo")),
    ]
    digests = [{n: hashlib.sha256(d).hexdigest() for n, d in files.items()} for files in (one, two)]
    assert digests[0] == digests[1]
    assert b'"created": "2023-11-14T22:13:20Z"' in one["manifest.json"]
    machine = (str(tmp_path), str(root), sys.prefix, str(Path.home()), "site-packages")
    for name, data in one.items():
        assert [part for part in machine if part.encode() in data] == [], name
        assert name.endswith(".safetensors") or b".py" not in data


def test_a_date_that_is_none_is_refused(refusal, monkeypatch):
    """SOURCE_DATE_EPOCH that is not a number of seconds is refused."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    message = refusal(lambda _params, x: x)
    assert message == "SOURCE_DATE_EPOCH: expected seconds since 1970, got 'yesterday'"


def test_exporting_leaves_jax_as_it_was(export, refusal):
    """Neither an export nor a refusal changes a setting of JAX."""

    def settings():
        return dict(jax.config.values)

    before = settings()
    export(lambda _params, x: x * 2, inputs=["x:int64[_,3]"], matmul_precision="high")
    refusal(lambda _params, x: x.T)

    assert settings() == before
