"""gRPC over HTTP/2: messages with their prefix, `grpc-timeout`, and statuses as trailers.

Pure functions and a buffer; see https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

import re
import urllib.parse
from collections.abc import Mapping

import grpc

from runtime.errors import MalformedRequest
from server.errors import TooLarge, Unsupported

type Headers = tuple[tuple[bytes, bytes], ...]

HEADERS: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK: Headers = ((b"grpc-status", b"0"),)
_ACCEPTED = (b"grpc-accept-encoding", b"identity")
_NUMBERS = {code.name: b"%d" % code.value[0] for code in grpc.StatusCode}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# Printable ASCII, but for the percent sign.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# Bytes before a message: whether it is compressed, and its length.
_PREFIX_BYTES = 5


def read_timeout(fields: Mapping[bytes, bytes]) -> float | None:
    """Return the time that a call has, in seconds; None without a limit.

    Raises:
      MalformedRequest: it is not written as gRPC writes it.
    """
    text = fields.get(b"grpc-timeout")
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise MalformedRequest(
            f"grpc-timeout: expected digits and a unit, as in 100m, got {text[:100].decode('ascii', 'replace')!r}"
        )
    return int(match[1]) * _UNIT_S[match[2]]


def trailers(status: str, text: str, identity: str) -> Headers:
    """Return the trailers of an error.

    Args:
      status: its name in gRPC.
      text: for the client.
      identity: of the request, for the log.
    """
    message = urllib.parse.quote(text, safe=_PLAIN).encode()
    named = (b"x-request-id", identity.encode("ascii", "replace"))
    return ((b"grpc-status", _NUMBERS[status]), (b"grpc-message", message), named, _ACCEPTED)


def frame(message: bytes) -> bytes:
    """Return a message with its prefix, not compressed."""
    return b"\0" + len(message).to_bytes(4) + message


class MessageReader:
    """Cuts the bytes of a call into messages.

    Args:
      limit: bytes that a message may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    @property
    def size(self) -> int:
        """Return the number of bytes that were not taken."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next message; None if it is not whole.

        Raises:
          MalformedRequest: the prefix is not one.
          Unsupported: the message is compressed.
          TooLarge: the message has more bytes than it may.
        """
        buffer = self._buffer
        if len(buffer) < _PREFIX_BYTES:
            return None
        flag, size = buffer[0], int.from_bytes(buffer[1:_PREFIX_BYTES])
        if flag > 1:
            raise MalformedRequest(f"message: expected 0 or 1 before its length, got {flag}")
        if flag:
            raise Unsupported("message: expected no compression, got a compressed one")
        if size > self._limit:
            raise TooLarge(f"message: expected at most {self._limit} bytes, got {size}")
        end = _PREFIX_BYTES + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            message = bytes(view[_PREFIX_BYTES:end])
        del buffer[:end]  # takes the same time whatever is behind it
        return message
