"""What the commands of `python -m runtime` do, but for `predict`, which has a module of its own.

Each imports what it needs when it runs, so that a wrong path is seen before jax is imported.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cli.target import compile_for_cards, refusal
from runtime.commandline import reading_settings
from runtime.errors import BundleError, printable

if TYPE_CHECKING:
    from runtime.bundle import Bundle

EXIT_OK, EXIT_USAGE, EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 0, 2, 3, 4, 5


class UsageError(Exception):
    """A flag cannot be what it is; nothing was done yet."""


def say(sentence: str) -> None:
    """Print a line of progress or an error to stderr."""
    # In one piece: another thread may end the process in between.
    sys.stderr.write(f"{printable(sentence)}\n")
    sys.stderr.flush()


def _check_writable(flag: str, file: Path) -> None:
    """Refuse a file that could not be written once the work is done."""
    if file.is_dir():
        raise UsageError(f"{flag}: expected a file, got the directory {file}")
    if not file.parent.is_dir():
        raise UsageError(f"{flag}: expected a file in a directory that exists, got {file}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{flag}: expected a file that may be written, got {file}")


def open_(arguments: argparse.Namespace) -> "Bundle":
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


def verify(arguments: argparse.Namespace) -> int:
    """Run goldens and row-independence probes; return the exit status."""
    if arguments.junit:
        _check_writable("--junit", arguments.junit)
    if arguments.cache and not arguments.startup:
        raise UsageError("--cache: expected --startup beside it")
    # First: a wrong path is seen before jax is imported, which takes longer.
    bundle = open_(arguments)
    if arguments.startup:
        return _verify_startup(arguments, bundle)
    with reading_settings():
        from runtime.proof import prove
        from runtime.report import junit, verification

    model, report = prove(bundle, arguments.device, independent=arguments.independent, progress=say)
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

    cache = ExecutableCache(arguments.cache, say) if arguments.cache else None
    started = start(bundle, arguments.device, cache=cache, isolated=False, progress=say)
    print(
        json.dumps(startup(started))
        if arguments.json
        else "\n".join(map(printable, startup_table(started).split("\n")))
    )
    return EXIT_OK if startup(started)["ok"] else EXIT_GOLDEN


def compile_(arguments: argparse.Namespace) -> int:
    """Compile and keep programs; return the exit status."""
    if reason := refusal(arguments):
        raise UsageError(reason)
    bundle = open_(arguments)
    if arguments.target:
        return compile_for_cards(arguments, bundle, say)
    with reading_settings():
        from runtime.precompile import precompile

    digest = precompile(
        bundle,
        arguments.cache,
        arguments.device or "",
        threads=arguments.threads,
        portable=arguments.portable,
        progress=say,
    )
    print(f"executables of {arguments.bundle} in {arguments.cache}: {digest}")
    return EXIT_OK


def inspect(arguments: argparse.Namespace) -> int:
    """Check every file and print what a bundle holds; return the exit status."""
    from runtime.description import description

    bundle = open_(arguments)
    # One pass over the files, at the speed of SHA-256: cheap enough to be always sure.
    bundle.check()
    if arguments.json:
        sys.stdout.write(bundle.manifest.to_bytes().decode())
    else:
        print(description(bundle))
    return EXIT_OK


def bench(arguments: argparse.Namespace) -> int:
    """Time every program; return the exit status."""
    if arguments.plot:
        _check_plot(arguments.plot)
    bundle = open_(arguments)
    with reading_settings():
        from runtime import scaling
        from runtime.bench import bench, chart, table
        from runtime.device import find_devices
        from runtime.loading import load

    devices = find_devices(arguments.device, arguments.devices or "")
    model = load(bundle, devices[0], progress=say)
    models = scaling.on_each(model, devices, say)
    figures = bench(model, arguments.seconds, progress=say)
    if arguments.devices:
        say(f"timing {len(models)} devices at once")
        figures["scaling"] = scaling.scaling(models, arguments.seconds)
    print(json.dumps(figures) if arguments.json else table(figures))
    if arguments.devices and not arguments.json:
        print(f"\n{scaling.table(figures['scaling'])}")
    if arguments.plot:
        chart(figures, arguments.plot)
    return EXIT_OK


def doctor(arguments: argparse.Namespace) -> int:
    """Print whether a bundle loads; return the exit status."""
    with reading_settings():
        from runtime.doctor import examine, unopened, written
        from runtime.promises import today

    try:
        found = examine(open_(arguments), arguments.device, arguments.jax, today())
    except BundleError as error:
        if not arguments.json:
            raise
        found = unopened(arguments.bundle, error)
    print(json.dumps(found) if arguments.json else written(found))
    return int(found["exit_status"])


def refresh(arguments: argparse.Namespace) -> int:
    """Write a bundle anew for this jax; return the exit status."""
    with reading_settings():
        from runtime.description import infinite_outputs
        from runtime.refresh import refresh

    manifest = refresh(
        open_(arguments),
        arguments.out,
        arguments.device,
        overwrite=arguments.overwrite,
        progress=say,
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
