"""The command as processes, in a folder where a user has files of our packages' names."""

import os
import subprocess
import sys
from pathlib import Path

from pytest import fixture

HLOSERVE = str(Path(sys.executable).with_name("hloserve"))
MODEL = """\
import numpy as np
from helper import double
from hloserve import ExportSpec

spec = ExportSpec(
    model=double,
    params={"w": np.float32(2)},
    inputs=["x:float32[_,2]"],
    buckets=(1,),
    platforms=("cpu",),
)
"""
HELPER = """\
def double(params, x):
    return x * params["w"]
"""


def put(folder, *names):
    """Write files that end the process that imports them; return the folder."""
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')")
    return folder


@fixture
def theirs(tmp_path):
    """A folder with an export.py, a runtime.py and a server.py, and a model with a helper."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text(HELPER)
    return put(tmp_path, "export", "runtime", "server")


@fixture
def run():
    """Run a command in a folder; return its exit status, and what it wrote to each stream."""

    def call(*command, cwd, **environ):
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return call
