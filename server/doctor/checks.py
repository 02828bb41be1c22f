"""The checks of the doctor: what Vertex AI does to a container, done to a local server."""

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from server.doctor.container import HEALTH_ROUTE, Broken, ContainerProcess, Refused
from server.doctor.predict_checks import Questions
from server.doctor.result import CheckResult, Times
from server.doctor.shutdown_check import terminated

# How often in a row a health check may go unanswered.
_UNANSWERED = 4


def examine(
    command: Sequence[str],
    environ: Mapping[str, str],
    storage_uri: str,
    instances: Sequence[Any],
    times: Times,
) -> Generator[CheckResult]:
    """Start a server as Vertex would and go through its checks, one finding at a time.

    Args:
      command: starts the server.
      environ: its environment; AIP_* variables are Vertex's.
      storage_uri: where the bundle is.
      instances: legal ones, as JSON values.
      times: how long to wait.
    """
    with ContainerProcess(command, environ, storage_uri) as process:
        for check in (_liveness, _address, _health):
            finding = check(process, times)
            yield finding
            if not finding.ok and check is not _address:
                return
        questions = Questions(process, instances, times)
        yield from questions
        yield _severity(process)
        yield terminated(process, questions.request, times)
    yield _empty_uri(command, environ, times)


def _liveness(process: ContainerProcess, times: Times) -> CheckResult:
    def done() -> bool:
        return process.listens("127.0.0.1")

    vertex = "restarts the container, again and again: nothing accepts connections on AIP_HTTP_PORT"
    if not process.until(done, times.liveness):
        seen = process.silent_for(f"no connection within {times.liveness:.3g} s")
        return CheckResult("TCP liveness", ok=False, observed=seen, consequence=vertex)
    seconds = time.monotonic() - process.began
    return CheckResult(
        "TCP liveness", ok=True, observed=f"connected after {seconds:.1f} s", consequence=vertex
    )


def _address(process: ContainerProcess, _: Times) -> CheckResult:
    # Another address of this machine; only who listens on all of them answers there.
    ok = process.listens("127.0.0.2")
    seen = "0.0.0.0" if ok else "127.0.0.1 only"  # noqa: S104 (a container must)
    vertex = "does not reach it, and restarts the container: listen on 0.0.0.0"
    return CheckResult("address", ok=ok, observed=seen, consequence=vertex)


def _health(process: ContainerProcess, times: Times) -> CheckResult:
    longest = 0.0
    unanswered = 0
    last = "no answer"
    check = "health"

    def done() -> bool:
        nonlocal longest, unanswered, last
        try:
            answer = process.ask(HEALTH_ROUTE, timeout_s=times.health)
        except (Refused, Broken) as error:
            last = f"no answer within {times.health:.3g} s: {error}"
            unanswered += isinstance(error, Broken)
            return unanswered == _UNANSWERED and process.status is None
        unanswered = 0
        longest = max(longest, answer.seconds)
        last = str(answer)
        return answer.status == 200

    vertex = "fails the deployment: model server never became ready"
    if not process.until(done, times.start - (time.monotonic() - process.began)):
        seen = process.silent_for(f"no 200 within {times.start:.3g} s, last {last}")
        return CheckResult(check, ok=False, observed=seen, consequence=vertex)
    seconds = time.monotonic() - process.began
    if last.startswith("no answer"):
        vertex = "takes it for unhealthy: after four bad answers it sends no traffic"
        return CheckResult(check, ok=False, observed=last, consequence=vertex)
    seen = f"200 after {seconds:.1f} s; slowest answer {longest * 1e3:.0f} ms"
    return CheckResult(check, ok=True, observed=seen, consequence=vertex)


def _severity(process: ContainerProcess) -> CheckResult:
    count = len(process.errors)
    seen = f"{count} lines, first: {process.errors[0][:100]}" if count else "no lines"
    vertex = "shows them as ERROR in Cloud Logging, whatever they say: write logs to stdout"
    return CheckResult("stderr", ok=not count, observed=seen, consequence=vertex)


def _empty_uri(command: Sequence[str], environ: Mapping[str, str], times: Times) -> CheckResult:
    """Check a model without artifacts: it has its own bundle, or reports that it has none."""
    check = "empty AIP_STORAGE_URI"
    vertex = "waits for it until the deployment times out, without a reason"

    with ContainerProcess(command, environ, "") as process:

        def healthy() -> bool:
            try:
                return process.ask(HEALTH_ROUTE, timeout_s=times.health).status == 200
            except (Refused, Broken):
                return False

        if process.until(healthy, times.start):
            return CheckResult(
                check, ok=True, observed="serves a bundle of its own", consequence=vertex
            )
        if process.status:
            words = process.last_log_line()
            seen = f"ends with status {process.status}: {words or 'without a word'}"
            return CheckResult(check, ok=bool(words), observed=seen, consequence=vertex)
        seen = process.silent_for(f"no 200 within {times.start:.3g} s")
        return CheckResult(check, ok=False, observed=seen, consequence=vertex)
