"""The doctor, on a good server and on small deliberately bad ones."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from pytest import fixture, mark, raises

from server.doctor import cli as doctor
from server.doctor.batch_formats import as_doubles, batch_formats
from server.doctor.checks import examine
from server.doctor.payload_limits import DEDICATED_BYTES, SHARED_BYTES, encodings
from server.doctor.result import Times
from tests.serving import ROOT

pytestmark = mark.e2e

BAD = Path(__file__).with_name("bad_server.py")
TIMES = Times(liveness=30, health=5, start=60, predict=30, grace=30)
CHECKS = [
    *("TCP liveness", "address", "health", "predict", "64 instances", "numbers as doubles"),
    *("1.5 MB body", "10 MB body", "stderr", "SIGTERM under load", "empty AIP_STORAGE_URI"),
]


def findings(fault, **times):
    """Check a server with a fault; return the findings by their checks."""
    found = examine(
        [sys.executable, str(BAD), fault],
        os.environ,
        "/some/bundle",
        [{"x": [1, 2]}, {"x": [3, 4]}],
        dataclasses.replace(TIMES, **times),
    )
    return {finding.check: finding for finding in found}


def test_a_good_server_passes():
    """Each check can be passed, by a server of a hundred lines too."""
    found = findings("none")

    assert list(found) == CHECKS
    assert [f for f in found.values() if not f.ok] == []
    assert found["64 instances"].observed.startswith("64 predictions, ")


@mark.parametrize(
    ("fault", "times", "check", "seen"),
    [
        ("dies", {}, "TCP liveness", "ended with status 1: no model here"),
        (
            "logs its end",
            {},
            "TCP liveness",
            'ended with status 3: {"severity": "CRITICAL", "message": "no model here"}',
        ),
        ("mute", {}, "TCP liveness", "ended with status 1: without a word"),
        ("silent", {"liveness": 0.5}, "TCP liveness", "no connection within 0.5 s"),
        ("unready", {"start": 2}, "health", "no 200 within 2 s, last 503 {}"),
        ("slow health", {"health": 0.5}, "health", "no answer within 0.5 s: timed out"),
    ],
)
def test_a_server_that_never_gets_traffic_is_asked_nothing_more(fault, times, check, seen):
    """The doctor stops where Vertex would, and reports what it observed."""
    found = list(findings(fault, **times).values())

    assert (found[-1].check, found[-1].ok, found[-1].observed) == (check, False, seen)
    assert all(finding.ok for finding in found[:-1])


@mark.parametrize(
    ("fault", "times", "check", "seen"),
    [
        ("local", {}, "address", "127.0.0.1 only"),
        ("broken", {}, "predict", '500 {"error": "broken"}'),
        ("small batch", {}, "64 instances", '400 {"error": "at most 32 instances"}'),
        ("whole numbers", {}, "numbers as doubles", '400 {"error": "expected whole numbers"}'),
        ("other answers", {}, "numbers as doubles", "another prediction"),
        ("1 MB", {}, "1.5 MB body", '413 {"error": "too large"}'),
        ("5 MB", {}, "10 MB body", '413 {"error": "too large"}'),
        ("wordy", {}, "1.5 MB body", "1 predictions, 2,000,0"),
        ("noisy", {}, "stderr", "lines, first: INFO: answered"),
        ("abrupt", {}, "SIGTERM under load", "with status -15"),
        ("crashes", {}, "SIGTERM under load", "ended with status 1: "),
        ("stubborn", {"grace": 0.5}, "SIGTERM under load", "still running after 0.5 s"),
        ("no default", {"start": 3}, "empty AIP_STORAGE_URI", "no 200 within 3 s"),
    ],
)
def test_a_fault_is_found(fault, times, check, seen):
    """Each check fails for a server with its fault, and others only where they depend on it."""
    found = findings(fault, **times)

    assert seen in found[check].observed
    assert found[check].consequence
    failed = {name for name, finding in found.items() if not finding.ok}
    follows = {
        "broken": {*CHECKS[4:8], "SIGTERM under load"},
        "1 MB": {"10 MB body"},
    }
    assert failed == {check, *follows.get(fault, ())}


def test_health_checks_may_go_unanswered_three_times():
    """Vertex stops the traffic after four bad responses in a row, and the doctor waits that long."""
    found = findings("slow at first", health=0.5)

    assert [f for f in found.values() if not f.ok] == []


def test_what_a_server_leaves_running_is_not_waited_for():
    """A server that ended is reported at once, though a child of it keeps its output open."""
    [found] = findings("leaves a child").values()

    assert found.observed == "ended with status 1: no model here"


def test_an_instance_that_passes_no_endpoint_is_not_asked_for_there():
    """Bodies of 1.5 MB are left out where one instance alone is larger; 10 MB remain."""
    found = examine(
        [sys.executable, str(BAD), "none"], os.environ, "", [{"x": [0.125] * 300_000}], TIMES
    )

    checks = {finding.check: finding.ok for finding in found}
    assert list(checks) == [check for check in CHECKS if check != "1.5 MB body"]
    assert checks["10 MB body"]


@mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_doctor_that_is_stopped_ends_its_server(classifier_bundle, tmp_path, number, status):
    """When the doctor is interrupted no server is left running."""
    noted = tmp_path / "pid"
    server = f"echo $$ > {noted}; echo started >&2; exec {sys.executable} {BAD} unready"
    command = [sys.executable, "-m", "server", "doctor", "--bundle", classifier_bundle]
    with subprocess.Popen(
        [*command, "--", "sh", "-c", server], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as doctor:
        for line in doctor.stdout:
            if "address" in line:
                break
        doctor.send_signal(number)

    assert doctor.returncode == status
    with raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


@mark.parametrize("seconds", ["nan", "inf", "0", "-3", "soon"])
def test_a_wait_without_end_is_refused(seconds, capsys):
    """How long to wait is a number of seconds."""
    with raises(SystemExit) as ended:
        doctor.main(["--bundle", "b", f"--start-s={seconds}"], {})

    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: argument --start-s: expected seconds, more than 0, got {seconds!r}\n"
    )


def test_every_number_becomes_a_double():
    """What Vertex's gRPC clients do to numbers is done to nested values; booleans stay."""
    value = {"a": [1, [2, True]], "b": 1.5, "c": "1", "d": None}

    written = repr(as_doubles(value))
    assert written == "{'a': [1.0, [2.0, True]], 'b': 1.5, 'c': '1', 'd': None}"


