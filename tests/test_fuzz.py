"""The fuzzer of bundles: a few of its alterations, and the failures that it has to detect."""

import json
import random
import subprocess
import sys
from pathlib import Path

from pytest import mark, param

from bench.fuzz.__main__ import BEGIN, END, bad, put_into, table
from bench.fuzz.mutations import MANIFEST, forge, mutate
from runtime import BundleError, open_bundle
from tests.altered_bundles import FROZEN

ROOT = Path(__file__).parents[1]


def seeded(number):
    """Return a generator with a fixed seed."""
    return random.Random(number)


@mark.e2e
def test_some_alterations_end_no_process(tmp_path):
    """
    Two dozen alterations of a bundle end no server, and none is accepted as the bundle.
    """
    outcomes = tmp_path / "outcomes.json"
    command = ["-m", "bench.fuzz", "--mutations", "24", "--seed", "3", "--json", str(outcomes)]

    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 alterations: 0 ended the server, 0 accidents were accepted; " in done.stdout
    found = json.loads(outcomes.read_text())
    assert len(found) == 24
    assert any(outcome == "refused" for _, _, outcome in found)


@mark.e2e
def test_deadly_bit_ends_the_child_alone(tmp_path):
    """
    An alteration that crashes its reader ends the child, and the fuzzer reports the signal.
    """
    code = (
        "import sys; from pathlib import Path; from bench.fuzz.opening import Opener; "
        "from tests.altered_bundles import FROZEN, with_deadly_program; "
        "print(Opener(FROZEN).open(with_deadly_program(Path(sys.argv[1]))))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout == "child: SIGSEGV\n", done.stderr


_FAILING = """
from bench.fuzz import opening
from tests.altered_bundles import FROZEN

def fail(*_):
    raise KeyError("nobody expected this")

opener = opening.Opener(FROZEN)
opening.run_each = opening.load = fail
print(opener.open(FROZEN))
"""


@mark.e2e
def test_server_that_fails_as_its_child_did_is_seen():
    """
    An unexpected exception counts as the server's end, though the child had it first.
    """
    done = subprocess.run(
        [sys.executable, "-c", _FAILING], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout == "server: exit status 1\n", done.stderr


_UNLIKE = """
import signal, sys
from pathlib import Path
from bench.fuzz import opening
from tests.altered_bundles import FROZEN, altered, with_deadly_program

def accept(manifest):
    for tolerances in manifest["tolerances"].values():
        for tolerance in tolerances.values():
            tolerance["atol"] = 1e6

folder = Path(sys.argv[1])
opener = opening.Opener(FROZEN)
print(opener.open(FROZEN))
others = {"manifest.json": accept, "params.safetensors": lambda d: d[:-400] + bytes(400)}
print(opener.open(altered(FROZEN, folder / "other", others)))
opening.run_each = lambda *_: None
print(opener.open(with_deadly_program(folder / "deadly")))
opening._TIMEOUT_S = 1
opening.run_each = lambda *_: signal.pause()
print(opener.open(FROZEN))
"""


@mark.e2e
def test_what_the_fuzzer_looks_for_is_seen(tmp_path):
    """
    Each outcome is recognized: the same answers, others that pass the goldens, a server's end, and an endless child.
    """
    done = subprocess.run(
        [sys.executable, "-c", _UNLIKE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout.splitlines() == [
        "same answers",
        "other answers",
        "server: SIGSEGV",
        "child: SIGALRM",
    ], done.stderr


def test_alterations_are_the_same_for_a_seed(tmp_path):
    """
    A seed returns the same alteration again, and always one.
    """
    for number in range(30):
        first, second = tmp_path / f"{number}a", tmp_path / f"{number}b"
        names = [mutate(FROZEN, out, seeded(number)) for out in (first, second)]
        (name,) = set(names)
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).read_bytes() != (FROZEN / name).read_bytes()


def test_accidents_are_refused(tmp_path):
    """
    Not one alteration is accepted where the digest is required and digests are unchanged.
    """
    digest = f"sha256:{open_bundle(FROZEN).digest}"
    passed = []
    for number in range(60):
        out = tmp_path / str(number)
        name = mutate(FROZEN, out, seeded(number))
        try:
            open_bundle(out, require_digest=digest).check()
            passed.append((number, name))
        except BundleError:
            pass

    assert passed == []


def test_forgery_has_digests_that_match(tmp_path):
    """
    Alterations with matching digests reach the parsers, which refuse them.
    """
    number = 0
    while (name := mutate(FROZEN, tmp_path / str(number), seeded(number))) == MANIFEST:
        number += 1

    forge(tmp_path / str(number), name)

    open_bundle(tmp_path / str(number)).check()


@mark.parametrize(
    ("outcome", "expected"),
    [
        param("server: SIGSEGV", True),
        param("server: exit status 1", True),
        param("accident accepted", True),
        param("child: SIGSEGV", False),
        param("refused", False),
        param("same answers", False),
    ],
)
def test_what_must_never_be_is_distinguished(outcome, expected):
    """
    A server that ended, or an accepted alteration, makes the run fail; a child that ended does not.
    """
    assert bad(outcome) is expected
    assert outcome in table([(0, "programs/b1.exported", outcome)])


def test_table_takes_the_place_of_the_last_one(tmp_path):
    """
    A run writes its table into a page, and leaves the text around it.
    """
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")

    put_into(
        page, table([(0, "golden/0.safetensors", "refused"), (1, "manifest.json", "child: X")])
    )

    assert page.read_text() == (
        f"before\n{BEGIN}"
        "| altered | refused | same answers | other answers | child: X |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| golden | 1 | 0 | 0 | 0 |\n"
        "| manifest | 0 | 0 | 0 | 1 |\n"
        "\n"
        "2 alterations: 0 ended the server, 0 accidents were accepted; 0 forgeries answered "
        f"otherwise and passed the goldens\n{END}after\n"
    )
