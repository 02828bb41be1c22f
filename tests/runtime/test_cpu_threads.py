"""The number of threads that CPU programs compute with, set and changed before anything is served."""

import subprocess
import sys

from pytest import mark

from tests.serving import ROOT, TIMEOUT_S

# Loads a bundle, changes the number of threads, and loads it again; prints what both answered and have.
_CHANGED = """
import gc, os, sys
import numpy as np
from pathlib import Path
from runtime import load
from runtime.program import change_cpu_threads, cpu_threads, may_change_cpu_threads, set_cpu_threads

def pool():
    return sum(1 for _ in Path("/proc/self/task").iterdir())

set_cpu_threads(4)
rows = {"x": np.ones((2, 4), np.float32)}
model = load(sys.argv[1])
before = {name: found.copy() for name, found in model.predict(rows).items()}  # none of the device's own
threads = pool()
del model
change_cpu_threads(1)
model = load(sys.argv[1])
same = all(np.array_equal(before[n], v) for n, v in model.predict(rows).items())
print(cpu_threads(), may_change_cpu_threads(), same, pool() < threads)
"""


@mark.parametrize(
    ("nproc", "printed"),
    [("", "1 True True True\n"), ("4", "4 False True False\n")],
    ids=["not set", "the user's"],
)
def test_threads_are_changed_with_the_devices_unless_the_user_has_set_them(
    classifier_bundle, nproc, printed, monkeypatch
):
    """What is loaded afterwards answers the same, on fewer threads; with NPROC of the user's nothing changes."""
    monkeypatch.delenv("NPROC", raising=False)
    if nproc:
        monkeypatch.setenv("NPROC", nproc)

    done = subprocess.run(
        [sys.executable, "-c", _CHANGED, str(classifier_bundle)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert (done.stdout, done.returncode) == (printed, 0), done.stderr