def test_texts_are_batched_as_batch_prediction_has_them():
    """A format is asked for where it can have the rows: of one text alone all five, of more inputs three."""
    assert batch_formats([{"x": [1, 2]}]) == {}
    assert batch_formats([{"a": 0.5, "k": 3}]) == {
        "JSON lines": [{"a": 0.5, "k": 3}],
        "CSV": [[0.5, 3.0]],
        "BigQuery": [[0.5, 3]],
    }
    assert batch_formats([{"text": "a\u00e9"}, {"text": "b"}]) == {
        "JSON lines": ["a\u00e9", "b"],
        "CSV": [["a\u00e9"], ["b"]],
        "BigQuery": [["a\u00e9"], ["b"]],
        "TFRecord": [{"b64": "YcOp"}, {"b64": "Yg=="}],
        "file list": [{"b64": "YcOp"}, {"b64": "Yg=="}],
    }
    rows = [{"text": "a", "second": "b", "age": 3}]
    assert batch_formats(rows) == {
        "JSON lines": rows,
        "CSV": [["a", "b", 3.0]],
        "BigQuery": [["a", "b", 3]],
    }
    beside = [{"text": "a", "x": [1, 2]}]
    assert batch_formats(beside) == {"JSON lines": beside}


def test_images_are_batched_as_batch_prediction_has_them():
    """An image by itself is a record or a file; with more inputs it is a line of JSON."""
    image = {"b64": "/9j/"}

    assert batch_formats([{"image": image}]) == {
        "JSON lines": [image],
        "TFRecord": [image],
        "file list": [image],
    }
    beside = [{"image": image, "age": 3}]
    assert batch_formats(beside) == {"JSON lines": beside}


def test_payloads_of_images_are_weighed():
    """An image has the bytes of its file, a third more in JSON, and those of its length in binary."""
    as_json, b64, binary = encodings([{"image": {"b64": "/9j/"}}])

    assert as_json.bytes == b64.bytes == len('{"image":{"b64":"/9j/"}},')
    assert binary.bytes == 4 + 3


def test_payloads_of_texts_are_weighed():
    """A text has the bytes of its UTF-8, and in binary those of its length before it."""
    as_json, b64, binary = encodings([{"text": "a\u00e9"}])

    assert as_json.bytes == len('{"text":"a.."},')
    assert b64.bytes == len('{"text":{"b64":"YcOp"}},')
    assert binary.bytes == 4 + 3


def test_payloads_are_weighed_by_the_largest_instance():
    """Bytes are those of JSON as it is sent, of b64 in JSON and of the bare numbers."""
    small, large = (
        {"x": np.array([1.5, 2], np.float32)},
        {"x": np.array([10.25, 20.125], np.float32)},
    )
    as_json, b64, binary = encodings([small, large])

    assert as_json.bytes == len('{"x":[10.25,20.125]},')
    assert b64.bytes == len('{"x":{"b64":"AAAAAAAAAAA="}},')
    assert binary.bytes == 8
    assert as_json.fit(SHARED_BYTES) == (1_500_000 - 16) // 21
    assert binary.fit(DEDICATED_BYTES) == (10_000_000 - 16) // 8


