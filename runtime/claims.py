"""What a manifest claims, compared with files and memory before anything is read or allocated.

A manifest may claim anything: sizes of files that are empty, and shapes larger than any machine's memory. To
find out by hashing, reading or running takes minutes, or all the memory there is.
"""

import math
import os
from collections.abc import Iterable, Mapping

from runtime.entries import File, Golden
from runtime.errors import DoesNotFit, IntegrityError, ManifestError
from runtime.manifest import Manifest
from runtime.signature import DTYPE_BYTES, TensorSpec, bucket_name

# Each is opened when a bundle is, and no real bundle has nearly as many.
_MAX_FILES = 10_000
# Their offsets have 32 bits with a sign: FlatBuffers.
_LARGEST_PROGRAM = 2**31 - 1
# Of safetensors: before a header is its length, and the library reads none that is longer.
LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
_SHORTEST_HEADER = len(b"{}")
# What is smaller is read and hashed at once, which finds whatever is wrong with it.
_LARGE_BYTES = 1 << 30
# A large file of which the disk has less than this part is a hole. File systems compress, and leave
# out pages of zeros, but no weights shrink so far.
_SPARSE_PART = 64


def params_bytes(manifest: Manifest) -> int:
    """Return the bytes of the params, which all programs share."""
    arguments = manifest.params.arguments
    return sum(math.prod(a.shape) * DTYPE_BYTES[a.dtype] for a in arguments)


def expect_consistent(manifest: Manifest) -> None:
    """Check what a manifest says of large files against what it says is in them.

    What is small is read, and found out then; many small ones are large together.

    Raises:
      ManifestError: a file is too small or too large for that, or there are too many.
    """
    if len(manifest.files) > _MAX_FILES:
        raise ManifestError(
            f"expected at most {_MAX_FILES:,} files, got {len(manifest.files):,}", "$ (files)"
        )
    for i, program in enumerate(manifest.programs):
        for form, file in (("exported", program.exported), ("stablehlo", program.stablehlo)):
            if file.bytes > _LARGEST_PROGRAM:
                raise ManifestError(
                    f"expected a program of at most {_LARGEST_PROGRAM} bytes, got {file.bytes}",
                    f"$.programs[{i}].{form}.bytes",
                )
    files = manifest.params.files
    in_file: dict[str, int] = dict.fromkeys((file.path for file in files), 0)
    for argument in manifest.params.arguments:
        in_file[argument.file] += math.prod(argument.shape) * DTYPE_BYTES[argument.dtype]
    if max(sum(file.bytes for file in files), sum(in_file.values())) > _LARGE_BYTES:
        for i, file in enumerate(files):
            _expect_header(file, in_file[file.path], f"$.params.files[{i}].bytes")
    for i, golden in enumerate(manifest.goldens):
        tensors = (*manifest.signature.inputs, *manifest.signature.outputs)
        size = golden.rows * _row_bytes(tensors, golden)
        # Beside these a golden may hold other tensors.
        if size > _LARGE_BYTES and golden.file.bytes < size + LENGTH_BYTES + _SHORTEST_HEADER:
            raise ManifestError(
                f"expected more than the {size} bytes of its {golden.rows} rows, got "
                f"{golden.file.bytes}",
                f"$.goldens[{i}].file.bytes",
            )


def _row_bytes(tensors: Iterable[TensorSpec], golden: Golden) -> int:
    return sum(spec.row_bytes(golden.axes) for spec in tensors)


def _expect_header(file: File, tensors: int, where: str) -> None:
    """Expect a params file of the bytes of its tensors, and a header of a possible length."""
    header = file.bytes - tensors - LENGTH_BYTES
    if not _SHORTEST_HEADER <= header <= _LONGEST_HEADER:
        raise ManifestError(
            f"expected the {tensors} bytes of its arguments and a header, got {file.bytes}", where
        )


def expect_header(file: File, length: int) -> None:
    """Check the length of a safetensors header, as a large file itself says it, against the file.

    Args:
      file: its entry in the manifest.
      length: what its first 8 bytes say.

    Raises:
      IntegrityError: no file of this size has such a header.
    """
    longest = min(file.bytes - LENGTH_BYTES, _LONGEST_HEADER)
    if longest < _SHORTEST_HEADER:
        raise IntegrityError(f"{file.path}: expected safetensors, got {file.bytes} bytes")
    if file.bytes > _LARGE_BYTES and not _SHORTEST_HEADER <= length <= longest:
        raise IntegrityError(
            f"{file.path}: expected safetensors, got a header of {length} bytes in a file of "
            f"{file.bytes}"
        )


