"""The image is built from nothing, holds the server alone, and runs as containers are run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from pytest import fixture, mark

from runtime import load, open_bundle
from server.config import BAKED_IN, ServerConfig
from server.doctor import cli as doctor
from tests.image.containers import builder, first_process, status_of
from tests.serving import ROOT, TIMEOUT_S

pytestmark = mark.image

USER = 65532
ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]]
# Beyond its base. Most of it is jaxlib and scipy.
LIMIT_MB = 800


@fixture(scope="module")
def image(classifier_bundle):
    """The image for CPUs with a bundle baked in, on a Debian that has nothing but Python."""
    with builder() as made:
        made.make_base("localhost/base")
        name = "localhost/hloserve:test"
        made.build("localhost/base", "cpu", "--bundle", str(classifier_bundle), "--tag", name)
        yield made.open(name)


@fixture(scope="module")
def served(image):
    """A container of the image that is ready."""
    with image.serving() as served:
        yield served


def files(image):
    """Return the path of every file and folder in an image, from its root."""
    found = subprocess.run(
        ["find", image.root, "-xdev", "-printf", "/%P\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


def test_it_says_what_it_is(image):
    """User, ports, entrypoint and labels are set, and nothing that is Vertex AI's."""
    config = image.config
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["/opt/hloserve/bin/python", "-m", "server"]
    defaults = ServerConfig(bundle=BAKED_IN)
    assert set(config["ExposedPorts"]) == {f"{defaults.port}/tcp", f"{defaults.grpc_port}/tcp"}
    assert [text for text in config["Env"] if text.startswith("AIP_")] == []
    labels = {
        name.removeprefix("org.opencontainers.image."): text
        for name, text in config["Labels"].items()
        if name.startswith("org.opencontainers.image.")
    }
    assert labels["title"] == "hloserve"
    assert labels["base.name"] == "localhost/base"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == "0.1.0"
    assert set(labels) >= {"description", "revision", "created"}


