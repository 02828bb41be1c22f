"""Use the installed wheel as a new user does: export, verify, serve, ask.

`./build.sh wheel` runs it with the Python of an environment that has the wheel and what it requires,
and nothing of this checkout.
"""

import importlib.metadata
import json
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

TIMEOUT_S = 120
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
    """Run a module of the wheel in a folder; exit with its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def ask(server, port):
    """Send a request to a server once its log reports ready; return its response."""
    if not any("ready: " in line for line in server.stdout):
        sys.exit(f"error: the server ended with exit status {server.wait()} before it was ready")
    body = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()
    url = f"http://127.0.0.1:{port}/predict"
    with urllib.request.urlopen(url, body, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def main():
    """Run all steps; exit with a line that names the wheel."""
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
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            try:
                answer = ask(server, port)
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
