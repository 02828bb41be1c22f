"""What Vertex AI does to a container, done to a server, and what would have come of it."""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from server.patient import HEALTH_ROUTE, PREDICT_ROUTE, Answer, Broken, Patient, Refused
from server.payloads import DEDICATED_BYTES, SHARED_BYTES

# What a batch prediction job sends at a time, unless it is told otherwise.
BATCH = 64
_LOADERS = 8
_POLL_S = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long Vertex waits, in seconds.

    Attributes:
      liveness: four tries to connect, ten seconds apart.
      health: for an answer of the health route.
      start: until the health route answers 200; a deployment may allow up to two hours.
      predict: for an answer of the predict route.
      grace: from SIGTERM to SIGKILL. What Vertex grants is not documented.
    """

    liveness: float = 40.0
    health: float = 10.0
    start: float = 600.0
    predict: float = 60.0
    grace: float = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a check.

    Attributes:
      check: what was looked at.
      ok: whether Vertex would be content.
      seen: what was seen.
      vertex: what Vertex would have done, where it would not.
    """

    check: str
    ok: bool
    seen: str
    vertex: str


def examine(
    command: Sequence[str],
    environ: Mapping[str, str],
    storage_uri: str,
    instances: Sequence[Any],
    times: Times,
) -> Iterator[Finding]:
    """Start a server as Vertex would and go through its checks, one finding at a time.

    Args:
      command: starts the server.
      environ: its environment; AIP_* variables are Vertex's.
      storage_uri: where the bundle is.
      instances: legal ones, as JSON values.
      times: how long to wait.
    """
    with Patient(command, environ, storage_uri) as patient:
        for check in (_liveness, _address, _health):
            finding = check(patient, times)
            yield finding
            if not finding.ok and check is not _address:
                return
        ask = _Asking(patient, instances, times)
        yield from (ask.one(), ask.batch(), ask.doubles())
        yield ask.body(SHARED_BYTES, "1.5 MB body", "shared endpoints let 1.5 MB through")
        yield ask.body(DEDICATED_BYTES, "10 MB body", "dedicated endpoints let 10 MB through")
        yield _severity(patient)
        yield _sigterm(patient, ask.write(instances[:1]), times)
    yield _empty_uri(command, environ, times)


def _liveness(patient: Patient, times: Times) -> Finding:
    def done() -> bool:
        return patient.listens("127.0.0.1")

    vertex = "restarts the container, again and again: nothing accepts connections on AIP_HTTP_PORT"
    if not _until(done, patient, times.liveness):
        seen = _silence(patient, f"no connection within {times.liveness:.3g} s")
        return Finding("TCP liveness", ok=False, seen=seen, vertex=vertex)
    seconds = time.monotonic() - patient.began
    return Finding("TCP liveness", ok=True, seen=f"connected after {seconds:.1f} s", vertex=vertex)


def _address(patient: Patient, _: Times) -> Finding:
    # Another address of this machine; only who listens on all of them answers there.
    ok = patient.listens("127.0.0.2")
    seen = "0.0.0.0" if ok else "127.0.0.1 only"  # noqa: S104 (a container must)
    vertex = "does not reach it, and restarts the container: listen on 0.0.0.0"
    return Finding("address", ok=ok, seen=seen, vertex=vertex)


def _health(patient: Patient, times: Times) -> Finding:
    longest = 0.0
    last = "no answer"
    check = "health"

    def done() -> bool:
        nonlocal longest, last
        try:
            answer = patient.ask(HEALTH_ROUTE, timeout_s=times.health)
        except (Refused, Broken) as error:
            last = f"no answer within {times.health:.3g} s: {error}"
            return isinstance(error, Broken) and patient.status is None
        longest = max(longest, answer.seconds)
        last = str(answer)
        return answer.status == 200

    vertex = "gives the deployment up: model server never became ready"
    if not _until(done, patient, times.start - (time.monotonic() - patient.began)):
        seen = _silence(patient, f"no 200 within {times.start:.3g} s, last {last}")
        return Finding(check, ok=False, seen=seen, vertex=vertex)
    seconds = time.monotonic() - patient.began
    if last.startswith("no answer"):
        vertex = "takes it for unhealthy: after four bad answers it sends no traffic"
        return Finding(check, ok=False, seen=last, vertex=vertex)
    seen = f"200 after {seconds:.1f} s; slowest answer {longest * 1e3:.0f} ms"
    return Finding(check, ok=True, seen=seen, vertex=vertex)


