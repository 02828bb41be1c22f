"""docs/deploy-kserve.md shows what happens, as far as that can be seen without a cluster."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from pytest import fixture, mark

from server.config import BAKED_IN, ServerConfig
from server.options import options
from tests.deploy.resources import DEPLOY, faults, load
from tests.guide import alike, blocks, commands, run_command
from tests.serving import ROOT, TIMEOUT_S, free_port

GUIDE = (ROOT / "docs" / "deploy-kserve.md").read_text()
SHELL = [line for kind, text in blocks(GUIDE) if kind == "sh" for line in text.splitlines()]


@fixture
def reader(iris_bundle, tmp_path):
    """A folder to follow the guide in, and the environment of its commands."""
    (tmp_path / "bundle").symlink_to(iris_bundle)
    (tmp_path / "next").symlink_to(iris_bundle)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    environ = {
        **os.environ,
        **dict(word.split("=") for word in SHELL[0].split()[1:]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HLOSERVE_PORT": str(free_port()),
        "HLOSERVE_GRPC_PORT": "-1",
        "HLOSERVE_DRAIN_DELAY_S": "0",
    }
    return tmp_path, environ


@mark.e2e
def test_the_guide_goes_as_it_shows(reader):
    """Every command that can run offline runs in its order, and prints what stands there."""
    folder, environ = reader
    started = []
    try:
        for command, shown in (
            pair for kind, text in blocks(GUIDE) if kind == "console" for pair in commands(text)
        ):
            here = command.replace("8080", environ["HLOSERVE_PORT"])
            if here.endswith("&"):
                server = ["bash", "-c", f"exec env {here.removesuffix('&')}"]
                started.append(subprocess.Popen(server, cwd=folder, env=environ))
            else:
                status, printed = run_command(here, folder, environ)
                assert status == 0, command
                assert alike(shown, printed), f"$ {command}\n{printed}"
    finally:
        for process in started:
            process.terminate()
        ended = [process.wait(TIMEOUT_S) for process in started]
    assert ended == [0]

    left = [path for path in (folder / "deploy").rglob("*.yaml") if path.parent.name != "deploy"]
    assert [
        path for path in left if re.search("REGISTRY|BUCKET|:(DIGEST|NEXT)", path.read_text())
    ] == []


def test_what_is_not_run_here_needs_a_cluster():
    """Every other command is another program's; the files that it is given are there."""
    words = [line.split() for line in SHELL]
    assert {line[0] for line in words} <= {"export", "kubectl", "gcloud", "curl", "./build.sh"}
    files = [
        name
        for line in words
        for flag, name in itertools.pairwise(line)
        if line[0] == "kubectl" and flag in ("-f", "-k")
    ] + re.findall(r"kubectl apply -k ([\w/-]+)", GUIDE)
    assert len(files) >= 6
    for name in files:
        assert (ROOT / name).exists()


def test_the_seconds_of_a_pods_end_are_the_servers():
    """The table of a pod's end has the defaults of the server and of the manifests."""
    defaults = ServerConfig(bundle=BAKED_IN)
    grace = load("kubernetes/deployment.yaml")[-1]["spec"]["template"]["spec"]
    rows = re.search(r"^\| seconds after SIGTERM .*\n.*\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)[1]
    printed = [int(number) for number in re.findall(r"^\| (\d+)", rows, re.MULTILINE)]

    assert printed == [
        0,
        defaults.drain_delay_s,
        defaults.drain_delay_s + defaults.drain_timeout_s,
        grace["terminationGracePeriodSeconds"],
    ]


def test_what_is_named_exists():
    """Variables are the server's options, and files are in the repository."""
    known = {variable for option in options() for variable in option.variables}
    container = (ROOT / "docs" / "container.md").read_text()
    for text in (GUIDE, container):
        assert set(re.findall(r"HLOSERVE_\w+", text)) <= known
        for name in re.findall(r"deploy/[\w/.-]+\w", text):
            assert (ROOT / name).exists(), name


def test_the_image_guide_has_every_variable_of_the_build():
    """The table of docs/container.md has what `./build.sh --help` says of images."""
    container = (ROOT / "docs" / "container.md").read_text()
    printed = subprocess.run(
        [ROOT / "build.sh", "--help"], capture_output=True, text=True, check=True
    )
    image = printed.stdout[printed.stdout.index("An image stands") :]
    for name in re.findall(r"\$(\w+)", image):
        assert f"`{name}`" in container


def test_the_patch_for_gpus_fits():
    """What the GPU's kustomization adds to the Deployment is what Kubernetes takes."""
    overlay = yaml.safe_load((DEPLOY / "kubernetes-gpu/kustomization.yaml").read_text())
    [patch] = overlay["patches"]
    [operation] = yaml.safe_load(patch["patch"])
    deployment = load("kubernetes/deployment.yaml")[-1]
    assert patch["target"] == {"kind": "Deployment", "name": deployment["metadata"]["name"]}

    *path, last = operation["path"].removeprefix("/").split("/")
    place = deployment
    for step in path:
        place = place[int(step) if step.isdigit() else step]
    place[last.replace("~1", "/")] = operation["value"]

    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "2Gi", "nvidia.com/gpu": 1}
    assert faults(deployment) == []
    base = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    assert overlay["images"][0]["name"] == base["images"][0]["newName"]
