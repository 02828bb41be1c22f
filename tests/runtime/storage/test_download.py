"""What a store may do to a download, and how long it is borne."""

import threading

from pytest import mark, raises

from runtime.storage.bundle_fetch import fetching
from runtime.storage.gcs import CloudStore
from runtime.storage.store import FetchError
from tests.runtime.storage.cloud import FOLDER, Asked, Stall, Status

PARAMS = "a/params.safetensors"


def test_a_download_that_broke_off_goes_on_where_it_was(cloud, fetch):
    """The rest is asked for of the same generation."""
    cloud.before[PARAMS] = [lambda: 100, lambda: 50]
    fetch()

    asked = [asked for asked in cloud.asked if asked.name == PARAMS]
    generation = cloud.objects[PARAMS][1]
    assert asked == [Asked(PARAMS, generation, start) for start in (0, 100, 150)]
    assert len(fetch.pauses) == 2


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
        FetchError, match=r"expected sha256 [0-9a-f]{64}, got another file; was the bundle"
    ):
        fetch(tmp_path)

    assert not list(tmp_path.rglob("params.safetensors"))
    assert not list(tmp_path.rglob("manifest.json"))


def test_wrong_bytes_are_tried_once_more(cloud, fetch):
    """A digest that does not match is not believed at once, nor more than twice."""
    data = cloud.objects[PARAMS][0]
    cloud.put(PARAMS, data[:-1] + bytes([data[-1] ^ 1]))
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value).startswith("gs://models/a/params.safetensors: expected sha256 ")
    assert [asked.start for asked in cloud.asked if asked.name == PARAMS] == [0, 0]


@mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_refused_unread(cloud, fetch, change):
    """An object that has another size than the manifest says is not downloaded."""
    size = len(cloud.objects[PARAMS][0])
    cloud.put(PARAMS, bytes(size + change))
    with raises(FetchError) as caught:
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
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value) == (
        f"gs://models/a/{name}: expected an object, got 404; "
        "is the folder right, and the upload finished?"
    )
    assert fetch.pauses == []


def test_missing_permission_says_which_role(cloud, fetch):
    """A refusal names the role that is needed."""
    cloud.before["metadata of a/manifest.json"] = [lambda: 403]
    with raises(FetchError) as caught:
        fetch()

    assert str(caught.value) == (
        "gs://models/a/manifest.json: 403 told to; give the account that reads "
        "it the role Storage Object Viewer on the bucket"
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
    with raises(FetchError) as caught:
        fetch()

    message = "gs://models/a/manifest.json: gave up after 6 tries: 503 told to"
    assert str(caught.value) == message
    assert len(fetch.pauses) == 5


def test_a_store_that_cannot_be_reached_is_given_up(cloud, fetch):
    """A closed port is told from the store's own refusals."""
    cloud.close()
    with raises(FetchError) as caught:
        fetch()

    message = "gs://models/a/manifest.json: gave up after 6 tries: [Errno 111] Connection refused"
    assert str(caught.value) == message


@mark.parametrize("size", [0, 100])
def test_a_store_that_falls_silent_is_asked_again(cloud, fetch, monkeypatch, size):
    """Who sends nothing for a while, before an answer or in the middle of it, is not waited for."""
    monkeypatch.setattr("runtime.storage.gcs._TIMEOUT", (10, 0.5))
    over = threading.Event()

    def again():
        silent.append(not cloud.outlasted)
        over.set()

    silent = []
    cloud.before[PARAMS] = [lambda: Stall(size, over), again]
    fetch()

    assert silent == [True]
    assert len(fetch.pauses) >= 1  # more where the machine is slow


def test_a_store_that_stays_silent_is_given_up(cloud, fetch, monkeypatch):
    """Silence is told from refusals, and borne as often."""
    monkeypatch.setattr("runtime.storage.gcs._TIMEOUT", (10, 0.1))
    over = threading.Event()
    cloud.before[PARAMS] = [lambda: Stall(0, over)] * 10
    with raises(FetchError) as caught:
        fetch()
    over.set()

    message = "gs://models/a/params.safetensors: gave up after 6 tries: Read timed out."
    assert str(caught.value) == message


def test_one_failing_file_ends_the_wait_for_the_others(cloud):
    """A program that is there is not given out once the params are known to be missing."""
    del cloud.objects[PARAMS]
    store = CloudStore(FOLDER)
    with raises(FetchError, match="expected an object, got 404"):  # noqa: SIM117
        with fetching(store, None) as bundle:
            bundle.check()


@mark.usefixtures("cloud")
def test_getting_on_is_worth_any_number_of_tries(cloud, fetch, monkeypatch):
    """A connection that breaks off again and again is taken up for as long as bytes come."""
    monkeypatch.setattr("runtime.storage.transfer.MIN_PROGRESS", 40)
    cloud.before[PARAMS] = [lambda: 40] * 10
    fetch()

    assert [a.start for a in cloud.asked if a.name == PARAMS] == [40 * i for i in range(11)]


def test_a_trickle_is_given_up(cloud, fetch):
    """A store that lets go after every byte is no better than one that is silent."""
    cloud.before[PARAMS] = [lambda: 1] * 20
    with raises(FetchError, match=r"params\.safetensors: gave up after 6 tries: "):
        fetch()

    assert len([asked for asked in cloud.asked if asked.name == PARAMS]) == 6


def test_an_object_that_is_replaced_all_the_time_is_given_up(cloud, fetch, monkeypatch):
    """Who uploads without end does not keep a server fetching without end."""
    monkeypatch.setattr("runtime.storage.transfer.MIN_PROGRESS", 40)

    def replace():
        cloud.put(PARAMS, cloud.objects[PARAMS][0])

    cloud.before[PARAMS] = [lambda: 100, replace] * 10
    with raises(FetchError, match="gave up after 6 tries: "):
        fetch()

    assert len([asked for asked in cloud.asked if asked.name == PARAMS]) <= 8
