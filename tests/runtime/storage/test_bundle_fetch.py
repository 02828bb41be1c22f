"""Bundles from gs://, through Google's client and real sockets, and what can go wrong there."""

import json
import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from pytest import fixture, mark, raises

from runtime import load
from runtime.bundle import open_bundle
from runtime.errors import BundleError, DoesNotFit, ManifestError
from runtime.storage.bundle_fetch import fetching
from runtime.storage.gcs import CloudStore
from runtime.storage.store import FetchError
from tests.runtime.storage.fake_gcs import FOLDER
from tests.serving import TIMEOUT_S, free_port, ready_line, start

PARAMS = "a/params.safetensors"


@fixture
def files(classifier_bundle):
    """The files of the bundle."""
    return open_bundle(classifier_bundle).manifest.files


@mark.usefixtures("bucket")
def test_a_fetched_bundle_answers(classifier_bundle):
    """A model from gs:// returns the same answers, after its files are deleted, as the one from disk."""
    rows = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    with fetching(CloudStore(FOLDER), None) as bundle:
        fetched = load(bundle, "cpu")
    local = load(classifier_bundle, "cpu")

    assert not bundle.path.exists()
    assert fetched.bundle.digest == local.bundle.digest
    # Each was measured by itself, so that different buckets may answer.
    assert np.allclose(fetched.predict(rows)["output"], local.predict(rows)["output"], rtol=1e-5)


def test_only_what_the_manifest_names_is_asked_for(bucket, fetch, files):
    """The manifest is read first, then each of its files once; no other object is read."""
    fetch()

    assert bucket.asked[0].name == "a/manifest.json"
    names = sorted(asked.name for asked in bucket.asked[1:])
    assert names == sorted(f"a/{file.path}" for file in files)
    assert sorted(bucket.looked[1:]) == names


def test_a_bundle_may_lie_at_the_root_of_a_bucket(bucket, fetch, classifier_bundle):
    """gs://bucket is a folder like any other."""
    bucket.upload(classifier_bundle, "")
    bucket.objects = {name.lstrip("/"): data for name, data in bucket.objects.items()}

    assert fetch(prefix="").manifest.name == "classifier"


def test_programs_are_there_while_params_still_come(bucket):
    """A program can be read, and compiled, while the params have not arrived."""
    gate = threading.Event()
    bucket.before[PARAMS] = [lambda: gate.wait(30) and None]
    with fetching(CloudStore(FOLDER), None) as bundle:
        for program in bundle.manifest.programs:
            assert len(bundle.read(program.exported)) == program.exported.bytes
        params = bundle.path / "params.safetensors"
        assert not params.exists()
        gate.set()
        (file,) = bundle.manifest.params.files
        assert bundle.map(file)
        assert params.exists()


def test_programs_are_compiled_while_params_still_come(bucket):
    """Loading a bundle whose params have not arrived does everything that it can without them."""
    gate, waited = threading.Event(), []
    bucket.before[PARAMS] = [lambda: waited.append(gate.wait(30))]

    def on_progress(step):
        if step == "loading params":
            gate.set()

    with fetching(CloudStore(FOLDER), None) as bundle:
        load(bundle, "cpu", progress=on_progress)

    assert waited == [True]


@mark.usefixtures("bucket")
def test_the_reported_time_is_that_of_fetching(caplog):
    """The end of the download is reported when it ends, not when the bundle has been used."""
    caplog.set_level("INFO", "runtime.storage.download")
    with fetching(CloudStore(FOLDER), None) as bundle:
        for file in bundle.manifest.files:
            bundle.arrived(file)
        said = [message for message in caplog.messages if message.startswith("fetched ")]

    assert re.fullmatch(r"fetched 0\.0 MB in \d+\.\d s; 0\.0 MB were here already", said[-1])


def test_a_restart_fetches_the_manifest_alone(bucket, fetch, tmp_path, classifier_bundle):
    """What --cache-dir keeps is a bundle, and is not fetched again."""
    kept = fetch(tmp_path).path
    bucket.asked.clear()

    assert fetch(tmp_path).path == kept
    assert [asked.name for asked in bucket.asked] == ["a/manifest.json"]
    assert kept.parent == tmp_path
    assert _tree(kept) == _tree(classifier_bundle)


