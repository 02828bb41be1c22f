"""All of it in one go: train, export, serve, ask; then go on serving until Ctrl-C.

python -m examples.digits.run --port 8080
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_TIMEOUT_S = 120
GRPC_PORT = 8001  # the server's default
MAX_PORT = 65535


HLOSERVE = ("-m", "hloserve")


def show(*command: str) -> list[str]:
    """Show a command as a person would type it; return it as this Python runs it."""
    shown = (
        f"hloserve {shlex.join(command[2:])}"
        if command[:2] == HLOSERVE
        else f"python {shlex.join(command)}"
    )
    print(f"\n$ {shown}", flush=True)
    return [sys.executable, *command]


def run(*command: str) -> None:
    """Show a command and run it."""
    subprocess.run(show(*command), check=True)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_PORT}, got {text!r}")
    return int(text)


def trouble(port: int) -> str:
    """Return why a port cannot be had; nothing if it can."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Ask the health route until it says ready."""
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(0.1)
    sys.exit(f"error: the server did not become ready (exit status {server.poll()})")


def ask(url: str, request: Path, label: Path) -> None:
    """Send one real digit and print the curl line with the answer."""
    body = request.read_bytes()
    image = json.loads(body)["instances"][0]
    print("\nA handwritten digit that training never saw:\n")
    print(
        "\n".join(
            "  " + "".join(" .:-=+*#%@"[pixel * 9 // 255] * 2 for pixel in row) for row in image
        )
    )
    print(f"\n$ curl -d @{request} {url}/predict")
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/predict", body), timeout=30
    ) as answer:
        print(answer.read().decode())
    print(
        f"\nIt is a {label.read_text().strip()}. Serving until Ctrl-C; draw one at {url}/",
        flush=True,
    )


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    # As the server reads it; a flag overrides it.
    usual = os.environ.get("AIP_HTTP_PORT") or "8080"
    parser.add_argument(
        "--port",
        type=_port,
        default=usual,
        metavar="PORT",
        help=f"HTTP port (default: {usual}) [AIP_HTTP_PORT]",
    )
    parser.add_argument("--out", type=Path, default=Path("build/digits"), metavar="DIR")
    arguments = parser.parse_args()
    # Now, before another server's answer passes for ours.
    if why := trouble(arguments.port):
        sys.exit(f"error: port {arguments.port}: {why}; pass --port")
    out = arguments.out
    bundle = str(out / "bundle")
    run("-m", "examples.digits.train", "--out", str(out))
    model = ("examples/digits/model.py:spec", "--params", str(out / "checkpoint"))
    golden = ("--golden", str(out / "golden.npz"))
    run(*HLOSERVE, "export", *model, *golden, "--out", bundle, "--overwrite")
    serve = [*HLOSERVE, "serve", "--bundle", bundle, "--port", str(arguments.port)]
    if trouble(GRPC_PORT):  # any other will do, since it gets no requests here
        serve += ["--grpc-port", "0"]
    with subprocess.Popen(show(*serve)) as server:
        # Ctrl-C reaches the server as well; it ends by itself, and so do we.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        url = f"http://localhost:{arguments.port}"
        wait_until_ready(server, url)
        ask(url, out / "request.json", out / "label.txt")
        return server.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
