"""The Open Inference Protocol v2's tensors, whatever carries them: JSON, binary or gRPC.

https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.manifest import Manifest
from runtime.records.tensors import brief, convert, from_bytes, kind_of, refuse
from runtime.release import version
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array
from server.errors import NotFound

# BF16 is not in the protocol's table, but gRPC's; the FP8 kinds follow its manner.
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
PLATFORM = "jax_stablehlo"
_LARGEST = 2**31 - 1
SERVER_NAME = "hloserve"
SERVER_VERSION = version()
EXTENSIONS = ("binary_tensor_data", "statistics")


@dataclasses.dataclass(frozen=True, slots=True)
class RequestFields:
    """What a request says of one input, its values apart.

    Attributes:
      spec: the signature's.
      shape: the tensor's, its sizes not yet held against the signature.
    """

    spec: TensorSpec
    shape: tuple[int, ...]

    @property
    def where(self) -> str:
        """Name the input in a message."""
        return f"input {self.spec.name!r}"

    @property
    def elements(self) -> int:
        """Give the number of elements, exactly, however large."""
        return math.prod(self.shape)


def read_head(signature: Signature, name: object, datatype: object, shape: object) -> RequestFields:
    """Hold an input's name, datatype and shape against the signature.

    Raises:
      SignatureMismatch: no such input, or another datatype.
      MalformedRequest: the shape is none.
    """
    spec = next((spec for spec in signature.inputs if spec.name == name), None)
    if spec is None:
        raise SignatureMismatch(_unknown("input", name, [s.name for s in signature.inputs]))
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
        # Beside a size of 0 the others are free, and NumPy has bounds of its own.
        if size != dim if isinstance(dim, int) else size > _LARGEST:
            raise SignatureMismatch(
                f"input {spec.name!r}: expected {spec}, got {brief(size)} in its shape"
            )
    return RequestFields(spec, tuple(shape))


def from_raw(head: RequestFields, data: bytes | memoryview) -> Array:
    """View an input's bytes as a tensor; see `typed.from_bytes`."""
    return from_bytes(head.spec.dtype, head.shape, data, head.where)


def from_values(head: RequestFields, values: Any) -> Array:
    """Type JSON numbers; nested as the shape says, or flat in row-major order.

    Raises:
      SignatureMismatch: a value is not of the dtype, or there are more or fewer.
    """
    array = convert(head.spec.dtype, values)
    if array is None:
        raise refuse(head.spec.dtype, values, head.where)
    if array.shape == head.shape:
        return array
    # Lists without elements cannot show every size.
    if array.size == head.elements and (array.ndim == 1 or not array.size):
        return array.reshape(head.shape)
    got = f"{array.size} values" if array.ndim == 1 else f"shape {list(array.shape)}"
    raise SignatureMismatch(
        f"{head.where}: expected {head.elements} values for shape {list(head.shape)}, got {got}"
    )


def from_body(signature: Signature, data: bytes) -> dict[str, Array]:
    """Read a body that is the only input's bytes and nothing else.

    With a bucketed axis it is one row, and the axis as long as the bytes make it.

    Raises:
      MalformedRequest: several inputs, or several bucketed axes.
      SignatureMismatch: not a whole number of rows.
    """
    specs = [spec for spec in signature.inputs if not spec.mask]
    spec = specs[0]
    axes = [dim for dim in spec.shape[1:] if isinstance(dim, str)]
    if len(specs) > 1 or len(axes) > 1:
        raise MalformedRequest("body: expected JSON that tells the inputs apart, got bytes alone")
    unit = spec.row_bytes(dict.fromkeys(axes, 1))
    if not unit or len(data) % unit:
        raise SignatureMismatch(f"body: expected a multiple of {unit} bytes, got {len(data)}")
    count = len(data) // unit
    shape = spec.concrete(1 if axes else count, dict.fromkeys(axes, count))
    return {spec.name: from_raw(RequestFields(spec, shape), data)}


def read_timeout(value: object) -> float | None:
    """Read the scheduling extension's `timeout`, in microseconds, as seconds; 0 is none.

    Raises:
      MalformedRequest: it is no such number.
    """
    if type(value) is not int or value < 0:
        raise MalformedRequest("parameters: expected timeout in microseconds, got something else")
    return value / 1e6 if value else None


def requested(signature: Signature, names: Iterable[object]) -> list[TensorSpec]:
    """Give the outputs that were asked for, in that order; all if none was.

    Raises:
      SignatureMismatch: there is no such output, or one is asked for twice.
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
    """Refuse another model or another version; the empty version is any.

    Raises:
      NotFound: names at most 100 characters of what was asked for.
    """
    if name != manifest.name:
        raise NotFound(f"model: expected {manifest.name!r}, got {name[:100]!r}")
    if version not in ("", manifest.version):
        raise NotFound(f"model version: expected {manifest.version!r}, got {version[:100]!r}")


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Describe the model as the protocol does; -1 stands for sizes that vary."""
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": PLATFORM,
        "inputs": [_described(spec) for spec in manifest.signature.inputs],
        "outputs": [_described(spec) for spec in manifest.signature.outputs],
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _unknown(what: str, name: object, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what}: expected {', '.join(map(repr, names))}, got {brief(name)}{hint}"
