"""A bundle's manifest by itself, from wherever the bundle is."""

import hashlib

from pytest import mark, raises

from runtime.storage.bundle_manifest import manifest_at
from runtime.storage.store import FetchError
from tests.runtime.storage.fake_gcs import BUCKET


def test_a_folder(classifier_bundle):
    """The manifest of a directory, and the digest that the bundle has when it is opened."""
    manifest, digest = manifest_at(str(classifier_bundle))

    assert manifest.name == "classifier"
    assert digest == hashlib.sha256((classifier_bundle / "manifest.json").read_bytes()).hexdigest()


def test_a_folder_of_a_bucket(bucket, classifier_bundle):
    """Of a bundle in Cloud Storage the manifest is fetched, and no other object."""
    bucket.objects = {"a/manifest.json": bucket.objects["a/manifest.json"]}

    assert manifest_at(f"gs://{BUCKET}/a") == manifest_at(str(classifier_bundle))


@mark.usefixtures("bucket")
def test_no_bundle():
    """Where there is none, the place is named."""
    with raises(FetchError, match=rf"gs://{BUCKET}/none"):
        manifest_at(f"gs://{BUCKET}/none")
    with raises(ValueError, match=r"^expected a directory, gs:// or file://, got 's3://mine/b'$"):
        manifest_at("s3://mine/b")
