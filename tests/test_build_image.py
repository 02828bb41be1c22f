"""`./build.sh image` finds a builder and passes the build's arguments to it; nothing is really built here."""

import os
import shutil
import subprocess
import sys

from pytest import fixture, mark

from runtime.bundle import open_bundle
from tests.test_build import ROOT, Project, script

# Stands in for docker, podman and buildah: it records its arguments.
BUILDER = """#!/bin/bash
if [ "$1" = info ]; then exit {engine}; fi
echo "${{0##*/}} $* INDEX_URL=${{INDEX_URL:-}} BUILDKIT=${{DOCKER_BUILDKIT:-}}" >> {log}
exit {status}
"""


class Images(Project):
    """A project whose builders are stand-ins."""

    def __init__(self, folder):
        super().__init__(folder)
        self.built = folder / "built.log"
        for name in ("sed", "date", "git"):
            (folder / "bin" / name).symlink_to(shutil.which(name))

    def builder(self, name, *, engine=0, status=0):
        """Put a builder on the PATH."""
        text = BUILDER.format(log=self.built, engine=engine, status=status)
        script(self.folder / "bin" / name, text)

    def image(self, *arguments, cwd=None, **environ):
        """Run `./build.sh image`, from a folder."""
        return self.setup("image", *arguments, cwd=cwd, SOURCE_DATE_EPOCH="0", **environ)

    @property
    def built_with(self):
        """Return the ways the builders were called."""
        return self.built.read_text().splitlines() if self.built.exists() else []


@fixture
def images(tmp_path):
    """A project where nothing builds images yet."""
    return Images(tmp_path)


def test_everything_is_said_to_the_builder(images):
    """The device, the version, the time and the tag are passed on; there is no commit here."""
    images.builder("docker")

    assert images.image("cuda12").returncode == 0
    [line] = images.built_with
    assert line == (
        "docker build --build-arg DEVICE=cuda12 --build-arg VERSION=0.1.0 --build-arg REVISION= "
        "--build-arg CREATED=1970-01-01T00:00:00Z --tag hloserve:cuda12 . INDEX_URL= BUILDKIT=1"
    )


@mark.parametrize(
    ("there", "used"),
    [
        (("docker", "podman", "buildah"), "docker"),
        (("podman", "buildah"), "podman"),
        (("buildah",), "buildah"),
    ],
)
def test_any_of_three_builders_will_do(images, there, used):
    """Docker is taken before podman, and podman before buildah."""
    for name in there:
        images.builder(name)

    ran = images.image()

    assert ran.stderr == f"building hloserve:cpu with {used}\n"
    assert [line.split()[0] for line in images.built_with] == [used]


def test_a_docker_without_its_engine_is_passed_over(images):
    """Where docker is installed but its engine does not respond, another builder is taken."""
    images.builder("docker", engine=1)
    images.builder("buildah")

    images.image()

    assert [line.split()[0] for line in images.built_with] == ["buildah"]


def test_without_a_builder_it_says_what_is_missing(images):
    """Without any builder, one line names those that would do."""
    images.builder("docker", engine=1)

    ran = images.image()

    assert ran.returncode == 1
    assert ran.stderr == (
        "error: expected docker with its engine running, podman or buildah, found none\n"
    )


def test_a_bundle_is_baked_in(images, tmp_path):
    """`--bundle` names what takes the place of the empty bundle."""
    images.builder("docker")
    bundle = tmp_path / "a bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")

    images.image("--bundle", str(bundle), "--tag", "registry/digits:1")

    [line] = images.built_with
    assert f"--build-context bundle={bundle} " in line
    assert " --tag registry/digits:1 ." in line


def test_a_bundle_is_looked_for_where_the_command_is_given(images, tmp_path):
    """A relative path of a bundle counts from the folder that `build.sh` is called in."""
    images.builder("docker")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "bundle").mkdir(parents=True)
    (elsewhere / "bundle/manifest.json").write_text("{}")

    assert images.image("--bundle", "bundle", cwd=elsewhere).returncode == 0

    [line] = images.built_with
    assert f"--build-context bundle={elsewhere}/bundle " in line


def test_a_push_follows_the_build(images):
    """`--push` sends the image to where its tag says, once it is built."""
    images.builder("docker")

    images.image("--tag", "registry/hloserve:1", "--push")

    assert [line.split(" INDEX_URL")[0] for line in images.built_with][1:] == [
        "docker push registry/hloserve:1"
    ]


