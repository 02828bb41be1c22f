"""What a user sees of a server that starts, or that cannot."""

import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys

from pytest import mark, param

from tests.serving import ROOT, TIMEOUT_S, Served, free_port, start

pytestmark = mark.e2e

# Runs a command as it runs where a package is not installed.
WITHOUT = """
import importlib.abc, runpy, sys

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

package, command = sys.argv[1:3]
sys.meta_path.insert(0, Without())
sys.argv = sys.argv[2:]
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


def run(*command):
    """Run Python to its end; return the exit status and what it wrote to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return done.returncode, done.stdout, done.stderr


def test_a_person_reads_what_is_configured_what_goes_on_and_where_it_is_ready(tagger_bundle):
    """
    The log has the configuration once, each program as it is compiled, and one line when
    it is ready: addresses, model, buckets and axes, platform and time.
    """
    port, grpc_port = free_port(), free_port()
    process = start(port, "--bundle", str(tagger_bundle), HLOSERVE_GRPC_PORT=str(grpc_port))
    with process:
        lines = []
        for line in process.stdout:
            lines.append(line.split(" ", 1)[1].rstrip())
            if "ready: " in line:
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)

    configured, *steps, ready = lines
    assert configured.startswith(f"INFO configuration: bundle='{tagger_bundle}', ")
    assert f"port={port}, grpc_port={grpc_port}, " in configured
    assert {line for line in steps if "compiling" in line} == {
        f"INFO compiling programs/{name}.exported ({i}/4)"
        for i, name in enumerate(("b1-seq4", "b4-seq4", "b1-seq8", "b4-seq8"), 1)
    }
    assert [line.split()[2] for line in steps if "startup: " in line] == [
        *("imports", "programs", "params", "startup", "run")
    ]
    before, after = ready.rsplit(", after ", 1)
    seconds, page = after.split("; ")
    assert before == (
        f"INFO ready: http://127.0.0.1:{port}/predict serves tagger version 1, buckets 1,4, "
        f"seq 4,8, on cpu, gRPC on 127.0.0.1:{grpc_port}"
    )
    assert float(seconds.removesuffix(" s")) > 0
    assert page == f"open http://127.0.0.1:{port}/"


def test_a_machine_reads_the_same_as_json(classifier_bundle):
    """With --log-format json every line is an object with a severity, on stdout alone."""
    process = start(free_port(), "--bundle", str(classifier_bundle), "--log-format", "json")
    with process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "ready: " in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=TIMEOUT_S)

    entries = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert {entry["severity"] for entry in entries} == {"INFO"}
    assert entries[0]["message"].startswith("configuration: bundle=")
    assert entries[-1]["message"] == "stopped"
    assert errors == ""


def test_a_machine_reads_why_there_is_no_server_as_json(tmp_path):
    """With --log-format json the reason of the end is a critical line, on stdout alone."""
    process = start(free_port(), "--bundle", str(tmp_path / "x"), "--log-format", "json")

    log, errors = process.communicate(timeout=TIMEOUT_S)

    *before, entry = map(json.loads, log.splitlines())
    assert entry["severity"] == "CRITICAL"
    assert {line["severity"] for line in before} == {"INFO"}
    assert entry["message"] == f"bundle {tmp_path}/x: expected a directory, got nothing there"
    assert (process.returncode, errors) == (3, "")


def test_rows_that_are_seen_to_depend_on_each_other_run_alone(mixing_bundle, tmp_path):
    """A bundle whose rows are found to depend on each other is served without batching, with a warning and a metric."""
    bundle = shutil.copytree(mixing_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"row_mixing": []}))
    port = free_port()
    with start(port, "--bundle", str(bundle), "--golden", "warn") as process:
        served = Served(process, port, -1)
        lines = list(itertools.takewhile(lambda line: "ready: " not in line, process.stdout))
        answer = served.post({"instances": [[1, 2]]})
        alone = served.counts()["hloserve_runs_alone"]
        ended = served.end(signal.SIGTERM)

    warned = [line.split(" ", 1)[1] for line in lines if " WARNING " in line]
    assert [line[: line.index(":")] for line in warned] == [
        "WARNING 4 golden checks failed on this device, first",
        "WARNING no batching",
    ]
    assert warned[1].startswith("WARNING no batching: rows depend on each other on this device: ")
    assert answer == (200, {"predictions": [[0.0, 0.0]]})
    assert alone == 1
    assert ended == (0, "")


@mark.parametrize(
    ("variable", "hint"),
    [
        param("HLOSERVE_PORT", "--port", id="http"),
        param("HLOSERVE_GRPC_PORT", "--grpc-port, or -1 for none", id="grpc"),
    ],
)
def test_a_port_that_is_taken_ends_it_and_names_the_option(variable, hint):
    """A port that is taken is one line that names the option, before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(free_port(), "--bundle", "nothing", **{variable: str(port)})
        log, errors = process.communicate(timeout=TIMEOUT_S)

    assert errors == (
        f"error: listen on 127.0.0.1 port {port}: Address already in use; pass another {hint}\n"
    )
    assert (process.returncode, log) == (2, "")


def test_an_address_that_is_not_here_ends_it_and_names_the_option():
    """An address of another machine is one line that names the option."""
    status, log, errors = run("-m", "server", "--bundle", "b", "--host", "192.0.2.1")

    assert errors == (
        "error: listen on 192.0.2.1 port 8080: Cannot assign requested address; "
        "pass another --host\n"
    )
    assert (status, log) == (2, "")


@mark.parametrize(
    ("package", "command"),
    [
        ("httptools", "server"),
        ("uvloop", "server"),
        ("grpc", "server"),
        ("flax", "export"),
        ("orbax", "export"),
        ("rich", "export"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(package, command):
    """Where an extra is not installed a command says which, and how to install it."""
    arguments = {
        "server": ["--bundle", "b"],
        "export": ["m.py:spec", "--params", "p", "--out", "b"],
    }

    status, _, errors = run("-c", WITHOUT, package, command, *arguments[command])

    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"error: python -m {command} needs {package}")
    assert line.endswith(f", which is not installed; pip install 'hloserve[{command}]'")


def test_help_of_the_exporter_needs_no_extra():
    """`python -m export --help` works before its extra is installed."""
    status, text, _ = run("-c", WITHOUT, "flax", "export", "--help")

    assert status == 0
    assert text.startswith("usage: python -m export")
