"""The bundle directory, attacked: no byte is read that does not match the manifest's digests."""

import hashlib
import logging
import os
import shutil
import subprocess

import numpy as np
from pytest import mark, param, raises

from runtime.bundle import open_bundle
from runtime.errors import BundleError, IntegrityError, ManifestError
from tests.runtime.fake_bundle import FILES, PARAMS

PROGRAM = "programs/b1-seq2.exported"


def read_all(bundle):
    """Open a bundle and read every file of it, as loading and verifying do."""
    opened = open_bundle(bundle)
    for file in opened.manifest.files:
        if file.path.endswith(".safetensors"):
            opened.map(file)
        else:
            opened.read(file)


def some_bits(data, count):
    """Pick bits of some bytes, always the same ones."""
    bits = np.random.default_rng(0).permutation(len(data) * 8)
    return [int(bit) for bit in bits[:count]]


def refusal(bundle, kind=IntegrityError):
    """Read a bundle that must be refused; return the message."""
    with raises(BundleError) as caught:
        read_all(bundle)
    assert type(caught.value) is kind
    return str(caught.value)


def test_whole_bundle_is_read(fake_bundle, caplog):
    """
    What was written opens without a warning and holds exactly its files.
    """
    read_all(fake_bundle)

    files = sorted(str(p.relative_to(fake_bundle)) for p in fake_bundle.rglob("*") if p.is_file())
    assert files == FILES
    assert caplog.records == []


def test_params_are_mapped(fake_bundle):
    """
    Params are read-only views of the file, bit for bit what was written.
    """
    bundle = open_bundle(fake_bundle)

    tensors = bundle.map(bundle.manifest.params.files[0])

    assert {n: t.tobytes() for n, t in tensors.items()} == {
        n: t.tobytes() for n, t in PARAMS.items()
    }
    assert not any(t.flags.writeable for t in tensors.values())


def test_digest_covers_everything(fake_bundle):
    """
    The bundle's digest is the manifest's, which holds the digests of all other files.
    """
    manifest = (fake_bundle / "manifest.json").read_bytes()

    assert open_bundle(fake_bundle).digest == hashlib.sha256(manifest).hexdigest()


@mark.parametrize(
    "path", ["params.safetensors", "golden/0.safetensors", PROGRAM, "programs/b2-seq4.stablehlo"]
)
def test_truncated_file_is_refused_at_opening(fake_bundle, path):
    """
    A file that lost its end is refused before anything is read.
    """
    size = (fake_bundle / path).stat().st_size
    os.truncate(fake_bundle / path, size - 1)

    with raises(IntegrityError) as caught:
        open_bundle(fake_bundle)

    assert str(caught.value) == f"{path}: expected {size} bytes, got {size - 1}"


@mark.parametrize("path", ["params.safetensors", "golden/0.safetensors", PROGRAM])
def test_any_flipped_bit_is_refused(fake_bundle, path):
    """
    Not one flipped bit of a file reaches a deserializer.
    """
    whole = (fake_bundle / path).read_bytes()
    expected = hashlib.sha256(whole).hexdigest()
    for bit in some_bits(whole, 40):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (fake_bundle / path).write_bytes(data)

        assert refusal(fake_bundle) == (
            f"{path}: expected sha256 {expected}, got {hashlib.sha256(data).hexdigest()}"
        )


def test_flipped_bits_of_the_manifest_are_noticed(fake_bundle):
    """
    A flipped bit of the manifest is refused, or it changes the bundle's digest.
    """
    path = fake_bundle / "manifest.json"
    whole = path.read_bytes()
    digest = open_bundle(fake_bundle).digest
    for bit in some_bits(whole, 200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = open_bundle(fake_bundle).digest
        except BundleError:
            continue
        assert found != digest


def test_swapped_digests_are_refused(fake_bundle):
    """
    Two programs that change places are refused, though the files are all there.
    """
    one, other = (
        fake_bundle / "programs/b1-seq2.exported",
        fake_bundle / "programs/b2-seq2.exported",
    )
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)

    assert refusal(fake_bundle).startswith("programs/b1-seq2.exported: expected sha256 ")


@mark.parametrize("path", ["../fake_bundle.txt", "/etc/hostname", "programs/../../fake_bundle.txt"])
def test_path_out_of_the_bundle_is_refused(fake_bundle, path):
    """
    A manifest cannot make the reader open a file outside of the bundle.
    """
    (fake_bundle.parent / "fake_bundle.txt").write_bytes((fake_bundle / PROGRAM).read_bytes())
    manifest = fake_bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{PROGRAM}"', f'"{path}"'))

    assert refusal(fake_bundle, ManifestError) == (
        f"manifest.json: expected a plain relative path, got {path!r} at $.programs[0].exported.path"
    )


