"""The parser of `python -m runtime`."""

import argparse
import datetime as dt
import re
from collections.abc import Callable
from typing import Any

from runtime.cli import commands
from runtime.cli.predict import add_arguments, predict
from runtime.cli.target import add_target_options
from runtime.commandline import (
    Parser,
    add_version,
    directory_to_write,
    file_to_write,
    to_read,
)
from runtime.invocation import spelled

_MAX_THREADS = 1024

STATUSES = (
    "Exit status: 0 all is well; 1 doctor: it loads, but a version asked about is not promised to "
    "load it, predict: too many rows were refused; 2 the command line is wrong; 3 the bundle "
    "cannot be used here; 4 goldens do not match, or rows depend on each other; 5 the device is "
    "missing, failed, or has not enough memory."
)


def parser() -> Parser:
    """Make the parser of `python -m runtime`."""
    root = Parser(
        prog=spelled("python -m runtime"),
        description="Predict with a bundle; verify, inspect, bench, examine and refresh it.",
        epilog=STATUSES,
        allow_abbrev=False,
    )
    add_version(root)
    subparsers = root.add_subparsers(
        required=True, metavar="predict|verify|inspect|bench|compile|doctor|refresh"
    )

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
        added = subparsers.add_parser(
            name, help=text, description=f"{name}: {text}.", epilog=STATUSES, allow_abbrev=False
        )
        add_version(added)
        added.add_argument("bundle", type=to_read, metavar="BUNDLE")
        added.add_argument(
            "--require-digest",
            type=_digest,
            metavar="sha256:HEX",
            help="refuse any other bundle: the digest that inspect shows",
        )
        added.set_defaults(run=run)
        return added

    add_arguments(command("predict", predict, "answer the rows of files, into a folder of files"))
    device: dict[str, Any] = {"help": "cpu, cuda, cuda:1 (default: JAX's default device)"}
    verify = command(
        "verify", commands.verify, "run goldens and row-independence probes on this device"
    )
    verify.add_argument("--device", **device)
    verify.add_argument("--json", action="store_true", help="print a report for machines")
    # For the exporter, which has seen the model and not only its programs.
    verify.add_argument("--independent", nargs="*", default=[], help=argparse.SUPPRESS)
    verify.add_argument(
        "--junit", type=file_to_write, metavar="FILE", help="write a JUnit XML report"
    )
    verify.add_argument(
        "--startup",
        action="store_true",
        help="what a server does before it is ready, with the seconds of each stage",
    )
    verify.add_argument(
        "--cache",
        type=directory_to_write,
        metavar="DIR",
        help="with --startup: executables, as the server's --cache-dir",
    )
    inspect = command("inspect", commands.inspect, "check every file and show what a bundle holds")
    inspect.add_argument("--json", action="store_true", help="print it for machines")
    for added in (verify, inspect):
        added.add_argument(
            "--signature",
            type=to_read,
            metavar="FILE",
            help="check what model-signing signed it with",
        )
        added.add_argument(
            "--public-key", type=to_read, metavar="PEM", help="public key of the signer"
        )
    bench = command("bench", commands.bench, "time every program on this device")
    bench.add_argument("--device", **device)
    bench.add_argument(
        "--devices",
        type=_devices,
        metavar="all|N[,N]",
        help="show also what these devices of the host reach together",
    )
    bench.add_argument(
        "--seconds", type=float, default=1.0, help="time for each program (default: 1)"
    )
    bench.add_argument("--json", action="store_true", help="print the figures for machines")
    bench.add_argument(
        "--plot", type=file_to_write, metavar="FILE", help="write a chart, .svg or .png"
    )
    compiling = command(
        "compile", commands.compile_, "compile and check its programs for later starts"
    )
    compiling.add_argument(
        "--cache",
        type=directory_to_write,
        metavar="DIR",
        help="where they are kept: what the server's --cache-dir names",
    )
    compiling.add_argument("--device", **device)
    compiling.add_argument(
        "--threads",
        type=_counts,
        default=(),
        metavar="N[,N]",
        help="numbers of threads that a CPU's programs compute with (default: this machine's)",
    )
    compiling.add_argument(
        "--portable",
        action="store_true",
        help="for any x86 machine with AVX2, not only for such a one as this",
    )
    add_target_options(compiling)
    doctor = command(
        "doctor", commands.doctor, "say whether a bundle loads, where, and for how long"
    )
    doctor.add_argument("--device", **device)
    doctor.add_argument(
        "--jax",
        action="append",
        default=[],
        type=_version,
        metavar="V[=DATE]",
        help="a version to judge as well, with its build date if you know it",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings for machines")
    refresh = command(
        "refresh", commands.refresh, "wrap its programs for this jax, into a new bundle"
    )
    refresh.add_argument(
        "--out", type=directory_to_write, required=True, metavar="NEW", help="the new bundle"
    )
    refresh.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    refresh.add_argument("--device", **device)
    return root


def _digest(text: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"expected sha256: and 64 hex digits, got {text!r}")
    return text


def _devices(text: str) -> str:
    if text != "all" and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise argparse.ArgumentTypeError(f"expected all, or indexes such as 0,1, got {text!r}")
    return text


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= _MAX_THREADS for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2,4, got {text!r}")
    return tuple(map(int, parts))


def _version(text: str) -> tuple[str, dt.date | None]:
    version, dated, day = text.partition("=")
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
            return version, dt.date.fromisoformat(day) if dated else None
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"expected a version such as 0.14, or 0.14=2027-02-01, got {text!r}"
    )
