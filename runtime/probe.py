"""A bundle opened in a process of its own first: what crashes there crashes nobody else.

What deserializes, compiles and runs programs is native code, and was not written for files
that somebody altered on purpose: one flipped bit can end a process, which no `except` catches.
Digests keep accidents out; whoever recomputes them is kept out by this, or by asking for a
digest or a signature.
"""

import contextlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.guard import described

# Beyond this a bundle is thought to loop for ever: one flipped bit can do that as well.
_TIMEOUT_S = 900

# What the child ends with where it came to an end by itself, whether or not all was well.
OPENED, REFUSED = 0, 3
_CHILD = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from runtime.probed import main; main(sys.argv[1:])"


def probe(bundle: Bundle, device: str = "", *, remembered: Path | None = None) -> bool:
    """Open a bundle in a process of its own, as far as answering its goldens.

    Args:
      bundle: whose files are there, or on their way.
      device: a device's name, or nothing for JAX's default.
      remembered: a directory that keeps which bundles came through, with which jaxlib.

    Returns:
      False if it was not necessary, since it is remembered.

    Raises:
      BundleError: the process ended, by a signal or otherwise than it should. What else is
        wrong with the bundle is left for whoever opens it next to find.
    """
    stamp = remembered / _stamp(bundle, device) if remembered else None
    if stamp is not None and stamp.is_file():
        return False
    for file in bundle.manifest.files:
        bundle.arrived(file)
    try:
        status = _run(bundle, device)
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"bundle {bundle.path}: the process that opened it was not done after {_TIMEOUT_S} s"
        ) from None
    if status not in (OPENED, REFUSED):
        raise BundleError(
            f"bundle {bundle.path}: ended the process that opened it: {described(status)}"
        )
    if stamp is not None and status == OPENED:
        with contextlib.suppress(OSError):  # then it is opened there the next time as well
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
    return True


def _stamp(bundle: Bundle, device: str) -> str:
    jaxlib = importlib.metadata.version("jaxlib")
    return f"opened/{bundle.digest}-jaxlib-{jaxlib}-{device.replace(':', '') or 'default'}"


def _run(bundle: Bundle, device: str) -> int:
    command = [sys.executable, "-c", _CHILD, "\n".join(sys.path), str(bundle.path), device]
    # Its manifest goes along: that of a bundle on its way is not in the directory yet.
    done = subprocess.run(  # noqa: S603
        command,
        input=bundle.manifest.to_bytes(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return done.returncode