def test_a_plan_needs_no_server(classifier_bundle, capsys):
    """Without a command, what fits is said, and that batch prediction wants a bucket of 64."""
    assert doctor.main(["--bundle", str(classifier_bundle)], {}) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "instance"
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        *("JSON numbers", "JSON with b64", "binary (rawPredict)"),
    ]
    note = "batch prediction sends 64 instances, the largest bucket is 4"
    assert lines[4:] == [f"note: {note}: add 64 to --buckets of python -m export"]


@fixture
def ours(classifier_bundle, capsys, monkeypatch):
    """Run the doctor on our own server; return the exit status and the output."""
    monkeypatch.chdir(ROOT)

    def run(*options, bundle=classifier_bundle):
        server = [sys.executable, "-m", "server", "--grpc-port", "-1", "--drain-delay-s", "0.5"]
        argv = ["--bundle", str(bundle), "--", *server, *options]
        status = doctor.main(argv, os.environ)
        return status, capsys.readouterr().out.splitlines()

    return run


def test_our_own_server_passes(ours):
    """The documented checks pass for this project's server."""
    status, lines = ours()

    assert [line for line in lines if line.startswith("FAIL")] == []
    assert [line[6:28].strip() for line in lines if line.startswith("pass")] == CHECKS
    assert lines[-1] == "all passed"
    assert status == 0


def test_our_own_server_passes_with_texts(ours, sentence_bundle):
    """A bundle of texts gets one more batch request of each format."""
    status, lines = ours(bundle=sentence_bundle)

    formats = ["JSON lines", "CSV", "BigQuery", "TFRecord", "file list"]
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert [line[6:28].strip() for line in lines if line.startswith("pass")] == [
        *CHECKS[:5],
        *(f"batch of {name}" for name in formats),
        *CHECKS[5:],
    ]
    assert status == 0


def test_our_own_server_passes_with_images(ours, picture_bundle):
    """A bundle of images is asked by lines of JSON, records and files; no table can have one."""
    status, lines = ours(bundle=picture_bundle)

    assert [line for line in lines if line.startswith("FAIL")] == []
    assert [line[6:28].strip() for line in lines if line.startswith("pass")] == [
        *CHECKS[:5],
        *(f"batch of {name}" for name in ("JSON lines", "TFRecord", "file list")),
        *CHECKS[5:],
    ]
    assert lines[-1] == "all passed"
    assert status == 0


@mark.parametrize(
    ("fault", "failed", "seen"),
    [
        ("no arrays", ["CSV", "BigQuery"], '400 {"error": "expected objects"}'),
        ("other texts", ["TFRecord", "file list"], "other predictions"),
    ],
)
def test_a_format_that_a_server_does_not_take_is_found(fault, failed, seen):
    """A format that is refused, or answered otherwise than lines of JSON are, fails by its name."""
    command = [sys.executable, str(BAD), fault]
    found = list(
        examine(command, os.environ, "/some/bundle", [{"text": "a"}, {"text": "bc"}], TIMES)
    )

    wrong = {finding.check: finding for finding in found if not finding.ok}
    assert list(wrong) == [f"batch of {name}" for name in failed]
    for name in failed:
        finding = wrong[f"batch of {name}"]
        assert finding.observed == seen
        assert finding.consequence == f"fails batch prediction whose input is {name}"


def test_a_failure_says_what_vertex_would_have_done(ours):
    """A server that takes no large bodies fails that check, and the doctor's status says so."""
    status, lines = ours("--max-json-bytes", "2000000")

    at = next(i for i, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[at].startswith("FAIL  10 MB body             413 ")
    assert lines[at + 1] == (
        "      Vertex passes the error on to the client: dedicated endpoints let 10 MB through"
    )
    assert lines[-1] == "1 failed; Vertex would not be content"
    assert status == 1


def test_a_wrong_bundle_and_a_wrong_command_are_one_line(classifier_bundle, tmp_path, capsys):
    """Errors before any server runs have exit statuses of their own."""
    assert doctor.main(["--bundle", str(tmp_path / "none")], {}) == 3
    assert capsys.readouterr().err.startswith(f"error: bundle {tmp_path}/none: expected a dir")
    assert doctor.main(["--bundle", str(classifier_bundle), "--", "no-such-command"], {}) == 2
    assert capsys.readouterr().err == "error: no-such-command: No such file or directory\n"
    with raises(SystemExit) as ended:
        doctor.main(["--bundel", "b"], {})
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --bundel: no such option; did you mean --bundle?\n"
