"""A bundle opened in a process of its own first: what crashes there crashes no other process.

What deserializes, compiles and runs programs is native code, and was not written for files
that was altered on purpose: one flipped bit can end a process, which no `except` catches.
Digests keep accidents out; an attacker, who recomputes them, is kept out by this, or by requiring a
digest or a signature.
"""

import contextlib
import importlib.metadata
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.bundle import Bundle
from runtime.child_process import python_command
from runtime.errors import BundleError
from runtime.executable_cache import ExecutableCache
from runtime.guard import exit_description
from runtime.preprocessing.sandbox import try_stages
from runtime.scratch import temporary_directory

# Beyond this a bundle is thought to loop for ever: one flipped bit can do that as well.
_TIMEOUT_S = 900

# What the child ends with where it ended by itself, whether or not all was well.
OPENED, REFUSED = 0, 3
# Expendable before it imports JAX: who is ended meanwhile leaves nothing behind.
_CHILD = """
import sys
from runtime.guard import mark_expendable
mark_expendable()
from runtime.probed import main
main(sys.argv[1:])
"""


@contextlib.contextmanager
def probing(
    bundle: Bundle,
    device: str = "",
    *,
    cache: ExecutableCache | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Iterator[ExecutableCache | None]:
    """Open a bundle in a process of its own first, as far as running each of its programs.

    What is to be done with the bundle here is done within.

    Args:
      bundle: whose files are there, or on their way.
      device: a device's name, or nothing for JAX's default.
      cache: keeps which bundles survived this, with which jaxlib; those are not opened elsewhere
        again.
      progress: called with one line where the other process is needed.

    Yields:
      What the other process has compiled, for as long as the context lasts; None where there is
      nothing.

    Raises:
      BundleError: the process ended, by a signal or otherwise than it should. What else is
        wrong with the bundle is found where it is opened next.
    """
    key = {
        "opened": bundle.digest,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "device": device,
    }
    if cache is not None and cache.record(key).get("opened") is True:
        yield None
        return
    progress(
        "test-loading the bundle in a separate process, in case it is damaged; requiring its digest, "
        f"sha256:{bundle.digest}, skips that"
    )
    with _compiled_folder() as folder:
        if _probe(bundle, device, folder) and cache is not None:
            cache.keep_record(key, {"opened": True})
        yield ExecutableCache(Path(folder)) if folder else None


@contextlib.contextmanager
def _compiled_folder() -> Iterator[str]:
    """Make a folder for compiled programs; return "" where none can be made: it only saves time."""
    with contextlib.ExitStack() as stack:
        try:
            folder = str(stack.enter_context(temporary_directory("hloserve-compiled-")))
        except OSError:
            folder = ""
        yield folder


def _probe(bundle: Bundle, device: str, compiled: str) -> bool:
    """Open a bundle elsewhere; say whether all was well with it."""
    for file in bundle.manifest.files:
        bundle.arrived(file)
    try_stages(bundle)
    try:
        status = _run(bundle, device, compiled)
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"bundle {bundle.path}: the process that opened it was not done after {_TIMEOUT_S} s; "
            "if it is not damaged, require its digest"
        ) from None
    if status not in (OPENED, REFUSED):
        raise BundleError(
            f"bundle {bundle.path}: ended the process that opened it: {exit_description(status)}"
        )
    return status == OPENED


def _run(bundle: Bundle, device: str, compiled: str) -> int:
    command = [*python_command(_CHILD), str(bundle.path), device, compiled]
    # Its manifest goes along: that of a bundle on its way is not in the directory yet.
    done = subprocess.run(  # noqa: S603
        command,
        input=bundle.manifest.to_bytes(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # On a GPU it takes what it needs and not most of what there is: this process may have some.
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        timeout=_TIMEOUT_S,
        check=False,
    )
    return done.returncode
