"""The application under gunicorn: a loop and a model for each worker, made after the fork."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from pytest import fixture, mark

from export import export_model
from tests.serving import ROOT, TIMEOUT_S, free_port, post, ready_line

pytestmark = mark.e2e


def double(params, x):
    """Multiply by a param."""
    return x * params["w"]


@fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of a tiny function."""
    out = tmp_path_factory.mktemp("gunicorn") / "bundle"
    export_model(
        double,
        {"w": 2.0},
        inputs=["x:float32[_,2]"],
        buckets=(1, 2),
        platforms=("cpu",),
        name="double",
        out=out,
    )
    return out


def listening(process):
    """Read gunicorn's log until a worker has been forked."""
    for line in process.stderr:
        if "Booting worker" in line:
            return
    raise AssertionError(process.stdout.read())


def health(url):
    """Request the health route; a connection waits in the backlog until the socket is ready."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@mark.parametrize("arguments", [(), ("--preload",)], ids=["plain", "preload"])
def test_gunicorn_serves_the_application(bundle, arguments):
    """A worker loads the model at its first call, also where the application was created before the fork."""
    port = free_port()
    command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--threads", "4", *arguments]
    process = subprocess.Popen(
        [sys.executable, *command, "server.wsgi:create()"],
        cwd=ROOT,
        env={**os.environ, "AIP_STORAGE_URI": str(bundle)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        url = f"http://127.0.0.1:{port}"
        listening(process)
        before = health(url)
        ready_line(process)
        after = health(url)
        answer = post(f"{url}/predict", b'{"instances": [[1, 2], [3, 4], [5, 6]]}')
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=TIMEOUT_S)

    assert before == (503, {"status": "loading"})
    assert after == (200, {"status": "ready"})
    assert answer == (200, {"predictions": [[2.0, 4.0], [6.0, 8.0], [10.0, 12.0]]})
    assert process.returncode == 0, log
