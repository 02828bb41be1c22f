"""What a Keras model says of itself: its inputs, its outputs, and what TensorFlow alone runs."""

import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from export.errors import ExportError, first_line
from export.inputs import read_inputs
from runtime.signature import BATCH, TensorSpec

_JAX = "set KERAS_BACKEND=jax before keras is first imported; what another backend saved is read as well"
# Names that Keras counts up in each process.
_COUNTED_INPUT = re.compile(r"keras_tensor(_\d+)?|input_layer(_\d+)?")
# Layers that TensorFlow alone runs, or the class that they are of.
_OF_TENSORFLOW = {
    *("TextVectorization", "IndexLookup", "StringLookup", "IntegerLookup"),
    *("Hashing", "HashedCrossing", "FeatureSpace"),
}
# How Keras calls a class that it does not know.
_UNKNOWN_CLASS = re.compile(r"Could not locate class '(\w+)'")


def import_keras() -> Any:
    """Import Keras on its JAX backend.

    Raises:
      ExportError: it is not installed, or runs on another backend.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras
    except ImportError as error:
        raise ExportError(
            f"keras cannot be imported: {first_line(error)}; pip install 'hloserve[keras]'"
        ) from error
    if keras.config.backend() != "jax":
        raise ExportError(f"keras: expected the backend jax, got {keras.config.backend()}; {_JAX}")
    return keras


def expect_layer(model: Any) -> None:
    """Raise ExportError for what is of Keras, and neither a Layer nor a Model."""
    if not isinstance(model, import_keras().layers.Layer):
        raise ExportError(f"model: expected a keras Layer or Model, got {type(model).__name__}")


def load_keras(path: Path) -> Any:
    """Load a model from a `.keras` file; code that is in the file is not run.

    Raises:
      ExportError: it cannot be loaded; in Keras's own words.
    """
    if not path.is_file():
        got = "a directory" if path.is_dir() else "nothing there"
        raise ExportError(f"model {path}: expected a .keras file, got {got}")
    if path.suffix != ".keras":
        raise ExportError(
            f"model {path}: expected a .keras file, got the older format HDF5; save it anew: "
            f"keras.saving.load_model({path.name!r}).save('{path.stem}.keras')"
        )
    if not zipfile.is_zipfile(path):
        raise ExportError(f"model {path}: expected a .keras file, got none, or part of one")
    keras = import_keras()
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise ExportError(
            f"model {path}: Keras cannot load it: {_said(error)}; with what it lacks, load it in a "
            f"Python file, model = keras.saving.load_model({path.name!r}, {_lacking(error)}), and "
            "export file.py:model"
        ) from error


def _said(error: BaseException) -> str:
    """Return what Keras says of a file: which class it does not know stands behind its first sentence."""
    unknown = _UNKNOWN_CLASS.search(str(error))
    return f"{type(error).__name__}: {unknown[0]}" if unknown else sentence(error)


def _lacking(error: BaseException) -> str:
    """Return the argument that a file needs to be loaded, as far as Keras says which."""
    if unknown := _UNKNOWN_CLASS.search(str(error)):
        return f"custom_objects={{{unknown[1]!r}: {unknown[1]}}}"
    return "safe_mode=False" if "lambda" in str(error).lower() else "…"


def sentence(error: BaseException) -> str:
    """Return the first sentence that Keras says, and its kind."""
    return f"{type(error).__name__}: {first_line(error).partition('. ')[0].rstrip('.')}"


def declared_inputs(model: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs of a Sequential or Functional model, by the names that it has for them.

    Raises:
      ExportError: the model does not say what it takes; or an input has an axis that is not fixed,
        or a dtype of no array.
    """
    expect_layer(model)
    refuse_tensorflow(model)
    named = named_inputs(model)
    if not named:
        raise ExportError(
            f"inputs: expected them by name, since the keras {type(model).__name__} does not say what "
            f"it takes;{_built_with(model)}"
        )
    specs = []
    for name, tensor in named.items():
        # A batch that is fixed may be that of the rows which a model was first called with: whether it
        # takes others, each bucket shows.
        _, *sizes = tensor.shape
        shape = [BATCH, *(f"axis{i}" if n is None else str(n) for i, n in enumerate(sizes, 1))]
        written = f"{name}:{tensor.dtype}[{','.join(shape)}]"
        if None in sizes:
            raise ExportError(
                f"input {name!r}: expected sizes, got {tuple(tensor.shape)}; pass them as "
                f"--input '{written}' --axis axis{sizes.index(None) + 1}=32,64,128"
            )
        specs.append(read_inputs(written)[0])
    return tuple(specs)


