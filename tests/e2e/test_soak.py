"""The soak, in short: a server that is sound passes, one that leaks does not."""

import subprocess
import sys

from pytest import mark

from tests.serving import ROOT, TIMEOUT_S

pytestmark = mark.e2e


def test_a_server_holds_nothing_of_good_and_bad_traffic(classifier_bundle):
    """Every answer is right, and memory, files, threads and arrays are back where they were."""
    command = [sys.executable, "-m", "bench.soak", "--seconds", "9", str(classifier_bundle)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)

    verdicts = [line for line in ran.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert verdicts == ["PASS", "PASS: it failed, as it has to"], ran.stdout + ran.stderr
    assert ran.returncode == 0
