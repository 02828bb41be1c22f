"""How long a server takes to be ready, with nothing kept, and with what an earlier start kept."""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_STAGE = re.compile(r"startup: (.+?) +([\d.]+) s$")


@contextlib.contextmanager
def served(
    bundle: Path, device: str, *options: str, quiet: bool = False
) -> Iterator[tuple[int, dict[str, float]]]:
    """Run the server; yields its port, and the seconds of its stages once it is ready."""
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    command = [sys.executable, "-m", "server", "--bundle", str(bundle), "--device", device]
    command += ["--host", "127.0.0.1", "--port", "0", "--grpc-port", "-1", *options]
    environment = {**os.environ, "HLOSERVE_REQUIRE_DIGEST": f"sha256:{digest}"}
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    stages: dict[str, float] = {}
    with process:
        try:
            for line in process.stdout:
                if not quiet:
                    print(line, end="", flush=True)
                if found := _STAGE.search(line.rstrip()):
                    stages[found[1]] = float(found[2])
                if "ready: " in line:
                    break
            else:
                raise SystemExit("error: the server did not become ready")
            stages["ready"] = time.perf_counter() - begin
            yield int(line.partition("127.0.0.1:")[2].partition("/")[0]), stages
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def starts(
    bundle: Path,
    device: str,
    devices: Sequence[str],
    cache: Path,
    allows: Callable[[str, float], bool],
) -> list[dict[str, Any]]:
    """Start a server three times: with no cache, with an empty one, and with what that has then.

    Args:
      bundle: to serve.
      device: of the server.
      devices: further options, such as `--devices all`.
      cache: an empty folder; has the programs afterwards, where there was time.
      allows: whether there is time for something that takes so many seconds.
    """
    found: list[dict[str, Any]] = []
    for name, options in (
        ("no cache", ()),
        ("empty cache", ("--cache-dir", str(cache))),
        ("cached", ("--cache-dir", str(cache))),
    ):
        if found and not allows(f"start, {name}", found[-1]["ready"]):
            continue
        with served(bundle, device, *devices, *options, quiet=True) as (_, stages):
            found.append({"start": name, **stages})
        print(f"start, {name}: {found[-1]['ready']:.1f} s", flush=True)
    return found
