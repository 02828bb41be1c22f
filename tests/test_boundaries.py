"""What imports what: the serving half stays lean, the manifest needs nothing at all.

import-linter reads the sources; these look at what a process really loads.
"""

import subprocess
import sys
from pathlib import Path

from pytest import mark

ROOT = Path(__file__).parents[1]
TRAINING = {"flax", "orbax", "optax", "tensorflow", "chex", "export", "keras", "equinox", "haiku"}
REACHING_OUT = {
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"),
}
ARRAYS = {"numpy", "jax", "jaxlib", "ml_dtypes", "safetensors"}


def loaded_after(code, *arguments):
    """Run code in a process of its own; return the top-level modules it has then."""
    tail = "; import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code + tail, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


@mark.e2e
@mark.parametrize("module", ["runtime", "runtime.errors", "runtime.signature", "runtime.manifest"])
def test_manifest_needs_the_standard_library_alone(module):
    """
    Tools that have neither NumPy nor JAX can read what a bundle says about itself.
    """
    assert loaded_after(f"import {module}") & (ARRAYS | TRAINING) == set()


@mark.e2e
def test_manifest_is_read_without_arrays(classifier_bundle):
    """
    Reading a real manifest pulls in no more than importing the reader.
    """
    code = (
        "import sys; from runtime.manifest import Manifest; "
        "data = open(sys.argv[1] + '/manifest.json', 'rb').read(); "
        "assert Manifest.from_bytes(data).name == 'classifier'"
    )

    assert loaded_after(code, classifier_bundle) & (ARRAYS | TRAINING) == set()


@mark.e2e
@mark.parametrize(
    "module", ["runtime.model", "runtime.verify", "runtime.writer", "server.__main__"]
)
def test_serving_half_loads_nothing_of_training(module):
    """
    The runtime and the server never pull in a framework, Orbax, Optax, TensorFlow or the exporter.
    """
    assert loaded_after(f"import {module}") & TRAINING == set()


@mark.e2e
@mark.parametrize("module", ["export", "runtime", "server"])
def test_a_program_that_is_only_imported_leaves_signals_alone(module):
    """
    Importing a command line, as a test does, leaves Ctrl-C as it was.
    """
    look = "{n: signal.getsignal(n) for n in signal.valid_signals()}"
    code = f"import signal; before = {look}; import {module}.__main__; assert before == {look}"

    loaded_after(code)


@mark.e2e
def test_the_exporter_loads_no_framework_that_a_model_is_not_of():
    """
    The exporter imports no framework that the model does not use.
    """
    code = (
        "from export.exporting import export_model; import numpy as np; "
        "export_model(lambda p, x: x * p, np.float32(2), inputs=['x:float32[_]'], buckets=(1,), "
        "platforms=('cpu',), out='unused', dry_run=True)"
    )

    assert loaded_after(code) & {"keras", "equinox", "haiku"} == set()


@mark.e2e
def test_the_exporter_does_not_load_tensorflow():
    """
    TensorFlow, which would take the GPU, is left to the processes that make SavedModels.
    """
    assert "tensorflow" not in loaded_after("import export.exporting, export.cli, export.parser")


@mark.e2e
def test_prediction_stays_by_itself(classifier_bundle):
    """
    Loading and predicting imports nothing of training, and needs no network, pickle or process.
    """
    code = (
        "import sys; seen = []; "
        "sys.addaudithook(lambda event, _: seen.append(event)); "
        "import numpy as np; from runtime import load; "
        "model = load(sys.argv[1], 'cpu'); "
        "answers = model.predict({'x': np.zeros((3, 4), np.float32)}); "
        "assert answers['output'].shape == (3, 3); "
        f"strange = set(seen) & {REACHING_OUT}; assert not strange, strange"
    )

    assert loaded_after(code, classifier_bundle) & TRAINING == set()


@mark.e2e
def test_runtime_works_without_the_server_and_export_extras(classifier_bundle):
    """
    With every module of the other halves made unimportable, a bundle still loads and runs.
    """
    absent = sorted(
        TRAINING
        | {"server", "flask", "httptools", "grpc", "uvloop", "orjson", "rich", "matplotlib"}
    )
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); import numpy as np; "
        "from runtime import load; "
        "load(sys.argv[1], 'cpu').predict({'x': np.zeros((1, 4), np.float32)}); "
        f"[sys.modules.pop(name) for name in {absent}]"
    )

    assert loaded_after(code, classifier_bundle) & set(absent) == set()
