"""A real server with scarce resources: few file descriptors, no writable folder, no device."""

import contextlib
import os
import re
import resource
import socket
from pathlib import Path

from pytest import mark, param

from tests.server.http_harness import read_answer, request
from tests.serving import ROOT, TIMEOUT_S, free_port, serving, start

pytestmark = mark.e2e

BODY = b'{"instances": [[1, 2]]}'
ANSWER = {"predictions": [[8, 9]]}
# What Python runs in place of `-m server`, so that a limit holds from the start.
LIMITED = """
import resource, runpy
resource.setrlimit(resource.{limit}, ({value}, {value}))
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""
# Of a device that has hardly any memory left.
FULL = """
import runpy
from runtime import device
device.free_memory = lambda _: 30
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""


def connect(port):
    """Open a connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def test_a_server_without_file_descriptors_recovers(wide_bundle):
    """Connections beyond its descriptors wait, without affecting the others, until some are closed."""
    with serving("--bundle", str(wide_bundle)) as served, contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(served.port))
        first.sendall(request("/predict", BODY))
        assert read_answer(first)[2] == ANSWER
        used = len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (used + 8, used + 8))
        many = [stack.enter_context(connect(served.port)) for _ in range(50)]
        late = stack.enter_context(connect(served.port))
        late.sendall(request("/predict", BODY))
        shortage = next(line for line in served.process.stdout if "WARNING" in line)

        first.sendall(request("/predict", BODY))
        during = read_answer(first)[2]
        for connection in many:
            connection.close()
        after = read_answer(late)[2]

    assert during == after == ANSWER
    assert "no more connections for now: Too many open files" in shortage
    # accept() is retried once a second, not in a busy loop.
    assert served.log.count("no more connections for now") < 30


def test_a_server_may_have_few_file_descriptors(wide_bundle):
    """With 64 of them a server starts, and serves HTTP and gRPC."""
    command = ("-c", LIMITED.format(limit="RLIMIT_NOFILE", value=64))
    with serving("--bundle", str(wide_bundle), command=command) as served:
        assert served.post({"instances": [[1, 2]]}) == (200, ANSWER)


def test_a_server_needs_no_folder_to_write_to(wide_bundle, tmp_path):
    """Where no byte can be written to any file, there is no home, and no /tmp, it serves."""
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), "/nonexistent")
    options = {"cwd": tmp_path, "env": keep | nowhere | {"PYTHONPATH": str(ROOT)}}
    command = ("-c", LIMITED.format(limit="RLIMIT_FSIZE", value=0))
    with serving("--bundle", str(wide_bundle), command=command, options=options) as served:
        answer = served.post({"instances": [[1, 2]]})
        page = served.get("/")
        files = Path(f"/proc/{served.process.pid}/fd").iterdir()
        opened = [str(file.readlink()) for file in files]
        mapped = Path(f"/proc/{served.process.pid}/maps").read_text()

    assert answer == (200, ANSWER)
    assert "wide" in page
    assert list(tmp_path.iterdir()) == []
    assert not [file for file in (*opened, mapped) if "/dev/shm" in file]  # noqa: S108


@mark.parametrize(
    ("environ", "status", "words"),
    [
        param({"AIP_HTTP_PORT": "abc"}, 2, "AIP_HTTP_PORT: expected a whole number", id="port"),
        param({"AIP_HTTP_PORT": "65536"}, 2, "port: expected 0 to 65535", id="port beyond"),
        param({"HLOSERVE_DEVICE": "cuda:9"}, 5, "device 'cuda:9': expected one of", id="device"),
        param({"JAX_PLATFORMS": "none"}, 5, "Unable to initialize backend 'none'", id="platforms"),
        param({"XLA_FLAGS": "--no_such=1"}, 1, "Unknown flag in XLA_FLAGS: --no_such=1", id="flags"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_run_says_why(wide_bundle, environ, status, words):
    """A mistake in a server's options ends it, with one line that names the mistake."""
    with start(free_port(), "--bundle", str(wide_bundle), **environ) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == status
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_a_bucket_that_does_not_fit_is_named(wide_bundle):
    """A device without the memory for a bucket ends the server before that bucket is run, with one line."""
    with start(free_port(), "--bundle", str(wide_bundle), command=("-c", FULL)) as process:
        log, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 3
    assert "warming up" not in log
    assert re.fullmatch(
        r"error: bucket b\d: expected \d+ B of memory free beside the params, got 30 B; .*serve it "
        r"where more is free\n",
        errors,
    )


def test_bodies_take_no_more_memory_than_there_may_be(wide_bundle):
    """Of many connections that send large bodies and do not finish them, a few are held and the rest refused."""
    size, many = 8 << 20, 60
    limits = ("--max-body-bytes", str(size), "--max-json-bytes", str(size))
    with serving("--bundle", str(wide_bundle), *limits) as served, contextlib.ExitStack() as stack:
        before = peak(served)
        connections = [stack.enter_context(connect(served.port)) for _ in range(many)]
        unfinished = request("/predict", BODY + b" " * (size - len(BODY)))[:-1]
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                connection.sendall(unfinished)
        refused = connections[-1]
        status, _, answer = read_answer(refused)
        during = served.post({"instances": [[1, 2]]})
        grown = peak(served) - before
        connections[0].sendall(b" ")
        first = read_answer(connections[0])[2]

    assert (status, answer["code"]) == (503, "queue_full")
    assert first == ANSWER
    assert during == (200, ANSWER)
    # Eight bodies, one of them joined and parsed, and what connections have in their buffers.
    assert grown < 16 * size


def peak(served):
    """Return the peak memory of a server so far, in bytes."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
