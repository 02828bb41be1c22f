"""A client of the HTTP/2 front of gRPC whose bytes are handed over in this process, without a socket."""

import asyncio
import collections
import contextlib

import ngh2

from server.grpc.http2_connection import Connection
from server.grpc.services import INFERENCE

INFER, STREAM = f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelStreamInfer"


class Transport:
    """A transport that keeps what is written.

    Attributes:
      writes: one for each call.
      ended: whether the end of the stream was written.
      aborted: whether the connection was closed at once.
    """

    def __init__(self):
        self.writes = []
        self.ended = self.aborted = self.closed = False
        self.buffered = 0

    def write(self, data):
        """Keep the data."""
        self.writes.append(data)

    def write_eof(self):
        """Note the end."""
        self.ended = True

    def abort(self):
        """Note that it was closed at once."""
        self.aborted = True

    def close(self):
        """Note that it was closed."""
        self.closed = True

    def is_closing(self):
        """Whether it was closed."""
        return self.aborted or self.closed

    def get_write_buffer_size(self):
        """Return what the client has not read."""
        return self.buffered


class Client:
    """A client of a server of the HTTP/2 front.

    Attributes:
      transport: of its connection.
      connection: at the server.
      h2: its own side.
      statuses: of its calls that have ended, by stream: gRPC's, or `reset`.
      messages: bytes of answers, by stream.
    """

    def __init__(self, server, settings=None):
        self.transport = Transport()
        self.connection = Connection(server)
        self.connection.connection_made(self.transport)
        self.h2 = ngh2.Connection(ngh2.Role.CLIENT)
        self.h2.initiate_connection(settings)
        self.statuses, self.texts = {}, {}
        self.messages = collections.defaultdict(bytes)
        self.goaways = []

    def exchange(self):
        """Pass on the bytes that both sides have to send."""
        while True:
            data = self.h2.data_to_send()
            if data:
                self.connection.data_received(data)
            if not self.transport.writes:
                return
            writes, self.transport.writes = self.transport.writes, []
            for written in writes:
                with contextlib.suppress(ngh2.ConnectionStateError):  # after its GOAWAY
                    self.h2.receive_data(written)
            for event in self.h2.events():
                self._take(event)

    async def settle(self):
        """Exchange until nothing more happens."""
        for _ in range(50):
            self.exchange()
            await asyncio.sleep(0)

    def call(self, path=INFER, data=b"", end=True, **fields):
        """Begin a call, and send bytes; return its stream."""
        named = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
        stream = self.h2.send_request(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", b"t"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                *named,
            ]
        )
        self.h2.send_data(stream, data, end_stream=end)
        return stream

    def _take(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
            fields = dict(event.headers)
            if b"grpc-status" in fields:
                self.statuses[stream] = int(fields[b"grpc-status"])
                self.texts[stream] = fields.get(b"grpc-message", b"").decode()
            elif fields.get(b":status", b"200") != b"200":
                self.statuses[stream] = f"HTTP {fields[b':status'].decode()}"
        elif isinstance(event, ngh2.DataReceived):
            self.messages[stream] += event.data
        elif isinstance(event, ngh2.StreamReset):
            self.statuses.setdefault(stream, "reset")
        elif isinstance(event, ngh2.GoAwayReceived):
            self.goaways.append(event.last_stream_id)
