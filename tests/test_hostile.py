"""Bad texts for a running server and bad tokenizers: a few of each kind, and that faults are detected."""

import random
import subprocess
import sys
from pathlib import Path

from pytest import fixture, mark

from bench.hostile import small
from bench.hostile.served import running
from bench.hostile.texts import BROKEN, GOOD, KINDS, of_text
from bench.hostile.tokenizers import KINDS as FILES
from bench.hostile.traffic import Traffic

ROOT = Path(__file__).parents[1]


@fixture(scope="module")
def bundle(tmp_path_factory):
    """The small bundle that embeds texts."""
    return small.made(tmp_path_factory.mktemp("hostile") / "small")


@mark.e2e
def test_bad_texts_harm_no_other_request():
    """Some texts of each kind, by every protocol, crash, stall and mix nothing, and log little."""
    command = ["-m", "bench.hostile", "texts", "--each", "2"]

    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 faults; " in done.stdout


@mark.e2e
def test_bad_tokenizers_harm_no_other_request():
    """Files of several kinds are refused with one line, at export and at the start of a server."""
    kinds = ("cut off", "backtracking", "odd templates")
    command = ["-m", "bench.hostile", "tokenizers", "--each", "1", "--only", *kinds]

    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    *lines, total = done.stdout.splitlines()
    for kind, line in zip(kinds, lines, strict=True):
        assert line.startswith(f"{kind}: export: refused 1; load: refused 1; start: refused 1; ")
    assert total == "3 files of 3 kinds: 0 did harm"


_FAILING = """
import os, signal
from bench.hostile.files import in_a_fork
from runtime.errors import BundleError

def fail(error):
    raise error

print(in_a_fork(lambda: "accepted"))
print(in_a_fork(lambda: fail(BundleError("x: expected y, got z"))))
print(in_a_fork(lambda: fail(BundleError("two\\nlines"))))
print(in_a_fork(lambda: fail(KeyError("nobody expected this"))))
print(in_a_fork(lambda: os.kill(os.getpid(), signal.SIGSEGV)))
"""


@mark.e2e
def test_harm_by_a_file_is_seen():
    """An error of several lines, an unexpected exception, and the end of the process are faults."""
    done = subprocess.run(
        [sys.executable, "-c", _FAILING], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout.splitlines() == [
        "accepted",
        "refused",
        r"refused by 'two\nlines'",
        "KeyError: 'nobody expected this'",
        "ended by SIGSEGV",
    ], done.stderr


@mark.e2e
def test_harm_to_a_neighbour_is_seen(bundle):
    """A changed answer, and a server that has exited, are faults."""
    with running(bundle) as server:
        traffic = Traffic(server.port, server.grpc_port)
        traffic._try("good", "Vertex", of_text(GOOD), "answered")
        assert not traffic.faults
        traffic._try("good", "Vertex", of_text(GOOD), "refused")
        assert list(traffic.faults) == ["good, Vertex: answered"]
        traffic._good_body += b" "
        traffic._try("good", "TEI", of_text(GOOD), "answered")
        assert traffic.faults["good, TEI: its neighbour got 200"] == 1
        traffic.close()


def test_files_of_a_seed_are_the_same():
    """Each kind makes bytes, the same ones for the same seed."""
    for kind, make in FILES.items():
        first, second = (make(small.file(), random.Random(7)) for _ in range(2))
        assert isinstance(first, bytes), kind
        assert first == second, kind


def test_there_are_enough_kinds():
    """There are a dozen kinds of each, and more."""
    assert len(KINDS) + len(BROKEN) >= 12
    assert len(FILES) >= 12
