"""Rows through a checked model, for engines that bring them in batches of their own: Beam and Ray.

A row that does not fit is refused by itself and never fails the others of its batch. Predictions have
the columns that `predict` writes into files that have columns.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.batch_prediction.columns import prediction_columns
from runtime.batch_prediction.fields import Fields
from runtime.batch_prediction.prediction import Answers, Predictor
from runtime.batch_prediction.rows import Rows, check_columns, merge_rows
from runtime.batch_prediction.values import check_values
from runtime.entries import OutputFormat
from runtime.errors import GoldenMismatch
from runtime.preprocessing.sandbox import try_stages
from runtime.records.tensors import narrowed
from runtime.signature import TensorSpec
from runtime.startup import Started, start
from runtime.storage.bundle_fetch import bundle_at
from runtime.tensors import Array, numpy_dtype

log = logging.getLogger(__name__)

_NO_FIELDS = Fields("", key_required=False, passed=())


class ScoredRows(NamedTuple):
    """Predictions of some rows.

    Attributes:
      digest: `sha256:HEX` of the bundle that made them.
      predictions: for each row its column values by name; None for a row that was refused.
      refused: place of such a row to what is wrong with it.
    """

    digest: str
    predictions: Sequence[Mapping[str, Any] | None]
    refused: Mapping[int, str]


class ScoredColumns(NamedTuple):
    """Predictions of a batch that came in columns.

    Attributes:
      columns: name to the values of all rows. Where a row was refused, a float is NaN, an integer 0, a
        label "", and a value of several shapes None.
      refused: place of such a row to what is wrong with it.
    """

    columns: Mapping[str, Array]
    refused: Mapping[int, str]


class Scorer:
    """Scores rows with a model that passed its check here. May be called from several threads at once.

    Args:
      started: the model, checked.
      raw: whether outputs are returned as they are, whatever the bundle says of labels.

    Attributes:
      model: likewise.
    """

    def __init__(self, started: Started, *, raw: bool = False) -> None:
        self.model = started.model
        manifest = self.model.manifest
        self._form = OutputFormat() if raw else manifest.output_format
        alone = bool(manifest.row_mixing or started.mixing)
        self._predictor = Predictor(self.model, _NO_FIELDS, alone=alone)

    def score_rows(self, rows: Sequence[Any]) -> ScoredRows:
        """Score rows that are values of Python; see `check_values`.

        Raises:
          ExecutionError: the device failed.
        """
        checked = check_values(rows, self.model)
        predictions: list[Mapping[str, Any] | None] = [None] * len(rows)
        for members, columns in self._answered(checked):
            lists = {name: _values(column) for name, column in columns.items()}
            for i, member in enumerate(members.tolist()):
                predictions[member] = {name: values[i] for name, values in lists.items()}
        return ScoredRows(f"sha256:{self.model.bundle.digest}", predictions, checked.refused)

    def score_columns(self, batch: Mapping[str, Array]) -> ScoredColumns:
        """Score rows that came in columns.

        Args:
          batch: input to its rows, an array each: dtype[rows, ...], which may be read-only and is used as
            it is, or of objects: texts, bytes, arrays of several shapes. Numbers of another dtype are
            converted as those of Parquet files are.

        Raises:
          ExecutionError: the device failed.
        """
        rows = len(next(iter(batch.values()), ()))
        checked = self._check_columns(batch, rows)
        answered = self._answered(checked)
        if len(answered) == 1 and len(answered[0][0]) == rows:
            return ScoredColumns(answered[0][1], {})
        names = answered[0][1] if answered else self._no_rows()
        return ScoredColumns(
            {
                name: _joined([(own, columns[name]) for own, columns in answered], rows, like)
                for name, like in names.items()
            },
            checked.refused,
        )

    def _check_columns(self, batch: Mapping[str, Array], rows: int) -> Rows:
        preparer = self.model.preparer
        specs = {spec.name: spec for spec in self.model.signature.inputs}
        whole = {n: _converted(specs.get(n), column) for n, column in batch.items()}
        columns = {n: column for n, column in whole.items() if column is not None}
        raw = preparer is not None and preparer.takes(columns)
        apart = len(columns) < len(batch) or any(c.dtype == object for c in columns.values())
        if not raw and not apart:
            return check_columns(columns, rows, self.model)
        refused: dict[int, str] = {}
        good: list[tuple[int, Mapping[str, Any]]] = []
        for i in range(rows):
            row = {n: _converted(specs.get(n), column[i]) for n, column in batch.items()}
            lost = next((n for n in row if row[n] is None and batch[n][i] is not None), None)
            if lost is None:
                good.append((i, row))
            else:
                refused[i] = (
                    f"input {lost!r}: expected {specs[lost].dtype}, got {batch[lost][i].dtype} with a "
                    "value that does not fit"
                )
        checked = check_values([row for _, row in good], self.model)
        return merge_rows([([i for i, _ in good], checked)], refused)

    def _answered(self, rows: Rows) -> list[tuple[Array, dict[str, Array]]]:
        """Return the places of rows, and the columns of their predictions."""
        answers = self._predictor.answer_rows(rows)
        return [(own.members, self._columns(own)) for own in answers]

    def _columns(self, answers: Answers) -> dict[str, Array]:
        return prediction_columns(answers.outputs, self.model.signature, self._form)

    def _no_rows(self) -> dict[str, Array]:
        signature = self.model.signature
        sizes = {axis.name: axis.sizes[0] for axis in signature.axes}
        outputs = tuple(
            np.empty(spec.concrete(0, sizes), numpy_dtype(spec.dtype)) for spec in signature.outputs
        )
        return self._columns(Answers(np.empty(0, np.intp), outputs))


def open_scorer(
    bundle: str, *, require_digest: str = "", device: str | None = None, raw: bool = False
) -> Scorer:
    """Load a bundle and check it on this device, as `predict` does; nothing is compiled after this.

    Args:
      bundle: a directory, or `gs://…`, which is downloaded.
      require_digest: `sha256:HEX`, what its manifest.json has to be; "" for any.
      device: as for `runtime.load`.
      raw: as for `Scorer`.

    Raises:
      BundleError: it cannot be run here; GoldenMismatch where its answers are others than at export.
      ExecutionError: the device failed.
      ValueError: `bundle` is neither a path nor such a URL.
    """
    with bundle_at(bundle, "", require_digest, device or "") as opened:
        opened.require(require_digest or None)
        if not require_digest:
            try_stages(opened)
        started = start(opened, device, isolated=False, progress=log.info)
    if started.failed:
        raise GoldenMismatch(
            f"{len(started.failed)} golden checks failed on this device, first: {started.failed[0]}"
        )
    if started.mixing or started.model.manifest.row_mixing:
        log.warning("each row runs by itself, since rows of this bundle depend on each other")
    return Scorer(started, raw=raw)


def _converted(spec: TensorSpec | None, values: Any) -> Any:
    """Return numbers in the dtype of their input, as those of Parquet files are converted; others as they are.

    Args:
      spec: of the input; None for what is no tensor.
      values: of all rows, or of one.

    Returns:
      None where a value does not fit.
    """
    numbers = isinstance(values, np.ndarray | np.generic) and values.dtype.kind in "iuf"
    return narrowed(spec.dtype, np.asarray(values)) if spec is not None and numbers else values


def _values(column: Array) -> Sequence[Any]:
    """Return the values of a column row by row: texts as Python's, numbers and arrays as NumPy's."""
    return column.tolist() if column.dtype.kind == "U" else list(column)


def _joined(pieces: Sequence[tuple[Array, Array]], rows: int, like: Array) -> Array:
    """Return a column of all rows, of which only some have values."""
    if len({piece.shape[1:] for _, piece in pieces}) > 1:
        out: Array = np.full(rows, None, object)
        for members, piece in pieces:
            for i, row in zip(members.tolist(), piece, strict=True):
                out[i] = row
        return out
    dtype = np.result_type(*(piece.dtype for _, piece in pieces), like.dtype)
    nothing: Any = {"U": "", "i": 0, "u": 0, "b": False}.get(dtype.kind, np.nan)
    out = np.full((rows, *like.shape[1:]), nothing, dtype)
    for members, piece in pieces:
        out[members] = piece
    return out
