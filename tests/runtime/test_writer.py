"""The writer: a bundle is in place whole, or not at all, whatever happens."""

import logging
import os

import numpy as np
from pytest import mark, param, raises

from runtime.bundle import open_bundle
from runtime.errors import BundleError, ManifestError
from runtime.writer import BundleWriter, _abandoned
from tests.runtime.fake_bundle import FILES, stage, write_bundle


def version_at(path):
    """Read every file of a bundle; return its version."""
    bundle = open_bundle(path)
    for file in bundle.manifest.files:
        bundle.read(file)
    return bundle.manifest.version


def listed(folder):
    """List what is in a directory, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def beside(target):
    """List what is in the directory that a bundle is written to."""
    return listed(target.parent)


def interrupt(writer, version="1"):
    """Stage a bundle, and press Ctrl-C."""
    stage(writer, version)
    raise KeyboardInterrupt


def test_committed_bundle_is_all_there_is(target):
    """
    After a commit the directory holds the bundle's files and nothing beside it.
    """
    write_bundle(target)

    assert version_at(target) == "1"
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()) == FILES
    assert beside(target) == ["bundle"]


def test_nothing_shows_before_the_commit(target):
    """
    Until it is committed a bundle is a hidden directory, so that half of it is never loaded.
    """
    with BundleWriter(target) as writer:
        stage(writer)

        assert not target.exists()
        assert beside(target) == [writer.path.name]
        assert writer.path.name.startswith(".bundle.staging-")


def test_failure_leaves_nothing(target):
    """
    An exception on the way removes what was written.
    """
    with raises(KeyboardInterrupt), BundleWriter(target) as writer:
        interrupt(writer)

    assert beside(target) == []


def test_failure_removes_the_directories_it_made(tmp_path):
    """
    Directories made on the way to the target go again; those that were there stay.
    """
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "a" / "b" / "bundle"
    with raises(KeyboardInterrupt), BundleWriter(target) as writer:
        interrupt(writer)

    assert listed(tmp_path) == ["there"]
    assert listed(tmp_path / "there") == []


def test_missing_directories_are_made(tmp_path):
    """
    A bundle can be written where no directory is yet.
    """
    write_bundle(tmp_path / "a" / "b" / "bundle")

    assert version_at(tmp_path / "a" / "b" / "bundle") == "1"


def test_bundle_in_place_is_not_replaced_unasked(target):
    """
    Without overwrite an existing bundle is refused before anything is written.
    """
    write_bundle(target, version="1")

    with raises(BundleError) as caught, BundleWriter(target):
        pass

    assert str(caught.value) == f"bundle {target}: exists; pass --overwrite to replace it"
    assert (version_at(target), beside(target)) == ("1", ["bundle"])


def test_old_bundle_stays_until_the_new_one_is_whole(target):
    """
    While a bundle is being replaced the old one can be loaded.
    """
    write_bundle(target, version="1")
    with BundleWriter(target, overwrite=True) as writer:
        stage(writer, version="2")
        assert version_at(target) == "1"
        writer.commit()
        assert version_at(target) == "2"

    assert beside(target) == ["bundle"]


def test_failed_replacement_keeps_the_old_bundle(target):
    """
    An exception while replacing leaves the old bundle as it was.
    """
    write_bundle(target, version="1")

    with raises(KeyboardInterrupt), BundleWriter(target, overwrite=True) as writer:
        interrupt(writer, version="2")

    assert (version_at(target), beside(target)) == ("1", ["bundle"])


@mark.parametrize("overwrite", [False, True])
def test_what_follows_a_commit_can_undo_it(target, overwrite):
    """
    Where a block that belongs to a commit fails, all is as before it.
    """
    if overwrite:
        write_bundle(target, version="1")
    with BundleWriter(target, overwrite=overwrite) as writer:
        stage(writer, version="2")
        with raises(KeyboardInterrupt) as caught, writer.committed():
            raise KeyboardInterrupt(version_at(target))

    assert caught.value.args == ("2",)
    assert beside(target) == (["bundle"] if overwrite else [])
    assert not overwrite or version_at(target) == "1"


def test_empty_directory_is_filled(target):
    """
    With overwrite an empty directory, as mktemp makes one, becomes the bundle.
    """
    target.mkdir()

    write_bundle(target, overwrite=True)

    assert (version_at(target), beside(target)) == ("1", ["bundle"])


def test_bundle_of_another_format_is_replaced(target):
    """
    A bundle that this release cannot read is a bundle all the same.
    """
    target.mkdir()
    (target / "manifest.json").write_text('{"format_version": 99}')

    write_bundle(target, overwrite=True)

    assert version_at(target) == "1"


def a_file(path):
    """Put someone's file where the bundle is to be."""
    path.write_text("mine")


def a_directory_of_files(path):
    """Put someone's directory there."""
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def another_manifest(path):
    """Put a directory there whose manifest.json is of another kind."""
    path.mkdir()
    (path / "manifest.json").write_text('{"manifest_version": 3, "name": "a browser extension"}')


