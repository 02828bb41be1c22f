"""What has to be there before: bundles, params, and the peers' environment, all in build/bench.

Made once and kept. After a change of the exporter or of jax, remove build/bench.
"""

import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
PYTHON = sys.executable
PARAMS = BUILD / "text_classifier_params" / "model.pkl"
BUNDLES = {
    name: BUILD / name for name in ("text_classifier", "minilm", "minilm128", "efficientnet")
}

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PEERS = BUILD / "peers"
PEERS_PYTHON = PEERS / "bin" / "python"
TRITON_ENV = BUILD / "peers-triton"
TRITON_SITE = TRITON_ENV / "lib" / f"python{VERSION}" / "site-packages"
TRITON = TRITON_SITE / "pytriton" / "tritonserver"
# The NumPy that it needs has no wheels for any later Python.
TRITON_PYTHON = "3.12"
REQUIREMENTS = {
    PEERS: Path(__file__).with_name("requirements.txt"),
    TRITON_ENV: Path(__file__).with_name("requirements-triton.txt"),
}
TRITON_MODEL = Path(__file__).parent / "servers" / "triton_model" / "model.py"

_LABELS = "very_negative,negative,neutral,positive,very_positive"
_EXPORTS = {
    "text_classifier": (
        *("examples/text_classifier/model.py:TextClassifier", "--params", str(PARAMS)),
        *("--allow-pickle", "--input", "x:int32[_,128]", "--range", "x=0:49999"),
        *("--output", "classification:probabilities", "--labels", _LABELS),
        *("--name", "text_classifier"),
    ),
    "minilm": ("examples/minilm/model.py:spec",),
    "minilm128": ("examples/minilm/model.py:spec", "--axis", "seq=128"),
    "efficientnet": ("bench/proof.py:efficientnet",),
}


def run(*command: str) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def params() -> Any:
    """Return the classifier's params, saved where every peer finds them."""
    if not PARAMS.exists():
        run(PYTHON, "-m", "examples.text_classifier.save", "--out", str(PARAMS.parent))
    return pickle.loads(PARAMS.read_bytes())  # noqa: S301 (we wrote it)


def bundles() -> None:
    """Export what is missing."""
    params()
    for name, arguments in _EXPORTS.items():
        if not BUNDLES[name].exists():
            run(PYTHON, "-m", "export", *arguments, "--out", str(BUNDLES[name]))


def peers() -> None:
    """Make the peers' environments, anew whenever their requirements change."""
    for folder, requirements in REQUIREMENTS.items():
        if folder is TRITON_ENV and VERSION != TRITON_PYTHON:
            continue
        stamp, wanted = folder / "requirements.txt", requirements.read_text()
        if not stamp.exists() or stamp.read_text() != wanted:
            run(PYTHON, "-m", "venv", "--clear", str(folder))
            pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-deps")
            run(*pip, "--disable-pip-version-check", "-r", str(requirements))
            stamp.write_text(wanted)
    stub = TRITON / "backends" / "python" / "triton_python_backend_stub"
    if has_triton() and not stub.exists():
        stub.hardlink_to(_stub())


def versions() -> dict[str, str]:
    """List what is pinned of what matters; Triton has a jax and a NumPy of its own."""
    names = {"mosec", "litserve", "nvidia-pytriton", "gunicorn", "Flask", "jax", "numpy"}
    found = {}
    for folder, requirements in REQUIREMENTS.items():
        if folder is TRITON_ENV and VERSION != TRITON_PYTHON:
            continue
        for line in requirements.read_text().splitlines():
            name, _, version = line.partition("==")
            if name in names:
                found[f"{name} (triton)" if folder is TRITON_ENV else name] = version
    return found


def _stub() -> Path:
    return TRITON / "python_backend_stubs" / VERSION / "triton_python_backend_stub"


def _libpython() -> Path:
    return Path(sysconfig.get_config_var("LIBDIR"))


def has_triton() -> bool:
    """Whether Triton can run: its stub loads a shared libpython of our version."""
    name = f"libpython{VERSION}.so.1.0"
    return _stub().exists() and (_libpython() / name).exists()


def triton_repository(number: int, batching: str, instances: int) -> Path:
    """Lay out a model repository."""
    folder = BUILD / f"triton{number}"
    version = folder / "text_classifier" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(TRITON_MODEL.read_text())
    (folder / "text_classifier" / "config.pbtxt").write_text(f"""\
backend: "python"
max_batch_size: 64
input [{{ name: "x" data_type: TYPE_INT32 dims: [128] }}]
output [{{ name: "probabilities" data_type: TYPE_FP32 dims: [5] }}]
instance_group [{{ kind: KIND_CPU count: {instances} }}]
{batching}
""")
    return folder


def triton_command(repository: Path, grpc_port: int | None = None) -> tuple[str, ...]:
    """Return how to start it; `{port}` stands for that of HTTP, and None is no port of gRPC."""
    grpc = ("false",) if grpc_port is None else ("true", "--grpc-port", str(grpc_port))
    return (
        str(TRITON / "bin" / "tritonserver"),
        *("--model-repository", str(repository)),
        *("--backend-directory", str(TRITON / "backends")),
        *("--http-port", "{port}", "--http-thread-count", "2"),
        *("--allow-metrics", "false", "--allow-grpc", *grpc),
    )


def triton_env() -> dict[str, str]:
    """Return where its embedded Python finds itself and its packages."""
    return {
        "LD_LIBRARY_PATH": str(_libpython()),
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": f"{ROOT}:{TRITON_SITE}",
    }
