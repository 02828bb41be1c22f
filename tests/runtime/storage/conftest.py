"""A bucket with a bundle in it, and what fetches it."""

from pytest import fixture

from runtime.storage.bundle_fetch import fetching
from runtime.storage.gcs import CloudStore
from runtime.storage.uri import CloudFolder
from tests.runtime.storage.fake_gcs import BUCKET, FakeGcs


@fixture
def bucket(monkeypatch, classifier_bundle):
    """A bucket that holds a bundle under a/, and things that are not of it."""
    bucket = FakeGcs()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    bucket.upload(classifier_bundle, "a")
    for name in ("a/", "a/programs/", "a/notes.txt", "ab/manifest.json", "a/../evil"):
        bucket.put(name, b"")
    yield bucket
    bucket.close()


@fixture
def fetch():
    """Fetches a bundle whole; pauses are noted down, not made."""

    def run(cache=None, prefix="a/"):
        with fetching(CloudStore(CloudFolder(BUCKET, prefix)), cache, run.pauses.append) as bundle:
            bundle.check()
        return bundle

    run.pauses = []
    return run
