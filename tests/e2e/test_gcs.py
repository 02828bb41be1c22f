"""The server as a process, with a bundle in a bucket of Cloud Storage's emulator."""

import hashlib
import signal

from gcp_storage_emulator.server import create_server
from pytest import fixture, mark

from tests.serving import free_port, post, start

pytestmark = mark.e2e

ROWS = b'{"instances": [[1, 2, 3, 4]]}'


@fixture(scope="module")
def emulator(classifier_bundle):
    """An emulator that holds the bundle as gs://models/a; return the variable that names it."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    server.start()
    url = f"http://127.0.0.1:{port}"
    client = storage.Client("p", AnonymousCredentials(), client_options={"api_endpoint": url})
    for path in classifier_bundle.rglob("*.*"):
        name = f"a/{path.relative_to(classifier_bundle)}"
        client.bucket("models").blob(name).upload_from_filename(path)
    yield {"STORAGE_EMULATOR_HOST": url}
    client.close()
    server.stop()


def serve_once(environ):
    """Start a server, send it a request and stop it; return what it logged before it was ready."""
    port = free_port()
    with start(port, **environ) as process:
        said = []
        for line in process.stdout:
            if " ready: " in line:
                break
            said.append(line)
        status, answer = post(f"http://127.0.0.1:{port}/predict", ROWS)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert (status, process.returncode) == (200, 0)
    assert answer["predictions"][0]["label"] in ("red", "green", "blue")
    return "".join(said)


def test_a_bundle_from_a_bucket_is_served(emulator, classifier_bundle, tmp_path):
    """AIP_STORAGE_URI as Vertex AI sets it is enough, and a restart finds the files kept."""
    environ = {**emulator, "AIP_STORAGE_URI": "gs://models/a"}
    kept = {**environ, "HLOSERVE_CACHE_DIR": str(tmp_path)}

    assert "fetching gs://models/a: 8 files, " in serve_once(environ)
    assert "; 0.0 MB were here already" in serve_once(kept)
    assert "fetched 0.0 MB in " in serve_once(kept)
    digest = hashlib.sha256((classifier_bundle / "manifest.json").read_bytes()).hexdigest()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([digest, "executables"])
    assert (tmp_path / digest / "manifest.json").is_file()


def test_a_bundle_that_is_not_there_is_one_line(emulator):
    """A wrong folder ends the process with status 3 and names the missing object."""
    with start(free_port(), "--bundle", "gs://models/b", **emulator) as process:
        _, err = process.communicate()

    assert process.returncode == 3
    assert err == (
        "error: gs://models/b/manifest.json: expected an object, got 404; "
        "is the folder right, and the upload finished?\n"
    )
