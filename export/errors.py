"""What an export refuses, in one tree.

* ExportError              this model cannot be exported as asked; one readable line
  - UsageError             the command line is wrong by itself
  - CheckpointError        the params file is not what it should be
  - ParamsError            the params do not fit the model
  - RowMixing              a row's answer depends on the other rows
  - VerificationError      the written bundle does not answer as the model does
"""


class ExportError(Exception):
    """This model cannot be exported as asked."""


class UsageError(ExportError):
    """The command line is wrong by itself."""


class CheckpointError(ExportError):
    """The params cannot be read."""


class ParamsError(ExportError):
    """The params do not fit the model."""


class RowMixing(ExportError):
    """A row's answer depends on the other rows of its batch."""


class VerificationError(ExportError):
    """The written bundle does not answer as the model does."""


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says, or its name if it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:400]
