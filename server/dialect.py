"""What a dialect is: a way to read a request into arrays, and to write the answer.

Reading and writing are plain functions of bytes; `Inference` brings them and the service together.
"""

import abc
import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from runtime.inputs import Checked
from runtime.model import Model
from server.pending import Answer, Evidence, Pending
from server.reply import Headers, Reply
from server.request import Request
from server.service import Service

# Bodies above this are read, and answers above it written, on a worker thread, so that the
# event loop goes on meanwhile: below it, changing threads costs more than it gives.
LARGE_BYTES = 1 << 18


class Call[T](NamedTuple):
    """A request that was read.

    Attributes:
      parts: what is asked, held against the signature; rows of the same sizes together.
      write: makes the answer's message.
      timeout_s: the caller's own time limit.
    """

    parts: Sequence[Checked]
    write: Callable[[Answer], T]
    timeout_s: float | None = None


Read = Callable[[Request, Model], Call[Reply]]


class Inference[T](abc.ABC):
    """A request on its way: it is read, answered, and the answer written. On the event loop.

    Exactly one of `written` and `failed` is called, once, perhaps before `begin` returns;
    neither after `withdraw`.

    Args:
      service: that answers.
      timeout_s: what the request's entrance allows it; the request may say less.

    Attributes:
      service: that answers.
      evidence: how the answer came about, once it is written.
      off_loop: whether its entrance needs the loop while a program runs; see `Pump`.
    """

    off_loop = False

    def __init__(self, service: Service, timeout_s: float | None) -> None:
        self.service = service
        self.evidence: Evidence
        self._timeout_s = timeout_s
        self._write: Callable[[Answer], T]
        self._pending: Pending | None = None
        self._withdrawn = False
        self._deprioritized = False

    @abc.abstractmethod
    def read(self, model: Model) -> Call[T]:
        """Read the request for a model; raises what is wrong with it."""

    @abc.abstractmethod
    def written(self, message: T) -> None:
        """Take the answer."""

    @abc.abstractmethod
    def failed(self, error: Exception) -> None:
        """Take what went wrong; `status.explain` knows what to say of it."""

    def begin(self, *, large: bool) -> None:
        """Read the request and have it answered.

        Args:
          large: whether reading it takes long; see LARGE_BYTES.
        """
        try:
            model = self.service.model
            if large:
                self._aside(self.submit, self.read, model)
                return
            call = self.read(model)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            self.failed(error)
        else:
            self.submit(call)

    def withdraw(self) -> None:
        """Give the request up: its client has gone."""
        self._withdrawn = True
        if self._pending is not None:
            self.service.withdraw(self._pending)

    def deprioritize(self) -> None:
        """Answer the request only while there is room: its client may have gone."""
        self._deprioritized = True
        if self._pending is not None:
            self.service.deprioritize(self._pending)

    def submit(self, call: Call[T]) -> None:
        """Have what was read answered."""
        parts, self._write, own_s = call
        timeout_s = self._timeout_s
        if timeout_s is None or (own_s is not None and own_s < timeout_s):
            timeout_s = own_s
        try:
            self._pending = self.service.submit(
                parts, self._answered, timeout_s, off_loop=self.off_loop
            )
        except Exception as error:  # noqa: BLE001 (likewise)
            self.failed(error)
        else:
            if self._deprioritized:
                self.deprioritize()

    def _answered(self, answer: Answer | Exception) -> None:
        if isinstance(answer, Exception):
            self.failed(answer)
            return
        self.evidence = answer.evidence
        if answer.rows * self.service.output_row_bytes > LARGE_BYTES:
            self._aside(self.written, self._write, answer)
            return
        try:
            message = self._write(answer)
        except Exception as error:  # noqa: BLE001 (likewise)
            self.failed(error)
        else:
            self.written(message)

    def _aside(self, then: Callable[[Any], object], work: Callable[..., Any], what: object) -> None:
        """Do on a worker thread what takes long, and go on with what comes of it."""

        def came(worked: asyncio.Future[Any]) -> None:
            error = worked.exception()
            if self._withdrawn:
                return
            if isinstance(error, Exception):
                self.failed(error)
            else:
                then(worked.result())

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, work, what).add_done_callback(came)


def evidence_of(model: Model, evidence: Evidence) -> dict[str, str | int]:
    """Name what an answer rests on."""
    return {
        "bundle": model.bundle.digest,
        "bucket": evidence.bucket,
        "padded_rows": evidence.padded_rows,
        "queue_us": round(evidence.queue_s * 1e6),
        "compute_us": round(evidence.compute_s * 1e6),
    }


def evidence_headers(model: Model, evidence: Evidence) -> Headers:
    """Write the evidence as X-Hloserve-* headers."""
    named = evidence_of(model, evidence).items()
    return tuple((f"x-hloserve-{name.replace('_', '-')}", str(value)) for name, value in named)
