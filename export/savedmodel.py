"""A SavedModel, made and tried: what runs in processes of its own that have TensorFlow.

`build` makes it from functions that `export.for_tensorflow` lowered and from a bundle's params
and goldens; `check`, in a fresh process, loads it and runs every golden. Each reads a recipe
and prints one line of JSON. This is the only file that imports TensorFlow.

The params are variables, one for each, that all functions share: no weights are in the graph,
which protocol buffers limit to 2 GB. TensorFlow is released less often than JAX, so programs are
first rewritten in the StableHLO that it reads.
"""

import dataclasses
import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from jax import export
from jax.experimental.jax2tf import jax2tf
from tensorflow.compiler.mlir.stablehlo import stablehlo as tf_stablehlo
from tensorflow.compiler.tf2xla.python import xla as tfxla
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from export.errors import first_line
from export.lowering import NotRepresentable, rewrite
from runtime.bundle import Bundle, open_bundle
from runtime.golden_check import check_goldens, golden_rows
from runtime.jax_settings import lifted
from runtime.model import Model
from runtime.signature import BATCH, Signature, TensorSpec, notation
from runtime.tensors import Array, numpy_dtype

DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

# Beside the model; TensorFlow Serving runs these requests before it calls a model available,
# and refuses a model that has more of them.
WARMUP = "assets.extra/tf_serving_warmup_requests"
MAX_WARMUP_REQUESTS = 1000

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)

_Key = tuple[int, Mapping[str, int]]  # (batch, sizes of the axes)


class Refusal(Exception):
    """TensorFlow cannot take the model; the message says why."""


def main(command: str, recipe: str, platform: str = "cpu") -> int:
    """Run a step, and print its result as one line of JSON."""
    if command == "build" or platform == "cpu":
        tf.config.set_visible_devices([], "GPU")
    with lifted():
        print(json.dumps(step(command, recipe, platform)))
    return 0


def step(command: str, recipe: str, platform: str = "cpu") -> dict[str, Any]:
    """Run `build` or `check`; return its result, or why TensorFlow cannot take the model."""
    given = json.loads(Path(recipe).read_text())
    try:
        return build(given) if command == "build" else check(given, platform)
    except Refusal as refusal:
        return {"refused": str(refusal)}
    except Exception as error:  # noqa: BLE001 (TensorFlow raises many kinds)
        if number := _disk_trouble(error):
            return {"unwritten": (number, os.strerror(number), given["target"])}
        return {
            "failed": f"TensorFlow {tf.__version__} cannot run the model: {_first_useful_line(error)}"
        }


def build(recipe: dict[str, Any]) -> dict[str, Any]:
    """Make a SavedModel with its warm-up requests; return what was made.

    Raises:
      Refusal: this TensorFlow, or the one asked for, cannot take the programs.
    """
    bundle = open_bundle(recipe["bundle"])
    version = _version_to_write(recipe)
    module = tf.Module()
    module.params = {
        name: tf.Variable(array, trainable=False, name=_allowed(name))
        for name, array in _params(bundle)
    }
    functions = {}
    for entry in recipe["functions"]:
        exported = export.deserialize(bytearray(Path(entry["file"]).read_bytes()))
        _expect_convention(exported)
        artifact = _rewritten(exported.mlir_module_serialized, version, recipe)
        exported = dataclasses.replace(exported, mlir_module_serialized=artifact)
        params = [module.params[name] for name in entry["params"]]
        functions[entry["name"]] = _function(exported, params, bundle, entry["sizes"])
    # The last takes the most rows and the longest axes.
    signatures = {DEFAULT: list(functions.values())[-1], **functions}
    tf.saved_model.save(module, recipe["out"], signatures=signatures)
    return {
        "tensorflow": tf.__version__,
        "platforms": ["cpu", *(["cuda"] if tf.config.list_physical_devices("GPU") else [])],
        "stablehlo": version,
        "calling_convention": exported.calling_convention_version,
        "variables": len(module.params),
        "warmup_requests": _write_warmup(recipe, bundle),
        "signatures": {
            name: _shown(bundle.manifest.signature, sizes) for name, sizes in _signatures(recipe)
        },
    }


