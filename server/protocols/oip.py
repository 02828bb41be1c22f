"""The Open Inference Protocol v2's tensors, in JSON, in binary and over gRPC.

https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.manifest import Manifest
from runtime.model import Model
from runtime.records.raw_values import FORMS
from runtime.records.tensors import brief, convert, from_bytes, kind_of, refuse
from runtime.release import version
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array
from server.errors import NotFound

# BF16 is in gRPC's table only; the names of the FP8 types follow its pattern.
DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "float8_e4m3fn": "FP8_E4M3FN",
    "float8_e5m2": "FP8_E5M2",
}
# Of texts and files: elements of any length.
BYTES = "BYTES"
PLATFORM = "jax_stablehlo"
_MAX_SIZE = 2**31 - 1
SERVER_NAME = "hloserve"
SERVER_VERSION = version()
EXTENSIONS = ("binary_tensor_data", "statistics")


@dataclasses.dataclass(frozen=True, slots=True)
class InputHeader:
    """Name, datatype and shape of one input in a request.

    Attributes:
      spec: the input in the signature.
      shape: the tensor's; bucketed axes are not checked yet.
    """

    spec: TensorSpec
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the name of the input."""
        return self.spec.name

    @property
    def where(self) -> str:
        """Return the name of the input, for an error message."""
        return f"input {self.spec.name!r}"

    @property
    def elements(self) -> int:
        """Return the number of elements, as an exact int."""
        return math.prod(self.shape)


def read_input_header(
    signature: Signature,
    name: object,
    datatype: object,
    shape: object,
    raw_names: Sequence[str] = (),
) -> InputHeader:
    """Return an input's name, datatype and shape, checked against the signature.

    Raises:
      SignatureMismatch: there is no such input, or it has another datatype or shape.
      MalformedRequest: the shape is not a list of sizes.
    """
    spec = next((spec for spec in signature.inputs if spec.name == name), None)
    if spec is None:
        known = [*raw_names, *(s.name for s in signature.inputs)]
        raise SignatureMismatch(_unknown("input", name, known))
    if datatype != DATATYPES[spec.dtype]:
        raise SignatureMismatch(
            f"input {spec.name!r}: expected datatype {DATATYPES[spec.dtype]}, got {brief(datatype)}"
        )
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise MalformedRequest(f"input {spec.name!r}: expected a shape, got {kind_of(shape)}")
    if len(shape) != len(spec.shape):
        raise SignatureMismatch(
            f"input {spec.name!r}: expected {spec}, got {len(shape)} dimensions"
        )
    for dim, size in zip(spec.shape, shape, strict=True):
        if type(size) is not int or size < 0:
            raise MalformedRequest(
                f"input {spec.name!r}: expected sizes of 0 or more in its shape, got {brief(size)}"
            )
        # In a tensor without elements the other sizes are not bounded by the data, but NumPy has limits.
        if size != dim if isinstance(dim, int) else size > _MAX_SIZE:
            raise SignatureMismatch(
                f"input {spec.name!r}: expected {spec}, got {brief(size)} in its shape"
            )
    return InputHeader(spec, tuple(shape))


@dataclasses.dataclass(frozen=True, slots=True)
class RawHeader:
    """Name and number of a request's raw values: texts, or files of images.

    Attributes:
      name: of the raw input.
      elements: how many there are.
      kind: text or image.
    """

    name: str
    elements: int
    kind: str

    @property
    def where(self) -> str:
        """Return the name of the input, for an error message."""
        return f"input {self.name!r}"


def read_header(
    model: Model, name: object, datatype: object, shape: object
) -> InputHeader | RawHeader:
    """Return the header of an input, which is a tensor or raw by its name; or by its datatype.

    Raises:
      SignatureMismatch: there is no such input, or it has another datatype or shape.
      MalformedRequest: the shape is not a list of sizes.
    """
    preparer = model.preparer
    raw = preparer.raw_names if preparer else ()
    tensors = [spec for spec in model.signature.inputs if spec.name == name]
    if name not in raw or (tensors and datatype == DATATYPES[tensors[0].dtype]):
        return read_input_header(model.signature, name, datatype, shape, raw)
    where = f"input {name!r}"
    if datatype != BYTES:
        expected = " or ".join([BYTES, *(DATATYPES[spec.dtype] for spec in tensors)])
        raise SignatureMismatch(f"{where}: expected datatype {expected}, got {brief(datatype)}")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise MalformedRequest(f"{where}: expected a shape, got {kind_of(shape)}")
    sizes = list(shape)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise MalformedRequest(f"{where}: expected sizes of 0 or more in its shape")
    if len(sizes) not in (1, 2) or sizes[1:] not in ([], [1]):
        raise SignatureMismatch(f"{where}: expected shape [n] or [n, 1], got {brief(str(sizes))}")
    return RawHeader(str(name), sizes[0], preparer.kinds[str(name)] if preparer else "")


def _values_from_raw(header: RawHeader, data: bytes | memoryview) -> list[Any] | Array:
    """Return values of binary BYTES: before each its length, in four bytes, little-endian.

    Raises:
      SignatureMismatch: there are more or fewer, or one is no UTF-8.
    """
    read = FORMS[header.kind].from_bytes
    found: list[Any] = []
    at = 0
    # Each takes at least four bytes, so that no shape makes this long.
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        end = at + 4 + size
        if at + 4 > len(data) or end > len(data):
            raise SignatureMismatch(
                f"{header.where}: expected {size} bytes behind a length, got {max(0, len(data) - at - 4)}"
            )
        found.append(read(bytes(data[at + 4 : end]), f"{header.where}[{len(found)}]"))
        at = end
    return _counted(header, found)


