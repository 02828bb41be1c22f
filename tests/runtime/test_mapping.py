"""Files in use: what was written to is refused, and what only looks different is not."""

import hashlib
import logging
import mmap
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
from pytest import fixture, mark, param, raises

from runtime import IntegrityError, load
from runtime.bundle import open_bundle

PARAMS = "params.safetensors"
ADVICE = "; replace a bundle as a whole, by renaming, and start again"


@fixture
def bundle(classifier_bundle, copy_of):
    """A copy of a bundle that runs."""
    return copy_of(classifier_bundle)


@fixture
def model(bundle):
    """That bundle, loaded on a CPU."""
    return load(bundle, "cpu")


def flip(path):
    """Change the last byte of a file in place."""
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(data) - 1)
        file.write(bytes([data[-1] ^ 1]))


def write_through_a_mapping(path):
    """Change the last byte of a file as a process that has it mapped, too."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[-1] ^= 1
        mapped.flush()


def touch(path):
    """Set a file's time, as if it had been written to."""
    os.utime(path, ns=(1, 1))


@mark.parametrize("change", [flip, write_through_a_mapping, touch])
def test_file_that_was_written_to_is_refused(model, bundle, change):
    """
    Where the time of a file in use moves its content is trusted no more, and the file is named.
    """
    model.bundle.expect_unchanged()
    change(bundle / PARAMS)

    for look in (model.bundle.expect_unwritten, model.bundle.expect_unchanged):
        with raises(IntegrityError) as caught:
            look()
        assert str(caught.value) == (
            f"{PARAMS}: expected the file that was checked for as long as it is in use, got one "
            f"that was written to{ADVICE}"
        )


@mark.parametrize("more", [-1, 1, "all"])
def test_file_of_another_size_is_refused(model, bundle, more):
    """
    A file in use that was truncated or extended is refused with both sizes.
    """
    size = (bundle / PARAMS).stat().st_size
    left = 0 if more == "all" else size + more
    os.truncate(bundle / PARAMS, left)

    with raises(IntegrityError) as caught:
        model.bundle.expect_unwritten()

    assert str(caught.value) == (
        f"{PARAMS}: expected the file that was checked for as long as it is in use, got {left} of "
        f"its {size} bytes{ADVICE}"
    )


def test_content_is_found_out_where_its_time_was_set_back(model, bundle):
    """
    A writer that sets a file's time back leaves another time that cannot be set.
    """
    path = bundle / PARAMS
    before, good = path.stat(), sha256(path)
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    model.bundle.expect_unwritten()  # does not read
    with raises(IntegrityError) as caught:
        model.bundle.expect_unchanged()

    assert str(caught.value) == (
        f"{PARAMS}: expected sha256 {good} for as long as it is in use, got {sha256(path)}{ADVICE}"
    )


def sha256(path):
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_content_is_found_out_after_its_name_is_gone(model, bundle):
    """
    A file that was changed, set back and removed is still in use, and still wrong.
    """
    path = bundle / PARAMS
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.unlink()

    with raises(IntegrityError, match=f"^{PARAMS}: expected sha256 "):
        model.bundle.expect_unchanged()


def chmod(bundle):
    """Remove write permission from the params."""
    (bundle / PARAMS).chmod(0o400)


def unlink(bundle):
    """Remove the params."""
    (bundle / PARAMS).unlink()


def link(bundle):
    """Rename the params."""
    os.link(bundle / PARAMS, bundle.parent / "another")


def remove(bundle):
    """Remove the bundle."""
    shutil.rmtree(bundle)


def write_others(bundle):
    """Write to every file but the params."""
    for path in bundle.rglob("*"):
        if path.is_file() and path.name != PARAMS:
            path.write_bytes(b"other")


def read(bundle):
    """Read every file."""
    for path in bundle.rglob("*"):
        if path.is_file():
            path.read_bytes()


def put_directory(bundle):
    """Put a directory in the params' place."""
    (bundle / PARAMS).rename(bundle.parent / "aside")
    (bundle / PARAMS).mkdir()


def put_symlink(bundle):
    """Put a symbolic link in the params' place."""
    (bundle / PARAMS).rename(bundle.parent / "aside")
    (bundle / PARAMS).symlink_to(bundle.parent / "aside")


