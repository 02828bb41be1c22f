"""Faults of a store during a download, and how long the download continues."""

import threading

from pytest import mark, raises

from runtime.storage.bundle_fetch import fetching
from runtime.storage.gcs import CloudStore
from runtime.storage.store import FetchError
from tests.runtime.storage.fake_gcs import FOLDER, Asked, Stall, Status

PARAMS = "a/params.safetensors"


def test_a_download_that_broke_off_goes_on_where_it_was(bucket, fetch):
    """The rest is requested of the same generation."""
    bucket.before[PARAMS] = [lambda: 100, lambda: 50]
    fetch()

    asked = [asked for asked in bucket.asked if asked.name == PARAMS]
    generation = bucket.objects[PARAMS][1]
    assert asked == [Asked(PARAMS, generation, start) for start in (0, 100, 150)]
    assert len(fetch.pauses) == 2


def test_an_object_replaced_by_the_same_bytes_is_begun_anew(bucket, fetch):
    """An upload of the same bundle in the middle of a download does not matter."""

    def replace():
        bucket.put(PARAMS, bucket.objects[PARAMS][0])

    bucket.before[PARAMS] = [lambda: 100, replace]
    fetch()

    old, new = bucket.objects[PARAMS][1] - 1, bucket.objects[PARAMS][1]
    asked = [asked for asked in bucket.asked if asked.name == PARAMS]
    assert asked == [Asked(PARAMS, old, 0), Asked(PARAMS, old, 100), Asked(PARAMS, new, 0)]


def test_an_object_replaced_by_others_is_refused(bucket, fetch, tmp_path):
    """A file of another bundle never gets its name in this one."""

    def replace():
        bucket.put(PARAMS, bytes(len(bucket.objects[PARAMS][0])))

    bucket.before[PARAMS] = [lambda: 100, replace]
    with raises(
        FetchError, match=r"expected sha256 [0-9a-f]{64}, got another file; was the bundle"
    ):
        fetch(tmp_path)

    assert not list(tmp_path.rglob("params.safetensors"))
    assert not list(tmp_path.rglob("manifest.json"))


def test_wrong_bytes_are_tried_once_more(bucket, fetch):
    """A digest that does not match is not believed at once, nor more than twice."""
    data = bucket.objects[PARAMS][0]
    bucket.put(PARAMS, data[:-1] + bytes([data[-1] ^ 1]))
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value).startswith("gs://models/a/params.safetensors: expected sha256 ")
    assert [asked.start for asked in bucket.asked if asked.name == PARAMS] == [0, 0]


@mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_refused_unread(bucket, fetch, change):
    """An object of another size than in the manifest is not downloaded."""
    size = len(bucket.objects[PARAMS][0])
    bucket.put(PARAMS, bytes(size + change))
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value) == (
        f"gs://models/a/params.safetensors: expected {size} bytes, got {size + change}; "
        "was the bundle replaced, or copied in part?"
    )
    assert PARAMS not in {asked.name for asked in bucket.asked}


@mark.parametrize("name", ["manifest.json", "params.safetensors"])
def test_a_missing_object_is_named(bucket, fetch, name):
    """A 404 is no matter for another try."""
    del bucket.objects[f"a/{name}"]
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value) == (
        f"gs://models/a/{name}: expected an object, got 404; "
        "is the folder right, and the upload finished?"
    )
    assert fetch.pauses == []


def test_missing_permission_says_which_role(bucket, fetch):
    """A refusal names the role that is needed."""
    bucket.before["metadata of a/manifest.json"] = [lambda: 403]
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value) == (
        "gs://models/a/manifest.json: 403 as scripted; give the account that reads "
        "it the role Storage Object Viewer on the bucket"
    )
    assert fetch.pauses == []


@mark.parametrize("status", [408, 429, 500, 503])
def test_passing_faults_are_tried_again(bucket, fetch, status):
    """A request to a busy or failing store is retried, with increasing pauses."""
    bucket.before["metadata of a/manifest.json"] = [lambda: status] * 3
    bucket.before[PARAMS] = [lambda: Status(status)]
    fetch()

    first = fetch.pauses[:3]
    assert len(fetch.pauses) == 4
    assert all(0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(first))


