"""Bundles from gs://, through Google's client and real sockets, and what can go wrong there."""

import json
import sys
import threading

import numpy as np
from pytest import fixture, mark, raises

from runtime import load
from runtime.bundle import open_bundle
from runtime.errors import BundleError, ManifestError
from server.artifacts import CloudFolder
from server.fetching import NotFetched, fetching
from server.gcs import CloudStore
from tests.server.cloud import BUCKET, Asked, Cloud, Status

FOLDER = CloudFolder(BUCKET, "a/")
PARAMS = "a/params.safetensors"


@fixture
def cloud(monkeypatch, classifier_bundle):
    """A bucket that holds a bundle under a/, and things that are not of it."""
    cloud = Cloud()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    cloud.upload(classifier_bundle, "a")
    for name in ("a/", "a/programs/", "a/notes.txt", "ab/manifest.json", "a/../evil"):
        cloud.put(name, b"")
    yield cloud
    cloud.close()


@fixture
def fetch():
    """Fetches a bundle whole; pauses are noted down, not made."""

    def run(cache=None, prefix="a/"):
        with fetching(CloudStore(CloudFolder(BUCKET, prefix)), cache, run.pauses.append) as bundle:
            bundle.check()
        return bundle

    run.pauses = []
    return run


@fixture
def files(classifier_bundle):
    """The files of the bundle."""
    return open_bundle(classifier_bundle).manifest.files


@mark.usefixtures("cloud")
def test_a_fetched_bundle_answers(classifier_bundle):
    """A model from gs:// answers, after its files are gone, as the one from disk does."""
    rows = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    with fetching(CloudStore(FOLDER), None) as bundle:
        fetched = load(bundle, "cpu")
    local = load(classifier_bundle, "cpu")

    assert not bundle.path.exists()
    assert fetched.bundle.digest == local.bundle.digest
    # Each was measured by itself, so that different buckets may answer.
    assert np.allclose(fetched.predict(rows)["output"], local.predict(rows)["output"], rtol=1e-5)


def test_only_what_the_manifest_names_is_asked_for(cloud, fetch, files):
    """The manifest comes first, then each of its files once; nothing beside them is touched."""
    fetch()

    assert cloud.asked[0].name == "a/manifest.json"
    names = sorted(asked.name for asked in cloud.asked[1:])
    assert names == sorted(f"a/{file.path}" for file in files)
    assert sorted(cloud.looked[1:]) == names


def test_a_bundle_may_lie_at_the_root_of_a_bucket(cloud, fetch, classifier_bundle):
    """gs://bucket is a folder like any other."""
    cloud.upload(classifier_bundle, "")
    cloud.objects = {name.lstrip("/"): data for name, data in cloud.objects.items()}

    assert fetch(prefix="").manifest.name == "classifier"


def test_programs_are_there_while_params_still_come(cloud):
    """A program can be read, and compiled, while the params have not arrived."""
    gate = threading.Event()
    cloud.before[PARAMS] = [lambda: gate.wait(30) and None]
    with fetching(CloudStore(FOLDER), None) as bundle:
        for program in bundle.manifest.programs:
            assert len(bundle.read(program.exported)) == program.exported.bytes
        params = bundle.path / "params.safetensors"
        assert not params.exists()
        gate.set()
        (file,) = bundle.manifest.params.files
        assert bundle.map(file)
        assert params.exists()


def test_a_restart_fetches_the_manifest_alone(cloud, fetch, tmp_path, classifier_bundle):
    """What --cache-dir keeps is a bundle, and is not fetched again."""
    kept = fetch(tmp_path).path
    cloud.asked.clear()

    assert fetch(tmp_path).path == kept
    assert [asked.name for asked in cloud.asked] == ["a/manifest.json"]
    assert kept.parent == tmp_path
    assert _tree(kept) == _tree(classifier_bundle)


def _tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kept_file_that_has_changed_is_fetched_again(cloud, fetch, tmp_path, caplog):
    """Kept files are held against their digests: one that was damaged is replaced."""
    params = fetch(tmp_path).path / "params.safetensors"
    good = params.read_bytes()
    params.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    cloud.asked.clear()
    fetch(tmp_path)

    assert params.read_bytes() == good
    assert [asked.name for asked in cloud.asked] == ["a/manifest.json", PARAMS]
    assert f"{params}: not what was kept; fetching it again" in caplog.messages


