"""Images built and run on a bare Debian: buildah without an engine, and containers by hand.

A container here is what a runtime makes of an image: a root that is read-only, a /tmp of 16 MiB
and a /dev/shm of 64, few processes, the image's environment, user and entrypoint, and process
number 1 of a namespace of its own.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.serving import ROOT, TIMEOUT_S, Served, free_port, ready_line

_STORAGE = """[storage]
driver = "vfs"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT = """set -e
cd "$1"
mount --bind . . && cd "$1" && mount -o remount,bind,ro .
mount -t tmpfs -o size=16m,mode=1777 tmpfs tmp
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o size=64m,mode=1777 tmpfs dev/shm
if [ -n "$2" ]; then
  mount -t tmpfs tmpfs mnt && mkdir mnt/models
  mount --bind "$2" mnt/models && mount -o remount,bind,ro mnt/models
fi
user="$3"; shift 3
exec prlimit --nproc=128 chroot --groups= --userspec="$user" . /usr/bin/env -i "$@"
"""


def run(*command, **options):
    """Run a command that has to succeed; return what it prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=ROOT, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


class Builder:
    """Builds images, and keeps them in a folder of its own.

    Args:
      folder: for everything.
    """

    def __init__(self, folder):
        self._folder = folder
        self._environ = {
            **os.environ,
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "TMPDIR": str(folder),
        }
        (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))

    def make_base(self, name):
        """Make an image of Debian with Python."""
        root = self._folder / "base"
        packages = "--include=ca-certificates,python3,python3-venv"
        run("debootstrap", "--variant=minbase", packages, "trixie", root)
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        made = self.buildah("from", "scratch")
        self.buildah("add", "-q", made, root, "/")
        self.buildah("config", "--env", f"PATH={_PATH}", made)
        self.buildah("commit", "-q", "--rm", made, name)
        shutil.rmtree(root)

    def build(self, base, *arguments):
        """Run `./build.sh image` with this base image."""
        # No docker, even where it is installed: what is tested has to be the same everywhere.
        tools = self._folder / "bin"
        tools.mkdir()
        (tools / "docker").write_text("#!/bin/sh\nexit 1\n")
        (tools / "docker").chmod(0o755)
        path = f"{tools}:{self._environ['PATH']}"
        environ = {**self._environ, "BASE_IMAGE": base, "PATH": path}
        return run("./build.sh", "image", *arguments, env=environ)

    def buildah(self, *arguments):
        """Run buildah; return what it prints."""
        return run("buildah", *arguments, env=self._environ).strip()

    def open(self, name):
        """Return an image with its files."""
        about = json.loads(self.buildah("inspect", "--type", "image", name))
        root = self.buildah("mount", self.buildah("from", name))
        return Image(about["OCIv1"]["config"], Path(root))

    def close(self):
        """Remove the containers that images were mounted from."""
        self.buildah("rm", "--all")


class Image:
    """An image.

    Args:
      config: what it says of itself.
      root: where its files are.
    """

    def __init__(self, config, root):
        self.config = config
        self.root = root

    @contextlib.contextmanager
    def started(self, *arguments, models="", streams=subprocess.PIPE, **environ):
        """Run a container; it is killed unless it has ended.

        Args:
          *arguments: of the entrypoint.
          models: a directory to see as /mnt/models.
          streams: where its output goes; None for this process's own.
          **environ: variables beside those of the image.
        """
        variables = [*self.config["Env"], *(f"{name}={text}" for name, text in environ.items())]
        container = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "sh", "-c", _MOUNT, "sh"),
                *(str(self.root), str(models), self.config["User"]),
                *(*variables, *self.config["Entrypoint"], *arguments),
            ],
            stdout=streams,
            stderr=streams,
            text=True,
        )
        with container:
            try:
                yield container
            finally:
                # What has another user outlives its parent, whatever unshare's options.
                for number in _children(container):
                    os.kill(number, signal.SIGKILL)

    @contextlib.contextmanager
    def serving(self, **options):
        """Run a container that is ready; options are those of `started`."""
        http, grpc = free_port(), free_port()
        ports = {"HLOSERVE_PORT": str(http), "HLOSERVE_GRPC_PORT": str(grpc)}
        with self.started(**{**ports, "HLOSERVE_DRAIN_DELAY_S": "0", **options}) as container:
            ready_line(container)
            yield Served(container, http, grpc)


def _children(container):
    if container.poll() is not None:
        return []
    listed = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text()
    return [int(number) for number in listed.split()]


def first_process(container):
    """Return the number that a container's process 1 has outside of it, once it runs Python."""
    while container.poll() is None:
        for number in _children(container):
            if "python" in Path(f"/proc/{number}/cmdline").read_text():
                return number
    raise AssertionError(container.communicate(timeout=TIMEOUT_S))


def status_of(number):
    """Return what the kernel says of a process, by name."""
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    return {name: text.split() for name, text in (line.split(":", 1) for line in lines)}


@contextlib.contextmanager
def builder():
    """Return a builder; where Debian's tools are missing, root installs them."""
    needed = ("buildah", "debootstrap")
    if missing := [name for name in needed if shutil.which(name) is None]:
        assert os.geteuid() == 0, f"expected root on Debian, to install {', '.join(missing)}"
        apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-q", env=apt)
        run("apt-get", "install", "-q", "-y", "--no-install-recommends", *missing, env=apt)
    # Gigabytes: not left for pytest to keep.
    with (
        tempfile.TemporaryDirectory(prefix="hloserve-image-") as folder,
        contextlib.closing(Builder(Path(folder))) as made,
    ):
        yield made
