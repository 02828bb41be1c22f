"""Tests are in the places where a reader looks for them."""

import re
import subprocess
from pathlib import Path

from pytest import mark

from tests.serving import ROOT

README = (ROOT / "tests" / "README.md").read_text()
ROWS = dict(re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", README, re.MULTILINE))
# Longer files test more than one thing.
MAX_LINES = 500


def listed(*patterns):
    """List files of the repository."""
    command = ["git", "ls-files", *patterns]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # a copy without its history
        return [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)]
    return found.split()


def modules():
    """List the modules that have tests: all but packages and what is generated."""
    files = listed("export/*.py", "hloserve/*.py", "runtime/*.py", "server/*.py")
    return [f for f in files if not f.endswith(("__init__.py", "_pb2.py"))]


def test_every_module_has_a_file_of_tests_or_a_row():
    """Each module is tested in the file of its name, or the table says where."""
    lost = [
        module
        for module in modules()
        if not (ROOT / "tests" / module).with_name(f"test_{Path(module).name}").exists()
        and module not in ROWS
    ]

    assert lost == []


def test_rows_are_of_what_there_is():
    """The table names modules and files of tests that exist."""
    named = [file for cell in ROWS.values() for file in re.findall(r"`([^`]+)`", cell)]

    assert [module for module in ROWS if not (ROOT / module).exists()] == []
    assert [file for file in named if not (ROOT / "tests" / file).exists()] == []


@mark.parametrize("file", listed("tests/*.py"))
def test_files_of_tests_are_read_at_once(file):
    """No file of tests exceeds the limit of lines."""
    assert len((ROOT / file).read_text().splitlines()) <= MAX_LINES


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
# The paragraphs that lead through five files each, in one line.
TOURS = [
    " ".join(paragraph.split())
    for paragraph in re.findall(
        r"^An export: .*?\n\n|^A request: .*?\n\n", ARCHITECTURE, re.MULTILINE | re.DOTALL
    )
]


@mark.parametrize("tour", TOURS, ids=["export", "request"])
def test_a_tour_finds_what_it_names(tour):
    """Each of the five files is there, and defines what the tour names of it."""
    _, *walked = re.split(r"`([\w/]+\.py)`", tour)
    folder = ""
    for file, said in zip(walked[::2], walked[1::2], strict=True):
        folder = f"{Path(file).parent}/" if "/" in file else folder
        source = (ROOT / folder / Path(file).name).read_text()
        names = re.findall(r"\(`(\w+)`\)", said)
        assert names, file
        assert [n for n in names if not re.search(rf"\b(def|class) {n}\b", source)] == []

    assert len(walked) == 2 * 5


def test_files_of_the_architecture_exist():
    """A file that the page names is in the repository, by its path or in one of the packages."""
    there = {*listed("*.py"), *(Path(file).name for file in listed("*.py"))}

    assert set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE)) - there == set()
