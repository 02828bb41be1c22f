"""A bundle in Apache Beam's RunInference, on Dataflow or any other runner.

    from hloserve.beam import HloserveModelHandler

    scored = rows | RunInference(HloserveModelHandler("gs://mine/bundle/"))

Needs apache-beam beside the runtime; no Flax. docs/batch.md has a pipeline.
"""

import bisect
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from hloserve.packages import import_own

import_own("runtime")

from runtime.claims import bytes_by_program, params_bytes  # noqa: E402 (of our package alone)
from runtime.errors import InvalidInput  # noqa: E402
from runtime.manifest import Manifest  # noqa: E402
from runtime.storage.bundle_manifest import manifest_at  # noqa: E402

if TYPE_CHECKING:
    from runtime.batch_prediction.scoring import Scorer

__all__ = ["HloserveModelHandler", "RefusedRow", "raise_refused"]

_NAMESPACE = "BeamML_Hloserve"
# Python, JAX, Beam and what they keep beside a model.
_PROCESS_BYTES = 2 << 30
# Any worker has as much. A step with a hint is in a stage of its own: its rows are written and read once more on
# their way there and back, for 40 µs each.
_WORKER_BYTES = 3 << 30
# Which card Dataflow attaches where none is named.
_ACCELERATOR = "type:nvidia-l4;count:1;install-nvidia-driver"
# Rows of a length wait so long for others, in seconds.
_WAIT_S = 5
_BYTES_A_TOKEN = 4
_OPTIONS = {
    *inspect.signature(ModelHandler.__init__).parameters,
    "env_vars",
} - {"self", "kwargs"}


class RefusedRow(NamedTuple):
    """Stands in a PredictionResult in place of predictions, for a row that does not fit the bundle.

    Attributes:
      error: what is wrong with the row, as a server would answer.
    """

    error: str


class HloserveModelHandler(ModelHandler):  # type: ignore[misc] # Beam is not installed where types are checked
    """Runs a bundle on rows of a PCollection.

    A row is a mapping of inputs by name, to arrays, numbers, lists of these, texts, or the bytes of
    images; or, where there is one input only, its value. Each becomes a `PredictionResult(example,
    inference, model_id)`: `inference` has the columns that `hloserve predict` writes into Parquet files, by
    name, and `model_id` is the digest of the bundle. A row that does not fit is refused by itself:
    its `inference` is a `RefusedRow`. `handler.with_postprocess_fn(raise_refused)` makes an
    error of it, and so a dead letter of `RunInference(…).with_exception_handling()`.

    A worker loads the bundle and checks it against its goldens as a server does; nothing is compiled after that.
    The manifest is read where the pipeline is made, and every worker expects the bundle of that digest.

    Args:
      bundle: a directory that workers have too, or `gs://BUCKET/FOLDER`.
      device: "cpu", "cuda" or "cuda:1"; None for JAX's default device on the worker.
      raw: whether outputs are returned as they are, whatever the bundle says of labels.
      accelerator: Beam's resource hint where the device is a GPU; "" for none.
      options: of `ModelHandler`, in place of what follows from the bundle: `max_batch_size`,
        `max_batch_duration_secs`, `large_model`, `model_copies`, `env_vars` and others.

    Raises:
      BundleError: there is no bundle.
      ValueError: `bundle` is neither a path nor such a URL.
      TypeError: an option that Beam does not have.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        device: str | None = None,
        raw: bool = False,
        accelerator: str = _ACCELERATOR,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise TypeError(
                f"options: expected some of {', '.join(sorted(_OPTIONS))}, got {unknown[0]!r}"
            )
        self._bundle = _place(os.fspath(bundle))
        manifest, digest = manifest_at(self._bundle)
        self._digest = f"sha256:{digest}"
        self._device = device
        self._raw = raw
        self._hints = _resource_hints(manifest, accelerator if _is_gpu(device) else "")
        super().__init__(**{"large_model": _is_gpu(device), **_batching(manifest, options)})

    def load_model(self) -> "Scorer":
        """Load the bundle and check it on this worker; called by Beam.

        Raises:
          BundleError: it is not the bundle of the digest, or cannot be run here.
        """
        from runtime.batch_prediction.scoring import open_scorer

        return open_scorer(
            self._bundle, require_digest=self._digest, device=self._device, raw=self._raw
        )

    def run_inference(
        self,
        batch: Sequence[Any],
        model: "Scorer",
        inference_args: Mapping[str, Any] | None = None,  # noqa: ARG002 (there are none)
    ) -> Iterable[PredictionResult]:
        """Score a batch; called by Beam, from any of its threads.

        Returns:
          A result for each row, in order.

        Raises:
          ExecutionError: the device failed.
        """
        scored = model.score_rows(list(batch))
        if scored.refused:
            Metrics.counter(_NAMESPACE, "refused_rows").inc(len(scored.refused))
        return [
            PredictionResult(
                row, RefusedRow(scored.refused[i]) if found is None else found, scored.digest
            )
            for i, (row, found) in enumerate(zip(batch, scored.predictions, strict=True))
        ]

    def update_model_path(self, model_path: str | None = None) -> None:
        """Take another bundle from the next `load_model` on; called by Beam.

        Args:
          model_path: what a `ModelMetadata` has as `model_id`: a place as for the constructor. Its digest is
            not known, so any is accepted, and results have the one that was found.
        """
        if model_path and _place(model_path) != self._bundle:
            self._bundle = _place(model_path)
            self._digest = ""

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return the bytes of the values of a batch."""
        return sum(map(_size, batch))

    def get_metrics_namespace(self) -> str:
        """Return the namespace of Beam's metrics, and of `refused_rows`."""
        return _NAMESPACE

    def get_resource_hints(self) -> dict[str, Any]:
        """Return the memory that a process takes with the bundle, where not any worker has it, and the GPU."""
        return dict(self._hints)

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        """Raise ValueError for any: a program takes inputs only."""
        if inference_args:
            raise ValueError(f"inference_args: expected none, got {', '.join(inference_args)}")


