"""`python -m runtime`: verify, inspect, bench, compile, examine and refresh a bundle on this machine."""

import argparse
import datetime as dt
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import target_command
from runtime.commandline import (
    Parser,
    add_version,
    directory_to_write,
    file_to_write,
    reading_settings,
    to_read,
)
from runtime.errors import (
    BundleError,
    DeviceUnavailable,
    ExecutionError,
    GoldenMismatch,
    printable,
)
from runtime.guard import run_in_child
from runtime.invocation import error_line, spelled

if TYPE_CHECKING:
    from runtime.bundle import Bundle

_MAX_THREADS = 1024
EXIT_OK, EXIT_USAGE, EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 0, 2, 3, 4, 5


_STATUSES = (
    "Exit status: 0 all is well; 1 doctor: it loads, but a version asked about is not promised to "
    "load it; 2 the command line is wrong; 3 the bundle "
    "cannot be used here; 4 goldens do not match, or rows depend on each other; 5 the device is "
    "missing, failed, or has not enough memory."
)


class UsageError(Exception):
    """A flag cannot be what it is; nothing was done yet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    See `_STATUSES` for what each says.
    """
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MemoryError as error:
        print(error_line(f"not enough memory: {error}"), file=sys.stderr)
        return EXIT_DEVICE
    except (DeviceUnavailable, ExecutionError) as error:
        _say(error_line(error))
        return EXIT_DEVICE
    except BundleError as error:
        _say(error_line(error))
        return EXIT_GOLDEN if isinstance(error, GoldenMismatch) else EXIT_BUNDLE
    except UsageError as error:
        print(error_line(error), file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        # A full disk does not say which; of these commands only refresh may fill one.
        where = error.filename or getattr(arguments, "out", None)
        print(error_line(f"{f'{where}: ' if where else ''}{error.strerror}"), file=sys.stderr)
        return EXIT_USAGE


def parser() -> Parser:
    """Make the parser of `python -m runtime`."""
    root = Parser(
        prog=spelled("python -m runtime"),
        description="Verify, inspect, bench, examine and refresh a bundle.",
        epilog=_STATUSES,
        allow_abbrev=False,
    )
    add_version(root)
    commands = root.add_subparsers(
        required=True, metavar="verify|inspect|bench|compile|doctor|refresh"
    )

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
        added = commands.add_parser(
            name, help=text, description=f"{name}: {text}.", epilog=_STATUSES, allow_abbrev=False
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

    device: dict[str, Any] = {"help": "cpu, cuda, cuda:1 (default: JAX's default device)"}
    verify = command("verify", _verify, "run goldens and row-independence probes on this device")
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
    inspect = command("inspect", _inspect, "check every file and show what a bundle holds")
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
    bench = command("bench", _bench, "time every program on this device")
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
    compiling = command("compile", _compile, "compile and check its programs for later starts")
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
    target_command.add_target_options(compiling)
    doctor = command("doctor", _doctor, "say whether a bundle loads, where, and for how long")
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
    refresh = command("refresh", _refresh, "wrap its programs for this jax, into a new bundle")
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


def _check_writable(flag: str, file: Path) -> None:
    """Refuse a file that could not be written once the work is done."""
    if file.is_dir():
        raise UsageError(f"{flag}: expected a file, got the directory {file}")
    if not file.parent.is_dir():
        raise UsageError(f"{flag}: expected a file in a directory that exists, got {file}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{flag}: expected a file that may be written, got {file}")


def _say(sentence: str) -> None:
    # In one piece: another thread may end the process in between.
    sys.stderr.write(f"{printable(sentence)}\n")
    sys.stderr.flush()


def _open(arguments: argparse.Namespace) -> "Bundle":
    """Open the bundle of a command, and hold it against the digest and the signature, if given."""
    from runtime.bundle import open_bundle

    bundle = open_bundle(arguments.bundle, require_digest=arguments.require_digest)
    signature, key = (getattr(arguments, name, None) for name in ("signature", "public_key"))
    if signature or key:
        if not (signature and key):
            raise UsageError("--signature and --public-key: expected both, got one")
        if importlib.util.find_spec("model_signing") is None:
            raise UsageError(
                "--signature: needs model-signing, which is not installed; "
                "pip install 'hloserve[sign]'"
            )
        from runtime.signing import check_signature

        check_signature(bundle, signature, key)
    return bundle


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.junit:
        _check_writable("--junit", arguments.junit)
    if arguments.cache and not arguments.startup:
        raise UsageError("--cache: expected --startup beside it")
    # First: a wrong path is seen before jax is imported, which takes longer.
    bundle = _open(arguments)
    if arguments.startup:
        return _verify_startup(arguments, bundle)
    with reading_settings():
        from runtime.proof import prove
        from runtime.report import junit, verification

    model, report = prove(
        bundle, arguments.device, independent=arguments.independent, progress=_say
    )
    if arguments.junit:
        arguments.junit.write_bytes(junit(model, report))
    if arguments.json:
        print(json.dumps(verification(model, report)))
    else:
        found = verification(model, report)
        recorded = "recorded" if model.manifest.row_mixing else "FAILED"
        for line in found["mismatches"]:
            print(printable(f"FAILED {line}"))
        for line in found["row_mixing"]:
            print(printable(f"{recorded} {line}"))
        print(
            f"{'ok' if found['ok'] else 'FAILED'}: {len(report.goldens)} golden checks, "
            f"{len(report.mismatches)} failed; {len(report.mixing)} signs of rows that depend on "
            f"each other; on {found['device']}"
        )
    return EXIT_OK if verification(model, report)["ok"] else EXIT_GOLDEN


def _verify_startup(arguments: argparse.Namespace, bundle: "Bundle") -> int:
    if arguments.junit:
        raise UsageError("--junit: expected no --startup beside it")
    with reading_settings():
        from runtime.executable_cache import ExecutableCache
        from runtime.report import startup, startup_table
        from runtime.startup import start

    cache = ExecutableCache(arguments.cache, _say) if arguments.cache else None
    started = start(bundle, arguments.device, cache=cache, isolated=False, progress=_say)
    print(
        json.dumps(startup(started))
        if arguments.json
        else "\n".join(map(printable, startup_table(started).split("\n")))
    )
    return EXIT_OK if startup(started)["ok"] else EXIT_GOLDEN


def _compile(arguments: argparse.Namespace) -> int:
    if reason := target_command.refusal(arguments):
        raise UsageError(reason)
    bundle = _open(arguments)
    if arguments.target:
        return target_command.compile_for_cards(arguments, bundle, _say)
    with reading_settings():
        from runtime.precompile import precompile

    digest = precompile(
        bundle,
        arguments.cache,
        arguments.device or "",
        threads=arguments.threads,
        portable=arguments.portable,
        progress=_say,
    )
    print(f"executables of {arguments.bundle} in {arguments.cache}: {digest}")
    return EXIT_OK


def _inspect(arguments: argparse.Namespace) -> int:
    from runtime.description import description

    bundle = _open(arguments)
    # One pass over the files, at the speed of SHA-256: cheap enough to be always sure.
    bundle.check()
    if arguments.json:
        sys.stdout.write(bundle.manifest.to_bytes().decode())
    else:
        print(description(bundle))
    return EXIT_OK


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        _check_plot(arguments.plot)
    bundle = _open(arguments)
    with reading_settings():
        from runtime import scaling
        from runtime.bench import bench, chart, table
        from runtime.device import find_devices
        from runtime.loading import load

    devices = find_devices(arguments.device, arguments.devices or "")
    model = load(bundle, devices[0], progress=_say)
    models = scaling.on_each(model, devices, _say)
    figures = bench(model, arguments.seconds, progress=_say)
    if arguments.devices:
        _say(f"timing {len(models)} devices at once")
        figures["scaling"] = scaling.scaling(models, arguments.seconds)
    print(json.dumps(figures) if arguments.json else table(figures))
    if arguments.devices and not arguments.json:
        print(f"\n{scaling.table(figures['scaling'])}")
    if arguments.plot:
        chart(figures, arguments.plot)
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    with reading_settings():
        from runtime.doctor import examine, unopened, written
        from runtime.promises import today

    try:
        found = examine(_open(arguments), arguments.device, arguments.jax, today())
    except BundleError as error:
        if not arguments.json:
            raise
        found = unopened(arguments.bundle, error)
    print(json.dumps(found) if arguments.json else written(found))
    return int(found["exit_status"])


def _refresh(arguments: argparse.Namespace) -> int:
    with reading_settings():
        from runtime.description import infinite_outputs
        from runtime.refresh import refresh

    manifest = refresh(
        _open(arguments),
        arguments.out,
        arguments.device,
        overwrite=arguments.overwrite,
        progress=_say,
    )
    infinite = ", ".join(infinite_outputs(manifest.signature))
    print(
        f"refreshed {arguments.bundle} into {arguments.out}: jax "
        f"{printable(manifest.refreshed_from[-1].exporter.get('jax', '?'))} to {manifest.exporter['jax']}, "
        f"verified on {', '.join(manifest.verified)}"
        + (f"; may be infinite: {printable(infinite)}" if infinite else "")
    )
    return EXIT_OK


def _check_plot(file: Path) -> None:
    if file.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot: expected a .svg or .png file, got {file}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: needs matplotlib, which is not installed")
    _check_writable("--plot", file)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly before `head`, as tools do
    run_in_child()
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # ends by the signal, without a word, so that a shell knows
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