def test_a_new_bundle_in_the_same_place_is_fetched(cloud, fetch, tmp_path, tagger_bundle):
    """Another bundle under the same name has another digest, and is not mixed with the first."""
    old = fetch(tmp_path).path
    cloud.upload(tagger_bundle, "a")

    new = fetch(tmp_path)
    assert new.manifest.name == "tagger"
    assert new.path != old
    assert open_bundle(old).manifest.name == "classifier"


def test_a_download_that_broke_off_goes_on_where_it_was(cloud, fetch):
    """The rest is asked for of the same generation."""
    cloud.before[PARAMS] = [lambda: 100, lambda: 50]
    fetch()

    asked = [asked for asked in cloud.asked if asked.name == PARAMS]
    generation = cloud.objects[PARAMS][1]
    assert asked == [Asked(PARAMS, generation, start) for start in (0, 100, 150)]
    assert len(fetch.pauses) == 2


def test_what_another_process_left_is_taken_up(cloud, fetch, tmp_path):
    """A start that was ended in the middle of a file is no loss to the next."""
    path = fetch(tmp_path).path / "params.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.with_name("params.safetensors.part").write_bytes(data[:77])
    cloud.asked.clear()
    fetch(tmp_path)

    assert path.read_bytes() == data
    assert [asked.start for asked in cloud.asked if asked.name == PARAMS] == [77]


@mark.usefixtures("cloud")
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


def test_two_servers_that_share_a_cache_fetch_once(cloud, tmp_path, files):
    """The second waits for what the first is fetching, and fetches nothing of it."""
    gate = threading.Event()
    for file in files:
        cloud.before[f"a/{file.path}"] = [lambda: gate.wait(30) and None]
    with (
        fetching(CloudStore(FOLDER), tmp_path) as one,
        fetching(CloudStore(FOLDER), tmp_path) as two,
    ):
        gate.set()
        one.check()
        two.check()

    names = sorted(asked.name for asked in cloud.asked)
    assert names == sorted(["a/manifest.json"] * 2 + [f"a/{file.path}" for file in files])
    assert list(tmp_path.rglob("*.part")) == []


def test_an_object_replaced_by_the_same_bytes_is_begun_anew(cloud, fetch):
    """An upload of the same bundle in the middle of a download does not matter."""

    def replace():
        cloud.put(PARAMS, cloud.objects[PARAMS][0])

    cloud.before[PARAMS] = [lambda: 100, replace]
    fetch()

    old, new = cloud.objects[PARAMS][1] - 1, cloud.objects[PARAMS][1]
    asked = [asked for asked in cloud.asked if asked.name == PARAMS]
    assert asked == [Asked(PARAMS, old, 0), Asked(PARAMS, old, 100), Asked(PARAMS, new, 0)]


def test_an_object_replaced_by_others_is_refused(cloud, fetch, tmp_path):
    """A file of another bundle never gets its name in this one."""

    def replace():
        cloud.put(PARAMS, bytes(len(cloud.objects[PARAMS][0])))

    cloud.before[PARAMS] = [lambda: 100, replace]
    with raises(
        NotFetched, match=r"expected sha256 [0-9a-f]{64}, got another file; was the bundle"
    ):
        fetch(tmp_path)

    assert not list(tmp_path.rglob("params.safetensors"))
    assert not list(tmp_path.rglob("manifest.json"))


def test_wrong_bytes_are_tried_once_more(cloud, fetch):
    """A digest that does not match is not believed at once, nor more than twice."""
    data = cloud.objects[PARAMS][0]
    cloud.put(PARAMS, data[:-1] + bytes([data[-1] ^ 1]))
    with raises(NotFetched) as caught:
        fetch()

    assert str(caught.value).startswith("gs://models/a/params.safetensors: expected sha256 ")
    assert [asked.start for asked in cloud.asked if asked.name == PARAMS] == [0, 0]


@mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_refused_unread(cloud, fetch, change):
    """An object that has another size than the manifest says is not downloaded."""
    size = len(cloud.objects[PARAMS][0])
    cloud.put(PARAMS, bytes(size + change))
    with raises(NotFetched) as caught:
        fetch()

    assert str(caught.value) == (
        f"gs://models/a/params.safetensors: expected {size} bytes, got {size + change}; "
        "was the bundle replaced, or copied in part?"
    )
    assert PARAMS not in {asked.name for asked in cloud.asked}


