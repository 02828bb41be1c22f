"""Checks of predictions: requests to a healthy server, as Vertex AI and its users send them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

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
        yield from (self.one(), self.batch(), self.doubles())
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
        body = _written(list(itertools.islice(itertools.cycle(self._instances), BATCH)))
        vertex = f"fails batch prediction: it sends {BATCH} instances in a request"
        return self._asked(f"{BATCH} instances", body, BATCH, vertex)

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
        finding = self._asked(check, _written(as_doubles(self._instances[:1])), 1, vertex)
        again = self._ask(_written(as_doubles(self._instances[:1])))
        if finding.ok and _predicted(plain) != _predicted(again):
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
        answer = self._ask(body)
        if not isinstance(answer, HttpAnswer):
            return CheckResult(check, ok=False, observed=f"no answer: {answer}", consequence=vertex)
        predictions = answer.predictions()
        if answer.status != 200 or predictions is None:
            return CheckResult(check, ok=False, observed=str(answer), consequence=vertex)
        seen = f"{len(predictions)} predictions, {len(answer.body):,} bytes, {answer.seconds:.3f} s"
        ok = len(predictions) == rows and len(answer.body) <= max_bytes
        return CheckResult(check, ok=ok, observed=seen, consequence=vertex)


def _written(instances: Sequence[Any]) -> bytes:
    return orjson.dumps({"instances": instances})


def as_doubles(value: Any) -> Any:
    """Return a JSON value with every integer as a double."""
    if isinstance(value, dict):
        return {name: as_doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _predicted(answer: HttpAnswer | Exception) -> list[Any] | None:
    return answer.predictions() if isinstance(answer, HttpAnswer) else None
