"""What one queue in front of several devices costs, with 1, 2 and 4 of them.

    python -m bench.devices [--rounds R] [--seconds S] [--program-ms MS] [--connections N,…] [--save]

A CPU is divided into devices. Each program waits beside its work, with the interpreter released, as
it would for an accelerator: so the devices do not take each other's cores, and what is left between
their rate and the server's is the queue, the threads, and the clients on the same machine. Rounds
are in shuffled order; medians.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench import results
from bench.machine import heading
from export import export_model
from runtime.bundle import open_bundle
from runtime.description import columns
from server.bench.cli import requests_of
from server.bench.load_generator import send

BUCKET = 8
DEVICES = (1, 2, 4)
# The server, but each program takes so long on its device.
SERVER = """
import runpy, sys, time
from runtime.program import Program

call, seconds = Program.call, float(sys.argv.pop(1))

def slowly(*arguments):
    time.sleep(seconds)
    return call(*arguments)

Program.call = slowly
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""


def export(folder: Path) -> Path:
    """Export a small model with one bucket."""
    weights = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    export_model(
        lambda params, x: x @ params["w"],
        {"w": weights},
        inputs=["x:float32[_,64]"],
        buckets=(BUCKET,),
        name="small",
        out=folder / "bundle",
    )
    return folder / "bundle"


@contextlib.contextmanager
def served(bundle: Path, devices: int, program_s: float):
    """Run the server; yields its port and process id."""
    flags = f"--xla_force_host_platform_device_count={max(DEVICES)}"
    chosen = ",".join(map(str, range(devices)))
    command = [sys.executable, "-c", SERVER, str(program_s), "--bundle", str(bundle)]
    command += ["--devices", chosen, "--host", "127.0.0.1", "--port", "0", "--grpc-port", "-1"]
    command += ["--drain-delay-s", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": flags}
    ) as process:
        try:
            for line in process.stdout:
                if "ready: " in line:
                    break
            else:
                raise SystemExit("error: the server did not become ready")
            yield int(line.partition("127.0.0.1:")[2].partition("/")[0]), process.pid
        finally:
            process.terminate()  # a job in the background may have SIGINT ignored
            process.communicate()


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(bundle: Path, devices: int, connections: int, seconds: float, program_s: float):
    """Return requests a second, and processor µs of the server for each, with one row a request."""
    requests = requests_of(open_bundle(bundle), 1)
    with served(bundle, devices, program_s) as (port, pid):
        before = cpu_s(pid)
        found = asyncio.run(send("127.0.0.1", port, requests, connections, seconds))
        # The load's first part, which warms up, is in the one and not in the other.
        answered = found.per_second * seconds * 1.2
        spent = cpu_s(pid) - before
    assert not found.failed
    return found.per_second, spent / answered * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.devices", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each figure; default: 3")
    parser.add_argument("--program-ms", type=float, default=10.0, help="default: 10")
    parser.add_argument("--connections", default="1,32,64", metavar="N,…", help="default: 1,32,64")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/devices-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    program_s = arguments.program_ms / 1e3
    connections = [int(part) for part in arguments.connections.split(",")]
    todo = [(d, c) for d in DEVICES for c in connections] * arguments.rounds
    np.random.default_rng(0).shuffle(todo)
    found = {(d, c): [] for d in DEVICES for c in connections}
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder))
        for devices, clients in todo:
            one = measured(bundle, devices, clients, arguments.seconds, program_s)
            found[devices, clients].append(one)
            print(f"{devices} devices, {clients} connections: {one[0]:,.0f} requests/s", flush=True)
    rows = []
    for (devices, clients), several in found.items():
        rate, spent = (statistics.median(part) for part in zip(*several, strict=True))
        # No more rows than clients can be with the devices.
        most = min(clients, devices * BUCKET) / program_s
        rows.append((devices, clients, rate, rate / most, spent))
    header = ("devices", "connections", "requests/s", "of the devices'", "server's CPU a request")
    lines = [
        (str(d), str(c), f"{rate:,.0f}", f"{part:.2f}", f"{spent:.0f} µs")
        for d, c, rate, part, spent in rows
    ]
    print(f"\n{heading()}\n\n{columns([header, *lines])}")
    if arguments.save:
        panels = {}
        for devices, clients, rate, *_ in rows:
            panels.setdefault(f"{clients} connections", {})[f"{devices} devices"] = rate
        title = f"Requests a second before devices whose programs take {arguments.program_ms:g} ms"
        figures = {"title": title, "unit": "requests per second", "panels": panels}
        results.save(
            "devices", {**figures, "rows": [dict(zip(header, row, strict=True)) for row in rows]}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