@mark.usefixtures("bucket")
def test_a_bundle_that_is_required_and_kept_needs_no_store(bucket, fetch, tmp_path):
    """With its digest a restart sends no request to the store, even where that has another bundle now."""
    kept = fetch(tmp_path)
    digest = f"sha256:{kept.digest}"
    bucket.objects.clear()
    bucket.asked.clear()
    bucket.looked.clear()

    with fetching(CloudStore(FOLDER), tmp_path, require_digest=digest) as bundle:
        bundle.check()
    assert bundle.digest == kept.digest
    assert bucket.asked == bucket.looked == []


@mark.parametrize("damage", ["missing", "altered"])
def test_a_manifest_that_was_not_kept_well_is_fetched(bucket, fetch, tmp_path, damage):
    """What is not the manifest that is required is not taken for it."""
    kept = fetch(tmp_path)
    manifest = kept.path / "manifest.json"
    good = manifest.read_bytes()
    if damage == "missing":
        manifest.unlink()
    else:
        manifest.write_bytes(good.replace(b"classifier", b"pacifier!!"))
    bucket.asked.clear()

    digest = f"sha256:{kept.digest}"
    with fetching(CloudStore(FOLDER), tmp_path, require_digest=digest) as bundle:
        bundle.check()
    assert [asked.name for asked in bucket.asked] == ["a/manifest.json"]
    assert manifest.read_bytes() == good


def _tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kept_file_that_has_changed_is_fetched_again(bucket, fetch, tmp_path, caplog):
    """Kept files are compared with their digests: one that was damaged is replaced."""
    params = fetch(tmp_path).path / "params.safetensors"
    good = params.read_bytes()
    params.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    bucket.asked.clear()
    fetch(tmp_path)

    assert params.read_bytes() == good
    assert [asked.name for asked in bucket.asked] == ["a/manifest.json", PARAMS]
    assert f"{params}: not what was kept; fetching it again" in caplog.messages


def test_a_new_bundle_in_the_same_place_is_fetched(bucket, fetch, tmp_path, tagger_bundle):
    """Another bundle under the same name has another digest, and is not mixed with the first."""
    old = fetch(tmp_path).path
    bucket.upload(tagger_bundle, "a")

    new = fetch(tmp_path)
    assert new.manifest.name == "tagger"
    assert new.path != old
    assert open_bundle(old).manifest.name == "classifier"


def test_what_another_process_left_is_taken_up(bucket, fetch, tmp_path):
    """A start that was ended in the middle of a file is no loss to the next."""
    path = fetch(tmp_path).path / "params.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.with_name("params.safetensors.part").write_bytes(data[:77])
    bucket.asked.clear()
    fetch(tmp_path)

    assert path.read_bytes() == data
    assert [asked.start for asked in bucket.asked if asked.name == PARAMS] == [77]


@mark.usefixtures("bucket")
@mark.parametrize("left", [b"not the beginning", b"x" * 10_000])
def test_what_was_left_of_something_else_is_forgotten(fetch, tmp_path, left):
    """A part that is not the beginning of the file, or longer than it, does no harm."""
    path = fetch(tmp_path).path / "params.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.with_name("params.safetensors.part").write_bytes(left)
    fetch(tmp_path)

    assert path.read_bytes() == data
    assert not path.with_name("params.safetensors.part").exists()


def test_two_servers_that_share_a_cache_fetch_once(bucket, tmp_path, files):
    """The second waits for what the first is fetching, and fetches nothing of it."""
    gate = threading.Event()
    for file in files:
        bucket.before[f"a/{file.path}"] = [lambda: gate.wait(30) and None]
    with (
        fetching(CloudStore(FOLDER), tmp_path) as one,
        fetching(CloudStore(FOLDER), tmp_path) as two,
    ):
        gate.set()
        one.check()
        two.check()

    names = sorted(asked.name for asked in bucket.asked)
    assert names == sorted(["a/manifest.json"] * 2 + [f"a/{file.path}" for file in files])
    assert list(tmp_path.rglob("*.part")) == []