def _values_from_values(header: RawHeader, values: Any) -> list[Any] | Array:
    """Return values of JSON, or of gRPC's `bytes_contents`; flat, or each in a list of its own.

    Raises:
      SignatureMismatch: there are more or fewer, or one is none of its kind.
    """
    form = FORMS[header.kind]
    found = []
    for i, value in enumerate(values if isinstance(values, Sequence) else [None]):
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        where = f"{header.where}[{i}]"
        found.append(
            form.from_bytes(one, where) if isinstance(one, bytes) else form.from_json(one, where)
        )
    return _counted(header, found)


def _counted(header: RawHeader, values: list[Any]) -> list[Any] | Array:
    if len(values) != header.elements:
        raise SignatureMismatch(
            f"{header.where}: expected {header.elements} {header.kind}s as its shape says, got "
            f"{len(values)}"
        )
    # A list of nothing could be a tensor as well.
    return values or np.empty(0, np.object_)


def from_raw(header: InputHeader | RawHeader, data: bytes | memoryview) -> Array | list[Any]:
    """Return an input's bytes as a tensor, see `tensors.from_bytes`, or as raw values."""
    if isinstance(header, RawHeader):
        return _values_from_raw(header, data)
    return from_bytes(header.spec.dtype, header.shape, data, header.where)


def from_values(header: InputHeader | RawHeader, values: Any) -> Array | list[Any]:
    """Return a tensor of JSON numbers, nested as the shape says or flat in row-major order; or raw values.

    Raises:
      SignatureMismatch: a value is not of the dtype, or there are more or fewer.
    """
    if isinstance(header, RawHeader):
        return _values_from_values(header, values)
    array = convert(header.spec.dtype, values)
    if array is None:
        raise refuse(header.spec.dtype, values, header.where)
    if array.shape == header.shape:
        return array
    # Lists without elements cannot show every size.
    if array.size == header.elements and (array.ndim == 1 or not array.size):
        return array.reshape(header.shape)
    got = f"{array.size} values" if array.ndim == 1 else f"shape {list(array.shape)}"
    raise SignatureMismatch(
        f"{header.where}: expected {header.elements} values for shape {list(header.shape)}, got {got}"
    )


def from_body(signature: Signature, data: bytes) -> dict[str, Any]:
    """Return inputs from a body that is one tensor's bytes, without any JSON.

    With a bucketed axis it is one row, and the size of the axis follows from the number of bytes.

    Raises:
      MalformedRequest: the model has several inputs, or several bucketed axes.
      SignatureMismatch: not a whole number of rows.
    """
    specs = [spec for spec in signature.inputs if not spec.mask]
    spec = specs[0]
    axes = [dim for dim in spec.shape[1:] if isinstance(dim, str)]
    if len(specs) > 1 or len(axes) > 1:
        raise MalformedRequest("body: expected JSON that names the inputs, got bytes alone")
    unit = spec.row_bytes(dict.fromkeys(axes, 1))
    if not unit or len(data) % unit:
        raise SignatureMismatch(f"body: expected a multiple of {unit} bytes, got {len(data)}")
    count = len(data) // unit
    shape = spec.concrete(1 if axes else count, dict.fromkeys(axes, count))
    return {spec.name: from_raw(InputHeader(spec, shape), data)}


def read_timeout(value: object) -> float | None:
    """Return the scheduling extension's `timeout`, from microseconds to seconds; None for 0.

    Raises:
      MalformedRequest: it is not a non-negative int.
    """
    if type(value) is not int or value < 0:
        raise MalformedRequest("parameters: expected timeout in microseconds, got something else")
    return value / 1e6 if value else None


def requested(signature: Signature, names: Iterable[object]) -> list[TensorSpec]:
    """Return the requested outputs in their order; all outputs if none is requested.

    Raises:
      SignatureMismatch: there is no such output, or one is requested twice.
    """
    known = {spec.name: spec for spec in signature.outputs}
    found: dict[str, TensorSpec] = {}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise SignatureMismatch(_unknown("output", name, known))
        if name in found:
            raise SignatureMismatch(f"output {name!r}: expected once, got it twice")
        found[name] = known[name]
    return list((found or known).values())


def check_names(manifest: Manifest, name: str, version: str = "") -> None:
    """Raise NotFound unless this is the served model and version; an empty version is any.

    Raises:
      NotFound: with at most 100 characters of the requested name.
    """
    if name != manifest.name:
        raise NotFound(f"model: expected {manifest.name!r}, got {name[:100]!r}")
    if version not in ("", manifest.version):
        raise NotFound(f"model version: expected {manifest.version!r}, got {version[:100]!r}")


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the model's metadata; -1 stands for dynamic sizes.

    Of a model that takes texts or images these are described, and not the inputs that they are made into:
    a client that fills every input that it finds would send both.
    """
    raw = [name for stage in manifest.preprocess for name in stage.raw_names]
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": PLATFORM,
        "inputs": [
            *({"name": name, "datatype": BYTES, "shape": [-1]} for name in raw),
            *map(_described, given(manifest)),
        ],
        "outputs": [_described(spec) for spec in manifest.signature.outputs],
    }


def given(manifest: Manifest) -> list[TensorSpec]:
    """Return the inputs that callers give themselves: those that no stage makes."""
    made = {name for stage in manifest.preprocess for name in stage.made}
    return [spec for spec in manifest.signature.inputs if spec.name not in made]


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _unknown(what: str, name: object, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what}: expected {', '.join(map(repr, names))}, got {brief(name)}{hint}"