def test_what_was_not_built_is_not_pushed(images):
    """A build that fails ends there, with its status."""
    images.builder("docker", status=17)

    assert images.image("--tag", "registry/hloserve", "--push").returncode == 17
    assert len(images.built_with) == 1


def test_the_index_and_proxies_are_passed_on_by_name(images):
    """Package indexes are passed on, and no password is on the command line."""
    images.builder("docker")
    index = "https://user:secret@index.example/simple"

    images.image(PIP_INDEX_URL=index, https_proxy="http://me:secret@proxy.example")

    [line] = images.built_with
    command, _, rest = line.partition(" INDEX_URL=")
    assert rest.split()[0] == index
    assert "--build-arg INDEX_URL --build-arg https_proxy " in command
    assert "secret" not in command


def test_certificates_and_the_base_are_passed_on(images):
    """Certificates to trust go as a secret, which leaves no trace in the image."""
    images.builder("docker")

    images.image(PIP_CERT="/etc/ca.pem", BASE_IMAGE="registry/python:3.13")

    [line] = images.built_with
    assert "--build-arg BASE_IMAGE --secret id=ca,src=/etc/ca.pem " in line


@mark.parametrize(
    ("arguments", "error"),
    [
        (
            ("gpu",),
            "image: expected cpu, cuda12, cuda13, --bundle DIR, --tag T, --native or --push, got gpu",
        ),
        (("--tag",), "--tag: expected a value, got none"),
        (("--bundle", ""), "--bundle: expected a value, got none"),
        (("--tag", "--push"), "--tag: expected a value, got --push"),
        (("--push",), "--push: expected --tag REGISTRY/NAME:TAG, got none"),
        (("--push", "--tag", "a:1"), "--push: expected --tag REGISTRY/NAME:TAG, got a:1"),
        (("--bundle", "nowhere"), "--bundle: no manifest.json in nowhere"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(images, arguments, error):
    """A device that is not known, a value that is missing and a bundle that is none end it."""
    images.builder("docker")

    ran = images.image(*arguments)

    assert (ran.returncode, ran.stderr) == (2, f"error: {error}\n")
    assert images.built_with == []


def test_only_what_goes_into_the_image_is_sent_to_the_builder():
    """The build's context has what the Dockerfile copies, and nothing else."""
    kept = (ROOT / ".dockerignore").read_text().split()
    copied = {
        word
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert kept[0] == "*"
    assert {word[1:] for word in kept if word.startswith("!")} == copied


def pin(bundle, folder):
    """Run what the Dockerfile does to a bundle that is baked in, on this machine; return how it went."""
    stage = (ROOT / "Dockerfile").read_text().partition("FROM build AS pin\n")[2]
    command = stage.partition("\n\n")[0].partition("target=/bundle \\\n")[2].replace("\\\n", " ")
    command = command.replace("/opt/hloserve/bin/python", sys.executable)
    command = command.replace(" /bundle", f" {bundle}").replace("/pin", str(folder))
    environ = {**os.environ, "DEVICE": "cpu", "COMPILE": "--threads 1 --portable"}
    return subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, env=environ
    )


@mark.e2e
def test_a_bundle_that_is_baked_in_is_looked_at_and_pinned(classifier_bundle, tmp_path):
    """A whole bundle is identified by its digest; a damaged one ends the build, and an absent one does not."""
    good = pin(classifier_bundle, tmp_path / "good")
    assert good.returncode == 0, good.stderr
    pinned = (tmp_path / "good/bundle.sha256").read_text()
    assert pinned.split()[0] == open_bundle(classifier_bundle).digest
    executables = tmp_path / "good" / "executables"
    assert executables.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in executables.iterdir()} == {0o644}
    assert len([*executables.glob("*-t1.xla")]) == 3

    damaged = shutil.copytree(classifier_bundle, tmp_path / "damaged")
    (damaged / "params.safetensors").write_bytes(b"")
    bad = pin(damaged, tmp_path / "bad")
    assert bad.returncode == 3
    assert "params.safetensors: expected " in bad.stderr
    assert list((tmp_path / "bad").iterdir()) == []

    assert pin(tmp_path / "nowhere", tmp_path / "none").returncode == 0
    assert list((tmp_path / "none").iterdir()) == []