def a_link_to_a_bundle(path):
    """Put a symbolic link to a bundle there."""
    write_bundle(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def a_broken_link(path):
    """Put a symbolic link to nothing there."""
    path.symlink_to("nowhere")


def identity(path):
    """
    Return what changes when a path is replaced or written to; reading a link sets its access time.
    """
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


def a_manifest_that_is_a_fifo(path):
    """Put a directory there whose manifest would block a reader."""
    path.mkdir()
    os.mkfifo(path / "manifest.json")


@mark.parametrize(
    "make",
    [
        a_file,
        a_directory_of_files,
        another_manifest,
        a_link_to_a_bundle,
        a_broken_link,
        a_manifest_that_is_a_fifo,
    ],
)
def test_what_is_no_bundle_is_left_alone(target, make):
    """
    Overwrite replaces bundles only: no file, no link, no directory with other things in it.
    """
    make(target)
    before = identity(target)

    with raises(BundleError) as caught:
        write_bundle(target, overwrite=True)

    assert str(caught.value) == f"bundle {target}: exists and is not a bundle; it is left alone"
    assert identity(target) == before
    assert beside(target) == ["bundle"]


def test_first_of_two_writers_wins(target):
    """
    Of two writers at one place the first to commit wins, and the other is refused.
    """
    with BundleWriter(target) as slow:
        stage(slow, version="1")
        with BundleWriter(target) as quick:
            stage(quick, version="2")
            quick.commit()
        with raises(BundleError) as caught:
            slow.commit()

    assert str(caught.value) == f"bundle {target}: exists; pass --overwrite to replace it"
    assert (version_at(target), beside(target)) == ("2", ["bundle"])


def test_last_of_two_replacing_writers_wins(target):
    """
    Two writers that may replace do so one after the other, each with a whole bundle.
    """
    with BundleWriter(target, overwrite=True) as slow:
        stage(slow, version="1")
        with BundleWriter(target, overwrite=True) as quick:
            stage(quick, version="2")
            quick.commit()
        slow.commit()

    assert (version_at(target), beside(target)) == ("1", ["bundle"])


def test_writer_that_ended_a_moment_ago_is_no_error(target):
    """
    A staging directory may disappear between being listed and being inspected.
    """
    assert not _abandoned(target.parent / ".bundle.staging-0a1b2c3d")


def test_writers_of_other_bundles_are_left_alone(target):
    """
    What a dead writer of another bundle left is not touched, however alike the names are.
    """
    names = [".bundle2.staging-00000000", ".bundle.staging-x", "bundle.staging-00000000"]
    for name in names:
        (target.parent / name).mkdir()

    write_bundle(target)

    assert beside(target) == sorted(["bundle", *names])


@mark.parametrize("name", ["bundle", "bundle[1]", "b*", "Modèle №5"])
def test_leftovers_are_found_whatever_the_name(tmp_path, name):
    """
    Staging directories of dead writers are removed, also where names look like patterns.
    """
    (tmp_path / f".{name}.staging-0a1b2c3d").mkdir()
    (tmp_path / f".{name}.staging-0a1b2c3d" / "params.safetensors").write_bytes(b"half")

    write_bundle(tmp_path / name)

    assert listed(tmp_path) == [name]


@mark.parametrize(
    ("staged", "version"), [param(True, "2", id="new-one"), param(False, "1", id="old-one")]
)
def test_interrupted_swap_is_finished(target, caplog, staged, version):
    """
    A writer that died between its two renames is finished by the next: the new bundle goes in.
    """
    write_bundle(target.parent / ".bundle.replaced-0a1b2c3d", version="1")
    if staged:
        write_bundle(target.parent / ".bundle.staging-0a1b2c3d", version="2")

    with caplog.at_level(logging.WARNING), BundleWriter(target, overwrite=True):
        assert version_at(target) == version

    assert beside(target) == ["bundle"]
    assert caplog.messages == [f"bundle {target}: finished a swap that was interrupted"]


def test_half_removed_bundle_does_not_come_back(target):
    """
    An old bundle whose removal was interrupted is no bundle any more: its manifest went first.
    """
    aside = target.parent / ".bundle.replaced-0a1b2c3d"
    write_bundle(aside)
    (aside / "manifest.json").unlink()

    with BundleWriter(target):
        assert not target.exists()

    assert beside(target) == []


def test_everything_is_on_the_disk_before_it_is_in_place(target, monkeypatch):
    """
    Every file and directory of a bundle is flushed before the rename that commits it.
    """
    flushed, fsync = set(), os.fsync

    def remember(descriptor):
        if not target.exists():
            flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    write_bundle(target)

    assert {path.stat().st_ino for path in (target, *target.rglob("*"))} <= flushed


def test_tensors_are_read_back(target):
    """
    What the writer describes is what the file holds, in whatever order arrays lie in memory.
    """
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with BundleWriter(target) as writer:
        file = writer.write_tensors("t.safetensors", {"t": turned})
        written = writer.path / "t.safetensors"

        assert file.bytes == written.stat().st_size
        assert written.read_bytes().endswith(turned.tobytes())


def test_byte_swapped_tensor_is_refused(target):
    """
    An array that would read back as other numbers stops the export.
    """
    with raises(BundleError) as caught, BundleWriter(target) as writer:
        writer.write_tensors("t.safetensors", {"t": np.arange(3, dtype=">f4")})

    assert str(caught.value) == "t.safetensors: 't' reads back differently. This is a bug."
    assert beside(target) == []


def test_manifest_that_could_not_be_read_is_not_written(target, fake_bundle):
    """
    A manifest is read back before it is written, so that no bundle is put in place broken.
    """
    manifest = open_bundle(fake_bundle).manifest
    object.__setattr__(manifest, "buckets", (2, 1))

    with raises(ManifestError), BundleWriter(target) as writer:
        writer.write_manifest(manifest)

    assert beside(target) == []


def test_file_is_written_once(target):
    """
    Two files cannot have one path.
    """
    with BundleWriter(target) as writer:
        writer.write("programs/b1.exported", b"one")
        with raises(FileExistsError):
            writer.write("programs/b1.exported", b"two")
