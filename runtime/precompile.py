"""`python -m runtime compile`: programs compiled and checked before anyone serves them.

How many threads a CPU's program computes with is compiled into it, so each number has a process
of its own.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.bundle import Bundle
from runtime.cache_files import write_list
from runtime.child_process import python_command
from runtime.errors import BundleError, ExecutionError, GoldenMismatch
from runtime.executable_cache import ExecutableCache
from runtime.guard import exit_description
from runtime.program import cpu_threads, limit_instructions, use_sync_dispatch
from runtime.startup import Started, start

# What a program may use that is to run on any machine of the last ten years.
PORTABLE = "AVX2"

_CHILD = """
import sys
from runtime.guard import mark_expendable
mark_expendable()
from runtime.precompile import child
sys.exit(child(sys.argv[1:]))
"""
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (BundleError, GoldenMismatch, ExecutionError)
}


def precompile(
    bundle: Bundle,
    directory: Path,
    device: str = "",
    *,
    threads: Sequence[int] = (),
    portable: bool = False,
    progress: Callable[[str], None],
) -> str:
    """Compile and check every program of a bundle, and keep the executables.

    Args:
      bundle: opened.
      directory: where they are kept; see `executable_cache`.
      device: a device's name, or nothing for JAX's default.
      threads: numbers of threads to compile for; none for this machine's.
      portable: whether they have to run on every machine with AVX2.
      progress: called with a sentence for each step.

    Returns:
      The digest of the list of executables, `sha256:HEX`.

    Raises:
      BundleError: it cannot be used here; GoldenMismatch where it answers wrongly.
      ExecutionError: the device failed.
    """
    for count in threads or (cpu_threads(),):
        progress(f"compiling for {count} thread{'' if count == 1 else 's'}")
        _run(bundle, directory, device, count, portable, progress)
    return write_list(directory)


def _run(
    bundle: Bundle,
    directory: Path,
    device: str,
    threads: int,
    portable: bool,
    progress: Callable[[str], None],
) -> None:
    command = [*python_command(_CHILD), str(bundle.path), str(directory)]
    command += [device, PORTABLE if portable else ""]
    with subprocess.Popen(  # noqa: S603
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NPROC": str(threads)},
    ) as process:
        said = ""
        for line in process.stdout or ():
            said = line.rstrip("\n")
            if not said.startswith("{"):
                progress(said)
    if process.returncode == 0:
        return
    with contextlib.suppress(ValueError):
        failure = json.loads(said)
        raise _ERRORS.get(failure["kind"], BundleError)(failure["message"])
    raise BundleError(
        f"bundle {bundle.path}: ended the process that compiled it: "
        f"{exit_description(process.returncode)}"
    )


def child(argv: Sequence[str]) -> int:
    """Compile and check a bundle in this process; returns the exit status."""
    from runtime.bundle import open_bundle

    path, directory, device, instructions = argv
    if instructions and os.uname().machine == "x86_64":
        limit_instructions(instructions)
    use_sync_dispatch()

    def progress(sentence: str) -> None:
        print(sentence, flush=True)

    try:
        started = start(
            open_bundle(path),
            device or None,
            cache=ExecutableCache(Path(directory), progress, exact_threads=True),
            isolated=False,
            progress=progress,
        )
        if started.failed:
            raise GoldenMismatch(
                f"{len(started.failed)} golden checks failed on this device, first: {started.failed[0]}"
            )
    except (BundleError, ExecutionError) as error:
        kind = next(name for name, one in reversed(_ERRORS.items()) if isinstance(error, one))
        progress(json.dumps({"kind": kind, "message": str(error)}))
        return 1
    progress(_done(started))
    return 0


def _done(started: Started) -> str:
    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in started.stages.items())
    return f"{started.compiled} programs compiled; {seconds}"
