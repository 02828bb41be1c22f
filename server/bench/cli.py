"""`python -m server bench`: a load test: throughput and latency of a bundle on this machine.

It starts a server in a separate process, with the options that follow, and sends the inputs of
the bundle's goldens, as JSON, over an increasing number of connections.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from runtime.bundle import Bundle, open_bundle
from runtime.child_process import module_command
from runtime.commandline import Parser, add_version, seconds, to_read
from runtime.description import columns
from runtime.errors import BundleError, printable
from runtime.invocation import error_line, spelled
from runtime.records.golden_instances import golden_instances
from server.bench.advice import Counts, advise, read_counts
from server.bench.load_generator import LoadResult, post, send
from server.cpu_limits import cores_here
from server.signals import exiting_on_signals

_MAX_REQUESTS = 64
_GET_S = 60.0
# As the server logs them: what it chose and why, or several once all listen.
_PROCESSES = re.compile(r"processes: (\d+)(?:, since (.+))?$")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the load test; return the exit status."""
    arguments, options = _split(argv)
    try:
        bundle = open_bundle(arguments.bundle)
        requests = requests_of(bundle, arguments.rows)
        measured = []
        for devices in arguments.devices or [0]:
            chosen = ["--devices", ",".join(map(str, range(devices)))] if devices else []
            with (
                exiting_on_signals(),
                _server(str(arguments.bundle), [*options, *chosen], environ) as server,
            ):
                measured += [
                    Measured(devices, *_measure(server, bundle, requests, connections, arguments))
                    for connections in arguments.connections
                ]
    except (BundleError, ConnectionError) as error:
        print(error_line(printable(str(error))), file=sys.stderr)
        return 3
    if arguments.json:
        print(json.dumps([_as_json(one, arguments.rows) for one in measured]))
    else:
        print(table(measured, arguments.rows))
        busiest = max(measured, key=lambda one: one.load.connections)
        print(f"\nwith {busiest.load.connections} connections:", *busiest.advice, sep="\n  ")
    return 1 if any(one.load.failed for one in measured) else 0


class Started(NamedTuple):
    """A server that is ready.

    Attributes:
      port: of HTTP.
      processes: that it has.
      reason: for their number, where it chose that itself.
    """

    port: int
    processes: int = 1
    reason: str = ""


class Measured(NamedTuple):
    """A measurement.

    Attributes:
      devices: that the server had; 0 for those of its own options.
      load: what the clients saw.
      advice: what would answer more.
    """

    devices: int
    load: LoadResult
    advice: Sequence[str] = ()


_USAGE = "python -m server bench --bundle DIR [option …] [-- server option …]"
_ABOUT = """\
Start a server of this bundle, ask it with the inputs of the bundle's goldens, and say how many
requests it answers, how soon, and what would answer more: processes, queue delay, buckets. The load is
generated on this machine, and takes its share of it.
"""
_EXAMPLES = """\
examples:
  python -m server bench --bundle bundle/
  python -m server bench --bundle bundle/ --connections 64 --rows 8 -- --max-queue-delay-ms 2
  python -m server bench --bundle bundle/ --devices 1,2,4 -- --device cuda

What follows -- are the server's options; see python -m server --help.

exit status:
  0  every request was answered
  1  some were refused or failed
  2  the command line is wrong, or a package is missing
  3  the bundle cannot be served
"""


