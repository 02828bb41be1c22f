"""Safetensors files that can be used in place: written aligned, read by mmap.

The format is https://github.com/huggingface/safetensors#format. The library's own
writer does not align tensors and its NumPy reader copies them; on CPU an array that
starts on a 64-byte boundary becomes a device array without a copy. Any safetensors
reader can open these files, and files of any safetensors writer can be read here.
"""

import functools
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from runtime.errors import IntegrityError

Array = np.ndarray[Any, np.dtype[Any]]

ALIGNMENT = 64
_CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_NAMES = {code: name for name, code in _CODES.items()}
_NO_MORE: Mapping[str, str] = {}


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a manifest dtype, ml_dtypes' extensions included."""
    return np.dtype(getattr(ml_dtypes, name, name))


def write_tensors(file: BinaryIO, tensors: Mapping[str, Array]) -> None:
    """Write one safetensors file in which tensors start on 64-byte boundaries.

    Tensors whose size is a multiple of 64 bytes come first, so all of them are
    aligned; the format allows no holes, so the others follow as they fall.

    Args:
      file: opened for writing in binary.
      tensors: any supported dtype; a non-contiguous array is written in C order.
    """
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        # A C-ordered copy only where the array is not already one; 0-d stays 0-d.
        file.write(np.asarray(tensors[name], order="C").reshape(-1).view(np.uint8).data)


def read_tensors(
    path: Path,
    buffer: mmap.mmap | bytes,
    name: str | None = None,
    more: Mapping[str, str] = _NO_MORE,
) -> dict[str, Array]:
    """View the tensors of a safetensors file; nothing is copied.

    Args:
      path: the file, for the library's header checks (overlaps, holes, overflow).
      buffer: its bytes, whose digest the caller has checked.
      name: what an error calls it; None for its own name.
      more: codes of dtypes that no bundle has, and the names of these dtypes.

    Returns:
      Read-only arrays that keep `buffer` alive.

    Raises:
      IntegrityError: the header is not one the format allows.
    """
    try:
        with safe_open(path, framework="np"):
            pass
        size = int.from_bytes(buffer[:8], "little")
        header = json.loads(buffer[8 : 8 + size], object_pairs_hook=_no_duplicates)
        header.pop("__metadata__", None)
        return {
            name: _view(buffer, 8 + size, entry, {**_NAMES, **more})
            for name, entry in header.items()
        }
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise IntegrityError(f"{name or path.name}: expected safetensors, got {error}") from None


def _view(buffer: mmap.mmap | bytes, start: int, entry: Any, names: Mapping[str, str]) -> Array:
    dtype = numpy_dtype(names[entry["dtype"]])
    begin, end = entry["data_offsets"]
    flat = (
        np.frombuffer(buffer, np.uint8, end - begin, start + begin)
        if end > begin
        else np.empty(0, np.uint8)
    )
    return flat.view(dtype).reshape(entry["shape"])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in the header")
    return found