def put_another(bundle):
    """Rename another file into the params' place."""
    (bundle.parent / "new").write_bytes(bytes(9))
    (bundle.parent / "new").rename(bundle / PARAMS)


def put_bundle(bundle):
    """Rename another bundle into the place of this one, and remove this one, as exports do."""
    new = shutil.copytree(bundle, bundle.parent / "new")
    flip(new / PARAMS)
    bundle.rename(bundle.parent / "old")
    new.rename(bundle)
    shutil.rmtree(bundle.parent / "old")


@mark.parametrize(
    ("change", "replaced"),
    [
        param(change, replaced, id=change.__name__)
        for change, replaced in (
            (read, ""),
            (chmod, ""),
            (link, ""),
            (unlink, ""),
            (remove, ""),
            (write_others, ""),
            (put_directory, PARAMS),
            (put_symlink, PARAMS),
            (put_another, PARAMS),
            (put_bundle, PARAMS),
        )
    ],
)
def test_what_does_not_reach_the_mapped_content_is_no_change(model, bundle, change, replaced):
    """
    Other modes, names and files leave what was loaded as it is: it answers as before, to the end.
    """
    rows = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    before = model.predict(rows)["output"].tobytes()
    change(bundle)

    for _ in range(3):
        model.bundle.expect_unchanged()
    model.bundle.expect_unwritten()

    assert model.bundle.replaced() == replaced
    assert model.predict(rows)["output"].tobytes() == before


def test_file_is_read_again_once_for_a_change_of_mode(model, bundle, caplog):
    """
    What turned out to be no change is logged once, and is what later checks compare with.
    """
    (bundle / PARAMS).chmod(0o400)
    with caplog.at_level(logging.INFO, "runtime.mapping"):
        for _ in range(3):
            model.bundle.expect_unchanged()

    assert caplog.messages == [
        f"{PARAMS}: its mode, owner or names were changed, its content was not"
    ]
    flip(bundle / PARAMS)
    with raises(IntegrityError, match="got one that was written to"):
        model.bundle.expect_unchanged()


def test_file_that_a_network_has_lost_is_refused(model, monkeypatch):
    """
    Where a file's state is not known its content is not trusted.
    """

    def stale(_):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("os.fstat", stale)
        with raises(IntegrityError) as caught:
            model.bundle.expect_unwritten()

    assert str(caught.value) == (
        f"{PARAMS}: expected the file that was checked for as long as it is in use, got Stale file "
        f"handle{ADVICE}"
    )


def open_descriptors(path):
    """
    Return how many descriptors of this process refer to a file.
    """
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        # One that listing the folder opened is gone by now.
        with suppress(FileNotFoundError):
            found += descriptor.readlink() == path.resolve()
    return found


def test_file_is_in_use_for_as_long_as_something_refers_to_it(bundle):
    """
    A file that was let go may change, and its descriptor is closed; goldens are let go at once.
    """
    opened = open_bundle(bundle)
    tensors = opened.map(opened.manifest.params.files[0])
    assert open_descriptors(bundle / PARAMS) > 0
    flip(bundle / PARAMS)
    with raises(IntegrityError):
        opened.expect_unchanged()
    del tensors

    opened.expect_unchanged()
    assert open_descriptors(bundle / PARAMS) == 0


def test_file_that_changes_while_it_is_hashed_is_found_out(bundle, monkeypatch):
    """
    What is written between the reading of a file and the first look at it is seen by that look.
    """
    opened = open_bundle(bundle)

    def late(data):
        found = hashlib.sha256(data).hexdigest()
        flip(bundle / PARAMS)
        return found

    monkeypatch.setattr("runtime.bundle.digest_of", late)
    tensors = opened.map(opened.manifest.params.files[0])

    with raises(IntegrityError, match="got one that was written to"):
        opened.expect_unchanged()
    assert tensors


def test_file_that_cannot_be_mapped_is_one_line(bundle, monkeypatch):
    """
    A process without free descriptors names the file that it needed one for.
    """
    opened = open_bundle(bundle)

    def full(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("runtime.mapping.os.dup", full)
    with raises(
        IntegrityError,
        match=re.escape(f"{PARAMS}: expected a file that can be mapped, got Too many open files"),
    ):
        opened.map(opened.manifest.params.files[0])
