"""The README's other examples run as they stand."""

import os
import re
import subprocess
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from pytest import fixture, mark

from tests.guide import make_tools

ROOT = Path(__file__).resolve().parents[1]

MODEL = """
from flax import linen as nn


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(2)(image.reshape((len(image), -1)))
"""


class Classifier(nn.Module):
    """The model that the README's reader has."""

    @nn.compact
    def __call__(self, image):
        """Score two classes."""
        return nn.Dense(2)(image.reshape((len(image), -1)))


def blocks(language):
    """Return the README's code blocks in a language."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@fixture
def folder(tmp_path, monkeypatch):
    """A folder with model.py and a checkpoint, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    variables = Classifier().init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ckpt", variables)
    return tmp_path


def test_python_examples_run(folder):
    """Exporting, predicting and the regression test run as the README shows them."""
    model = Classifier()
    rows = np.zeros((3, 28, 28, 1), np.float32)
    names = {"model": model, "params": model.init(jax.random.key(0), rows), "rows": rows}
    export, predict, test = blocks("python")

    exec(export, names)  # noqa: S102
    exec(predict, names)  # noqa: S102
    exec(test, names)  # noqa: S102
    names["test_bundle"]()

    assert names["answers"]["output"].shape == (3, 2)
    assert (folder / "bundle" / "manifest.json").is_file()


@mark.e2e
def test_shell_examples_run(folder):
    """The commands of the README run in the order they stand in."""
    tools = make_tools(folder / "bin", url="")
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks("sh"))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    assert "ok: " in ran.stdout
    assert (folder / "report.xml").is_file()
    assert (folder / "bench.svg").is_file()
