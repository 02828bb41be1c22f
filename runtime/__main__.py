"""`python -m runtime`: verify, inspect and bench a bundle on this machine."""

import argparse
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.commandline import Parser
from runtime.errors import BundleError, DeviceUnavailable, ExecutionError

EXIT_OK, EXIT_USAGE, EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 0, 2, 3, 4, 5


class UsageError(Exception):
    """A flag cannot be what it is; nothing was done yet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 fine, 2 wrong usage, 3 the bundle cannot be used, 4 goldens do not match or rows
    depend on each other, 5 the device is missing or failed.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (DeviceUnavailable, ExecutionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DEVICE
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BUNDLE
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> Parser:
    parser = Parser(
        prog="python -m runtime",
        description="Verify, inspect and bench a bundle.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="verify|inspect|bench")
    verify = commands.add_parser(
        "verify", help="run goldens and row-independence probes on this device", allow_abbrev=False
    )
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument("--device", help="cpu, cuda, cuda:1 (default: JAX's default device)")
    verify.add_argument("--json", action="store_true", help="print a report for machines")
    verify.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit XML report")
    verify.set_defaults(run=_verify)
    inspect = commands.add_parser(
        "inspect", help="check every file and show what a bundle holds", allow_abbrev=False
    )
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE")
    inspect.add_argument("--json", action="store_true", help="print it for machines")
    inspect.set_defaults(run=_inspect)
    bench = commands.add_parser(
        "bench", help="time every program on this device", allow_abbrev=False
    )
    bench.add_argument("bundle", type=Path, metavar="BUNDLE")
    bench.add_argument("--device", help="cpu, cuda, cuda:1 (default: JAX's default device)")
    bench.add_argument(
        "--seconds", type=float, default=1.0, help="time for each program (default: 1)"
    )
    bench.add_argument("--json", action="store_true", help="print the figures for machines")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="write a chart, .svg or .png")
    bench.set_defaults(run=_bench)
    return parser


def _check_writable(flag: str, file: Path) -> None:
    """Refuse a file that could not be written once the work is done."""
    if file.is_dir():
        raise UsageError(f"{flag}: expected a file, got the directory {file}")
    if not file.parent.is_dir():
        raise UsageError(f"{flag}: expected a file in a directory that exists, got {file}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{flag}: expected a file that may be written, got {file}")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _verify(arguments: argparse.Namespace) -> int:
    from runtime.model import load
    from runtime.report import junit, verification
    from runtime.verify import verify

    if arguments.junit:
        _check_writable("--junit", arguments.junit)
    model = load(arguments.bundle, arguments.device, progress=_say)
    report = verify(model, progress=_say)
    if arguments.junit:
        arguments.junit.write_bytes(junit(model, report))
    if arguments.json:
        print(json.dumps(verification(model, report)))
    else:
        found = verification(model, report)
        recorded = "recorded" if model.manifest.row_mixing else "FAILED"
        for line in found["mismatches"]:
            print(f"FAILED {line}")
        for line in found["row_mixing"]:
            print(f"{recorded} {line}")
        print(
            f"{'ok' if found['ok'] else 'FAILED'}: {len(report.goldens)} golden checks, "
            f"{len(report.mismatches)} failed; {len(report.mixing)} signs of rows that depend on "
            f"each other; on {found['device']}"
        )
    return EXIT_OK if verification(model, report)["ok"] else EXIT_GOLDEN


def _inspect(arguments: argparse.Namespace) -> int:
    from runtime.bundle import open_bundle
    from runtime.description import description

    bundle = open_bundle(arguments.bundle)
    # One pass over the files, at the speed of SHA-256: cheap enough to be always sure.
    bundle.check()
    if arguments.json:
        sys.stdout.write(bundle.manifest.to_bytes().decode())
    else:
        print(description(bundle))
    return EXIT_OK


def _bench(arguments: argparse.Namespace) -> int:
    from runtime.bench import bench, chart, table
    from runtime.model import load

    if arguments.plot:
        _check_plot(arguments.plot)
    model = load(arguments.bundle, arguments.device, progress=_say)
    figures = bench(model, arguments.seconds, progress=_say)
    print(json.dumps(figures) if arguments.json else table(figures))
    if arguments.plot:
        chart(figures, arguments.plot)
    return EXIT_OK


def _check_plot(file: Path) -> None:
    if file.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot: expected a .svg or .png file, got {file}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: needs matplotlib, which is not installed")
    _check_writable("--plot", file)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly before `head`, as tools do
    sys.exit(main())
