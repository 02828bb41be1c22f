"""The commands of the page on compatibility print what it shows, and its table of tested versions is complete."""

import os
import re
import shutil

from pytest import fixture, mark

from bench.fuzz import __main__ as fuzz
from runtime.customcalls import ALLOWED
from runtime.promises import JAX_BUILD_DATES
from tests import skew
from tests.altered_bundles import FROZEN
from tests.guide import alike, blocks, commands, make_tools, run_command
from tests.keys import make_keys
from tests.serving import ROOT

PAGE = (ROOT / "docs" / "compatibility.md").read_text()


@fixture
def folder(tmp_path):
    """A folder with a bundle and a pair of keys, to work in."""
    shutil.copytree(FROZEN, tmp_path / "bundle")
    make_keys(tmp_path, "key")
    return tmp_path


@mark.e2e
def test_the_page_goes_as_it_shows(folder):
    """Every command of the page runs in its order, and prints what stands there."""
    tools = make_tools(folder / "bin", "http://127.0.0.1")
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ran = 0
    for language, block in blocks(PAGE):
        assert language == "console"
        for command, shown in commands(block):
            status, printed = run_command(command, folder, environ)
            assert (status, alike(shown, printed)) == (0, True), f"$ {command}\n{printed}"
            ran += 1
    assert ran == 6


def test_the_table_of_tries_is_whole():
    """The table has every frozen bundle and both ends of the range, all passed."""
    table = PAGE.split(skew.BEGIN)[1].split(skew.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    oldest, newest = next(iter(JAX_BUILD_DATES)), list(JAX_BUILD_DATES)[-1]
    frozen = [
        "format {}, frozen on {}".format(*folder.name.removeprefix("format-").split("_"))
        for folder in sorted(skew.FROZEN.iterdir())
    ]

    assert rows[0] == ["bundle", f"read by jax {oldest}", f"read by jax {newest}"]
    assert [row[0] for row in rows[-len(frozen) :]] == frozen
    for writer in (oldest, newest):
        assert [
            f"exported by jax {writer}, its wrapper expired",
            *["from `.stablehlo`"] * 2,
        ] in rows
        assert [f"exported by jax {writer}", *["from `.exported`"] * 2] in rows
    assert "FAILED" not in table


def test_the_fuzzers_table_is_of_a_whole_run():
    """The page's result for 2,000 alterations comes from a run, and none of them ended the server."""
    made = PAGE.split(fuzz.BEGIN)[1].split(fuzz.END)[0]
    header, _, *rows, blank, summary = made.splitlines()
    cells = [int(cell) for row in rows for cell in row.split("|")[2:-1]]

    assert sum(cells) == 2000
    assert [row.split("|")[1].strip() for row in rows] == [
        "exported",
        "golden",
        "manifest",
        "params",
        "stablehlo",
    ]
    assert blank == ""
    assert "server" not in header
    assert summary.startswith("2000 alterations: 0 ended the server, 0 accidents were accepted; ")


def test_the_range_of_jax_is_the_one_that_was_tried():
    """The oldest jax that is asked for is the oldest whose build date is known."""
    (oldest,) = re.findall(r'"jax>=([\d.]+),', (ROOT / "pyproject.toml").read_text())

    assert oldest == next(iter(JAX_BUILD_DATES))


def test_the_format_names_where_custom_calls_are_listed():
    """The page and the format's description say where the allowed custom calls are."""
    assert "`runtime/customcalls.py`" in PAGE
    assert "`runtime/customcalls.py`" in (ROOT / "docs" / "bundle-format.md").read_text()
    assert len(ALLOWED) > 80
