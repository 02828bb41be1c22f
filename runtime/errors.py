"""Everything the runtime raises on purpose.

* BundleError              this directory cannot be served here
  - ManifestError          manifest.json breaks the format; `.where` is its JSON path
  - UnsupportedFormat      a format_version this runtime does not read
  - IntegrityError         a file is missing, or is not the one the manifest describes
  - IncompatibleProgram    wrong platform, or outside jax's compatibility window
  - DoesNotFit             a program takes more memory than the device has left
  - GoldenMismatch         the device does not reproduce the recorded answers
  - DeviceUnavailable      the device that was asked for is not there
  - MissingLibrary         raw inputs are prepared by a library that is not installed
* InvalidInput             the caller's fault; the message is safe to show
  - SignatureMismatch      wrong name, dtype or shape
  - MalformedRequest       not the JSON, or the bytes, that a record is written in
* NonFiniteOutput          the answer holds NaN or infinity, which JSON has no way to write
* ExecutionError           the device failed; the message belongs in the log
* InvalidField             a value that no bundle may have; who reads it adds where it was written

Messages follow one grammar: *what, where: expected X, got Y[; do Z]*.
"""

import difflib
from collections.abc import Iterable

_LONGEST = 1000  # characters of a manifest that a message repeats


class BundleError(Exception):
    """This directory cannot be served here."""


class ManifestError(BundleError):
    """manifest.json breaks the format.

    Attributes:
      where: JSON path of the offending value, such as `$.programs[1].batch`.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(printable(f"manifest.json: {message[:_LONGEST]} at {where[:_LONGEST]}"))
        self.where = where


class UnsupportedFormat(BundleError):
    """The manifest's format_version is not one this runtime reads."""


class IntegrityError(BundleError):
    """A file is missing, or is not the one the manifest describes."""


class IncompatibleProgram(BundleError):
    """A program cannot run on this platform or with this jax."""


class DoesNotFit(BundleError):
    """A program takes more memory than the device has left."""


class GoldenMismatch(BundleError):
    """This device does not reproduce the answers recorded at export."""


class DeviceUnavailable(BundleError):
    """The device that was asked for is not there."""


class MissingLibrary(BundleError):
    """Raw inputs are prepared by a library that is not installed."""


class InvalidInput(Exception):
    """The caller sent something the signature does not allow."""


class SignatureMismatch(InvalidInput):
    """An input has the wrong name, dtype, shape or range."""


class MalformedRequest(InvalidInput):
    """The request is not what its reader takes: no such JSON, or bytes of another length."""


class NonFiniteOutput(Exception):
    """The answer holds NaN or infinity, which JSON has no way to write."""


class ExecutionError(Exception):
    """The device failed while running a program."""


class InvalidField(ValueError):
    """A value that no bundle may have, wherever it was written.

    A reader of a manifest makes a ManifestError of it, the exporter an ExportError that says which
    option to change.

    Attributes:
      path: of the value below what was checked, such as `("inputs", 0, "maximum")`.
    """

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


def nearest(word: str, options: Iterable[str]) -> str:
    """Write "; did you mean 'x'?" for the option nearest to a word, whatever its case, or nothing."""
    names = list(options)
    alike = [name for name in names if name.casefold() == word.casefold()]
    close = alike or difflib.get_close_matches(word, names, n=1)
    if not close:
        folded = {name.casefold(): name for name in reversed(names)}
        close = [folded[n] for n in difflib.get_close_matches(word.casefold(), folded, n=1)]
    return f"; did you mean {close[0]!r}?" if close else ""


def printable(text: str) -> str:
    """Write what is no printable character as an escape.

    Bundles contain text of unknown origin: on a terminal it must not do as it likes,
    nor pass for other lines than its own.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """Return what an error says, as far as it goes into a line."""
    text = str(error).strip() or type(error).__name__
    return printable(text.splitlines()[0][:300])


def without_frames[E: BaseException](error: E) -> E:
    """Return an error that no longer refers to the calls that it went through.

    Where such a call has the error in a variable they refer to each other, and all that the calls had, such as
    megabytes of texts, would stay until the garbage collector's next run.
    """
    inner: BaseException | None = error
    while inner is not None:
        inner.__traceback__ = None
        inner.__context__, inner = None, inner.__context__
    return error