@mark.usefixtures("bucket")
def test_servers_of_the_same_number_write_the_manifest_at_once(fetch, tmp_path, monkeypatch):
    """In containers all servers are process 1, and still no two of them write to one file."""
    rename, others = Path.rename, []

    def meanwhile(path, target):
        if target.name == "manifest.json" and not others:
            others.append(path)
            fetch(tmp_path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", meanwhile)
    bundle = fetch(tmp_path)

    assert len(others) == 1
    assert open_bundle(bundle.path).digest == bundle.digest
    assert list(tmp_path.rglob("manifest.json*")) == [bundle.path / "manifest.json"]


@mark.parametrize("path", ["../evil", "/etc/evil", "a//b", "programs/", "C:\\evil", "a/./b", ""])
def test_a_manifest_that_leads_elsewhere_is_refused(bucket, fetch, tmp_path, path):
    """Names that leave the bundle, or can be no file's, are refused before anything is fetched."""
    manifest = json.loads(bucket.objects["a/manifest.json"][0])
    manifest["programs"][0]["exported"]["path"] = path
    bucket.put("a/manifest.json", json.dumps(manifest).encode())
    with raises(ManifestError, match="expected a plain relative path"):
        fetch(tmp_path)

    assert [asked.name for asked in bucket.asked] == ["a/manifest.json"]
    assert list(tmp_path.iterdir()) == []


def claiming(bucket, change):
    """Change the manifest in the bucket."""
    manifest = json.loads(bucket.objects["a/manifest.json"][0])
    change(manifest)
    bucket.put("a/manifest.json", json.dumps(manifest).encode())


def nothing_was_fetched(bucket):
    """Whether no byte of a file was requested."""
    return [asked.name for asked in bucket.asked] == ["a/manifest.json"]


def test_an_object_of_another_size_is_refused_before_anything_is_fetched(bucket, fetch, files):
    """What the store has is compared with what the manifest claims, for every file, first of all."""
    (file,) = (file for file in files if file.path == "params.safetensors")
    claiming(bucket, lambda m: m["params"]["files"][0].update(bytes=file.bytes + 1))
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value) == (
        f"gs://models/{PARAMS}: expected {file.bytes + 1} bytes, got {file.bytes}; was the bundle "
        "replaced, or copied in part?"
    )
    assert nothing_was_fetched(bucket)


def test_a_bundle_that_the_disk_cannot_hold_is_not_fetched(
    bucket, fetch, tmp_path, files, monkeypatch
):
    """The bytes that are missing are compared with the bytes that are free, those kept already apart."""
    total = sum(file.bytes for file in files)
    free = [total - 1]
    monkeypatch.setattr(
        "runtime.storage.cache_dir.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0])
    )
    with raises(FetchError) as caught:
        fetch(tmp_path)

    (folder,) = tmp_path.iterdir()
    assert str(caught.value) == (
        f"{folder}: expected {total:,} B free for the bundle, got {total - 1:,} B; pass --cache-dir "
        "with room for the bundle"
    )
    assert nothing_was_fetched(bucket)
    free[0] = total
    fetch(tmp_path)
    free[0] = 0
    fetch(tmp_path)


def test_a_bundle_that_memory_cannot_hold_is_not_fetched(bucket, monkeypatch):
    """On a CPU that is known before a device is looked for; on a GPU the machine's memory is no limit."""
    monkeypatch.setattr("runtime.storage.bundle_fetch.host_memory", lambda: 100)
    with (
        raises(DoesNotFit, match=r"^params: expected 320 B of memory, got 100 B; "),
        fetching(CloudStore(FOLDER), None, device="cpu"),
    ):
        pass
    assert nothing_was_fetched(bucket)
    with fetching(CloudStore(FOLDER), None, device="cuda") as bundle:
        bundle.check()


def test_a_manifest_without_end_is_not_read(bucket, fetch, monkeypatch):
    """What is larger than any manifest is refused by its size."""
    monkeypatch.setattr("runtime.storage.download.MAX_MANIFEST_BYTES", 10)
    with raises(FetchError, match=r"manifest.json: expected at most 10 bytes, got \d+$"):
        fetch()

    assert bucket.asked == []


@mark.usefixtures("bucket")
def test_a_whole_cache_is_not_written_to(fetch, tmp_path):
    """A cache that has everything may be on a volume that cannot be written."""
    kept = fetch(tmp_path).path

    def changed():
        """Return when each file was changed; that it was read does not matter."""
        return {path: path.stat().st_ctime_ns for path in kept.rglob("*")}

    was = changed()
    fetch(tmp_path)

    assert changed() == was


