"""What an export refuses, in one tree.

* ExportError              this model cannot be exported as asked; one readable line
  - UsageError             the command line is wrong by itself
  - CheckpointError        the params file is not what it should be
  - ParamsError            the params do not fit the model
  - Untraceable            the model fails while it is traced
  - SeveralDevices         the model computes on several devices, and a program is for one
  - RowMixing              a row's answer depends on the other rows
  - VerificationError      the written bundle does not answer as the model does
"""

import re
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

# Flax ends what it says with the address of its documentation.
_LINK = re.compile(r" ?\(https://flax\.\S+\)$")
# Directories of code that is not the user's, apart from installed packages.
_NOT_THEIRS = ("<", sysconfig.get_path("stdlib"), str(Path(__file__).parent))


class ExportError(Exception):
    """This model cannot be exported as asked."""


class UsageError(ExportError):
    """The command line is wrong by itself."""


class CheckpointError(ExportError):
    """The params cannot be read."""


class ParamsError(ExportError):
    """The params do not fit the model."""


class Untraceable(ExportError):
    """The model fails while it is traced."""


class SeveralDevices(ExportError):
    """The model computes on several devices, and a program is for one."""


class RowMixing(ExportError):
    """A row's answer depends on the other rows of its batch."""


class VerificationError(ExportError):
    """The written bundle does not answer as the model does."""


def few_names(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its name if it says nothing."""
    lines = (_LINK.sub("", line).strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:400]


def format_error(error: BaseException) -> str:
    """Return what a user's code raised, in one line: the kind, what it says, and where it was."""
    return f"{type(error).__name__}: {first_line(error)}{place(error)}"


def place(error: BaseException) -> str:
    """Return the innermost line of the user's own code that an error went through, if any."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    line = own_line((frame.filename, frame.lineno) for frame in frames)
    return f" ({line})" if line else ""


def own_line(frames: Iterable[tuple[str, int | None]]) -> str | None:
    """Return the first line that is the user's own code, such as `net.py, line 3`.

    Args:
      frames: file and line of each, the innermost first.
    """
    for file, line in frames:
        if not file.startswith(_NOT_THEIRS) and "-packages/" not in file:
            return f"{Path(file).name}, line {line}"
    return None
