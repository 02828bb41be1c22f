"""What a dialect is: a way to read a request into arrays, and to write the answer.

Reading and writing are plain functions of bytes; `infer` brings them and the service together.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import NamedTuple

from runtime.inputs import Checked
from runtime.model import Model
from server.pending import Answer, Evidence
from server.reply import Headers, Reply
from server.request import Request
from server.service import Service

# Bodies above this are read, and answers above it written, on a worker thread, so that the
# event loop goes on meanwhile: below it, changing threads costs more than it gives.
LARGE_BYTES = 1 << 18


class Call[T](NamedTuple):
    """A request that was read.

    Attributes:
      inputs: held against the signature.
      write: makes the answer's message.
      timeout_s: the caller's own time limit.
    """

    inputs: Checked
    write: Callable[[Answer], T]
    timeout_s: float | None = None


Read = Callable[[Request, Model], Call[Reply]]


async def ask[T](
    service: Service, read: Callable[[Model], Call[T]], size: int, timeout_s: float | None
) -> tuple[T, Answer]:
    """Read a request, have it answered, and write the answer.

    Args:
      service: that answers.
      read: reads the request for the service's model.
      size: bytes that it reads.
      timeout_s: what the request's entrance allows it; the request may say less.

    Raises:
      Exception: whatever `status.status_of` knows; see `Service.answer`.
    """
    model = service.model
    call = await asyncio.to_thread(read, model) if size > LARGE_BYTES else read(model)
    if timeout_s is None or (call.timeout_s is not None and call.timeout_s < timeout_s):
        timeout_s = call.timeout_s
    answer = await service.answer(call.inputs, timeout_s)
    if call.inputs.rows * service.output_row_bytes > LARGE_BYTES:
        return await asyncio.to_thread(call.write, answer), answer
    return call.write(answer), answer


async def infer(service: Service, request: Request, read: Read) -> Reply:
    """Answer a request in the dialect that `read` speaks.

    Raises:
      Exception: whatever `status.status_of` knows; see `Service.answer`.
    """
    written, answer = await ask(
        service, functools.partial(read, request), len(request.body), request.timeout_s
    )
    if not request.evidence:
        return written
    headers = evidence_headers(service.model, answer.evidence)
    return written._replace(headers=written.headers + headers)


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
