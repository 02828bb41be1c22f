"""What `--bundle` and AIP_STORAGE_URI may say."""

from pathlib import Path

from pytest import mark, raises

from runtime.storage.uri import CloudFolder, locate


@mark.parametrize(
    ("text", "path"),
    [
        ("bundle", "bundle"),
        ("/mnt/models", "/mnt/models"),
        ("file:///mnt/models", "/mnt/models"),
        ("file://localhost/a%20b", "/a b"),
        ("gs:/no/scheme", "gs:/no/scheme"),
    ],
)
def test_local_bundles_are_paths(text, path):
    """A path is taken as it is written, and file:// is a path too."""
    assert locate(text) == Path(path)


@mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("gs://models", "models", ""),
        ("gs://models/", "models", ""),
        ("gs://models/a/b", "models", "a/b/"),
        ("gs://my-models.example.com/a b/", "my-models.example.com", "a b/"),
    ],
)
def test_cloud_folders_end_where_their_names_end(text, bucket, prefix):
    """A folder's objects begin with the folder and a slash, so that a is not ab."""
    folder = locate(text)

    assert folder == CloudFolder(bucket, prefix)
    assert folder.name_of("manifest.json") == f"{prefix}manifest.json"
    assert str(folder) == text.rstrip("/")


@mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a", "expected a directory, gs:// or file://, got 's3://bucket/a'"),
        ("file://server/a", "expected file:///path on this machine, got 'file://server/a'"),
        ("gs://", "expected gs://BUCKET/FOLDER with a bucket's name, got 'gs://'"),
        ("gs://Models/a", "expected gs://BUCKET/FOLDER with a bucket's name, got 'gs://Models/a'"),
        ("gs://models//a", "expected gs://BUCKET/FOLDER with plain names, got 'gs://models//a'"),
        (
            "gs://models/../a",
            "expected gs://BUCKET/FOLDER with plain names, got 'gs://models/../a'",
        ),
        ("gs://models/a/.", "expected gs://BUCKET/FOLDER with plain names, got 'gs://models/a/.'"),
        ("gs://models/a\n", "expected gs://BUCKET/FOLDER with plain names, got 'gs://models/a\\n'"),
        (
            "gs://models/a/manifest.json",
            "expected the folder that holds manifest.json, got 'gs://models/a/manifest.json'",
        ),
    ],
)
def test_other_names_are_refused(text, expected):
    """A name that can mean no bundle is refused by what was expected in its place."""
    with raises(ValueError, match="expected") as caught:
        locate(text)

    assert str(caught.value) == expected