def test_a_store_that_stays_away_is_given_up(bucket, fetch):
    """After six attempts without a byte the download fails, with the last error."""
    bucket.before["metadata of a/manifest.json"] = [lambda: 503] * 10
    with raises(FetchError) as caught:
        fetch()

    message = "gs://models/a/manifest.json: gave up after 6 tries: 503 as scripted"
    assert str(caught.value) == message
    assert len(fetch.pauses) == 5


def test_a_store_that_cannot_be_reached_is_given_up(bucket, fetch):
    """A closed port is distinguished from the store's own refusals."""
    bucket.close()
    with raises(FetchError) as caught:
        fetch()

    message = "gs://models/a/manifest.json: gave up after 6 tries: [Errno 111] Connection refused"
    assert str(caught.value) == message


@mark.parametrize("size", [0, 100])
def test_a_store_that_falls_silent_is_asked_again(bucket, fetch, monkeypatch, size):
    """A connection that sends nothing for a while, before or during a response, times out and is retried."""
    monkeypatch.setattr("runtime.storage.gcs._TIMEOUT", (10, 0.5))
    over = threading.Event()

    def again():
        silent.append(not bucket.outlasted)
        over.set()

    silent = []
    bucket.before[PARAMS] = [lambda: Stall(size, over), again]
    fetch()

    assert silent == [True]
    assert len(fetch.pauses) >= 1  # more where the machine is slow


def test_a_store_that_stays_silent_is_given_up(bucket, fetch, monkeypatch):
    """Silence is distinguished from refusals, and retried as often."""
    monkeypatch.setattr("runtime.storage.gcs._TIMEOUT", (10, 0.1))
    over = threading.Event()
    bucket.before[PARAMS] = [lambda: Stall(0, over)] * 10
    with raises(FetchError) as caught:
        fetch()
    over.set()

    message = "gs://models/a/params.safetensors: gave up after 6 tries: Read timed out."
    assert str(caught.value) == message


def test_one_failing_file_ends_the_wait_for_the_others(bucket):
    """A program that is there is not given out once the params are known to be missing."""
    del bucket.objects[PARAMS]
    store = CloudStore(FOLDER)
    with raises(FetchError, match="expected an object, got 404"):  # noqa: SIM117
        with fetching(store, None) as bundle:
            bundle.check()


@mark.usefixtures("bucket")
def test_getting_on_is_worth_any_number_of_tries(bucket, fetch, monkeypatch):
    """A broken connection is resumed any number of times, as long as bytes arrive."""
    monkeypatch.setattr("runtime.storage.transfer.MIN_PROGRESS", 40)
    bucket.before[PARAMS] = [lambda: 40] * 10
    fetch()

    assert [a.start for a in bucket.asked if a.name == PARAMS] == [40 * i for i in range(11)]


def test_a_trickle_is_given_up(bucket, fetch):
    """A store that closes the connection after every byte counts as one that sends nothing."""
    bucket.before[PARAMS] = [lambda: 1] * 20
    with raises(FetchError, match=r"params\.safetensors: gave up after 6 tries: "):
        fetch()

    assert len([asked for asked in bucket.asked if asked.name == PARAMS]) == 6


def test_an_object_that_is_replaced_all_the_time_is_given_up(bucket, fetch, monkeypatch):
    """An object that is replaced again and again does not make the download endless."""
    monkeypatch.setattr("runtime.storage.transfer.MIN_PROGRESS", 40)

    def replace():
        bucket.put(PARAMS, bucket.objects[PARAMS][0])

    bucket.before[PARAMS] = [lambda: 100, replace] * 10
    with raises(FetchError, match="gave up after 6 tries: "):
        fetch()

    assert len([asked for asked in bucket.asked if asked.name == PARAMS]) <= 8