class _Asking:
    """Requests to the predict route of a healthy server."""

    def __init__(self, patient: Patient, instances: Sequence[Any], times: Times) -> None:
        self._patient = patient
        self._instances = instances
        self._times = times

    @staticmethod
    def write(instances: Sequence[Any]) -> bytes:
        """Write a request."""
        return orjson.dumps({"instances": instances})

    def one(self) -> Finding:
        """Ask for one prediction, right after the health route said that it may be."""
        vertex = "passes the error on to the client, who was told that the model is healthy"
        return self._asked("predict", self.write(self._instances[:1]), 1, vertex)

    def batch(self) -> Finding:
        """Ask for as many predictions as a batch prediction job does."""
        body = self.write(list(itertools.islice(itertools.cycle(self._instances), BATCH)))
        vertex = f"fails batch prediction: it sends {BATCH} instances in a request"
        return self._asked(f"{BATCH} instances", body, BATCH, vertex)

    def body(self, size: int, check: str, why: str) -> Finding:
        """Ask with a body of a size; white space makes it so long."""
        body = self.write(self._instances[:1])
        vertex = f"passes the error on to the client: {why}"
        return self._asked(check, body[:-1] + b" " * (size - len(body)) + b"}", 1, vertex)

    def doubles(self) -> Finding:
        """Ask with all numbers as doubles, as gRPC clients of Vertex send them."""
        vertex = "passes 1.0 where the client wrote 1: its gRPC clients know no other numbers"
        check = "numbers as doubles"
        plain = self._ask(self.write(self._instances[:1]))
        finding = self._asked(check, self.write(as_doubles(self._instances[:1])), 1, vertex)
        again = self._ask(self.write(as_doubles(self._instances[:1])))
        if finding.ok and _predicted(plain) != _predicted(again):
            return Finding(check, ok=False, seen="another prediction", vertex=vertex)
        return finding

    def _ask(self, body: bytes) -> Answer | Exception:
        try:
            return self._patient.ask(PREDICT_ROUTE, body, self._times.predict)
        except (Refused, Broken) as error:
            return error

    def _asked(self, check: str, body: bytes, rows: int, vertex: str) -> Finding:
        answer = self._ask(body)
        if not isinstance(answer, Answer):
            return Finding(check, ok=False, seen=f"no answer: {answer}", vertex=vertex)
        predictions = answer.predictions()
        if answer.status != 200 or predictions is None:
            return Finding(check, ok=False, seen=str(answer), vertex=vertex)
        seen = f"{len(predictions)} predictions, {len(answer.body):,} bytes, {answer.seconds:.3f} s"
        return Finding(check, ok=len(predictions) == rows, seen=seen, vertex=vertex)


def as_doubles(value: Any) -> Any:
    """Make every whole number of a JSON value a double."""
    if isinstance(value, dict):
        return {name: as_doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _predicted(answer: Answer | Exception) -> list[Any] | None:
    return answer.predictions() if isinstance(answer, Answer) else None


def _severity(patient: Patient) -> Finding:
    count = len(patient.errors)
    seen = f"{count} lines, first: {patient.errors[0][:100]}" if count else "no lines"
    vertex = "shows them as ERROR in Cloud Logging, whatever they say: write logs to stdout"
    return Finding("stderr", ok=not count, seen=seen, vertex=vertex)


class _Load:
    """Requests from several threads, until nobody answers."""

    def __init__(self, patient: Patient, body: bytes, times: Times) -> None:
        self._patient, self._body, self._times = patient, body, times
        self._signalled = threading.Event()
        self._over = threading.Event()
        self.answered = self.lost = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(_LOADERS)]

    def _send(self) -> None:
        while not self._over.is_set():
            before = not self._signalled.is_set()
            try:
                ok = self._patient.ask(PREDICT_ROUTE, self._body, self._times.predict).status == 200
            except Refused:
                return
            except Broken:
                ok = False
            with self._lock:
                self.answered += ok
                # Who came after the signal may be sent away: Vertex sends nobody then.
                self.lost += before and not ok
            if not ok:
                return

    def _busy(self) -> bool:
        """Say whether enough was answered, or nobody asks any more."""
        return self.answered >= 2 * _LOADERS or not any(t.is_alive() for t in self._threads)

    def run(self) -> float | None:
        """Send, signal, and wait for the end: after how many seconds it came, None if not."""
        for thread in self._threads:
            thread.start()
        _until(self._busy, self._patient, self._times.predict)
        begin = time.monotonic()
        self._signalled.set()
        self._patient.terminate()
        ended = self._patient.wait(self._times.grace) is not None
        seconds = time.monotonic() - begin
        self._over.set()
        for thread in self._threads if ended else ():
            thread.join()
        return seconds if ended else None


def _sigterm(patient: Patient, body: bytes, times: Times) -> Finding:
    load = _Load(patient, body, times)
    seconds = load.run()
    vertex = "drops them whenever it scales in, updates or moves the container"
    check = "SIGTERM under load"
    if seconds is None:
        seen = f"still running after {times.grace:.3g} s"
        vertex = "kills it, with whatever it was answering"
        return Finding(check, ok=False, seen=seen, vertex=vertex)
    seen = f"{load.answered} answered, {load.lost} lost; ended after {seconds:.1f} s with status {patient.status}"
    return Finding(check, ok=not load.lost, seen=seen, vertex=vertex)


def _empty_uri(command: Sequence[str], environ: Mapping[str, str], times: Times) -> Finding:
    """Look at a model without artifacts: it has a bundle of its own, or says that it has none."""
    check = "empty AIP_STORAGE_URI"
    vertex = "waits for it until the deployment times out, and tells nobody why"

    with Patient(command, environ, "") as patient:

        def healthy() -> bool:
            try:
                return patient.ask(HEALTH_ROUTE, timeout_s=times.health).status == 200
            except (Refused, Broken):
                return False

        if _until(healthy, patient, times.start):
            return Finding(check, ok=True, seen="serves a bundle of its own", vertex=vertex)
        if patient.status:
            seen = f"ends with status {patient.status}: {patient.last_words()}"
            return Finding(check, ok=bool(patient.errors), seen=seen, vertex=vertex)
        seen = _silence(patient, f"no 200 within {times.start:.3g} s")
        return Finding(check, ok=False, seen=seen, vertex=vertex)


def _until(done: Callable[[], bool], patient: Patient, seconds: float) -> bool:
    """Wait until something is so; gives up when time is over or the server has ended."""
    end = time.monotonic() + seconds
    while not done():
        if patient.status is not None or time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


def _silence(patient: Patient, otherwise: str) -> str:
    if patient.status is None:
        return otherwise
    return f"ended with status {patient.status}: {patient.last_words()}"
