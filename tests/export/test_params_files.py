"""Params from gs://, through a bucket of Cloud Storage's emulator."""

import socket
import sys
import tempfile
from pathlib import Path

import flax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from gcp_storage_emulator.server import create_server
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import storage

from export import CheckpointError, params_files
from tests.serving import free_port

W = np.arange(6, dtype=np.float32).reshape(3, 2)


def upload(folder, prefix):
    """Put a folder's files into the bucket."""
    bucket = storage.Client(project=None).bucket("models")
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.blob(f"{prefix}/{path.relative_to(folder)}").upload_from_filename(path)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """An emulator with gs://models/run, steps of Orbax, and params in other forms beside them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with ocp.CheckpointManager(folder / "run") as manager:
        for step in (1, 20, 3):
            manager.save(step, args=ocp.args.StandardSave({"w": W * step}), force=True)
        manager.wait_until_finished()
    (folder / "net.msgpack").write_bytes(flax.serialization.to_bytes({"w": W}))
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        upload(folder, "flax")
        yield folder
    server.stop()


@pytest.fixture
def read(emulator, tmp_path, monkeypatch):  # noqa: ARG001 (it has to run)
    """Read params; nothing may be left on disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(path, **options):
        steps = []
        try:
            return params_files.read(path, progress=steps.append, **options), steps
        finally:
            assert list(tmp_path.iterdir()) == []

    return run


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("path", "factor", "files"),
    [
        ("gs://models/flax/run", 20, 9),
        (Path("gs://models/flax/run"), 20, 9),
        ("gs://models/flax/run/", 20, 9),
        ("gs://models/flax/run/3", 3, 9),
        ("gs://models/flax/run/3/default", 3, 7),
        ("gs://models/flax/net.msgpack", 1, 1),
    ],
)
def test_params_are_read_from_a_bucket(read, path, factor, files):
    """A folder of steps, a step, its item and a file are read; of steps only the newest is downloaded."""
    tree, steps = read(path)

    np.testing.assert_array_equal(tree["w"], W * factor)
    assert [line.partition(" MB")[0].rpartition(",")[0] for line in steps] == [
        f"copying {files} files of {str(path).replace(':/m', '://m').rstrip('/')}"
    ]


@pytest.mark.e2e
@pytest.mark.usefixtures("emulator", "folder")
def test_the_command_takes_a_bucket(command):
    """`--params gs://…` is all that is different from an export of a local checkpoint."""
    ran = command(
        *("models.py:Net", "--params", "gs://models/flax/run/3", "--input", "x:float32[_,3]"),
        *("--out", "b", "--dry-run"),
    )

    assert ran.status == 1
    assert ran.error.startswith("params do not fit the model: missing linear/bias float32[2]")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "gs://models/flax/rum",
            (
                "params gs://models/flax/rum: expected a file or folder, got nothing there; did you "
                "mean 'run'?"
            ),
        ),
        (
            "gs://models",
            (
                "params gs://models: expected an Orbax or Flax checkpoint directory, a folder of "
                "save_pretrained, a Flax msgpack file, a safetensors file, or a pickle (with "
                "--allow-pickle), got a directory with flax"
            ),
        ),
        (
            "gs://nobody/x",
            ("params gs://nobody: expected a bucket, got 404; is its name right?"),
        ),
    ],
)
def test_what_is_not_there_is_one_line_with_the_url(read, url, message):
    """A wrong name, a folder of other things and a wrong bucket are named as they were written."""
    with pytest.raises(CheckpointError) as caught:
        read(url)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://", "params: expected gs://BUCKET/FOLDER with a bucket's name, got 'gs://'"),
        (
            "s3://b/x",
            (
                "params: expected a path on this machine or gs://, got 's3://b/x'; copy it here "
                "first: aws s3 cp --recursive s3://b/x x and pass x"
            ),
        ),
        (
            Path("https://host/x.msgpack"),
            (
                "params: expected a path on this machine or gs://, got 'https://host/x.msgpack'; "
                "copy it here first: curl -L -o x.msgpack https://host/x.msgpack and pass x.msgpack"
            ),
        ),
    ],
)
def test_other_urls_are_refused(url, message):
    """What is no bucket of Google's is not read, and not called absent."""
    with pytest.raises(CheckpointError) as caught:
        params_files.read(url, progress=lambda _: None)

    assert str(caught.value) == message


def test_absent_package_names_its_extra(monkeypatch):
    """Without Google's client the refusal names the extra to install."""
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage")

    with pytest.raises(CheckpointError) as caught:
        params_files.read("gs://models/x", progress=lambda _: None)

    assert str(caught.value) == (
        "params gs://models: expected google-cloud-storage, got none; pip install 'hloserve[gcs]'"
    )


def test_absent_credentials_are_one_line(monkeypatch):
    """Without credentials the error names the command to log in, rather than Google's long message."""

    def refuse(**_):
        raise DefaultCredentialsError("Your default credentials were not found. To set up …")

    monkeypatch.setattr(storage, "Client", refuse)

    with pytest.raises(CheckpointError) as caught:
        params_files.read("gs://models/x", progress=lambda _: None)

    assert str(caught.value) == (
        "params gs://models: expected credentials, got none; run as a service account, or run "
        "gcloud auth application-default login"
    )


def test_a_service_that_is_not_there_is_one_line(monkeypatch):
    """A connection that is refused is no traceback, and not a missing checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("runtime.storage.transfer.TRIES", 1)

    with pytest.raises(CheckpointError) as caught:
        params_files.read("gs://models/x", progress=lambda _: None)

    assert str(caught.value) == (
        "params gs://models/x: gave up after 1 tries: [Errno 111] Connection refused"
    )


def orbax(step, *more):
    """Name the files of a step that Orbax wrote."""
    return [f"{step}/{name}" for name in ("default/_METADATA", "default/d/0", *more)]


@pytest.mark.parametrize(
    ("paths", "wanted", "left_out"),
    [
        ([*orbax("9"), *orbax("10"), "notes.txt"], ["notes.txt", *orbax("10")], None),
        (
            [*orbax("9", "commit_success.txt"), *orbax("10")],
            orbax("9", "commit_success.txt"),
            "leaving out 10, which have no commit_success.txt as 9 has",
        ),
        (["checkpoint_3", "checkpoint_12"], ["checkpoint_12"], None),
        ([*orbax("run_1"), "2024/01/log.txt"], orbax("run_1"), None),
        (["_METADATA", "layer_1/.zarray", "layer_2/.zarray"], None, None),
        (["default/_METADATA", "default/w_1/.zarray", "_CHECKPOINT_METADATA"], None, None),
        (["model.safetensors", "config.json"], None, None),
        (["model.msgpack", "photos/1.png"], ["model.msgpack"], None),
    ],
    ids=["newest", "finished", "files", "logs", "bare", "item", "folder", "others"],
)
def test_only_what_params_are_read_from_is_copied(paths, wanted, left_out):
    """Older steps, unfinished ones and folders of other things stay where they are."""
    steps = []

    assert sorted(params_files.needed(paths, steps.append)) == sorted(wanted or paths)
    assert steps == ([left_out] if left_out else [])


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//b", "./x", "a\0b"])
def test_a_name_that_leaves_its_folder_is_refused(path):
    """An object called `../x` is not written beside the copy."""
    with pytest.raises(CheckpointError) as caught:
        params_files._inside(Path("here"), path, "gs://models/evil")

    assert str(caught.value) == f"params gs://models/evil: expected plain names, got {path!r}"
