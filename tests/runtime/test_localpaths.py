"""URLs distinguished from paths, whatever pathlib has made of them."""

from pathlib import Path

from pytest import mark, param, raises

from runtime import assert_bundle_matches_goldens, load, open_bundle
from runtime.__main__ import main
from runtime.errors import BundleError
from runtime.localpaths import url_of, why_not_read, why_not_written
from runtime.writer import BundleWriter


@mark.parametrize(
    ("path", "url"),
    [
        ("gs://bucket/models/iris", "gs://bucket/models/iris"),
        (Path("gs://bucket/models/iris"), "gs://bucket/models/iris"),
        ("S3://bucket/x", "s3://bucket/x"),
        ("GS:/bucket/x", "gs://bucket/x"),
        ("hf://owner/name", "hf://owner/name"),
        (Path("https://host/x.npz"), "https://host/x.npz"),
        ("file:///tmp/x", "file:///tmp/x"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        ("file:x", "file:x"),
        ("gs:bucket", "gs:bucket"),
        ("azure://container/x", "azure://container/x"),
        (Path("nobody+knows.it-1://x"), "nobody+knows.it-1:/x"),
    ],
)
def test_a_url_is_recognized_also_as_pathlib_writes_it(path, url):
    """A URL is given back with both its slashes, though Path leaves one of them."""
    assert url_of(path) == url


@mark.parametrize(
    "path",
    [
        *("bundle", "/bundle", "./gs:x", "a/gs://b", "/home/gs:/b", "", "."),
        *("C:/models", r"C:\models", "C:x", "run:3", "2026-11-30T12:00", "logs/12:30/x", ":x"),
    ],
)
def test_a_path_with_a_colon_is_a_path(path):
    """Drive letters, times, names with colons and whatever begins with a folder are no URLs."""
    assert url_of(path) is None
    assert why_not_read(path) is why_not_written(path) is None


def test_a_file_that_is_there_is_a_path_unless_its_name_is_a_known_urls(tmp_path, monkeypatch):
    """What exists is taken; not the folder that `gs:/…` would be, where a bucket was meant."""
    monkeypatch.chdir(tmp_path)
    for name in ("gs:x", "strange:", "gs:"):
        Path(name).mkdir()
        Path(name, "b").touch()

    assert url_of("gs:x") is None
    assert url_of("strange:/b") is None
    assert url_of("strange:/c") == "strange:/c"
    assert url_of("strange://b") == "strange://b"
    assert url_of("gs:/b") == "gs://b"
    assert url_of(tmp_path / "gs:/b") is None


@mark.parametrize(
    ("url", "reading", "writing"),
    [
        (
            "gs://bucket/models/iris",
            "copy it here first: gcloud storage cp -r gs://bucket/models/iris . and pass iris",
            "write DIR here and copy it: gcloud storage cp -r DIR/* gs://bucket/models/iris/",
        ),
        (
            "s3://bucket/iris/",
            "copy it here first: aws s3 cp --recursive s3://bucket/iris/ iris and pass iris",
            "write DIR here and copy it: aws s3 cp --recursive DIR s3://bucket/iris/",
        ),
        ("file:///a%20b/c", "pass '/a b/c'", "pass '/a b/c'"),
        (
            "s3a://bucket/iris",
            "copy it here first: aws s3 cp --recursive s3://bucket/iris iris and pass iris",
            "write DIR here and copy it: aws s3 cp --recursive DIR s3://bucket/iris/",
        ),
        (
            "hdfs://node/iris",
            "copy it here first: hdfs dfs -get hdfs://node/iris . and pass iris",
            "write DIR here and copy it: hdfs dfs -put DIR hdfs://node/iris",
        ),
        (
            "https://host/labels.txt?raw=1",
            "copy it here first: curl -L -o labels.txt 'https://host/labels.txt?raw=1' and pass labels.txt",
            "write it here, and copy it there",
        ),
        (
            "gs://bucket",
            "copy it here first: gcloud storage cp -r gs://bucket . and pass bucket",
            "write DIR here and copy it: gcloud storage cp -r DIR/* gs://bucket/",
        ),
        ("https://host", "copy it here first, and pass that", "write it here, and copy it there"),
        ("hf://o/n", "copy it here first, and pass that", "write it here, and copy it there"),
        ("file://far/c", "copy it here first, and pass that", "write it here, and copy it there"),
    ],
)
def test_the_way_by_hand_is_said(url, reading, writing):
    """A refusal has the command that brings a URL here, or what was written here there."""
    expected = f"expected a path on this machine, got {url!r}; "

    assert why_not_read(url) == expected + reading
    assert why_not_written(url) == expected + writing


def test_a_file_is_copied_as_a_file():
    """A report that was to be written into a bucket is copied there by itself."""
    assert why_not_written("gs://bucket/report.xml", file=True) == (
        "expected a path on this machine, got 'gs://bucket/report.xml'; write FILE here and copy "
        "it: gcloud storage cp FILE gs://bucket/report.xml"
    )


@mark.parametrize(
    "words",
    [
        param(["verify", "URL"], id="verify"),
        param(["inspect", "URL"], id="inspect"),
        param(["bench", "URL"], id="bench"),
        param(["doctor", "URL"], id="doctor"),
        param(["refresh", "URL", "--out", "new"], id="refresh"),
        param(["verify", "b", "--junit", "URL"], id="junit"),
        param(["inspect", "b", "--signature", "URL", "--public-key", "k"], id="signature"),
        param(["verify", "b", "--signature", "s", "--public-key", "URL"], id="key"),
        param(["bench", "b", "--plot", "URL"], id="plot"),
        param(["refresh", "b", "--out", "URL"], id="out"),
    ],
)
@mark.parametrize("url", ["gs://bucket/x.svg", "hf:/owner/x.svg"])
def test_every_path_option_refuses_a_url(words, url, capsys, tmp_path, monkeypatch):
    """No option of the command line takes a URL for a path: it is one line, and status 2."""
    monkeypatch.chdir(tmp_path)

    with raises(SystemExit) as caught:
        main([url if word == "URL" else word for word in words])

    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.count("\n") == 1
    assert "expected a path on this machine, got '" + url.replace(":/o", "://o") in said
    assert list(tmp_path.iterdir()) == []


@mark.parametrize("take", [load, open_bundle, assert_bundle_matches_goldens])
@mark.parametrize("path", ["gs://bucket/iris", Path("gs://bucket/iris")])
def test_python_callers_are_refused_a_url_too(take, path):
    """A URL is refused as one, and not looked for in the current folder."""
    with raises(BundleError) as caught:
        take(path)

    assert str(caught.value) == (
        "bundle: expected a path on this machine, got 'gs://bucket/iris'; copy it here first: "
        "gcloud storage cp -r gs://bucket/iris . and pass iris"
    )


def test_nothing_is_written_where_a_url_would_be_a_folder(tmp_path, monkeypatch):
    """A writer, as refresh uses it, makes no folder that is called as a scheme."""
    monkeypatch.chdir(tmp_path)

    with raises(BundleError, match=r"^bundle: expected a path on this machine, got 'gs://b/x'; "):
        BundleWriter(Path("gs://b/x"))

    assert list(tmp_path.iterdir()) == []