@mark.usefixtures("bucket")
def test_links_in_a_cache_are_not_followed(fetch, tmp_path):
    """A link where a file is to be is replaced; one where a part is to be is refused."""
    params = fetch(tmp_path).path / "params.safetensors"
    elsewhere = tmp_path / "elsewhere"
    params.rename(elsewhere)
    params.symlink_to(elsewhere)
    fetch(tmp_path)
    assert not params.is_symlink()
    assert params.read_bytes() == elsewhere.read_bytes()

    params.unlink()
    elsewhere.write_bytes(b"keep this")
    params.with_name("params.safetensors.part").symlink_to(elsewhere)
    with raises(FetchError, match="Too many levels of symbolic links; pass a --cache-dir"):
        fetch(tmp_path)
    assert elsewhere.read_bytes() == b"keep this"


@mark.usefixtures("bucket")
def test_nothing_but_the_cache_is_written_to(fetch, tmp_path, monkeypatch):
    """With a cache, no temporary directory is needed; without one, one line reports that."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))

    assert fetch(tmp_path).manifest.name == "classifier"
    with raises(FetchError) as caught:
        fetch()
    assert str(caught.value) == (
        f"{tmp_path}/none: No such file or directory; pass a --cache-dir that can be written"
    )


@mark.usefixtures("bucket")
def test_what_killed_servers_left_goes_away(fetch, tmp_path, monkeypatch):
    """A directory whose process has ended is removed by the next start; one in use stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "hloserve-fetched-x"
    (left / "programs").mkdir(parents=True)
    (tmp_path / "hloserve-image-y").mkdir()
    with fetching(CloudStore(FOLDER), None) as other:
        fetch()
        assert sorted(tmp_path.iterdir()) == sorted([other.path, tmp_path / "hloserve-image-y"])
        other.check()

    assert [path.name for path in tmp_path.iterdir()] == ["hloserve-image-y"]


@fixture
def environ(bucket, tmp_path):
    """Options of a server process that fetches from the bucket, and has a /tmp of its own."""
    return {"env": {**os.environ, "STORAGE_EMULATOR_HOST": bucket.url, "TMPDIR": str(tmp_path)}}


@mark.e2e
def test_a_full_disk_is_one_line(environ, tmp_path):
    """A server without disk space for the bundle exits with status 3, and names the option to set."""
    cramped = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        "runpy.run_module('server', run_name='__main__', alter_sys=True)"
    )
    with start(
        free_port(), "--bundle", "gs://models/a", command=("-c", cramped), options=environ
    ) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 3
    assert re.fullmatch(
        rf"error: {tmp_path}/hloserve-fetched-\w+/[\w./]+: File too large; "
        r"pass --cache-dir with room for the bundle\n",
        errors,
    )


@mark.e2e
def test_a_server_that_was_killed_leaves_nothing_for_ever(bucket, environ, tmp_path):
    """Killed while it fetches, a server leaves what the next one removes."""
    gate = threading.Event()
    bucket.before[PARAMS] = [lambda: gate.wait(TIMEOUT_S) and None]
    with start(free_port(), "--bundle", "gs://models/a", options=environ) as process:
        bucket.wait_for(PARAMS)
        process.kill()
    gate.set()
    left = set(tmp_path.iterdir())

    with start(free_port(), "--bundle", "gs://models/a", options=environ) as process:
        ready_line(process)
        there = set(tmp_path.iterdir())
        process.kill()
    # What it fetched to, and what another process compiled for it.
    assert {path.name.rpartition("-")[0] for path in left} >= {"hloserve-fetched"}
    assert not left & there


@mark.usefixtures("bucket")
def test_a_cache_that_cannot_be_written_says_so(fetch, tmp_path):
    """The reason names the directory and the option."""
    (tmp_path / "file").touch()
    with raises(FetchError) as caught:
        fetch(tmp_path / "file")

    message = f"{tmp_path}/file: Not a directory; pass a --cache-dir that can be written"
    assert str(caught.value) == message


def test_missing_credentials_are_one_line(monkeypatch, tmp_path):
    """Without credentials the message says how to get them."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with raises(BundleError) as caught:
        CloudStore(FOLDER)

    assert str(caught.value) == (
        "gs://models/a: expected credentials, got none; run as a service account, or run "
        "gcloud auth application-default login"
    )


def test_a_missing_client_is_one_line(monkeypatch):
    """Without google-cloud-storage the message says what to install."""
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage", raising=False)
    with raises(BundleError) as caught:
        CloudStore(FOLDER)

    assert str(caught.value) == (
        "gs://models/a: expected google-cloud-storage, got none; pip install 'hloserve[gcs]'"
    )
