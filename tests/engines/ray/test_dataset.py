"""Datasets on a Ray of this machine, in a process of its own that is ended if Ray does not start."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from pytest import fail, fixture

from tests.engines.exported import ROOT

TIMEOUT_S = 200
ENVIRON = {
    "JAX_PLATFORMS": "cpu",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Without clusters of several machines Ray stays on the loopback; to give 127.0.0.1 as the node's address does
    # not do it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def left_by(session):
    """Return the command lines of processes that were started below a driver."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended, or is of another user
            continue
        if session in environ and folder.name != str(os.getpid()):
            found.append(command.replace(b"\0", b" ").decode())
    return found


@fixture(scope="module")
def found(bundles, tmp_path_factory):
    """The driver's results, and the processes and files that it left."""
    work = tmp_path_factory.mktemp("ray")
    home = work / "home"
    home.mkdir()
    home.chmod(0o500)
    mark = f"HLOSERVE_TEST_RAY={work}"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.ray.driver", str(bundles), str(work)],
        cwd=ROOT,
        env={**os.environ, **ENVIRON, "HOME": str(home), "HLOSERVE_TEST_RAY": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, said = driver.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(driver.pid, signal.SIGKILL)
        _, said = driver.communicate()
        fail(
            f"ray did not finish within {TIMEOUT_S} s on {os.cpu_count()} cores with a load of "
            f"{os.getloadavg()[0]:.1f}; it said:\n{said[-4000:]}"
        )
    assert driver.returncode == 0, said[-4000:]
    return json.loads(out.splitlines()[-1]) | {
        "left": left_by(mark.encode()),
        "home": [path.name for path in home.iterdir()],
    }


def test_a_pool_of_actors_answers_all_rows(found):
    """Actors with a model each answer every row, of arrays that they may not write to."""
    processes = found["arrays"].pop("processes")
    assert 1 <= processes <= 2  # of a pool, as many as the machine lets begin in time
    assert found["arrays"] == {
        "ids": True,
        "right": 2000,
        "columns": [
            *("confidence", "id", "label", "probabilities"),
            *("process", "threads", "writeable"),
        ],
        "writeable": False,
        "threads": ["1"],
    }


def test_texts_of_a_dataset(found):
    """Strings are texts; one that is too long has an error, and the rows beside it their answers."""
    assert found["texts"] == {
        "texts": True,
        "errors": ["input 'text': expected at most 8 tokens, got 22"],
        "answered": 49,
    }


def test_the_example_scores_parquet_files(found):
    """examples/ray_parquet.py writes a row for each that it reads, with an error where it does not fit."""
    assert found["example"] == {
        "rows": 200,
        "right": 199,
        "errors": [[17, "input 'x': expected float32[_, 2], got float32[1, 1]"]],
    }


def test_the_guide_shows_a_dataset(found):
    """What docs/batch.md shows answers the good row, and says what is wrong with the other."""
    assert found["guide"] == {
        "1": "left",
        "2": "input 'x': expected float32[_, 2], got float32[1, 1]",
    }


def test_ray_stays_on_the_loopback_and_leaves_nothing(found):
    """Nothing listens on other addresses, no process is left, and nothing is written to a read-only home."""
    assert found["listening"] == ["127.0.0.1"]
    assert found["left"] == []
    assert found["home"] == []
