"""The commands of the serving guide print what it shows, and its tables are complete."""

import itertools
import os
import re
import signal
import subprocess

from prometheus_client.parser import text_string_to_metric_families
from pytest import fixture, mark

from server.options import options
from server.status import _TABLE, INTERNAL
from tests.guide import alike, blocks, commands, make_tools, run_command, run_python
from tests.server.fakes import FakeModel, Running
from tests.server.flask_client import client_for
from tests.serving import ROOT, TIMEOUT_S, free_port

GUIDE = (ROOT / "docs" / "serving.md").read_text()


def table(first):
    """Return the cells of the guide's table whose first column has this name."""
    rows = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)[1]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows.splitlines()
    ]


class Reader:
    """A reader who follows the guide in a folder of their own, on free ports.

    Args:
      folder: to work in.
    """

    def __init__(self, folder):
        self._folder = folder
        self._ports = {shown: str(free_port()) for shown in ("8080", "8001", "8090")}
        tools = make_tools(folder / "bin", f"http://127.0.0.1:{self._ports['8080']}/predict")
        self._environ = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ENDPOINT": "1234",
            "HLOSERVE_PORT": self._ports["8080"],
            "HLOSERVE_GRPC_PORT": self._ports["8001"],
            "HLOSERVE_DRAIN_DELAY_S": "0.1",
            # As the guide shows it; how many a server chooses depends on the machine.
            "HLOSERVE_PROCESSES": "1",
        }
        self._server = None
        self._others = []

    def here(self, text):
        """Put the ports of here in the place of the guide's."""
        return re.sub(r"\b(8080|8001|8090)\b", lambda match: self._ports[match[0]], text)

    def run(self, command, shown):
        """Run a command of the guide, and compare what it prints with what is shown."""
        command, shown = self.here(command), self.here(shown)
        if command == "hloserve serve --bundle bundle/":
            self._server = self._start(command)
            lines = shown.count("\n") + 1
            printed = "".join(itertools.islice(self._server.stdout, lines))
        elif command.endswith("&"):
            self._others.append(self._start(command.removesuffix("&")))
            return
        else:
            status, printed = run_command(command, self._folder, self._environ)
            assert status == 0, command
        if " bench " in command:  # figures are those of a machine
            shown, printed = (re.sub(r"[\d,.]+", "0", text) for text in (shown, printed))
        assert alike(shown, printed), f"$ {command}\n{printed}"

    def stop_server(self, shown):
        """Stop the server as the guide does last, and read the rest of its log."""
        self._server.send_signal(signal.SIGTERM)
        printed, _ = self._server.communicate(timeout=TIMEOUT_S)
        assert alike(shown.replace("for 5 s", "for 0.1 s"), printed), printed
        assert self._server.returncode == 0

    def close(self):
        """End the processes that still run."""
        for process in filter(None, (self._server, *self._others)):
            process.terminate()
            process.communicate(timeout=TIMEOUT_S)

    def _start(self, command):
        return subprocess.Popen(
            ["bash", "-c", re.sub(r"((?:\w+=\S+ )*)", r"\1exec ", command, count=1)],
            cwd=self._folder,
            env=self._environ,
            stdout=subprocess.PIPE,
            text=True,
        )


@mark.e2e
def test_the_guide_goes_as_it_shows(tmp_path, monkeypatch):
    """Every block of the guide runs in its order, and prints what stands there."""
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path)
    printed, ran = "", 0
    try:
        for language, block in blocks(GUIDE):
            if language == "python":
                printed = run_python(reader.here(block), {})
            elif language == "console":
                for command, shown in commands(block):
                    reader.run(command, shown)
                    ran += 1
            elif "received SIGTERM" in block:
                reader.stop_server(block)
            else:
                assert alike(block, printed), printed
    finally:
        reader.close()
    assert ran > 20


def test_the_guide_names_every_option():
    """The guide's tables have each option with its unit, default, variables and meaning."""
    expected = [
        [
            f"`{option.flag}{'' if option.switch else ' ' + option.unit}`".replace("|", "\\|"),
            option.default,
            ", ".join(f"`{name}{'=0' if option.switch else ''}`" for name in option.variables),
            option.help.replace("python -m runtime", "hloserve"),
        ]
        for option in options()
    ]

    parts = GUIDE.split("\n## Options\n")[1].split("\n### ")[1:]
    groups = [part.splitlines()[0].lower() for part in parts]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for part in parts
        for line in part.splitlines()
        if line.startswith("| `")
    ]

    assert rows == expected
    assert groups == list(dict.fromkeys(option.group for option in options()))


def test_the_guide_names_every_error():
    """The guide's table has each code with its two statuses, as the server has them."""
    statuses = {*_TABLE.values(), INTERNAL}
    expected = {f"`{s.error_code}`": [str(s.http), f"`{s.grpc}`"] for s in statuses}

    assert {row[0]: row[1:3] for row in table("code")} == expected


@fixture
def client():
    """Flask's test client, in front of a model that sums rows."""
    running = Running()
    yield client_for(running, FakeModel())
    running.close()


def test_the_guide_names_every_metric(client):
    """The guide's table has each metric with its labels and its help, as a scrape shows them."""
    client.post("/predict", json={"instances": [[1, 2]]})
    text = client.get("/metrics").get_data(as_text=True)
    expected = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("hloserve_"):
            suffix = "_total" if family.type == "counter" else ""
            labels = {name for sample in family.samples for name in sample.labels} - {"le"}
            expected[family.name + suffix] = labels, family.documentation

    found = {}
    for name, help_ in table("metric"):
        match = re.fullmatch(r"`(\w+)(?:\{(.*)\})?`", name)
        found[match[1]] = set(filter(None, (match[2] or "").split(", "))), help_
    assert found == expected
