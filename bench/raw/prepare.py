"""What has to be there before: bundles that take texts, and the peer's environment, all in build/bench."""

import shutil
import subprocess

from bench.serving.prepare import BUILD, PYTHON, ROOT, run

MINILM, REVIEWS = BUILD / "minilm", BUILD / "reviews"
PEER = BUILD / "peers-infinity"
PEER_PYTHON = "python3.11"
REQUIREMENTS = ROOT / "bench" / "raw" / "requirements.txt"
_LABELS = "very_negative,negative,neutral,positive,very_positive"


def bundles() -> None:
    """Export what is missing."""
    if not MINILM.exists():
        run(PYTHON, "-m", "export", "examples/minilm/model.py:spec", "--out", str(MINILM))
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
    """Make the peer's environment; return why there is none, or nothing."""
    stamp, wanted = PEER / "requirements.txt", REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    python = shutil.which(PEER_PYTHON)
    if python is None:
        return f"no {PEER_PYTHON}, for which there is a PyTorch for CPUs"
    try:
        run(python, "-m", "venv", "--clear", str(PEER))
        pip = (str(PEER / "bin" / "python"), "-m", "pip", "install", "-qq")
        run(*pip, "--disable-pip-version-check", "-r", str(REQUIREMENTS))
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)} ended with {error.returncode}"
    stamp.write_text(wanted)
    return ""


def versions() -> dict[str, str]:
    """List what is pinned of the peer."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    return dict(line.replace("[server,torch]", "").split("==") for line in lines)