def test_missing_file_is_refused_at_opening(fake_bundle):
    """
    A bundle without one of its files does not open.
    """
    (fake_bundle / PROGRAM).unlink()

    with raises(IntegrityError) as caught:
        open_bundle(fake_bundle)

    assert str(caught.value) == (
        f"{PROGRAM}: expected a regular file, got No such file or directory"
    )


def as_symlink(path):
    """Put a symbolic link to a file in its place."""
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def as_fifo(path):
    """Put a FIFO, which blocks the process that opens it, in a file's place."""
    path.unlink()
    os.mkfifo(path)


def as_directory(path):
    """Put a directory in a file's place."""
    path.unlink()
    path.mkdir()


@mark.parametrize(
    ("replace", "got"),
    [
        param(as_symlink, "a symbolic link", id="symbolic-link"),
        param(as_fifo, "another kind", id="fifo"),
        param(as_directory, "another kind", id="directory"),
    ],
)
def test_only_regular_files_are_read(fake_bundle, replace, got):
    """
    A symbolic link, a FIFO or a directory in a file's place is refused and never waited for.
    """
    replace(fake_bundle / PROGRAM)

    assert refusal(fake_bundle) == f"{PROGRAM}: expected a regular file, got {got}"


def test_symbolic_link_on_the_way_is_refused(fake_bundle):
    """
    A directory of the bundle cannot be a link to another place.
    """
    shutil.move(fake_bundle / "programs", fake_bundle.parent / "elsewhere")
    (fake_bundle / "programs").symlink_to(fake_bundle.parent / "elsewhere")

    assert refusal(fake_bundle) == f"{PROGRAM}: expected a regular file, got a symbolic link"


def test_the_bundle_itself_may_be_a_symbolic_link(fake_bundle):
    """
    Deployments point a name like `current` at the bundle that serves.
    """
    current = fake_bundle.parent / "current"
    current.symlink_to(fake_bundle)

    read_all(current)


