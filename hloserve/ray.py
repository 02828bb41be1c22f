"""A bundle in Ray Data's map_batches: a class whose instances are actors with a model each.

    from hloserve.ray import HloservePredictor

    scored = ds.map_batches(
        HloservePredictor,
        fn_constructor_kwargs={"bundle": "gs://mine/bundle/"},
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(size=2),
    )

Needs ray[data] beside the runtime; no Flax. docs/batch.md has a pipeline.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import ray

from hloserve.packages import import_own

import_own("runtime")

from runtime.batch_prediction.scoring import open_scorer  # noqa: E402 (of our package alone)
from runtime.errors import InvalidInput  # noqa: E402
from runtime.model import Model  # noqa: E402
from runtime.program import set_cpu_threads  # noqa: E402
from runtime.tensors import Array  # noqa: E402

__all__ = ["HloservePredictor"]


class HloservePredictor:
    """Runs a bundle on batches of a Dataset.

    A batch is a dict of columns, `batch_format="numpy"`: an input's rows are one array, which is used
    as it is, or an array of objects where they are texts, the bytes of images, or differ in shape.
    Predictions are columns as well, those that `hloserve predict` writes into Parquet files.

    An actor loads the bundle once and checks it against its goldens as a server does; nothing is compiled
    after that. It computes on the GPU that Ray gives it, and on a CPU with as many threads as it was
    given CPUs.

    Args:
      bundle: a directory that all nodes have, or `gs://BUCKET/FOLDER`.
      require_digest: `sha256:HEX`, so that all actors run the same bundle; "" for any.
      device: "cpu", "cuda" or "cuda:1"; by default the GPU of `CUDA_VISIBLE_DEVICES`, which Ray sets for
        `num_gpus`, the CPU where that is empty, and JAX's default where it is not set.
      raw: whether outputs are returned as they are, whatever the bundle says of labels.
      passthrough: names of columns that are returned beside the predictions. Others that are no inputs
        are left out.
      error_column: name of a column that says what is wrong with a row, "" for none. Without it a
        row that does not fit is an error of its batch; with it such a row has no values: NaN, 0 in
        columns of integers, "" in those of texts, None where values differ in shape.

    Raises:
      BundleError: it cannot be run here.
      ExecutionError: the device failed.
      ValueError: `bundle` is neither a path nor such a URL.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        require_digest: str = "",
        device: str | None = None,
        raw: bool = False,
        passthrough: Sequence[str] = (),
        error_column: str = "",
    ) -> None:
        _use_assigned_cpus()
        self._scorer = open_scorer(
            os.fspath(bundle),
            require_digest=require_digest,
            device=device or _visible_device(os.environ),
            raw=raw,
        )
        self._names = _input_names(self._scorer.model)
        self._passthrough = tuple(passthrough)
        self._error_column = error_column

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Score a batch.

        Args:
          batch: column name to the values of all rows.

        Returns:
          The columns that pass through, the predictions, and the errors where they are asked for; of
          the same number of rows. A prediction whose name is taken has `prediction.` before it.

        Raises:
          InvalidInput: a row does not fit and there is no column of errors, or a column is missing.
          ExecutionError: the device failed.
        """
        if not isinstance(batch, Mapping):
            raise InvalidInput(
                f'batch: expected a dict of arrays, batch_format="numpy", got {type(batch).__name__}'
            )
        for name in self._passthrough:
            if name not in batch:
                raise _missing(name, batch)
        inputs = {name: batch[name] for name in self._names if name in batch}
        if not inputs:
            raise _missing(self._names[0], batch)
        scored = self._scorer.score_columns(inputs)
        rows = len(next(iter(inputs.values())))
        if scored.refused and not self._error_column:
            first = next(iter(scored.refused))
            raise InvalidInput(
                f"batch: expected {rows} rows that fit, got {len(scored.refused)} that do not; row "
                f"{first}: {scored.refused[first]}; with error_column= the others are answered"
            )
        found = {name: batch[name] for name in self._passthrough}
        taken = {*found, self._error_column}
        for name, column in scored.columns.items():
            found[f"prediction.{name}" if name in taken else name] = _writable(column)
        if self._error_column:
            errors = [scored.refused.get(i, "") for i in range(rows)]
            found[self._error_column] = np.array(errors, object)
        return found


def _input_names(model: Model) -> list[str]:
    """Return the names of all columns that can be inputs; the first is one that most rows have."""
    raw = model.preparer.raw_names if model.preparer is not None else ()
    return list(dict.fromkeys((*raw, *(spec.name for spec in model.signature.inputs))))


def _missing(name: str, batch: Mapping[str, Array]) -> InvalidInput:
    got = ", ".join(map(repr, batch)) or "none"
    return InvalidInput(f"batch: expected a column {name!r}, got {got}")


def _visible_device(environ: Mapping[str, str]) -> str | None:
    """Return the device that CUDA_VISIBLE_DEVICES leaves; None where it is not set."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return "cpu" if visible.strip() in ("", "-1", "NoDevFiles") else "cuda"


def _use_assigned_cpus() -> None:
    """Have CPU programs use as many threads as this actor was given CPUs.

    Otherwise each actor of a pool has a thread for each core of the machine.
    """
    if not ray.is_initialized():
        return
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU")
    if cpus:
        set_cpu_threads(max(1, int(cpus)))


def _writable(column: Array) -> Array:
    """Return a column of a dtype that Arrow has: bfloat16 and float8 become float32."""
    return column.astype(np.float32) if column.dtype.kind == "V" else column
