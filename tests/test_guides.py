"""Pages that lead through several steps: their commands print what is shown, in order."""

import os
import re
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import yaml
from pytest import approx, mark

from runtime import load
from tests.guide import alike, blocks, commands, make_tools, run_command
from tests.serving import ROOT, TIMEOUT_S, free_port

DOCS = ROOT / "docs"
# Where the pages have servers listen.
PORTS = ("5000", "8000", "8001", "8080", "8501")
PAGES = (
    "batch.md",
    "export.md",
    "frameworks.md",
    "getting-started.md",
    "migration/flask.md",
    "migration/litserve.md",
    "migration/tensorflow-serving.md",
    "migration/triton.md",
)


class Reader:
    """A reader who follows a page in a folder of its own, on free ports.

    Args:
      folder: to work in.
    """

    def __init__(self, folder):
        self._folder = folder
        self._ports = {shown: str(free_port()) for shown in PORTS}
        tools = make_tools(folder / "bin", "http://127.0.0.1:0")
        flask = tools / "flask"
        flask.write_text(f'#!/bin/bash\nexec {sys.executable} -m flask "$@"\n')
        flask.chmod(0o755)
        self._environ = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HLOSERVE_PORT": self._ports["8080"],
            "HLOSERVE_GRPC_PORT": self._ports["8001"],
            "HLOSERVE_DRAIN_DELAY_S": "0.1",
        }
        self._servers = []

    def here(self, text):
        """Put the ports of here in the place of the page's."""
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda match: self._ports[match[0]], text)

    def python(self, block):
        """Write a block that begins with a name to that file, and run it if a `text` follows."""
        named = re.match(r"# (\S+\.py)\n", block)
        path = self._folder / (named[1] if named else "block.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.here(block))
        return path, bool(named)

    def run(self, command, shown=""):
        """Run a command, and compare what it prints with what is shown."""
        command = self.here(command)
        if command.endswith("&"):
            process = ["bash", "-c", f"exec {command.removesuffix('&')}"]
            self._servers.append(
                subprocess.Popen(
                    process, cwd=self._folder, env=self._environ, start_new_session=True
                )
            )
            return
        status, printed = run_command(command, self._folder, self._environ)
        assert status == 0, command
        assert alike(self.here(shown), printed), f"$ {command}\n{printed}"

    def close(self):
        """Stop the servers as Ctrl-C in a terminal would: they and their children."""
        for process in self._servers:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(TIMEOUT_S)


@mark.e2e
@mark.parametrize("page", PAGES)
def test_the_page_goes_as_it_shows(page, tmp_path):
    """Every file of the page runs, and every command prints what stands there."""
    reader = Reader(tmp_path)
    found = blocks((DOCS / page).read_text())
    written = {language for language, _ in found}
    assert {"python", "console"} <= written
    try:
        for (language, block), (following, text) in zip(found, [*found[1:], ("", "")], strict=True):
            if language == "python":
                path, named = reader.python(block)
                printed = text if following == "text" and not text.startswith("#") else ""
                if printed or not named or path.name in {"save.py", "train.py"}:
                    reader.run(f"python {path.name}", printed)
            elif language == "console":
                for command, shown in commands(block):
                    reader.run(command, shown)
    finally:
        reader.close()


def stand_in():
    """Return a module with what a Triton model uses of its backend."""
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = lambda name, array: SimpleNamespace(name=name, as_numpy=lambda: array)
    module.InferenceResponse = lambda tensors: SimpleNamespace(tensors=tensors)
    module.get_input_tensor_by_name = lambda request, name: request[name]
    return module


@mark.e2e
def test_the_old_triton_model_answers_as_the_bundle_does(tmp_path, monkeypatch):
    """What the page has in Triton's repository computes what the page exports."""
    found = [block for language, block in blocks((DOCS / "migration/triton.md").read_text())]
    old, new = (
        next(block for block in found if block.startswith(f"# {name}\n"))
        for name in ("models/iris/1/model.py", "model.py")
    )
    backend = stand_in()
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.9, 3.2, 5.7, 2.3]], np.float32)
    names = {}
    exec(old, names)  # noqa: S102
    model = names["TritonPythonModel"]()
    model.initialize({})
    [response] = model.execute([{"x": backend.Tensor("x", rows)}])
    (tmp_path / "model.py").write_text(new)
    command = [sys.executable, "-m", "export", "model.py:spec", "--out", "bundle"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)

    [scores] = response.tensors
    answers = load(tmp_path / "bundle", "cpu").predict({"x": rows})

    assert answers[scores.name] == approx(scores.as_numpy(), rel=1e-5)


def test_the_page_of_monitoring_names_every_alert():
    """The page's table has each alert, in the order of the rules."""
    [rules] = yaml.safe_load_all((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())
    alerts = [rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]]

    assert (
        re.findall(r"^\| `(\w+)` \|", (DOCS / "monitoring.md").read_text(), re.MULTILINE) == alerts
    )