def test_folders_of_any_depth_and_number_are_beside_a_bundle(fake_bundle, monkeypatch, caplog):
    """
    What the manifest does not name is looked at so far, whatever was put there.
    """
    folder = os.open(fake_bundle, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("deeper", dir_fd=folder)
        below = os.open("deeper", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    try:
        read_all(fake_bundle)
        assert caplog.messages == []
        monkeypatch.setattr("runtime.bundle._MAX_ENTRIES", 0)
        (fake_bundle / "beyond").touch()
        read_all(fake_bundle)
        assert caplog.messages == []
    finally:
        subprocess.run(["rm", "-r", fake_bundle / "deeper"], check=True)


def test_extra_files_are_named_and_ignored(fake_bundle, caplog):
    """
    Files that the manifest does not name are warned about, links and hidden ones included.
    """
    (fake_bundle / "notes.txt").write_text("mine")
    (fake_bundle / "programs" / ".hidden").write_text("")
    (fake_bundle / "link").symlink_to("nowhere")
    (fake_bundle / "\x1b[2J").write_text("")
    with caplog.at_level(logging.WARNING):
        read_all(fake_bundle)

    (message,) = caplog.messages
    assert message == (
        f"bundle {fake_bundle} has files its manifest does not name: \\x1b[2J, link, notes.txt, "
        "programs/.hidden"
    )


@mark.parametrize(
    ("replace", "got"),
    [
        param(os.unlink, "no regular file of that name", id="missing"),
        param(as_symlink, "no regular file of that name", id="symbolic-link"),
        param(as_fifo, "no regular file of that name", id="fifo"),
        param(as_directory, "no regular file of that name", id="directory"),
    ],
)
def test_manifest_is_a_regular_file(fake_bundle, replace, got):
    """
    Without a manifest of its own a directory is no bundle: the manifest is the commit marker.
    """
    replace(fake_bundle / "manifest.json")

    assert refusal(fake_bundle, BundleError) == (
        f"bundle {fake_bundle}: expected manifest.json, got {got}; an export that was interrupted "
        "leaves none"
    )


def test_huge_manifest_is_refused(fake_bundle):
    """
    No more than the largest legal manifest is ever read.
    """
    os.truncate(fake_bundle / "manifest.json", 2**40)

    assert refusal(fake_bundle, ManifestError) == (
        "manifest.json: expected at most 67108864 bytes, got 67108865 at $"
    )


@mark.parametrize(
    ("make", "got"),
    [
        param(lambda _: None, "nothing there", id="nothing"),
        param(lambda path: path.write_text(""), "a file", id="file"),
        param(lambda path: path.symlink_to("nowhere"), "a broken symbolic link", id="broken-link"),
    ],
)
def test_what_is_no_directory_is_said(tmp_path, make, got):
    """
    A wrong path is named, with what is there.
    """
    path = tmp_path / "bundle"
    make(path)

    assert refusal(path, BundleError) == f"bundle {path}: expected a directory, got {got}"


def test_path_that_the_system_refuses_is_said(tmp_path):
    """
    A name that is too long is no bundle, and no error of another kind.
    """
    path = tmp_path / ("b" * 300)

    assert refusal(path, BundleError) == (
        f"bundle {path}: expected a directory, got File name too long"
    )


def test_file_that_changes_after_opening_is_refused(fake_bundle):
    """
    Digests are compared when a file is read, not only when the bundle is opened.
    """
    bundle = open_bundle(fake_bundle)
    program = bundle.manifest.programs[0].exported
    (fake_bundle / program.path).write_bytes(b"X" * program.bytes)
    golden = bundle.manifest.goldens[0].file
    (fake_bundle / golden.path).write_bytes(bytes(golden.bytes))

    with raises(IntegrityError):
        bundle.read(program)
    with raises(IntegrityError):
        bundle.map(golden)


@mark.parametrize("name", ["params.safetensors", "golden/0.safetensors"])
def test_damaged_header_with_the_right_digest_is_refused(fake_bundle, redigest, name):
    """
    A safetensors header that lies is caught even where someone recomputed the digests.
    """
    path = fake_bundle / name
    data = bytearray(path.read_bytes())
    data[:8] = (2**62).to_bytes(8, "little")
    path.write_bytes(data)
    redigest(fake_bundle)

    assert refusal(fake_bundle).startswith(f"{name}: expected safetensors, got ")


def test_mapping_outlives_the_bundle_directory(fake_bundle):
    """
    Params stay readable after their bundle is replaced or removed.
    """
    bundle = open_bundle(fake_bundle)
    tensors = bundle.map(bundle.manifest.params.files[0])
    shutil.rmtree(fake_bundle)

    assert np.array_equal(tensors["weights"], PARAMS["weights"])


def test_a_bundle_one_folder_below_is_named(fake_bundle, tmp_path):
    """
    The folder of a model's versions is no bundle, and is distinguished from one that was interrupted.
    """
    for version in ("1", "2"):
        shutil.copytree(fake_bundle, tmp_path / "models" / version)
    (tmp_path / "models" / "notes").mkdir()
    path = tmp_path / "models"

    assert refusal(path, BundleError) == (
        f"bundle {path}: expected a bundle, got a folder without manifest.json; there is one in "
        f"{path}/1 and in {path}/2"
    )


def test_a_bundle_one_folder_above_is_named(fake_bundle, monkeypatch):
    """
    A folder in a bundle is answered with the bundle, from wherever it is looked at.
    """
    inside = fake_bundle / "programs"
    got = "expected a bundle, got a folder without manifest.json; there is one in"

    assert refusal(inside, BundleError) == f"bundle {inside}: {got} {fake_bundle}"
    monkeypatch.chdir(inside)
    assert refusal(".", BundleError) == f"bundle .: {got} {fake_bundle}"


def test_the_nearest_bundle_beside_one_that_is_not_there_is_named(
    fake_bundle, tmp_path, monkeypatch
):
    """A typo in a bundle's name is answered with the bundle that was probably meant."""
    shutil.copytree(fake_bundle, tmp_path / "digits")
    (tmp_path / "digitz").mkdir()  # nearer, and no bundle
    monkeypatch.chdir(tmp_path)

    for typed, meant in (
        ("dgits", "'digits'"),
        (f"{tmp_path}/digit", f"'{tmp_path}/digits'"),
        ("../" + tmp_path.name + "/Digits", f"'../{tmp_path.name}/digits'"),
    ):
        with raises(BundleError) as caught:
            open_bundle(typed)

        assert str(caught.value) == (
            f"bundle {typed}: expected a directory, got nothing there; did you mean {meant}?"
        )


def test_nothing_is_suggested_where_nothing_is_near(tmp_path):
    """A name that is like none of the bundles beside it, or in a folder that is not there, is named alone."""
    for path in (tmp_path / "x", tmp_path / "none" / "x"):
        with raises(BundleError) as caught:
            open_bundle(path)

        assert str(caught.value) == f"bundle {path}: expected a directory, got nothing there"
