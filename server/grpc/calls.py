"""gRPC calls: the set of open ones, and how errors are answered."""

import asyncio
import uuid
from typing import Any

import grpc

from server.request_id import REQUEST_ID, RequestId, request_id
from server.status import explain

# Trailers are limited to 8 KiB, and every byte may take three there.
LONGEST_TEXT = 2000

Context = Any  # grpc.aio.ServicerContext, which is not typed


class Calls:
    """The open calls.

    While they are waited for, a call is over with the last byte of its answer, and before with
    its handler: a callback of gRPC would cost every call as much as to receive its message.
    """

    def __init__(self) -> None:
        self._count = 0
        self._awaited: asyncio.Event | None = None

    def enter(self) -> None:
        """Add a call, until it leaves."""
        self._count += 1

    def leave(self, context: Context) -> None:
        """Remove a call, whose handler has ended."""
        if self._awaited is None:
            self._count -= 1
        else:
            context.add_done_callback(self._remove)

    async def over(self) -> None:
        """Wait until no call is open."""
        self._awaited = asyncio.Event()
        while self._count:
            self._awaited.clear()
            await self._awaited.wait()

    def _remove(self, _: Context) -> None:
        self._count -= 1
        if self._awaited is not None:
            self._awaited.set()


class RpcError:
    """A request is answered with an error.

    Nothing that is raised: gRPC keeps what `abort` raises in a circle with the call, and by it
    all frames that it passed, with the message in them, until the next look for garbage.

    Args:
      error: whatever went wrong.
      identity: the message's own name for itself, empty if it has none.
      context: of the call, whose metadata may have a name for it and a trace.

    Attributes:
      identity: the same.
      known: the name that the log has for the request.
      status: of the error.
      text: the message for the client.
    """

    def __init__(self, error: Exception, context: Context, identity: str = "") -> None:
        self.identity = identity
        metadata = dict(context.invocation_metadata() or ())
        found = request_id(metadata.get) or RequestId(uuid.uuid4().hex)
        known = identity if REQUEST_ID.fullmatch(identity) else found
        self.known = RequestId(known, found.trace)
        self.status, text = explain(error, self.known)
        self.text = text[:LONGEST_TEXT]


async def sent(context: Context, made: bytes | RpcError) -> bytes:
    """Return an answer, or abort the call with its error."""
    if isinstance(made, bytes):
        return made
    code = grpc.StatusCode[made.status.grpc]
    await context.abort(code, made.text, (("x-request-id", made.known),))
    raise AssertionError
