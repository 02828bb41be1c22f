"""Safetensors files: any reader can read them, and they can be used where they are mapped."""

import io
import json
import mmap
import struct

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from pytest import mark, param, raises
from safetensors import safe_open

from runtime.errors import IntegrityError
from runtime.signature import DTYPE_BYTES
from runtime.tensors import ALIGNMENT, numpy_dtype, read_tensors, write_tensors


def written(tensors):
    """Return the bytes of a file of these tensors."""
    file = io.BytesIO()
    write_tensors(file, tensors)
    return file.getvalue()


def saved(tmp_path, data):
    """Save a file and map it; return its path and the mapping."""
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    with path.open("rb") as f:
        return path, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def header_of(data):
    """Return the header's size and its JSON."""
    size = int.from_bytes(data[:8], "little")
    return size, json.loads(data[8 : 8 + size])


def file_of(header, body=b""):
    """Put a file together from a header, as text or JSON values, and what follows it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def some(dtype):
    """Make a small matrix of a dtype, with its extremes where it is an integer."""
    kind = numpy_dtype(dtype)
    if kind == np.bool_:
        return np.array([[True, False, True]])
    if "float" in dtype:
        return np.array([[0.5, -2.0, 1.5]]).astype(kind)
    info = np.iinfo(kind)
    return np.array([[info.min, 1, info.max]], kind)


@mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_every_dtype_reads_back(tmp_path, dtype):
    """
    Each dtype of the format is read back with its dtype, shape and bits.
    """
    tensor = some(dtype)

    back = read_tensors(*saved(tmp_path, written({"t": tensor})))["t"]

    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.tobytes() == tensor.tobytes()
    assert tensor.dtype.itemsize == DTYPE_BYTES[dtype]


@mark.parametrize("dtype", [d for d in sorted(DTYPE_BYTES) if "float8" not in d])
def test_the_library_reads_the_file(tmp_path, dtype):
    """
    The safetensors library opens the file and finds the same values.
    """
    tensors = {"t": some(dtype), "u": np.arange(64, dtype=np.float32)}
    path, _ = saved(tmp_path, written(tensors))

    with safe_open(path, framework="np") as f:
        found = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)

    assert found["t"].dtype == tensors["t"].dtype
    assert {n: t.tobytes() for n, t in found.items()} == {
        n: t.tobytes() for n, t in tensors.items()
    }


def test_a_file_of_the_library_is_read(tmp_path):
    """
    What the library writes, metadata and unaligned tensors included, is read here.
    """
    tensors = {"a": np.arange(3, dtype=np.int8), "b": np.arange(5, dtype=np.float64)}
    path = tmp_path / "t.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"made": "elsewhere"})

    back = read_tensors(path, path.read_bytes())

    assert sorted(back) == ["a", "b"]
    assert all((back[name] == tensors[name]).all() for name in tensors)


@mark.parametrize(
    "tensor",
    [
        param(np.array(3.5, np.float32), id="no-axes"),
        param(np.empty((0, 4), np.int64), id="no-rows"),
        param(np.empty((2, 0), ml_dtypes.bfloat16), id="no-columns"),
        param(np.arange(12, dtype=np.int16).reshape(3, 4).T, id="transposed"),
        param(np.arange(12, dtype=np.int16)[::-2], id="backwards"),
        param(np.broadcast_to(np.float32(7), (2, 3)), id="broadcast"),
        param(np.asfortranarray(np.arange(6.0).reshape(2, 3)), id="fortran-order"),
    ],
)
def test_any_layout_is_written_in_c_order(tmp_path, tensor):
    """
    Scalars, empty arrays and arrays that are not in C order are read back unchanged.
    """
    back = read_tensors(*saved(tmp_path, written({"t": tensor})))["t"]

    assert back.shape == tensor.shape
    assert (back == tensor).all()


def test_no_tensors_are_a_file_too(tmp_path):
    """
    A model without params has an empty file of them.
    """
    assert read_tensors(*saved(tmp_path, written({}))) == {}


def test_tensors_of_whole_lines_are_aligned():
    """
    A tensor whose size is a multiple of 64 bytes starts on a 64-byte boundary of the file.
    """
    sizes = {"a": 3, "b": 64, "c": 1, "d": 192, "e": 64, "f": 100}
    data = written({name: np.zeros(size, np.uint8) for name, size in sizes.items()})
    start, header = header_of(data)

    begins = {name: 8 + start + entry["data_offsets"][0] for name, entry in header.items()}

    assert (8 + start) % ALIGNMENT == 0
    assert [name for name, begin in begins.items() if begin % ALIGNMENT == 0] == [
        "b",
        "d",
        "e",
        "a",
    ]
    assert list(header) == ["b", "d", "e", "a", "c", "f"]


def test_the_same_tensors_give_the_same_bytes():
    """
    The file does not depend on the order in which tensors are given.
    """
    one, two = np.arange(3), np.ones((2, 2), np.float32)

    assert written({"one": one, "two": two}) == written({"two": two, "one": one})


def test_reading_copies_nothing(tmp_path):
    """
    Arrays are read-only views of the mapping.
    """
    path, mapped = saved(tmp_path, written({"t": np.arange(16, dtype=np.float32)}))

    tensor = read_tensors(path, mapped)["t"]

    assert np.shares_memory(tensor, np.frombuffer(mapped, np.uint8))
    assert not tensor.flags.writeable


def test_the_cpu_uses_an_aligned_tensor_where_it_lies(tmp_path):
    """
    Putting an aligned tensor on the CPU device makes no second copy of it.
    """
    path, mapped = saved(tmp_path, written({"t": np.arange(1024, dtype=np.float32)}))
    tensor = read_tensors(path, mapped)["t"]

    placed = jax.device_put(tensor, jax.local_devices(backend="cpu")[0])

    assert placed.unsafe_buffer_pointer() == tensor.ctypes.data


ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@mark.parametrize(
    ("data", "reason"),
    [
        param(b"", "Error while deserializing header: header too small", id="empty"),
        param(b"\1\0\0", "Error while deserializing header: header too small", id="three-bytes"),
        param(
            struct.pack("<Q", 2**62) + b"{}",
            "Error while deserializing header: header too large",
            id="header-bomb",
        ),
        param(
            struct.pack("<Q", 1000) + b"{}",
            "Error while deserializing header: invalid header length",
            id="header-longer-than-the-file",
        ),
        param(
            file_of({"t": ENTRY}, b"123"),
            "Error while deserializing header: incomplete metadata, file not fully covered",
            id="truncated",
        ),
        param(
            file_of({"t": ENTRY}, b"12345"),
            "Error while deserializing header: incomplete metadata, file not fully covered",
            id="bytes-behind",
        ),
        param(
            file_of({"t": ENTRY, "u": ENTRY}, b"1234"),
            "Error while deserializing header: invalid offset for tensor",
            id="overlap",
        ),
        param(
            file_of({"t": ENTRY, "u": ENTRY | {"data_offsets": [5, 9]}}, b"123456789"),
            "Error while deserializing header: invalid offset for tensor",
            id="hole",
        ),
        param(
            file_of({"t": ENTRY | {"shape": [5]}}, b"1234"),
            "Error while deserializing header: invalid shape, data type, or offset for tensor",
            id="shape-does-not-fit",
        ),
        param(
            file_of({"t": ENTRY | {"shape": [2**63, 2]}}, b"1234"),
            "Error while deserializing header: overflow computing buffer size from shape and/or "
            "element type",
            id="shape-overflows",
        ),
        param(
            file_of(
                b'{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
                b'"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
                b"1234",
            ),
            "a name twice in the header",
            id="name-twice",
        ),
        param(
            file_of({"t": ENTRY | {"dtype": "F8_E8M0"}}, b"1234"), "'F8_E8M0'", id="unknown-dtype"
        ),
    ],
)
def test_damaged_header_is_refused(tmp_path, data, reason):
    """
    A header that is too long, overlaps, leaves holes or repeats a name never becomes arrays.
    """
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)

    with raises(IntegrityError) as caught:
        read_tensors(path, data)

    assert str(caught.value).startswith("t.safetensors: expected safetensors, got ")
    assert reason in str(caught.value)
