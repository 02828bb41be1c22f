"""What a manifest may claim: nothing is hashed, read or allocated that cannot be there."""

import contextlib
import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
from pytest import fixture, mark, param, raises

from runtime import DoesNotFit, IntegrityError, ManifestError, claims, device, loading, open_bundle
from runtime.claims import (
    data_bytes,
    expect_consistent,
    expect_data,
    expect_memory,
    params_bytes,
)
from runtime.loading import load
from runtime.manifest import Manifest

GIB = 1 << 30
PARAMS = "params.safetensors"


@fixture
def manifest(fake_bundle):
    """The manifest of a fake bundle."""
    return Manifest.from_bytes((fake_bundle / "manifest.json").read_bytes())


@fixture
def unread(monkeypatch):
    """Sees that nothing is hashed, and nothing compiled."""

    def refuse(*_, **__):
        raise AssertionError("it was read")

    monkeypatch.setattr("runtime.bundle.digest_of", refuse)
    monkeypatch.setattr("runtime.loading.compile_program", refuse)


def claim(bundle, change):
    """Change the manifest of a bundle."""
    path = bundle / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def longer_params(size):
    """Claim a params file of so many bytes, and a matching argument."""

    def change(value):
        value["params"]["files"][0]["bytes"] = size
        value["params"]["arguments"][0]["shape"] = [(size - 4096) // 4]

    return change


@mark.usefixtures("unread")
@mark.parametrize("header", [b"", (4088).to_bytes(8, "little") + b"{}"], ids=["zeros", "header"])
def test_file_that_is_a_hole_is_refused_before_it_is_hashed(fake_bundle, header):
    """
    A file of 100 GiB that takes up no room is no file of weights, whatever it begins with.
    """
    size = 100 * GIB
    (fake_bundle / PARAMS).write_bytes(header)
    os.truncate(fake_bundle / PARAMS, size)
    claim(fake_bundle, longer_params(size))
    stored = (fake_bundle / PARAMS).stat().st_blocks * 512

    with raises(IntegrityError) as caught:
        open_bundle(fake_bundle)

    assert str(caught.value) == (
        f"{PARAMS}: expected {size} bytes of data, got {stored} on the disk; the rest of it is a hole"
    )


@mark.parametrize(
    ("size", "stored", "hole", "refused"),
    [
        param(GIB, 0, 0, False, id="small"),
        param(70 * GIB, 70 * GIB, 70 * GIB, False, id="whole"),
        param(70 * GIB, 70 * GIB // 64, 0, False, id="compressed"),
        param(70 * GIB, 0, 70 * GIB, False, id="blocks-not-counted"),
        param(70 * GIB, 70 * GIB // 64 - 512, 4096, True, id="hole"),
    ],
)
def test_file_is_a_hole_where_its_file_system_says_both(monkeypatch, size, stored, hole, refused):
    """
    Compression alone, or a file system that counts no blocks, makes no hole of a file.
    """
    monkeypatch.setattr("os.lseek", lambda *_: hole)
    status = SimpleNamespace(st_size=size, st_blocks=stored // 512)
    file = SimpleNamespace(path=PARAMS)

    with raises(IntegrityError) if refused else contextlib.nullcontext():
        expect_data(file, status, 0)


def many(bundle, count, size, put):
    """Claim more params files, each below a GiB, and put them there."""
    entry = {"bytes": size, "sha256": "0" * 64}
    for i in range(count):
        put(bundle / f"more{i}", size)
    more = [{"path": f"more{i}", **entry} for i in range(count)]
    claim(bundle, lambda value: value["params"]["files"].extend(more))


def put_hole(path, size):
    """Make a file that takes up no room."""
    path.touch()
    os.truncate(path, size)


def put_link(path, size):
    """Make another name of one file that is whole."""
    whole = path.parent / "whole"
    if not whole.exists():
        whole.write_bytes(bytes(size))
    path.hardlink_to(whole)


@mark.usefixtures("unread")
@mark.parametrize(
    ("put", "count", "size"), [(put_hole, 2000, GIB - 1), (put_link, 2000, GIB // 1024)]
)
def test_files_that_are_large_together_are_there(fake_bundle, monkeypatch, put, count, size):
    """
    Files of which each is small take as long to hash as a large one: they are no holes either, nor
    one file under many names.
    """
    monkeypatch.setattr(claims, "_SHORTEST_HEADER", 0)
    monkeypatch.setattr(claims, "_LONGEST_HEADER", 2 * GIB)
    many(fake_bundle, count, size, put)
    manifest = Manifest.from_bytes((fake_bundle / "manifest.json").read_bytes())
    claimed = sum(file.bytes for file in manifest.files)

    with raises(IntegrityError) as caught:
        open_bundle(fake_bundle)

    message = str(caught.value)
    stored = int(message.partition(", got ")[2].split()[0])
    assert stored * 64 < claimed
    assert message == (
        f"bundle: expected {claimed} bytes of data in its files, got {stored} on the disk; the rest "
        "are holes, or other names of the same file"
    )


def test_files_that_are_large_together_hold_their_arguments(fake_bundle):
    """
    A params file that no argument is in is a header, however many of them there are.
    """
    many(fake_bundle, 3, GIB // 2, put_hole)

    with raises(ManifestError) as caught:
        open_bundle(fake_bundle)

    assert str(caught.value) == (
        f"manifest.json: expected the 0 bytes of its arguments and a header, got {GIB // 2} at "
        "$.params.files[1].bytes"
    )


def test_file_system_that_knows_no_holes_has_all_of_a_file(monkeypatch):
    """
    On a file system that cannot report holes, a file has none.
    """

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("os.lseek", refuse)

    assert data_bytes(SimpleNamespace(st_size=70 * GIB, st_blocks=0), 0) == 70 * GIB


@mark.usefixtures("unread")
def test_header_that_its_file_cannot_hold_is_refused_before_it_is_hashed(fake_bundle, monkeypatch):
    """
    A header's length is read first from a large file, and may be wrong.
    """
    monkeypatch.setattr(claims, "_LARGE_BYTES", 100)
    size = (fake_bundle / PARAMS).stat().st_size
    with (fake_bundle / PARAMS).open("r+b") as file:
        file.write((size - 7).to_bytes(8, "little"))
    bundle = open_bundle(fake_bundle)

    with raises(IntegrityError) as caught:
        bundle.map(bundle.manifest.params.files[0])

    assert str(caught.value) == (
        f"{PARAMS}: expected safetensors, got a header of {size - 7} bytes in a file of {size}"
    )


def params_of(size):
    """Claim a params file of so many bytes."""
    return lambda value: value["params"]["files"][0].update(bytes=size)


def argument_of(shape):
    """Claim an argument of this shape."""
    return lambda value: value["params"]["arguments"][0].update(shape=shape)


@mark.parametrize(
    ("change", "message"),
    [
        param(
            params_of(100 * GIB),
            f"expected the 134 bytes of its arguments and a header, got {100 * GIB} at "
            "$.params.files[0].bytes",
            id="params-larger-than-their-arguments",
        ),
        param(
            argument_of([2**40, 2**20]),
            f"expected the {2**62 + 6} bytes of its arguments and a header, got 326 at "
            "$.params.files[0].bytes",
            id="arguments-larger-than-their-file",
        ),
        param(
            lambda value: value["goldens"][0].update(rows=2**40),
            f"expected more than the {28 * 2**40} bytes of its {2**40} rows, got 284 at "
            "$.goldens[0].file.bytes",
            id="golden-of-more-rows-than-its-file",
        ),
        param(
            lambda value: value["programs"][1]["stablehlo"].update(bytes=2**31),
            f"expected a program of at most {2**31 - 1} bytes, got {2**31} at "
            "$.programs[1].stablehlo.bytes",
            id="program-beyond-its-format",
        ),
    ],
)
def test_claims_that_contradict_each_other_are_refused(fake_bundle, change, message):
    """
    What a file holds has to fit in it; a claim of many bytes is not tried out.
    """
    claim(fake_bundle, change)

    with raises(ManifestError) as caught:
        open_bundle(fake_bundle)

    assert str(caught.value) == f"manifest.json: {message}"


def test_more_files_than_a_bundle_has_are_refused(manifest):
    """
    Each file is opened when a bundle is: their number has a bound.
    """
    entry = manifest.params.files[0]
    files = tuple(dataclasses.replace(entry, path=f"p{i}") for i in range(10_000))
    params = dataclasses.replace(manifest.params, files=files, arguments=(), entries=())

    with raises(ManifestError) as caught:
        expect_consistent(dataclasses.replace(manifest, params=params))

    assert str(caught.value) == (
        "manifest.json: expected at most 10,000 files, got 10,009 at $ (files)"
    )


def test_params_fit_in_the_memory_there_is_to_the_byte(manifest):
    """
    Models of any size load where the machine is large enough.
    """
    needed = params_bytes(manifest)

    expect_memory(manifest, params=needed, device=None, host=None)
    expect_memory(manifest, params=None, device=10**6, host=10**6)
    with raises(DoesNotFit) as caught:
        expect_memory(manifest, params=needed - 1, device=None, host=None)

    assert str(caught.value) == (
        f"params: expected {needed} B of memory, got {needed - 1} B; serve it where there is more"
    )


def test_largest_file_that_is_read_whole_fits_in_memory(manifest):
    """
    Programs and goldens are read by this machine, whatever device they are for.
    """
    golden = manifest.goldens[0].file

    expect_memory(manifest, params=None, device=None, host=golden.bytes)
    with raises(DoesNotFit) as caught:
        expect_memory(manifest, params=None, device=None, host=golden.bytes - 1)

    assert str(caught.value) == (
        f"{golden.path}: expected {golden.bytes} B of memory free, got {golden.bytes - 1} B; serve "
        "it where more is free"
    )


@mark.parametrize("where", ["device", "host"])
def test_bucket_whose_rows_fit_nowhere_is_refused_before_it_is_compiled(manifest, where):
    """
    Inputs and outputs of a bucket take memory on both sides; a batch may be claimed to be any size.
    """
    huge = dataclasses.replace(manifest.programs[-1], batch=2**40)
    manifest = dataclasses.replace(manifest, programs=(*manifest.programs[:-1], huge))
    memory = {"params": None, "device": None, "host": None, where: 10**6}

    with raises(DoesNotFit) as caught:
        expect_memory(manifest, **memory)

    # Two inputs of four numbers and an output of three.
    assert str(caught.value) == (
        f"bucket b{2**40}-seq4: expected {2**40 * 44:,} B of memory free beside the params, got "
        "1,000,000 B; export no bucket above b2-seq2, or serve it where more is free"
    )


@mark.usefixtures("unread")
@mark.parametrize(
    ("patched", "message"),
    [
        ("params_memory", "params: expected "),
        ("free_memory", "bucket b1: expected "),
        ("host_memory_free", "programs/b"),
    ],
)
def test_bundle_that_does_not_fit_is_refused_before_it_is_read(
    classifier_bundle, monkeypatch, patched, message
):
    """
    Loading checks the device's and the machine's memory first; nothing is compiled, hashed or mapped.
    """
    monkeypatch.setattr(loading, patched, lambda *_: 1)

    with raises(DoesNotFit, match=f"^{message}"):
        load(classifier_bundle, "cpu")


def test_params_of_a_cpu_may_take_what_the_machine_has(tmp_path, monkeypatch):
    """
    Params are used in the pages of the file: what is free for the moment is no limit, a container's is.
    """
    cpu = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    gpu = SimpleNamespace(
        platform="gpu", memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 400}
    )
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(device, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)

    assert device.params_memory(cpu) == 9_216_000
    assert device.params_memory(gpu) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert device.params_memory(cpu) == 9_216_000
    (tmp_path / "memory.max").write_text("3000000\n")
    assert device.params_memory(cpu) == 3_000_000


def test_zeros_that_a_disk_leaves_out_are_weights_all_the_same(fake_bundle, redigest):
    """
    A small file may be a hole: it is read, and its digest decides.
    """
    data = (fake_bundle / PARAMS).read_bytes()
    (fake_bundle / PARAMS).write_bytes(b"")
    os.truncate(fake_bundle / PARAMS, len(data))
    redigest(fake_bundle)
    bundle = open_bundle(fake_bundle)

    with raises(IntegrityError, match=f"^{PARAMS}: expected safetensors, got "):
        bundle.map(bundle.manifest.params.files[0])
    assert np.frombuffer((fake_bundle / PARAMS).read_bytes(), np.uint8).sum() == 0