def _built_with(model: Any) -> str:
    """Return what there is to say of the shapes that a model was built with, and what to pass."""
    shapes = (model.get_build_config() or {}) if model.built else {}
    shape = shapes.get("input_shape")
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape[1:]):
        return " pass --input 'x:float32[_,28,28,1]'"
    written = ",".join(map(str, shape[1:]))
    return f" it was built with input_shape {tuple(shape)}: pass --input 'x:float32[_,{written}]'"


def refuse_tensorflow(model: Any) -> None:
    """Raise ExportError for layers that run in TensorFlow alone."""
    for layer in _layers(model):
        if _OF_TENSORFLOW & {kind.__name__ for kind in type(layer).__mro__}:
            raise ExportError(
                f"layer {layer.name!r}: {type(layer).__name__} uses TensorFlow and cannot be compiled "
                "with JAX; export the model behind it, keras.Model(that layer's output, "
                "model.outputs), and send what it makes; for texts see --text"
            )


def _layers(model: Any) -> Iterator[Any]:
    yield model
    inside = [getattr(model, "layer", None), *getattr(model, "layers", ())]  # of a wrapper, a model
    for layer in inside:
        if layer is not None:
            yield from _layers(layer)


def refuse_stateful(model: Any) -> None:
    """Raise ExportError for layers that keep a state from one batch to the next."""
    for layer in _layers(model):
        if getattr(layer, "stateful", False) is True:
            raise ExportError(
                f"layer {layer.name!r}: expected one that keeps nothing between calls, got "
                "stateful=True; load its weights into a model with stateful=False there"
            )


def named_inputs(model: Any) -> dict[str, Any]:
    """Return the symbolic inputs of a model by name, in its own order; none if it has none."""
    tensors = getattr(model, "inputs", None) if model.built else None
    if not tensors:
        return {}
    struct = input_structure(model)
    tensors = import_keras().tree.flatten(struct)
    keys = {id(t): key for key, t in struct.items()} if isinstance(struct, dict) else {}
    names = [str(keys.get(id(t), t.name)) for t in tensors]
    names = [re.sub(r"^(?=[^A-Za-z_])|[^A-Za-z0-9_.-]", "_", name) for name in names]
    counted = [bool(_COUNTED_INPUT.fullmatch(name)) for name in names]
    names = _without_counts(names, counted, "input")
    return dict(zip(names, tensors, strict=True))


def input_structure(model: Any) -> Any:
    """Return the inputs in the form in which a model is called with them."""
    keras = import_keras()
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    try:
        return model.input
    except AttributeError:
        return model.inputs


def named_outputs(model: Any, answer: Any) -> Any:
    """Return outputs by the names of their layers, where these are not counted up by Keras."""
    names = list(getattr(model, "output_names", None) or ())
    layers = {layer.name: layer for layer in getattr(model, "layers", ())}
    if not names and isinstance(answer, jax.Array) and layers and named_inputs(model):
        names = [model.layers[-1].name]  # of a Sequential
    if isinstance(answer, Mapping) or not names:
        return answer
    flat = [answer] if not isinstance(answer, list | tuple) else list(answer)
    counted = [_is_counted(name, layers.get(name)) for name in names]
    if len(flat) != len(names) or (len(flat) == 1 and counted[0]):
        return answer
    return dict(zip(_without_counts(names, counted, "output"), flat, strict=True))


def _without_counts(names: list[str], counted: list[bool], kind: str) -> list[str]:
    """Return names, with a place for each that Keras counts up: `input`, or `input_1`."""
    if not any(counted):
        return names
    places = [kind] if len(names) == 1 else [f"{kind}_{i}" for i in range(len(names))]
    mixed = [place if c else name for name, place, c in zip(names, places, counted, strict=True)]
    return mixed if len(set(mixed)) == len(mixed) else places


def _is_counted(name: str, layer: Any) -> bool:
    """Whether Keras made a layer's name of its class, and of how many there were in the process."""
    if layer is None:
        return False
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
    return re.fullmatch(rf"{re.escape(kind)}(_\d+)?", name) is not None
