"""Use the installed wheel as a new user does: export, verify, serve, ask.

`./build.sh wheel` runs it with the Python of an environment that has the wheel and what it requires,
and nothing of this checkout.
"""

import contextlib
import importlib.metadata
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

START_TIMEOUT_S = 120
MODEL = """
import jax
from flax import nnx

from export import ExportSpec


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


spec = ExportSpec(
    model=Classifier(nnx.Rngs(0)),
    inputs=["x:float32[_,4]"],
    output="classification:logits",
    labels=("red", "green", "blue"),
    buckets=(1, 4),
)
"""


def run(folder, *command):
    """Run a module of the wheel in a folder; end with what it printed where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def ask(port):
    """Ask a server until it is ready; return its answer."""
    body = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, OSError):
            url = f"http://127.0.0.1:{port}/predict"
            with urllib.request.urlopen(url, body, timeout=10) as answer:
                return json.load(answer)
        time.sleep(0.2)
    return sys.exit("error: the server did not become ready")


def main():
    """Go through it; end with a line that says which wheel this was."""
    version = importlib.metadata.version("hloserve")
    with tempfile.TemporaryDirectory() as folder:
        where = [Path(sys.prefix) in Path(line).parents for line in places(folder)]
        if not all(where):
            sys.exit("error: expected the packages of the wheel, got those of a checkout")
        (Path(folder) / "model.py").write_text(MODEL)
        run(folder, "export", "model.py:spec", "--out", "bundle")
        run(folder, "hloserve", "verify", "bundle")
        if (printed := run(folder, "server", "--version")) != f"hloserve {version}\n":
            sys.exit(f"error: expected hloserve {version}, got {printed}")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ("--host", "127.0.0.1", "--port", str(port), "--grpc-port", "-1")
        command = [sys.executable, "-m", "server", "--bundle", "bundle", *options]
        with subprocess.Popen(command, cwd=folder) as server:
            try:
                answer = ask(port)
            finally:
                server.send_signal(signal.SIGINT)
    if server.returncode != 0 or answer["predictions"][0]["label"] not in ("red", "green", "blue"):
        sys.exit(f"error: exit status {server.returncode}, answer {answer}")
    print(f"ok: the wheel of hloserve {version} exports, verifies, serves and answers")


def places(folder):
    """Return the file of each package that Python finds from a folder."""
    names = ("export", "hloserve", "runtime", "server")
    code = "; ".join(f"import {name}; print({name}.__file__)" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


if __name__ == "__main__":
    main()