def check(recipe: dict[str, Any], platform: str) -> dict[str, Any]:
    """Load a SavedModel and run every golden through every signature.

    Returns:
      `mismatches`, a sentence each, and `max_error`.
    """
    bundle = open_bundle(recipe["bundle"])
    saved = tf.saved_model.load(recipe["out"])
    checks = []
    for name, sizes in _signatures(recipe):
        wanted = [*_buckets(bundle), *((g.rows, g.axes) for g in bundle.manifest.goldens)]
        model = _model(bundle, wanted, sizes, platform, saved.signatures[name])
        with tf.device("/GPU:0" if platform == "cuda" else "/CPU:0"):
            checks += check_goldens(model)[0]
    return {
        "mismatches": [str(one) for one in checks if not one.ok],
        "max_error": max(one.comparison.max_error for one in checks),
    }


def _rewritten(artifact: bytes, version: str, recipe: dict[str, Any]) -> bytes:
    try:
        return rewrite(artifact, version)
    except NotRepresentable as missing:
        asked = f"which TensorFlow {tf.__version__} reads"
        raise Refusal(
            f"savedmodel: {missing}, as jax {recipe['jax']} writes it in StableHLO "
            f"{recipe['written_as']}, has no form in StableHLO {version}, "
            f"{'which --tf-stablehlo asks for' if recipe['wanted'] else asked}; use another "
            "operation in its place for inference, or a newer TensorFlow"
        ) from None


def _version_to_write(recipe: dict[str, Any]) -> str:
    """Return the newest StableHLO that the program, this TensorFlow and the one asked for read."""
    version = recipe["written_as"]
    for other in (tf_stablehlo.get_current_version(), recipe["wanted"]):
        if other is not None:
            version = tf_stablehlo.get_smaller_version(version, other)
    oldest = tf_stablehlo.get_minimum_version()
    if tf_stablehlo.get_smaller_version(version, oldest) != oldest:
        raise Refusal(f"tf_stablehlo: expected {oldest} or later, got {version}")
    return str(version)


def _expect_convention(exported: export.Exported) -> None:
    known = tfxla.call_module_maximum_supported_version()
    if exported.calling_convention_version > known:
        raise Refusal(
            f"savedmodel: this jax writes calling convention {exported.calling_convention_version}"
            f" or later, TensorFlow {tf.__version__} knows up to {known}; use a newer TensorFlow"
        )


def _params(bundle: Bundle) -> Iterator[tuple[str, Array]]:
    """Yield each param by name, cut out of the argument that it is packed in."""
    files = bundle.manifest.params.files
    arguments = {name: array for file in files for name, array in bundle.map(file).items()}
    for entry in bundle.manifest.params.entries:
        flat = arguments[entry.argument].reshape(-1)
        size = math.prod(entry.shape)
        yield entry.name, flat[entry.offset : entry.offset + size].reshape(entry.shape)


def _allowed(name: str) -> str:
    """Return a variable's name as TensorFlow allows it; names that become alike are numbered."""
    name = re.sub(r"[^A-Za-z0-9_./-]", "_", name)
    return name if re.match("[A-Za-z0-9.]", name) else f"param{name}"


def _function(
    exported: export.Exported, params: Sequence[Any], bundle: Bundle, sizes: Sequence[int | None]
) -> Any:
    signature = bundle.manifest.signature
    names = [spec.name for spec in signature.outputs]

    def serve(*inputs: Any) -> dict[str, Any]:
        # The only way into XlaCallModule that takes an Exported as it is; jax2tf.convert makes
        # one of its own, in a StableHLO that TensorFlow does not read yet.
        outputs = jax2tf._run_exported_as_tf([*params, *inputs], exported)  # noqa: SLF001
        return dict(zip(names, outputs, strict=True))

    tensors = _tensors(signature, sizes)
    return tf.function(serve, input_signature=tensors, autograph=False).get_concrete_function()


def _tensors(signature: Signature, sizes: Sequence[int | None]) -> list[tf.TensorSpec]:
    return [
        tf.TensorSpec(_shape(spec, signature, sizes), numpy_dtype(spec.dtype), name=spec.name)
        for spec in signature.inputs
    ]


def _shape(spec: TensorSpec, signature: Signature, sizes: Sequence[int | None]) -> list[int | None]:
    names = [BATCH, *(axis.name for axis in signature.axes)]
    named = dict(zip(names, sizes, strict=True))
    return [dim if isinstance(dim, int) else named[dim] for dim in spec.shape]


