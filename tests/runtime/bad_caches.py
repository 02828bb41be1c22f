"""Ways in which an executable cache can be wrong, with every digest in it right.

Each takes the folder of executables, a generator of random numbers, and another such folder, of a
bundle with other programs.
"""

import json
import math
import os
import shutil
from pathlib import Path

from runtime.cache_files import packed_of, unpacked


def programs(folder):
    """List the executables."""
    return sorted(folder.glob("*.xla"))


def records(folder):
    """List the records."""
    return sorted(folder.glob("*.json"))


def rewrite(path, header=None, data=None):
    """Write a file again, with its digest right; `header` changes fields, None removes one."""
    found, body = unpacked(path.read_bytes())
    key = found.pop("key") | (header or {}).pop("key", {})
    fields = {k: v for k, v in found.items() if k not in ("format", "sha256")} | (header or {})
    path.write_bytes(packed_of(key, fields, body if data is None else data))


def pick(rng, files):
    """Take one of several files."""
    return files[rng.randrange(len(files))]


def of_another_program(folder, rng, _):
    """The bytes of a program are those of another one of the same bundle."""
    one, two = rng.sample(programs(folder), 2)
    rewrite(one, data=unpacked(two.read_bytes())[1])


def of_another_bundle(folder, rng, other):
    """The bytes of a program are those of another model's."""
    rewrite(pick(rng, programs(folder)), data=unpacked(pick(rng, programs(other)).read_bytes())[1])


def swapped_files(folder, rng, _):
    """Two files have changed names."""
    one, two = rng.sample(programs(folder), 2)
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def another_key(folder, rng, _):
    """A field of the key is another one."""
    field = pick(rng, ["jax", "jaxlib", "platform_version", "device_kind", "x64", "arguments"])
    rewrite(pick(rng, programs(folder)), {"key": {field: pick(rng, ["", 7, True, None, [1]])}})


def key_of_no_object(folder, rng, _):
    """The key is something else than an object."""
    path = pick(rng, programs(folder))
    header, body = unpacked(path.read_bytes())
    header["key"] = pick(rng, [None, 3, "key", [1, 2]])
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)


def lying_header(folder, rng, _):
    """A field of the header has a value of another type, or none."""
    field = pick(rng, ["threads", "data_dependent", "fallback"])
    rewrite(pick(rng, programs(folder)), {field: pick(rng, [None, -1, 1e308, "x", [], {}])})


def no_header(folder, rng, _):
    """A file begins with something else."""
    path = pick(rng, programs(folder))
    path.write_bytes(pick(rng, [b"", b"{}", b"\n", b"[]\n", b"{" * 5000 + b"\n", os.urandom(900)]))


def cut_off(folder, rng, _):
    """A file ends too soon."""
    path = pick(rng, programs(folder))
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def cut_off_and_digested(folder, rng, _):
    """The bytes of a program end too soon, and their digest is right for that."""
    path = pick(rng, programs(folder))
    body = unpacked(path.read_bytes())[1]
    rewrite(path, data=body[: rng.randrange(len(body) // 2)])


def flipped(folder, rng, _):
    """A bit of a file is another one."""
    path = pick(rng, programs(folder))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def odd_times(folder, rng, _):
    """The run times that were kept are none."""
    path = pick(rng, records(folder))
    _, body = unpacked(path.read_bytes())
    record = json.loads(body)
    value = pick(rng, [0, -1, math.nan, math.inf, 1e308, "1", None, True, [], {}])
    record["seconds"] = {
        where: dict.fromkeys(times, value) for where, times in record.get("seconds", {}).items()
    }
    rewrite(path, data=json.dumps(record).encode())


def lying_times(folder, rng, _):
    """The run times that were kept are wrong, and possible."""
    for path in records(folder):
        record = json.loads(unpacked(path.read_bytes())[1])
        record["seconds"] = {
            where: {name: 10 ** rng.uniform(-9, 3) for name in times}
            for where, times in record.get("seconds", {}).items()
        }
        rewrite(path, data=json.dumps(record).encode())


def odd_record(folder, rng, _):
    """A record holds something else."""
    path = pick(rng, records(folder))
    rewrite(path, data=pick(rng, [b"", b"[]", b"7", b'{"seconds": 3, "mixing": 4}', b"{" * 9000]))


def link(folder, rng, other):
    """A file is a link to one that would do."""
    path = pick(rng, programs(folder))
    aside = Path(shutil.move(path, other / "aside"))
    path.symlink_to(aside)


def pipe(folder, rng, _):
    """A file is a pipe without a writer."""
    path = pick(rng, [*programs(folder), *records(folder)])
    path.unlink()
    os.mkfifo(path)


def directory(folder, rng, _):
    """A file is a directory."""
    path = pick(rng, [*programs(folder), *records(folder)])
    path.unlink()
    path.mkdir()


def written_by_others(folder, rng, _):
    """Others may write a file."""
    pick(rng, programs(folder)).chmod(pick(rng, [0o666, 0o622, 0o620]))


def open_to_others(folder, rng, _):
    """Others may look into the folder."""
    folder.chmod(pick(rng, [0o777, 0o755, 0o710]))


def of_another_owner(folder, rng, _):
    """A file, or the folder, is another user's."""
    os.chown(pick(rng, [folder, *programs(folder)]), 65532, 65532)


def removed(folder, rng, _):
    """Files are missing."""
    for path in programs(folder):
        if rng.random() < 0.5:
            path.unlink()


KINDS = (
    *(of_another_program, of_another_bundle, swapped_files, another_key, key_of_no_object),
    *(lying_header, no_header, cut_off, cut_off_and_digested, flipped, odd_times, lying_times),
    *(odd_record, link, pipe, directory, written_by_others, open_to_others, of_another_owner),
    removed,
)