def test_it_holds_the_server_alone(image):
    """No trainer, compiler, package cache, source or secret is in it."""
    [packages] = image.root.glob("opt/hloserve/lib/python3.*/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert installed >= {"jax", "server", "runtime", "google"}
    assert installed.isdisjoint(
        {"flax", "orbax", "optax", "tensorflow", "torch", "pytest", "hypothesis", "pip", "uv"}
    )
    paths = files(image)
    names = {path.rpartition("/")[2] for path in paths if not path.startswith("/usr/share/")}
    assert names.isdisjoint({"gcc", "cc", "cc1", "c++", "clang", "ld", "make", "git", "uv"})
    unwanted = ("/root/.cache", "/build", "/run/secrets/", "/tmp/", "/var/cache/apt/archives/")  # noqa: S108
    left = [path for path in paths if path.startswith(unwanted)]
    assert [path for path in left if path.endswith((".deb", ".whl", ".pem")) or "pip" in path] == []
    assert not (image.root / "build").exists()


def test_nobody_but_root_can_write_where_programs_are(image):
    """What runs and what it serves belongs to root, and is bytecode already."""
    places = [image.root / "opt", image.root / "bundle"]
    others = ["(", "-not", "-user", "root", "-o", "-perm", "/022", "-not", "-type", "l", ")"]
    found = subprocess.run(["find", *places, *others], capture_output=True, text=True, check=True)
    assert found.stdout == ""
    [package] = (image.root / "opt/hloserve/lib").glob("python3.*/site-packages/server")
    assert list((package / "__pycache__").glob("lifecycle.*.pyc"))


def test_its_size_is_printed(image, capsys):
    """The image adds less than a bound to its base; the largest parts are shown."""
    lines = subprocess.run(
        ["du", "-m", "--max-depth=4", image.root / "opt/hloserve"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    sizes = {path.rpartition("/")[2]: int(size) for size, path in map(str.split, lines)}
    total = sizes.pop("hloserve")
    largest = sorted(sizes.items(), key=lambda item: -item[1])[3:9]
    with capsys.disabled():
        parts = ", ".join(f"{name} {size}" for name, size in largest)
        print(f"\nimage: {total} MB beyond its base; {parts}")

    assert total < LIMIT_MB


def test_it_serves_what_is_baked_in(served, classifier_bundle):
    """A container answers as the runtime does here, with the bundle it was built with."""
    assert json.loads(served.get("/health")) == {"status": "ready"}
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ROWS}
    status, answer = served.post({"inputs": [tensor]}, "/v2/models/classifier/infer")
    assert status == 200

    [expected] = load(classifier_bundle).predict({"x": np.float32(ROWS)}).values()
    [output] = answer["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, rtol=1e-5)


def test_its_first_process_is_the_server(served):
    """The server is process 1 of its container, belongs to the fixed user and can gain nothing."""
    about = status_of(first_process(served.process))
    assert about["NSpid"][-1] == "1"
    assert set(about["Uid"]) == set(about["Gid"]) == {str(USER)}
    assert about["Groups"] == []
    assert int(about["CapEff"][0], 16) == 0


def test_it_leaves_tmp_as_it_was(served, image):
    """Nothing is written to /tmp, which is all there is to write to."""
    del image
    number = first_process(served.process)
    tmp = subprocess.run(["ls", "-A", f"/proc/{number}/root/tmp"], capture_output=True, text=True)
    assert (tmp.stdout, tmp.returncode) == ("", 0)


def test_sigterm_ends_it_well(image):
    """SIGTERM to process 1 drains and ends the container with status 0."""
    with image.serving() as served:
        first = first_process(served.process)
        subprocess.run(["kill", "-TERM", str(first)], check=True)
        log, errors = served.process.communicate(timeout=TIMEOUT_S)

    assert (served.process.returncode, errors) == (0, "")
    assert log.splitlines()[-1].endswith("INFO stopped")


def test_sigterm_ends_it_while_it_imports(image):
    """SIGTERM ends process 1 before it has logged anything."""
    with image.started() as container:
        first = first_process(container)
        handled = 1 << (signal.SIGTERM - 1)
        while not int(status_of(first)["SigCgt"][0], 16) & handled:
            assert container.poll() is None
        subprocess.run(["kill", "-TERM", str(first)], check=True)
        ended = container.communicate(timeout=TIMEOUT_S)

    assert ended == ("", "")
    assert container.returncode == 0


def test_vertex_without_artifacts_gets_what_is_baked_in(image):
    """An empty AIP_STORAGE_URI means the bundle that is baked in, at the routes of Vertex AI."""
    environ = {
        "AIP_STORAGE_URI": "",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
    }
    with image.serving(**environ) as served:
        served.get(environ["AIP_HEALTH_ROUTE"])
        status, _ = served.post({"instances": ROWS}, environ["AIP_PREDICT_ROUTE"])

    assert status == 200


def log_until_ready(container):
    """Return the log of a container until it is ready."""
    said = []
    for line in container.stdout:
        said.append(line)
        if "ready: " in line:
            return "".join(said)
    raise AssertionError(container.stderr.read())


def test_what_is_baked_in_is_opened_at_once(image, classifier_bundle):
    """The image has the digest of its bundle, which then is the only one, and is not tried first."""
    digest = open_bundle(classifier_bundle).digest
    pin = (image.root / "opt/hloserve/bundle.sha256").read_text()
    assert pin == f"{digest}  /bundle/manifest.json\n"

    with image.started(HLOSERVE_PORT="0", HLOSERVE_GRPC_PORT="-1") as container:
        said = log_until_ready(container)
    assert f"require_digest='sha256:{digest}'" in said
    assert "test-loading" not in said
    assert "compiling" not in said
    assert "loaded 3 of 3 programs from the executable cache" in said


def test_a_bundle_of_no_known_digest_is_tried_first(image, tagger_bundle):
    """The process that tries a bundle needs no more than the server: nothing that is written to."""
    environ = {"HLOSERVE_PORT": "0", "HLOSERVE_GRPC_PORT": "-1", "HOME": "/nonexistent"}
    environ |= {"HLOSERVE_BUNDLE": "/mnt/models", "HLOSERVE_PROCESSES": "1"}
    with image.started(models=tagger_bundle, **environ) as container:
        said = log_until_ready(container)
        number = first_process(container)
        left = [*Path(f"/proc/{number}/root/tmp").iterdir()]
        left += Path(f"/proc/{number}/root/dev/shm").iterdir()

    assert "test-loading the bundle in a separate process" in said
    assert left == []


def test_the_doctor_finds_nothing_wrong(image, classifier_bundle, capsys, monkeypatch):
    """The image meets Vertex AI's requirements, with artifacts and without."""
    monkeypatch.chdir(ROOT)
    config, root = json.dumps(image.config), str(image.root)
    command = [sys.executable, "-m", "tests.image.as_docker", config, root]

    status = doctor.main(["--bundle", str(classifier_bundle), "--", *command], os.environ)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert status == 0
    assert "pass  empty AIP_STORAGE_URI  serves a bundle of its own" in lines


def test_a_mounted_bundle_comes_before_the_baked_in(image, tagger_bundle):
    """What KServe mounts at /mnt/models is served, as its runtime says."""
    with image.serving(models=tagger_bundle, HLOSERVE_BUNDLE="/mnt/models") as served:
        found = json.loads(served.get("/v2/models/tagger"))

    assert found["name"] == "tagger"


def test_it_says_which_commit_it_is_of(image):
    """The label of the revision names the commit that the sources are from."""
    known = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    label = image.config["Labels"]["org.opencontainers.image.revision"]
    assert label.removesuffix("-dirty") == known.stdout.strip()