def _shown(signature: Signature, sizes: Sequence[int | None]) -> str:
    """Write a signature's inputs in the project's notation, symbolic sizes by their names."""
    return ", ".join(
        f"{spec.name}: "
        + notation(
            spec.dtype,
            (
                given if fixed is None else fixed
                for given, fixed in zip(spec.shape, _shape(spec, signature, sizes), strict=True)
            ),
        )
        for spec in signature.inputs
    )


def _signatures(recipe: dict[str, Any]) -> list[tuple[str, Sequence[int | None]]]:
    entries = recipe["functions"]
    return [(DEFAULT, entries[-1]["sizes"]), *((e["name"], e["sizes"]) for e in entries)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Program:
    """A signature at one batch and size of axes, as the runtime's model calls its programs."""

    batch: int
    axes: dict[str, int]
    signature: Signature
    serve: Callable[..., dict[str, Any]]

    def call(self, _: object, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run it on host arrays of these sizes."""
        named = {
            spec.name: tf.constant(array)
            for spec, array in zip(self.signature.inputs, inputs, strict=True)
        }
        outputs = self.serve(**named)
        return tuple(outputs[spec.name].numpy() for spec in self.signature.outputs)


@dataclasses.dataclass(frozen=True, slots=True)
class _Device:
    platform: str


def _buckets(bundle: Bundle) -> list[_Key]:
    return [(program.batch, program.axes) for program in bundle.manifest.programs]


def _model(
    bundle: Bundle,
    wanted: Sequence[_Key],
    sizes: Sequence[int | None],
    platform: str,
    serve: Callable[..., Any],
) -> Model:
    """Return a signature as the runtime's model, at those of the wanted sizes that it takes."""
    manifest = bundle.manifest
    names = [axis.name for axis in manifest.signature.axes]
    programs = [
        _Program(batch, dict(axes), manifest.signature, serve)
        for batch, axes in wanted
        if all(
            fixed in {None, size}
            for fixed, size in zip(sizes, (batch, *(axes[n] for n in names)), strict=True)
        )
    ]
    device: Any = _Device(platform)
    calls: Any = tuple(programs)
    return Model(bundle, device, calls, ())


def _write_warmup(recipe: dict[str, Any], bundle: Bundle) -> int:
    """Write a request for each signature at each bucket it takes; return their number."""
    manifest = bundle.manifest
    records = []
    for name, sizes in _signatures(recipe):
        model = _model(bundle, _buckets(bundle), sizes, "cpu", dict)
        for group in model.groups.values():
            for batch in group.programs:
                rows = golden_rows(model, group.sizes, batch)
                request = predict_pb2.PredictRequest(
                    model_spec=model_pb2.ModelSpec(name=manifest.name, signature_name=name),
                    inputs={
                        spec.name: tf.make_tensor_proto(array)
                        for spec, array in zip(manifest.signature.inputs, rows, strict=True)
                    },
                )
                log = prediction_log_pb2.PredictLog(request=request)
                records.append(prediction_log_pb2.PredictionLog(predict_log=log))
    path = Path(recipe["out"], WARMUP)
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:MAX_WARMUP_REQUESTS]:
            writer.write(record.SerializeToString())
    return min(len(records), MAX_WARMUP_REQUESTS)


def _disk_trouble(error: Exception) -> int | None:
    """Return the number of an error of the disk; TensorFlow's own errors have only its text."""
    if isinstance(error, OSError):
        return error.errno
    if not isinstance(error, tf.errors.OpError):
        return None
    return next((n for n in _DISK_TROUBLE if os.strerror(n) in str(error.message)), None)


def _first_useful_line(error: Exception) -> str:
    """Return what went wrong, without the graph in which it did."""
    if not isinstance(error, tf.errors.OpError):
        return f"{type(error).__name__}: {first_line(error)}"
    lines = [line.strip() for line in str(error.message).splitlines()]
    around = ("Graph execution error", "Detected at", "<stack", "Stack trace", "dummy_file", "[[")
    useful = [line for line in lines if line and not line.startswith(around)]
    return (useful or [type(error).__name__])[0][:300]
