"""What has to be there before: bundles that take texts, and the peer's environment, all in build/bench."""

import os
import shutil
import subprocess

from bench.serving.prepare import BUILD, PYTHON, ROOT, run

# Not the bundles of bench.serving, which can be older than texts.
MINILM, REVIEWS = BUILD / "minilm_lengths", BUILD / "reviews"
PEER = BUILD / "peers-infinity"
PEER_PYTHON = PEER / "bin" / "python"
ONNX = BUILD / "minilm_onnx"
CACHE = BUILD / "raw_cache"
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "HF_HOME": str(ONNX / "cache")}
_BASE_PYTHON = "python3.11"
REQUIREMENTS = ROOT / "bench" / "raw" / "requirements.txt"
_LABELS = "very_negative,negative,neutral,positive,very_positive"


def bundles() -> None:
    """Export what is missing."""
    if not MINILM.exists():
        # The example's 32 and 128 would pad these sentences, of 25 tokens, to 56; these pad them to 36.
        lengths = ("--axis", "seq=16,32,64,128")
        run(
            *(PYTHON, "-m", "export", "examples/minilm/model.py:spec", *lengths),
            *("--out", str(MINILM)),
        )
    trained = BUILD / "reviews_trained"
    if not REVIEWS.exists():
        run(PYTHON, "-m", "examples.text_classifier.train", "--out", str(trained))
        run(
            *(PYTHON, "-m", "export", "examples/text_classifier/model.py:TextClassifier"),
            *("--params", str(trained / "checkpoint"), "--config", str(trained / "config.json")),
            *("--input", "x:int32[_,128]", "--text", f"text={trained / 'tokenizer.json'}"),
            *("--output", "classification:probabilities", "--labels", _LABELS),
            *("--name", "reviews", "--out", str(REVIEWS)),
        )


def peer() -> str:
    """Make the peer's environment and its ONNX file; return why there are none, or nothing."""
    stamp, wanted = PEER / "requirements.txt", REQUIREMENTS.read_text()
    try:
        if not stamp.exists() or stamp.read_text() != wanted:
            python = shutil.which(_BASE_PYTHON)
            if python is None:
                return f"no {_BASE_PYTHON}, for which there is a PyTorch for CPUs"
            run(python, "-m", "venv", "--clear", str(PEER))
            pip = (str(PEER_PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check")
            run(*pip, "-r", str(REQUIREMENTS))
            shutil.rmtree(ONNX, ignore_errors=True)
            stamp.write_text(wanted)
        if not (ONNX / "model.onnx").exists():
            _make_onnx()
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)} ended with {error.returncode}"
    return ""


def _make_onnx() -> None:
    from examples.minilm.model import pretrained

    script = ROOT / "bench" / "raw" / "to_onnx.py"
    command = (str(PEER_PYTHON), str(script), str(pretrained()), str(ONNX))
    print("+", *command, flush=True)
    subprocess.run(
        command, check=True, env={**os.environ, **OFFLINE}, stderr=subprocess.DEVNULL, cwd=ROOT
    )


def versions() -> dict[str, str]:
    """List what is pinned of the peer."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    pinned = (line.split("==") for line in lines)
    return {name.partition("[")[0]: version for name, version in pinned}
