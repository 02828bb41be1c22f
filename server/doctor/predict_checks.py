"""Checks of predictions: requests to a healthy server, as Vertex AI and its users send them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from server.doctor.batch_formats import as_doubles, batch_formats
from server.doctor.container import PREDICT_ROUTE, Broken, ContainerProcess, HttpAnswer, Refused
from server.doctor.payload_limits import DEDICATED_BYTES, SHARED_BYTES
from server.doctor.result import CheckResult, Times

# What a batch prediction job sends at a time by default.
BATCH = 64


class Questions:
    """Requests to the predict route of a healthy server."""

    def __init__(self, process: ContainerProcess, instances: Sequence[Any], times: Times) -> None:
        self._process = process
        self._instances = instances
        self._times = times

    def __iter__(self) -> Iterator[CheckResult]:
        """Ask one after the other."""
        yield from (self.one(), self.batch())
        yield from self.batch_formats()
        yield self.doubles()
        for size, name, kind in (
            (SHARED_BYTES, "1.5 MB", "shared"),
            (DEDICATED_BYTES, "10 MB", "dedicated"),
        ):
            # A larger instance gets through no such endpoint, whatever the server does.
            if len(self.request) <= size:
                yield self.body(size, f"{name} body", f"{kind} endpoints let {name} through")

    @property
    def request(self) -> bytes:
        """Return the body of a request for one prediction."""
        return _written(self._instances[:1])

    def one(self) -> CheckResult:
        """Ask for one prediction, right after the health route said that it may be."""
        vertex = "passes the error on to the client, though the model was reported healthy"
        return self._asked("predict", self.request, 1, vertex)

    def batch(self) -> CheckResult:
        """Ask for as many predictions as a batch prediction job does."""
        vertex = f"fails batch prediction: it sends {BATCH} instances in a request"
        return self._asked(f"{BATCH} instances", _batch(self._instances), BATCH, vertex)

    def batch_formats(self) -> Iterator[CheckResult]:
        """Ask as batch prediction does of each format of its input; all have the same rows."""
        first: list[Any] | None = None
        for name, instances in batch_formats(self._instances).items():
            check, vertex = f"batch of {name}", f"fails batch prediction whose input is {name}"
            answer = self._ask(_batch(instances))
            finding = _judged(check, answer, BATCH, vertex)
            if finding.ok and first is not None and _predicted(answer) != first:
                finding = CheckResult(
                    check, ok=False, observed="other predictions", consequence=vertex
                )
            if finding.ok and first is None:
                first = _predicted(answer)
            yield finding

    def body(self, size: int, check: str, why: str) -> CheckResult:
        """Ask with a body of a size; white space makes it so long."""
        body = self.request
        vertex = f"passes the error on to the client: {why}"
        return self._asked(check, body[:-1] + b" " * (size - len(body)) + b"}", 1, vertex, size)

    def doubles(self) -> CheckResult:
        """Ask with all numbers as doubles, as gRPC clients of Vertex send them."""
        vertex = "passes 1.0 where the client wrote 1: its gRPC clients know no other numbers"
        check = "numbers as doubles"
        plain = self._ask(self.request)
        answer = self._ask(_written(as_doubles(self._instances[:1])))
        finding = _judged(check, answer, 1, vertex)
        if finding.ok and _predicted(plain) != _predicted(answer):
            return CheckResult(check, ok=False, observed="another prediction", consequence=vertex)
        return finding

    def _ask(self, body: bytes) -> HttpAnswer | Exception:
        try:
            return self._process.ask(PREDICT_ROUTE, body, self._times.predict)
        except (Refused, Broken) as error:
            return error

    def _asked(
        self, check: str, body: bytes, rows: int, vertex: str, max_bytes: float = math.inf
    ) -> CheckResult:
        return _judged(check, self._ask(body), rows, vertex, max_bytes)


def _judged(
    check: str,
    answer: HttpAnswer | Exception,
    rows: int,
    vertex: str,
    max_bytes: float = math.inf,
) -> CheckResult:
    if not isinstance(answer, HttpAnswer):
        return CheckResult(check, ok=False, observed=f"no answer: {answer}", consequence=vertex)
    predictions = answer.predictions()
    if answer.status != 200 or predictions is None:
        return CheckResult(check, ok=False, observed=str(answer), consequence=vertex)
    seen = f"{len(predictions)} predictions, {len(answer.body):,} bytes, {answer.seconds:.3f} s"
    ok = len(predictions) == rows and len(answer.body) <= max_bytes
    return CheckResult(check, ok=ok, observed=seen, consequence=vertex)


def _batch(instances: Sequence[Any]) -> bytes:
    """Return the body of a request for as many instances as batch prediction sends."""
    return _written(list(itertools.islice(itertools.cycle(instances), BATCH)))


def _written(instances: Sequence[Any]) -> bytes:
    return orjson.dumps({"instances": instances})


def _predicted(answer: HttpAnswer | Exception) -> list[Any] | None:
    return answer.predictions() if isinstance(answer, HttpAnswer) else None
