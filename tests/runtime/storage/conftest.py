"""A bucket with a bundle in it, and what fetches it."""

from pytest import fixture

from runtime.storage.bundle_fetch import fetching
from runtime.storage.gcs import CloudStore
from runtime.storage.uri import CloudFolder
from tests.runtime.storage.cloud import BUCKET, Cloud


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
