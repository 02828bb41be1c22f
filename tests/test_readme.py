"""The README's commands print what it shows."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

from pytest import fixture, mark

from tests.serving import ROOT, free_port

# Stands in for uv: setting up returns the Python that runs the tests.
UV = """#!/bin/bash
mkdir -p "$UV_PROJECT_ENVIRONMENT/bin"
printf '#!/bin/bash\\nexec {python} "$@"\\n' > "$UV_PROJECT_ENVIRONMENT/bin/python"
chmod +x "$UV_PROJECT_ENVIRONMENT/bin/python"
"""


def git(folder, *arguments):
    """Run git in a repository, without the user's settings; return what it prints."""
    isolated = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
    env = {**os.environ, **isolated}
    return subprocess.check_output(command, env=env, cwd=folder, text=True)


@fixture
def checkout(tmp_path):
    """A repository with a copy of this one's current files, all committed."""
    folder = tmp_path / "checkout"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=ROOT, text=True).rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all of it")
    return folder


def transcript():
    """Return the README's transcript of a first run, line by line."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for line in blocks[1].splitlines() if line]


def begins(lines):
    """Return the first words of each command that is shown."""
    return [line.split()[:4] for line in lines if line.startswith(("$ python ", "$ hloserve "))]


@fixture
def taken_grpc_port():
    """gRPC's default port is taken: by this test, or a process before it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("", 8001)))
        yield


@mark.e2e
@mark.usefixtures("taken_grpc_port")
def test_the_first_run_goes_as_the_readme_shows(checkout, tmp_path):
    """
    Training, export, server and answer come out as in the README's transcript, whatever process has
    gRPC's default port, and leave nothing behind that git would show.
    """
    uv = tmp_path / "uv"
    uv.write_text(UV.format(python=sys.executable))
    uv.chmod(0o755)
    port = free_port()
    with subprocess.Popen(
        ["./build.sh", "run", "--port", str(port)],
        cwd=checkout,
        env={**os.environ, "PATH": f"{uv.parent}:{os.environ['PATH']}"},
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
    assert begins(lines) == begins(transcript())
    assert "--grpc-port 0" in output
    accuracy = re.search(r"held-out accuracy (0\.\d+) on 360 digits", output)
    assert float(accuracy[1]) > 0.97
    label = re.search(r"It is a (\d)\.", output)[1]
    assert f'{{"predictions":[{{"label":"{label}","confidence":0.9' in output
    assert (checkout / "build" / "digits" / "bundle" / "manifest.json").is_file()
    assert git(checkout, "status", "--porcelain") == ""
    assert lines[-1].endswith(f"; draw one at http://localhost:{port}/\n")


@mark.e2e
@mark.parametrize("way", ["flag", "variable"])
def test_a_taken_port_ends_the_first_run_before_it_begins(tmp_path, way):
    """Another server's response is never taken for ours, whichever way its port was set."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        named = ["--port", str(port)] if way == "flag" else []
        ran = subprocess.run(
            [sys.executable, "-m", "examples.digits.run", *named, "--out", tmp_path],
            cwd=ROOT,
            env={**os.environ, "AIP_HTTP_PORT": "none" if way == "flag" else str(port)},
            capture_output=True,
            text=True,
        )

    assert ran.returncode == 1
    assert ran.stderr == f"error: port {port}: Address already in use; pass --port\n"
    assert list(tmp_path.iterdir()) == []