@mark.parametrize("name", ["manifest.json", "params.safetensors"])
def test_a_missing_object_is_named(cloud, fetch, name):
    """A 404 is no matter for another try."""
    del cloud.objects[f"a/{name}"]
    with raises(NotFetched) as caught:
        fetch()

    assert str(caught.value) == (
        f"gs://models/a/{name}: expected an object, got 404; "
        "is the folder right, and the upload finished?"
    )
    assert fetch.pauses == []


def test_missing_permission_says_which_role(cloud, fetch):
    """A refusal names the role that is needed."""
    cloud.before["metadata of a/manifest.json"] = [lambda: 403]
    with raises(NotFetched) as caught:
        fetch()

    assert str(caught.value) == (
        "gs://models/a/manifest.json: 403 told to; give the account that the server runs "
        "as the role Storage Object Viewer on the bucket"
    )
    assert fetch.pauses == []


@mark.parametrize("status", [408, 429, 500, 503])
def test_passing_faults_are_tried_again(cloud, fetch, status):
    """A busy or failing store is asked again, after longer and longer pauses."""
    cloud.before["metadata of a/manifest.json"] = [lambda: status] * 3
    cloud.before[PARAMS] = [lambda: Status(status)]
    fetch()

    first = fetch.pauses[:3]
    assert len(fetch.pauses) == 4
    assert all(0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(first))


def test_a_store_that_stays_away_is_given_up(cloud, fetch):
    """After six tries without a byte the fetch ends, and says what it met."""
    cloud.before["metadata of a/manifest.json"] = [lambda: 503] * 10
    with raises(NotFetched) as caught:
        fetch()

    message = "gs://models/a/manifest.json: gave up after 6 tries: 503 told to"
    assert str(caught.value) == message
    assert len(fetch.pauses) == 5


def test_a_store_that_cannot_be_reached_is_given_up(cloud, fetch):
    """A closed port is told from the store's own refusals."""
    cloud.close()
    with raises(NotFetched) as caught:
        fetch()

    message = "gs://models/a/manifest.json: gave up after 6 tries: [Errno 111] Connection refused"
    assert str(caught.value) == message


@mark.parametrize("path", ["../evil", "/etc/evil", "a//b", "programs/", "C:\\evil", "a/./b", ""])
def test_a_manifest_that_leads_elsewhere_is_refused(cloud, fetch, tmp_path, path):
    """Names that leave the bundle, or can be no file's, are refused before anything is fetched."""
    manifest = json.loads(cloud.objects["a/manifest.json"][0])
    manifest["programs"][0]["exported"]["path"] = path
    cloud.put("a/manifest.json", json.dumps(manifest).encode())
    with raises(ManifestError, match="expected a plain relative path"):
        fetch(tmp_path)

    assert [asked.name for asked in cloud.asked] == ["a/manifest.json"]
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_without_end_is_not_read(cloud, fetch, monkeypatch):
    """What is larger than any manifest is refused by its size."""
    monkeypatch.setattr("server.fetching.MAX_MANIFEST_BYTES", 10)
    with raises(NotFetched, match=r"manifest.json: expected at most 10 bytes, got \d+$"):
        fetch()

    assert cloud.asked == []


def test_one_failing_file_ends_the_wait_for_the_others(cloud):
    """A program that is there is not given out once the params are known to be missing."""
    del cloud.objects[PARAMS]
    store = CloudStore(FOLDER)
    with raises(NotFetched, match="expected an object, got 404"):  # noqa: SIM117
        with fetching(store, None) as bundle:
            bundle.check()


@mark.usefixtures("cloud")
def test_a_cache_that_cannot_be_written_says_so(fetch, tmp_path):
    """The reason names the directory and the option."""
    (tmp_path / "file").touch()
    with raises(NotFetched) as caught:
        fetch(tmp_path / "file")

    message = f"{tmp_path}/file: Not a directory; pass --cache-dir with room for the bundle"
    assert str(caught.value) == message


def test_missing_credentials_are_one_line(monkeypatch, tmp_path):
    """Without credentials the message says how to get some."""
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