def parser() -> Parser:
    """Make the parser of `python -m server bench`."""
    made = Parser(
        prog=spelled("python -m server bench"),
        usage=spelled(_USAGE),
        description=_ABOUT,
        epilog=spelled(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_version(made)
    made.add_argument(
        "--bundle",
        required=True,
        type=to_read,
        metavar="DIR",
        help=spelled("directory that python -m export wrote"),
    )
    load = made.add_argument_group("load")
    load.add_argument(
        "--connections",
        type=_counts,
        default=[1, 16, 64],
        metavar="N,…",
        help="connections at once, each with one request under way; one measurement for each "
        "number (default: 1,16,64)",
    )
    load.add_argument(
        "--seconds",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="length of a measurement, after a fifth of it to warm up (default: 5)",
    )
    load.add_argument(
        "--rows", type=_count, default=1, metavar="ROWS", help="instances a request (default: 1)"
    )
    load.add_argument(
        "--devices",
        type=_counts,
        default=[],
        metavar="N,…",
        help="numbers of devices to serve from; a server and all measurements for each number "
        "(default: those of the server's options)",
    )
    output = made.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the figures for machines")
    return made


def _split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    words = list(argv)
    options = words[words.index("--") + 1 :] if "--" in words else []
    return parser().parse_args(words[: len(words) - len(options) - bool("--" in words)]), options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def requests_of(bundle: Bundle, rows: int) -> list[bytes]:
    """Return requests with the rows of the bundle's goldens as instances.

    Args:
      bundle: whose goldens are read.
      rows: of each request.
    """
    instances = golden_instances(bundle)
    requests = []
    for start in range(min(len(instances), _MAX_REQUESTS)):
        some = [instances[(start + i) % len(instances)] for i in range(rows)]
        body = orjson.dumps({"instances": some}, option=orjson.OPT_SERIALIZE_NUMPY)
        requests.append(post("/predict", body))
    return requests


@contextlib.contextmanager
def _server(bundle: str, options: Sequence[str], environ: Mapping[str, str]) -> Iterator[Started]:
    """Run a server within the context; yield it once it is ready.

    Raises:
      ConnectionError: it never was.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = [*module_command("server"), "--bundle", bundle, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--predict-route", "/predict", *options]
    process = subprocess.Popen(  # noqa: S603 (our own server)
        command,
        env={**environ, "HLOSERVE_GRPC_PORT": "-1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines, started = process.stdout or (), Started(port)
    with process:
        try:
            for line in lines:
                print(line, end="", file=sys.stderr)
                if found := _PROCESSES.search(line):
                    started = Started(port, int(found[1]), found[2] or started.reason)
                if "ready: http" in line:
                    break
            else:
                raise ConnectionError("the server did not become ready")
            yield started
        finally:
            process.send_signal(signal.SIGINT)
            for _ in lines:  # until it has said its last
                pass


def _measure(
    server: Started,
    bundle: Bundle,
    requests: Sequence[bytes],
    connections: int,
    arguments: argparse.Namespace,
) -> tuple[LoadResult, list[str]]:
    """Send a load; return its result, and what would answer more."""
    port = server.port
    name = bundle.manifest.name
    before = _server_counts(port, name)
    begin = time.monotonic()
    result = asyncio.run(send("127.0.0.1", port, requests, connections, arguments.seconds))
    taken = time.monotonic() - begin
    after = _server_counts(port, name)
    if before is None or after is None:
        return result, ["the server's counts could not be read"]
    counts = after.since(before)
    advice = advise(
        counts,
        requests=max(1, counts.rows // arguments.rows),
        seconds=taken,
        under_way=connections * arguments.rows,
        buckets=bundle.manifest.buckets,
        cores=cores_here(),
        processes=server.processes,
        chosen=server.reason,
    )
    return result, advice


def _server_counts(port: int, name: str) -> Counts | None:
    """Return the server's counts of all processes; None if it has none."""
    statistics = _get(port, f"/v2/models/{name}/stats")
    if statistics is None:
        return None
    return read_counts(json.loads(statistics), _get(port, "/metrics") or "")


def _get(port: int, path: str) -> str | None:
    """Return what the server answers; None if it is not there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_GET_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        return text if response.status == http.HTTPStatus.OK else None


def _as_json(measured: Measured, rows: int) -> dict[str, Any]:
    figures = measured.load
    return {
        **({"devices": measured.devices} if measured.devices else {}),
        "connections": figures.connections,
        "requests_per_s": figures.per_second,
        "rows_per_s": figures.per_second * rows,
        "p50_ms": figures.quantile(0.5) * 1e3,
        "p99_ms": figures.quantile(0.99) * 1e3,
        "failed": figures.failed,
        "advice": list(measured.advice),
    }


def table(results: Sequence[Measured], rows: int) -> str:
    """Return the results as a table of text; of several numbers of devices, compared with the first."""
    compared = any(one.devices for one in results)
    header = ("connections", "requests/s", "rows/s", "p50", "p99", "failed")
    lines = [
        (
            *((str(devices), f"{_gain(f, results):.2f}") if compared else ()),
            str(f.connections),
            f"{f.per_second:,.0f}",
            f"{f.per_second * rows:,.0f}",
            f"{f.quantile(0.5) * 1e3:.2f} ms",
            f"{f.quantile(0.99) * 1e3:.2f} ms",
            str(f.failed),
        )
        for devices, f, _ in results
    ]
    return columns([(*(("devices", "of first") if compared else ()), *header), *lines])


def _gain(figures: LoadResult, results: Sequence[Measured]) -> float:
    """Return how many times the requests of the first number of devices were answered."""
    first = next(one.load for one in results if one.load.connections == figures.connections)
    return figures.per_second / first.per_second if first.per_second else math.nan
