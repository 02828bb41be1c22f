"""Exports that are quick to make, and the command line run in this process."""

import dataclasses
import json
import sys

import ml_dtypes
import numpy as np
import pytest
from orbax import checkpoint as ocp
from safetensors.numpy import save_file

from export import ExportError, Report, __main__, export_model, verification
from export.exporting import _lower_all
from export.jax_settings import honouring
from export.lowering import reproducible
from export.models.registry import with_own_inputs
from export.plan import Plan, prepare
from export.spec import ExportSpec
from runtime import Model, load
from runtime.jax_settings import lifted
from runtime.report import verification as verification_report
from runtime.verify import verify
from tests.tokenizer_files import words

X = "x:float32[_,3]"


# What the command line exports in the tests: each kind that a MODEL can be.
MODELS = """
import numpy as np
from flax import linen, nnx
from export import ExportSpec

W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.float32([10, 20])

def affine(params, x):
    return x @ params["w"] + params["b"]

def affine_of_dict(params, inputs):
    return inputs["x"] @ params["w"] + params["b"]

def difference(params, a, b):
    return (a - b) @ params["w"]

def difference_of_dict(params, inputs):
    return (inputs["a"] - inputs["b"]) @ params["w"]

class Dense(linen.Module):
    features: int = 2
    scale: float = 1.0

    @linen.compact
    def __call__(self, x):
        return self.scale * linen.Dense(self.features)(x)

class Needy(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x):
        return linen.Dense(self.features)(x)

dense = Dense()

class Net(nnx.Module):
    def __init__(self, features: int = 2, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, features, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)

net = Net(rngs=nnx.Rngs(1))

def make_net(rngs):
    return Net(rngs=rngs)

def trained_net():
    model = Net(rngs=nnx.Rngs(0))
    model.linear.kernel[...] = W
    model.linear.bias[...] = B
    return model

def make_dense(features=2):
    return Dense(features)

def broken(rngs):
    raise RuntimeError("no such thing\\nat all")

def broken_spec():
    raise RuntimeError("no such thing\\nat all")

spec = ExportSpec(
    model=affine, params={"w": W, "b": B}, inputs=["x:float32[_,3]"], buckets=(1, 2),
    platforms=("cpu",), name="from-spec",
)

def make_spec(name="made"):
    return ExportSpec(
        model=affine, params={"w": W, "b": B}, inputs=["x:float32[_,3]"], buckets=(1, 2),
        platforms=("cpu",), name=name,
    )

number = 7

def train():
    pass
"""


def affine(params, x):
    """A stand-in for any model: three floats in, two out."""
    return x @ params["w"] + params["b"]


@dataclasses.dataclass(frozen=True)
class Exported:
    """A bundle that was written and read again."""

    report: Report
    model: Model

    @property
    def manifest(self):
        """Return the manifest of the bundle."""
        return self.model.manifest

    @property
    def path(self):
        """Return where the bundle is."""
        return self.model.bundle.path

    def predict(self, **inputs):
        """Predict; outputs by name."""
        return self.model.predict(inputs)

    def answer(self, **inputs):
        """Predict, where there is one output."""
        (answer,) = self.predict(**inputs).values()
        return answer


def verify_here(bundle, platform, independent, _tell):
    """Verify as the fresh process does, in this one: seconds quicker."""
    model = load(bundle, platform)
    return verification_report(model, verify(model, independent=independent))


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Verify bundles in this process; only tests marked e2e start a fresh one."""
    if "e2e" not in request.keywords:
        monkeypatch.setattr(verification, "_run", verify_here)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Export a model for the CPU, load the bundle and return both."""

    def run(model, params=None, *, inputs=(X,), **options):
        out = tmp_path_factory.mktemp("export") / "bundle"
        given = {"buckets": (1, 2, 4), "platforms": ("cpu",), **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verification, "_run", verify_here)
            report = export_model(model, params, inputs=inputs, out=out, **given)
        return Exported(report, load(out, "cpu"))

    return run


@pytest.fixture
def refusal(tmp_path):
    """Return the message with which an export is refused; nothing is left on disk."""

    def run(model, params=None, *, inputs=(X,), kind=ExportError, **options):
        folder = tmp_path / "refused"
        given = {"buckets": (1, 2, 4), "platforms": ("cpu",), **options}
        with pytest.raises(kind) as caught:
            export_model(model, params, inputs=inputs, out=folder / "bundle", **given)
        assert not folder.exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture
def plan():
    """Decide all that is decided before lowering; nothing is written or compiled."""

    def run(model, params=None, *, inputs=(X,), **options) -> Plan:
        given = {"buckets": (1, 2), "platforms": ("cpu",), **options}
        spec = ExportSpec(model=model, params=params, inputs=inputs, **given)
        spec = with_own_inputs(spec).checked()
        with honouring(spec) as honoured:
            return prepare(honoured.spec, lambda _: None, x64=honoured.x64)

    return run


@pytest.fixture
def lowered():
    """Lower what was planned."""

    def run(plan: Plan):
        with lifted(x64=plan.x64), reproducible():
            return _lower_all(plan, lambda _: None)

    return run


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """Read what was printed for machines."""
        return json.loads(self.out)

    @property
    def error(self):
        """The last line of stderr, without `error: `."""
        line = self.err.splitlines()[-1]
        assert line.startswith("error: ")
        assert "Traceback" not in self.err
        return line.removeprefix("error: ")


@pytest.fixture
def command(capsys, monkeypatch):
    """Run `python -m export` in this process."""
    monkeypatch.setattr("sys.path", list(sys.path))

    def run(*argv) -> Ran:
        capsys.readouterr()
        try:
            status = __main__.main([str(word) for word in argv])
        except SystemExit as exit_:
            status = exit_.code
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with models, weights and a configuration, which is the current one."""
    w, b = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([10, 20], np.float32)
    (tmp_path / "models.py").write_text(MODELS)
    save_file({"w": w, "b": b}, tmp_path / "affine.safetensors")
    save_file({"Dense_0.kernel": w, "Dense_0.bias": b}, tmp_path / "dense.safetensors")
    save_file({"linear/kernel": w, "linear/bias": b}, tmp_path / "net.safetensors")
    save_file({"params.linear.kernel": w, "params.linear.bias": b}, tmp_path / "state.safetensors")
    (tmp_path / "config.json").write_text('{"features": 2, "max_seq_length": 128, "alpha": 1}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weights():
    """Weights of `affine`."""
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((3, 2)).astype(np.float32),
        "b": rng.standard_normal(2).astype(np.float32),
    }


@pytest.fixture
def rows():
    """Seven rows for X, more than the largest bucket of `export`."""
    return np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)


W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.array([10, 20], np.float32)
TREE = {"Dense_0": {"kernel": W, "bias": B.astype(ml_dtypes.bfloat16)}, "count": np.int32(3)}


def marked(step):
    """Make a tree that identifies its step in a directory."""
    return {**TREE, "count": np.int32(step)}


@pytest.fixture
def steps(tmp_path):
    """A directory of Orbax steps 1, 3 and 12."""
    with ocp.CheckpointManager(tmp_path / "ckpt") as manager:
        for step in (1, 3, 12):
            manager.save(step, args=ocp.args.StandardSave(marked(step)))
    return tmp_path / "ckpt"


@pytest.fixture
def tokenizer(tmp_path):
    """The file of a tokenizer of words."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(words())
    return path
