"""The documentation site matches the code, and none of its links is dead."""

import tomllib

from pytest import mark, raises

import export
import runtime
import scripts.troubleshooting as made
from scripts.links import dead_links
from tests.serving import ROOT

NAV = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]


def pages(entry):
    """Return the pages of an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [page for child in children for page in pages(child)]


def test_troubleshooting_is_up_to_date():
    """The page is what its script makes of the code's tables."""
    assert made.PAGE.read_text() == made.page()


def test_a_new_error_code_needs_a_remedy(monkeypatch):
    """An error code without a remedy, and a remedy for no code, end the script by name."""
    monkeypatch.delitem(made.CODE_REMEDIES, "deadline")
    monkeypatch.setitem(made.CODE_REMEDIES, "made_up", "Nothing.")

    with raises(made.NoRemedy) as caught:
        made.page()

    assert str(caught.value) == (
        "error codes: expected a remedy for each and no others, differ in ['deadline', 'made_up']"
    )


def test_a_new_exception_needs_a_remedy(monkeypatch):
    """An exception of the runtime or the exporter without a remedy ends the script by name."""
    monkeypatch.delitem(made.EXCEPTION_REMEDIES, "RowMixing")

    with raises(made.NoRemedy) as caught:
        made.page()

    assert str(caught.value) == "exceptions: expected a remedy for RowMixing"


def test_exit_statuses_are_read_from_the_help():
    """Statuses are read from lines and from clauses; digits within a meaning are left alone."""
    lines = "exit status:\n  0  stopped\n  2  one of 3 ports\n     is taken\n"
    clauses = "Exit status: 0 all is well; 4 goldens do not match, or\nso; 5 no device."

    assert made.statuses(lines) == {"0": "stopped", "2": "one of 3 ports is taken"}
    assert made.statuses(clauses) == {
        "0": "all is well",
        "4": "goldens do not match, or so",
        "5": "no device",
    }


def test_every_page_is_in_the_navigation():
    """The navigation has each page of docs/ once, and no other."""
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}

    assert sorted(pages(NAV)) == sorted(written)


@mark.parametrize("package", [runtime, export], ids=["runtime", "export"])
def test_the_reference_has_every_public_name(package):
    """Each public name of a package has an entry on its page, and nothing else has."""
    text = (ROOT / "docs" / "api" / f"{package.__name__}.md").read_text()
    entries = [line.split()[1] for line in text.splitlines() if line.startswith("::: ")]

    assert sorted(entries) == sorted(f"{package.__name__}.{name}" for name in package.__all__)


def test_dead_links_of_a_site_are_found(tmp_path):
    """Missing pages, images and anchors are found, in the page itself and in others."""
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="a/">a</a> <a href="a/#there">b</a> <a href="https://x.y/z">c</a>'
        '<a href="#top">d</a> <img src="no.svg"> <a href="a/#gone">e</a> <a href="../out">f</a>'
    )
    (tmp_path / "a" / "index.html").write_text('<p id="there"><a href="..#top">x</a> <a href="#y">')

    assert list(dead_links(tmp_path)) == [
        "a/index.html: #y: no such anchor",
        "index.html: no.svg: no such file",
        "index.html: a/#gone: no such anchor",
        "index.html: ../out: no such file",
    ]