def expect_data(file: File, status: os.stat_result, descriptor: int) -> None:
    """Refuse a large file that is a hole, almost all of it: it says so, and the disk has no bytes.

    Raises:
      IntegrityError: it is one.
    """
    stored = data_bytes(status, descriptor)
    if _hollow(status.st_size, stored):
        raise IntegrityError(
            f"{file.path}: expected {status.st_size} bytes of data, got {stored} on the disk; the "
            "rest of it is a hole"
        )


def expect_data_of_all(size: int, stored: int) -> None:
    """Refuse files that are large together, while the disk has hardly anything of them.

    Args:
      size: bytes of all files of a bundle.
      stored: bytes that the disk has of them; of one file under several names, once.

    Raises:
      IntegrityError: they are holes, or names of the same few bytes.
    """
    if _hollow(size, stored):
        raise IntegrityError(
            f"bundle: expected {size} bytes of data in its files, got {stored} on the disk; the rest "
            "are holes, or other names of the same file"
        )


def data_bytes(status: os.stat_result, descriptor: int) -> int:
    """Return how much of a file the disk has, in bytes: all of it where it has no hole.

    A file system that counts no blocks knows of no holes either, and some know nothing of them.
    """
    stored = status.st_blocks * 512
    if stored >= status.st_size:
        return status.st_size
    try:
        hole = os.lseek(descriptor, 0, os.SEEK_HOLE) < status.st_size
    except OSError:
        hole = False
    return stored if hole else status.st_size


def _hollow(size: int, stored: int) -> bool:
    return size > _LARGE_BYTES and stored * _SPARSE_PART < size


def expect_memory(
    manifest: Manifest, *, params: int | None, device: int | None, host: int | None
) -> None:
    """Refuse what cannot be loaded here, by what the manifest says of it alone.

    Args:
      manifest: read.
      params: bytes that there are for the params; None if unknown.
      device: bytes that the device has left, likewise.
      host: bytes that this machine, or the container, has left, likewise.

    Raises:
      DoesNotFit: names what does not, and the bytes.
    """
    needed = params_bytes(manifest)
    if params is not None and needed > params:
        raise DoesNotFit(
            f"params: expected {needed:,} B of memory, got {params:,} B; serve it where there is more"
        )
    if host is not None:
        # They are read whole, one after the other.
        read = [*(p.exported for p in manifest.programs), *(g.file for g in manifest.goldens)]
        largest = max(read, key=lambda file: file.bytes)
        if largest.bytes > host:
            raise DoesNotFit(
                f"{largest.path}: expected {largest.bytes:,} B of memory free, got {host:,} B; "
                "serve it where more is free"
            )
    beside = {name: whole - needed for name, whole in bytes_by_program(manifest)}
    for free in (device, host):
        if free is not None:
            expect_free(beside, free)


def bytes_by_program(manifest: Manifest) -> list[tuple[str, int]]:
    """Return each program's name and the bytes of its params, inputs and outputs: less than a run takes."""
    signature, params = manifest.signature, params_bytes(manifest)
    tensors = (*signature.inputs, *signature.outputs)
    return [
        (
            bucket_name(signature, [p.axes[axis.name] for axis in signature.axes], p.batch),
            params + p.batch * sum(spec.row_bytes(p.axes) for spec in tensors),
        )
        for p in manifest.programs
    ]


def expect_free(beside: Mapping[str, int], free: int) -> None:
    """Refuse programs that need more memory than is free.

    Args:
      beside: the bytes that each needs beside the params, by the names of their buckets.
      free: bytes.

    Raises:
      DoesNotFit: names the smallest of the programs that do not fit, and the largest of those that do.
    """
    ordered = sorted(beside, key=beside.__getitem__)
    fitting = [name for name in ordered if beside[name] <= free]
    if len(fitting) < len(ordered):
        smallest = ordered[len(fitting)]
        smaller = f"export no bucket above {fitting[-1]}, or " if fitting else ""
        raise DoesNotFit(
            f"bucket {smallest}: expected {beside[smallest]:,} B of memory free beside the params, got "
            f"{free:,} B; {smaller}serve it where more is free"
        )
