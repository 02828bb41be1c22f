"""Objects that no manifest describes: found, copied and checked against the store's CRC32C."""

import gzip
import itertools

from pytest import fixture, mark, raises

from runtime.storage.gcs import CloudStore
from runtime.storage.object_copy import ObjectCopy
from runtime.storage.store import FetchError
from runtime.storage.uri import CloudFolder
from tests.runtime.storage.fake_gcs import BUCKET, Asked, FakeGcs

W = bytes(range(256)) * 4


@fixture
def bucket(monkeypatch):
    """A bucket that holds a checkpoint under run/7, and things beside it."""
    bucket = FakeGcs()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    for name in ("run/7/w", "run/7/d/0", "run/7/", "run/70/w", "run.txt"):
        bucket.put(name, W)
    yield bucket
    bucket.close()


@fixture
def pauses():
    """The seconds that were waited before retries, without waiting."""
    return []


@fixture
def copies(bucket, pauses):  # noqa: ARG001 (it has to be there)
    """Copies from gs://models/run."""
    return ObjectCopy(CloudStore(CloudFolder(BUCKET, "run/")), pauses.append)


def copy(copies, tmp_path, path="7"):
    """Copy all objects below a path; return the bytes of each file by its name."""
    copies.copy(
        {f"{path}/{name}": (found, tmp_path / name) for name, found in copies.below(path).items()}
    )
    files = (p for p in tmp_path.rglob("*") if p.is_file())
    return {str(p.relative_to(tmp_path)): p.read_bytes() for p in files}


def test_a_folder_is_copied_whole(copies, tmp_path):
    """Its objects become files with the same names below; objects for folders and others do not."""
    assert copy(copies, tmp_path) == {"w": W, "d/0": W}


def test_an_object_and_a_folder_are_distinguished(copies):
    """A path that is an object is found, one that is a folder is not."""
    assert copies.find("7/w").bytes == len(W)
    assert copies.find("7") is None
    assert copies.find("8") is None


def test_what_is_beside_a_name_is_listed(copies):
    """A folder's own names are those of objects and of folders, without what is below them."""
    assert copies.names() == ["7", "70"]


def test_a_copy_that_broke_off_goes_on_where_it_was(bucket, copies, pauses, tmp_path):
    """The rest is requested of the generation that was listed."""
    bucket.before["run/7/w"] = [lambda: 100, lambda: 50]

    assert copy(copies, tmp_path)["w"] == W
    asked = [asked for asked in bucket.asked if asked.name == "run/7/w"]
    assert asked == [Asked("run/7/w", 1001, start) for start in (0, 100, 150)]
    assert len(pauses) == 2


def test_bytes_with_another_checksum_are_read_once_more(bucket, copies, tmp_path):
    """What was damaged on its way is right the second time."""
    damaged = iter([True, False])

    def damage():
        _, generation = bucket.objects["run/7/w"]
        bucket.objects["run/7/w"] = (W[::-1] if next(damaged) else W, generation)

    listed = copies.below("7")
    bucket.before["run/7/w"] = [damage, damage]
    copies.copy({"7/w": (listed["w"], tmp_path / "w")})

    assert (tmp_path / "w").read_bytes() == W


def test_bytes_that_stay_wrong_are_refused(bucket, copies, tmp_path):
    """An object whose bytes are not those of its checksum is no checkpoint."""
    bucket.metadata["run/7/w"] = {"crc32c": "AAAAAA=="}
    with raises(FetchError) as caught:
        copy(copies, tmp_path)

    assert str(caught.value) == (
        "gs://models/run/7/w: expected CRC32C 00000000, got other bytes, twice"
    )


def test_an_object_without_a_checksum_is_refused(bucket, copies, tmp_path):
    """Nothing is copied that cannot be checked."""
    bucket.metadata["run/7/w"] = {"crc32c": ""}
    with raises(FetchError) as caught:
        copy(copies, tmp_path)

    assert str(caught.value) == "gs://models/run/7/w: expected a CRC32C of the object, got none"


def test_an_object_that_is_replaced_meanwhile_is_refused(bucket, copies, tmp_path):
    """A checkpoint is never put together from two uploads, the same bytes or not."""
    bucket.before["run/7/w"] = [lambda: 100, lambda: bucket.put("run/7/w", W)]
    with raises(FetchError) as caught:
        copy(copies, tmp_path)

    assert str(caught.value) == (
        "gs://models/run/7/w: was replaced while it was read; is something being written there?"
    )


def test_what_was_packed_for_the_way_is_unpacked(bucket, copies, tmp_path):
    """An object with the encoding gzip is checked as it is stored, and becomes what was packed."""
    bucket.put("run/7/w", gzip.compress(W), contentEncoding="gzip")

    assert copy(copies, tmp_path) == {"w": W, "d/0": W}


@mark.parametrize("status", [429, 503])
def test_a_listing_is_tried_again(bucket, copies, pauses, tmp_path, status):
    """A request to a busy store is retried, with increasing pauses."""
    bucket.before["listing"] = [lambda: status] * 3

    assert copy(copies, tmp_path) == {"w": W, "d/0": W}
    assert len(pauses) == 3
    assert all(a <= b * 2 for a, b in itertools.pairwise(pauses))


def test_a_store_that_never_lists_is_given_up(bucket, copies, pauses):
    """After six attempts the error has the last reason."""
    bucket.before["listing"] = [lambda: 503] * 10
    with raises(FetchError) as caught:
        copies.below("7")

    assert str(caught.value) == "gs://models/run/7: gave up after 6 tries: 503 as scripted"
    assert len(pauses) == 5


def test_a_listing_that_is_not_permitted_says_which_role(bucket, copies, pauses):
    """A refusal is no matter for another try."""
    bucket.before["listing"] = [lambda: 403]
    with raises(FetchError) as caught:
        copies.below("7")

    assert str(caught.value) == (
        "gs://models/run: 403 as scripted; give the account that reads it the role Storage Object "
        "Viewer on the bucket"
    )
    assert pauses == []


@mark.usefixtures("bucket")
def test_a_bucket_that_does_not_exist_is_named():
    """A wrong bucket is distinguished from a folder with nothing in it."""
    with raises(FetchError) as caught:
        ObjectCopy(CloudStore(CloudFolder("other", ""))).below("7")

    assert str(caught.value) == "gs://other: expected a bucket, got 404; is its name right?"


def test_the_first_failure_ends_the_copy(bucket, copies, tmp_path, monkeypatch):
    """Once one object is refused no other is requested."""
    monkeypatch.setattr("runtime.storage.object_copy.THREADS", 1)
    for name in ("run/9/a", "run/9/b", "run/9/c"):
        bucket.put(name, W)
    bucket.metadata["run/9/a"] = {"crc32c": "AAAAAA=="}
    with raises(FetchError, match="expected CRC32C 00000000"):
        copy(copies, tmp_path, "9")

    assert {asked.name for asked in bucket.asked} == {"run/9/a"}
