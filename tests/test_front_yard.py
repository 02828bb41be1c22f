"""A newcomer's pages: links resolve, commands exist, versions agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from pytest import mark

from runtime.promises import JAX_BUILD_DATES
from tests.serving import ROOT

PAGES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "tests/README.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*/README.md")),
)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
USAGE = (ROOT / "build.sh").read_text().partition("<<'TEXT'\n")[2].partition("\nTEXT\n")[0]
CI = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page, text):
    """Return the links of a page that lead to no file, or to no heading of a page."""
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


@mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Each link to a file or heading of the repository resolves."""
    assert list(dead_links(page, (ROOT / page).read_text())) == []


def test_a_dead_link_is_found():
    """A missing file and a missing heading are found; links to other sites are not checked."""
    text = (
        "[a](no.md) [b](docs/glossary.md#nothing) [c](docs/glossary.md#a-request) [d](https://x.y)"
    )

    assert list(dead_links("README.md", text)) == ["no.md", "docs/glossary.md#nothing"]


def test_workflows_and_pages_call_commands_that_exist():
    """Every `./build.sh COMMAND` of the workflow and the pages is one that its usage has."""
    known = set(re.findall(r"^  (\w+) ", USAGE, re.MULTILINE))
    texts = (CI, *((ROOT / page).read_text() for page in PAGES))
    called = {name for text in texts for name in re.findall(r"\./build\.sh (\w+)", text)}

    assert called <= known
    assert {"check", "test", "wheel"} <= set(re.findall(r"run: \./build\.sh (\w+)", CI))


def test_the_workflow_tests_the_pythons_that_it_names():
    """Each Python of the matrix is what ./build.sh takes, the oldest supported one among them."""
    job = yaml.safe_load(CI)["jobs"]["test"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    versions = {entry["python"] for entry in job["strategy"]["matrix"]["include"]}
    assert project["requires-python"].removeprefix(">=") in versions


def test_the_oldest_jax_is_named_alike():
    """The workflow and the steps of a release test the oldest jax that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [oldest] = re.findall(r"jax>=([\d.]+),", " ".join(project["dependencies"]))

    for text in (CI, (ROOT / "RELEASING.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()):
        assert set(re.findall(r"--jax ([\d.]+)", text)) == {oldest}


def test_the_locked_jax_has_a_build_date():
    """A bundle that is written with the locked jax gets its compatibility windows."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    versions = {package["version"] for package in locked if package["name"] in ("jax", "jaxlib")}

    assert versions <= set(JAX_BUILD_DATES)


@mark.parametrize("package", ["export", "hloserve", "runtime", "server"])
def test_packages_say_that_they_are_typed(package):
    """A type checker of another project reads the annotations of the installed packages."""
    assert (ROOT / package / "py.typed").is_file()


def test_hooks_call_tools_that_are_installed():
    """Each hook of pre-commit runs a program of the environment that ./build.sh setup makes."""
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = [hook["entry"].split()[0] for hook in local["hooks"]]

    assert local["repo"] == "local"
    assert {tool.rpartition("/")[0] for tool in tools} == {".venv/bin"}
    assert [
        tool for tool in tools if not Path(sys.executable).with_name(Path(tool).name).exists()
    ] == []


def test_the_usage_has_every_command():
    """Each command that build.sh runs has a line in its usage."""
    script = (ROOT / "build.sh").read_text().rpartition('case "$command" in')[2]
    commands = set(re.findall(r"^(\w+)\)", script, re.MULTILINE))

    assert commands <= set(re.findall(r"^  (\w+) ", USAGE, re.MULTILINE))


def test_a_stage_prints_its_minutes(tmp_path):
    """A stage runs its command and prints the minutes that it took; one that fails ends the run."""
    source = (ROOT / "build.sh").read_text()
    functions = re.findall(r"^(?:say|stage)\(\) \{.*?\}$", source, re.DOTALL | re.MULTILINE)
    assert len(functions) == 2
    script = tmp_path / "stages.sh"
    script.write_text(
        "set -euo pipefail\n" + "\n".join(functions) + "\n"
        "later() { SECONDS=$((SECONDS + 90)); }\n"
        'stage "unit tests" later\nstage wrong false\nstage never true\n'
    )

    ran = subprocess.run(["bash", script], capture_output=True, text=True)

    assert (ran.returncode, ran.stderr) == (1, "   1.5 min  unit tests\n")