def raise_refused(result: Any) -> Any:
    """Return a result as it is, unless its row was refused; for `with_postprocess_fn`.

    Args:
      result: a PredictionResult, or a key and one.

    Raises:
      InvalidInput: says what is wrong with the row.
    """
    found = result if isinstance(result, PredictionResult) else result[1]
    if isinstance(found.inference, RefusedRow):
        raise InvalidInput(found.inference.error)
    return result


class _RowLength:
    """Measures how long a row is, so that rows of one program are batched together.

    It only decides which rows share a batch: a program follows from each row itself. Texts are
    estimated.

    Args:
      manifest: with bucketed axes.
    """

    def __init__(self, manifest: Manifest) -> None:
        signature = manifest.signature
        self._sizes = [axis.sizes for axis in signature.axes]
        at = {axis.name: i for i, axis in enumerate(signature.axes)}
        # Axis, input, and the dimension of a row of it.
        self._dims = [
            (at[dim], spec.name, i)
            for spec in signature.inputs
            for i, dim in enumerate(spec.shape[1:])
            if isinstance(dim, str)
        ]
        self._raw_names = {name for stage in manifest.preprocess for name in stage.raw_names}
        first = next((spec.name for spec in signature.inputs if not spec.mask), "")
        self._name = min(self._raw_names, default=first)
        self._only = first

    @property
    def boundaries(self) -> list[int]:
        """Return where buckets begin: one behind each size of the axis; with several, each program."""
        if len(self._sizes) == 1:
            return [size + 1 for size in self._sizes[0]]
        programs = 1
        for sizes in self._sizes:
            programs *= len(sizes)
        return list(range(1, programs + 1))

    def __call__(self, element: Any) -> int:
        """Return a row's size on the axis; with several axes, the number of its program.

        Args:
          element: a row, good or not, or a key and one.
        """
        row = element[1] if type(element) is tuple and len(element) == 2 else element
        if not isinstance(row, Mapping):
            row = {self._name if isinstance(row, str) else self._only: row}
        lengths = [0] * len(self._sizes)
        texts = [row[name] for name in self._raw_names if isinstance(row.get(name), str)]
        for axis, name, dimension in self._dims:
            if texts:
                lengths[axis] = sum(len(text) // _BYTES_A_TOKEN + 2 for text in texts)
            else:
                lengths[axis] = max(lengths[axis], _dimension(row.get(name), dimension))
        if len(lengths) == 1:
            return lengths[0]
        program = 0
        for length, sizes in zip(lengths, self._sizes, strict=True):
            place = min(bisect.bisect_left(sizes, length), len(sizes) - 1)
            program = program * len(sizes) + place
        return program


def _batching(manifest: Manifest, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ModelHandler: batches are the largest bucket, of rows of one length."""
    largest = options.get("max_batch_size") or max(p.batch for p in manifest.programs)
    found: dict[str, Any] = {"min_batch_size": largest, "max_batch_size": largest}
    if manifest.signature.axes:
        length = _RowLength(manifest)
        found |= {
            "batch_length_fn": length,
            "batch_bucket_boundaries": length.boundaries,
            "max_batch_duration_secs": _WAIT_S,
        }
    return {**found, **options}


def _resource_hints(manifest: Manifest, accelerator: str) -> dict[str, Any]:
    """Return Beam's hints: params on the host and on the device, and the largest program's tensors."""
    largest = max(size for _, size in bytes_by_program(manifest))
    needed = _PROCESS_BYTES + params_bytes(manifest) + largest
    hints: dict[str, Any] = {"min_ram": needed} if needed > _WORKER_BYTES else {}
    return {**hints, "accelerator": accelerator} if accelerator else hints


def _place(name: str) -> str:
    return name if re.match(r"\w+://", name) else os.path.abspath(name)


def _is_gpu(device: str | None) -> bool:
    return (device or "").partition(":")[0] in ("cuda", "gpu", "rocm")


def _dimension(value: Any, dimension: int) -> int:
    """Return the size of a dimension of a row's value; 0 where it has none."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return int(shape[dimension]) if dimension < len(shape) else 0
    for _ in range(dimension):
        value = value[0] if isinstance(value, list | tuple) and value else None
    return len(value) if isinstance(value, list | tuple) else 0


def _size(value: Any) -> int:
    """Return the bytes of a row's values; a number counts for 8."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    return int(getattr(value, "nbytes", 8))
