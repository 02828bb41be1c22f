"""What makes the inputs of one stage of its raw inputs, whatever these are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from runtime.preprocessing.resources import Resources
from runtime.raw_inputs import Stage
from runtime.tensors import Array

# Names a raw input, and one row of it, in a message.
Where = Callable[[str, int], str]


def in_column(name: str, row: int) -> str:
    """Name a row of a raw input by its place in the column."""
    return f"input {name!r}[{row}]"


class Item(Protocol):
    """What one row of a stage's raw inputs became."""

    @property
    def size(self) -> int:
        """Return its size on the stage's bucketed axis; 0 without one."""

    @property
    def tokens(self) -> int:
        """Return its number of tokens; 0 for what has none."""

    @property
    def truncated(self) -> bool:
        """Whether a part of the raw inputs was cut off."""


class Reader(Protocol):
    """Makes a stage's arrays of its raw inputs. May be called from any number of threads at once."""

    @property
    def stage(self) -> Stage:
        """Return the stage, as the manifest has it."""

    @property
    def axis(self) -> str | None:
        """Return the bucketed axis that follows from a row; None where there is none."""

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row's arrays that its raw inputs do not account for."""

    @property
    def library(self) -> str:
        """Return the package that this stands on."""

    @property
    def changed(self) -> str:
        """Return what a message says where it makes something else than at export."""

    @property
    def panics(self) -> int:
        """Return the number of calls in which the library's own code failed."""

    def read(
        self, columns: Mapping[str, Sequence[object]], where: Where, resources: Resources
    ) -> Sequence[Any]:
        """Return an item for each row.

        Args:
          columns: raw input to its values, those of the stage among them, all of one length.
          where: names a row in messages.
          resources: what this may use.

        Raises:
          SignatureMismatch: the first row that does not fit.
        """

    def lay_out(self, rows: Sequence[Any], size: int) -> dict[str, Array]:
        """Return the stage's inputs for some rows, padded to a size where they have such an axis.

        Args:
          rows: items of `read`.
          size: of the bucketed axis.
        """

    def difference(self, name: str, expected: Array, made: Array) -> str:
        """Return where a row of one input is not what was recorded; or nothing.

        Args:
          name: of the input.
          expected: the recorded row.
          made: the row that this makes, of the same shape and dtype.
        """
