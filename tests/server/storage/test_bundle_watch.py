"""Which process checks the files in use, and how an unreadable page is reported."""

import asyncio
import os
import shutil
import subprocess
import sys

import numpy as np
from pytest import fixture, mark

from runtime.errors import IntegrityError
from server.batching.service_state import State
from server.config import ServerConfig
from server.errors import NotReady
from server.startup import EXIT_BUNDLE, watch_files
from server.storage.bundle_watch import PERIOD_S, changed
from tests.server.fakes import FakeModel, Gate, ask, serving
from tests.serving import ROOT, TIMEOUT_S

PARAMS = "params.safetensors"

# Loads a bundle, truncates its params, and reads them in one of several ways.
TOUCH = """
import functools, hashlib, os, sys, threading
import numpy as np
from runtime import load
from runtime.program import use_sync_dispatch
from server import logs
from server.storage.bundle_watch import BusErrors

path, how, form = sys.argv[1:]
if how != "pool":
    use_sync_dispatch()
model = load(path, "cpu")
logs.set_up(form)
arrays = [np.asarray(param) for param in model.params]
report_fatal = functools.partial(logs.report_fatal, form)
errors = BusErrors(model.bundle.expect_unwritten, report_fatal, functools.partial(os._exit, 3))
errors.install()
os.truncate(f"{path}/params.safetensors", 0)
rows = {"x": np.ones((4, 4), np.float32)}
if how == "thread":
    thread = threading.Thread(target=model.predict, args=(rows,))
    thread.start()
    thread.join()
elif how == "copy":
    [array.tobytes() for array in arrays]  # with Python's lock
elif how == "hash":
    [hashlib.sha256(array).hexdigest() for array in arrays]
else:
    model.predict(rows)
print("survived", flush=True)
"""


class Watched:
    """A watched bundle: the error that each check raises, and whether it reports a replacement."""

    def __init__(self, looks, replaced=""):
        self.looks = iter(looks)
        self.replaced = lambda: replaced

    def expect_unchanged(self):
        """Check once."""
        error = next(self.looks)
        if error is not None:
            raise error


def looked(bundle):
    """Check until there is an error or a replacement; return it, and the pauses."""
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)

    return asyncio.run(changed(bundle, pause)), pauses


def test_files_are_looked_at_each_second_until_one_has_changed():
    """The first check is immediate, and there is a pause of a second between any two."""
    error = IntegrityError("params: other")

    assert looked(Watched([None, None, None, error])) == (error, [PERIOD_S] * 3)
    assert looked(Watched([error])) == (error, [])
    assert PERIOD_S == 1.0


def test_a_replaced_bundle_is_logged_once_and_served_on(caplog):
    """The log says that this process serves the previous bundle."""
    caplog.set_level("INFO", "server.storage.bundle_watch")
    error = IntegrityError("the end of the test")

    assert looked(Watched([None, None, None, error], replaced=PARAMS))[0] is error
    assert caplog.messages == [f"{PARAMS}: was replaced; the bundle that was loaded is served on"]


def test_a_service_whose_files_have_changed_answers_no_request(capsys):
    """The server is not ready, a waiting request is refused without naming files, and one line gives the reason."""

    async def run():
        model, gate = FakeModel(), Gate()
        model.before = gate
        error = IntegrityError("params.safetensors: expected one thing, got another")
        model.bundle = Watched([error])
        async with serving(model) as service:
            waiting = asyncio.ensure_future(ask(service, {"x": np.ones((1, 2), np.float32)}))
            await gate.reached()
            status = await watch_files(service, ServerConfig(bundle="b"))
            state = service.state
            refused = await asyncio.gather(waiting, return_exceptions=True)
            gate.open()
            return status, state, refused

    status, state, (refused,) = asyncio.run(run())

    assert status == EXIT_BUNDLE
    assert state is State.FAILED
    assert isinstance(refused, NotReady)
    assert str(refused) == "the model's files have changed"
    assert capsys.readouterr().err == (
        "error: params.safetensors: expected one thing, got another\n"
    )


@fixture
def bundle(classifier_bundle, tmp_path):
    """A copy of a bundle, to be tampered with."""
    return shutil.copytree(classifier_bundle, tmp_path / "bundle")


@mark.e2e
@mark.parametrize("how", ["in-place", "pool", "thread", "copy", "hash"])
def test_a_page_that_is_gone_is_an_error_of_the_bundle(bundle, how):
    """Wherever the page is read, by a program or by Python, the file is named in one line."""
    size = (bundle / PARAMS).stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, bundle, how, "text"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"error: {PARAMS}: expected the file that was checked for as long as it is in use, got 0 of "
        f"its {size} bytes; replace a bundle as a whole, by renaming, and start again\n"
    )


@mark.e2e
def test_a_bus_error_of_another_kind_is_reported_as_what_it_may_be(tmp_path):
    """If no file was written to, a disk may have failed; the process still exits in order."""
    script = (
        "import functools, os, signal\n"
        "from server import logs\n"
        "from server.storage.bundle_watch import BusErrors\n"
        "report_fatal = functools.partial(logs.report_fatal, 'text')\n"
        "errors = BusErrors(lambda: None, report_fatal, functools.partial(os._exit, 3))\n"
        "errors.install()\n"
        "os.kill(os.getpid(), signal.SIGBUS)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "error: bundle: expected files that can be read, got SIGBUS; is a disk failing?\n"
    )
