"""What the README shows is what happens."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from pytest import mark

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def transcript():
    """Give the README's transcript of a first run, line by line."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for line in blocks[1].splitlines() if line]


@mark.e2e
def test_the_first_run_goes_as_the_readme_shows(tmp_path):
    """Training, export, server and answer come out as in the README's transcript."""
    command = [sys.executable, "-m", "examples.digits.run"]
    with subprocess.Popen(
        [*command, "--port", str(free_port()), "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Serving until Ctrl-C" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    output = "".join(lines)

    assert process.returncode == 0
    commands = [line.split()[:4] for line in transcript() if line.startswith("$ python")]
    assert [line.split()[:4] for line in lines if line.startswith("$ python")] == commands
    accuracy = re.search(r"held-out accuracy (0\.\d+) on 360 digits", output)
    assert float(accuracy[1]) > 0.97
    label = re.search(r"It is a (\d)\.", output)[1]
    assert f'{{"predictions":[{{"label":"{label}","confidence":0.9' in output


@mark.e2e
def test_a_taken_port_ends_the_first_run_before_it_begins(tmp_path):
    """Another server's answer is never shown as ours."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-m", "examples.digits.run", "--port", str(port), "--out", tmp_path],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert ran.returncode == 1
    assert ran.stderr == f"error: port {port}: Address already in use; pass --port\n"
    assert list(tmp_path.iterdir()) == []
