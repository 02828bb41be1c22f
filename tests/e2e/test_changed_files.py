"""A bundle whose files change while it is served: no answer is silently wrong, and the exit reason is logged."""

import contextlib
import json
import os
import shutil

import numpy as np
from pytest import fixture, mark

from tests.serving import TIMEOUT_S, free_port, post, serving, start, started

pytestmark = mark.e2e

PARAMS = "params.safetensors"
BODY = b'{"instances": [[1, 2]]}'
ADVICE = "replace a bundle as a whole, by renaming, and start again"
WRITTEN = (
    f"error: {PARAMS}: expected the file that was checked for as long as it is in use, got one that "
    f"was written to; {ADVICE}\n"
)
EXIT_BUNDLE = 3


def times(params, x):
    """Multiply by a matrix of several pages."""
    return x @ params["matrix"]


@fixture(scope="session")
def matrix_bundle(exported):
    """x float32[_, 2] times a matrix of 8 kB of ones; buckets 1, 2."""
    ones = {"matrix": np.ones((2, 1024), np.float32)}
    return exported("matrix", times, ones, inputs=["x:float32[_,2]"], buckets=(1, 2))


@fixture
def bundle(matrix_bundle, tmp_path):
    """A copy of the bundle, to be tampered with."""
    return shutil.copytree(matrix_bundle, tmp_path / "bundle")


def flip(path):
    """Change the last byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def touch(path):
    """Set a file's modification time, as if it had been written to."""
    os.utime(path)


def lengthen(path):
    """Append to a file."""
    with path.open("ab") as file:
        file.write(b"more")


def right(served):
    """Whether the server answers correctly."""
    return post(f"{served.url}/predict", BODY) == (200, {"predictions": [[3.0] * 1024]})


@mark.parametrize("processes", [1, 2])
@mark.parametrize("change", [flip, touch], ids=lambda change: change.__name__)
def test_params_that_are_written_to_end_the_server(bundle, change, processes):
    """Params are used in the pages of the file: the server stops answering, names the file and ends."""
    options = ("--processes", str(processes))
    with started("--bundle", str(bundle), *options) as served:
        assert right(served)
        change(bundle / PARAMS)
        status, errors = served.end()

    assert status == EXIT_BUNDLE
    assert set(errors.splitlines(keepends=True)) == {WRITTEN}


def test_params_that_are_longer_end_the_server(bundle):
    """A file whose size changed counts as changed."""
    size = (bundle / PARAMS).stat().st_size
    with started("--bundle", str(bundle)) as served:
        lengthen(bundle / PARAMS)
        status, errors = served.end()

    assert status == EXIT_BUNDLE
    assert errors == (
        f"error: {PARAMS}: expected the file that was checked for as long as it is in use, got "
        f"{size + 4} of its {size} bytes; {ADVICE}\n"
    )


@mark.parametrize("processes", [1, 2])
@mark.parametrize("size", [0, 4096])
def test_params_that_are_cut_off_under_load_end_the_server(bundle, size, processes):
    """Reading a truncated page raises SIGBUS; the server reports it as an error of the bundle."""
    before = (bundle / PARAMS).stat().st_size
    options = ("--processes", str(processes))
    with started("--bundle", str(bundle), *options) as served:
        assert right(served)
        os.truncate(bundle / PARAMS, size)
        ask_until_closed(served)
        status, errors = served.end()

    assert status == EXIT_BUNDLE
    (line,) = set(errors.splitlines())
    assert line == (
        f"error: {PARAMS}: expected the file that was checked for as long as it is in use, got "
        f"{size} of its {before} bytes; {ADVICE}"
    )


def ask_until_closed(served):
    """Send requests until the server has exited; for up to a second its answers may be wrong."""
    with contextlib.suppress(OSError):
        while True:
            post(f"{served.url}/predict", BODY)


def test_a_file_that_is_a_claim_is_refused_at_once(bundle):
    """A sparse params file of 100 GiB ends the server before any of it is read."""
    size = 100 << 30
    os.truncate(bundle / PARAMS, size)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["params"]["files"][0]["bytes"] = size
    manifest["params"]["arguments"][0]["shape"] = [2, (size - 4096) // 8]
    manifest["params"]["entries"][0]["shape"] = [2, (size - 4096) // 8]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    stored = (bundle / PARAMS).stat().st_blocks * 512

    with start(free_port(), "--bundle", str(bundle)) as process:
        log, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == EXIT_BUNDLE
    assert "compiling" not in log
    assert errors == (
        f"error: {PARAMS}: expected {size} bytes of data, got {stored} on the disk; the rest of it "
        "is a hole\n"
    )


def test_a_bundle_that_is_replaced_by_renaming_is_served_on(bundle, matrix_bundle):
    """What `export --overwrite` puts in place is loaded by the next start; the log says so."""
    new = shutil.copytree(matrix_bundle, bundle.parent / "new")
    flip(new / PARAMS)
    with serving("--bundle", str(bundle)) as served:
        bundle.rename(bundle.parent / "old")
        new.rename(bundle)
        shutil.rmtree(bundle.parent / "old")
        line = next(line for line in served.process.stdout if "was replaced" in line)

        assert right(served)

    assert line.endswith(f"INFO {PARAMS}: was replaced; the bundle that was loaded is served on\n")
    assert "was replaced" not in served.log
