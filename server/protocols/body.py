"""Request bodies: content types, encodings, length limits and decompression."""

import zlib
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from runtime.errors import MalformedRequest
from server.errors import IncompleteBody, TooLarge, UnsupportedMedia
from server.limits import BodyLimits
from server.request_id import Header

# A body has BODY_S seconds for each PROGRESS_BYTES: a large one over a slow network may take minutes,
# while a client that sends a byte now and then is cut off.
BODY_S = 60.0
PROGRESS_BYTES = 1 << 16
# Read as JSON: a body without a type, and one with the type that `curl -d` sends by default.
_JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")
_TEXT = "text/plain"
_BINARY = "application/octet-stream"
# The type of Triton's binary requests on Vertex AI, which passes on none of a client's headers.
_VERTEX_BINARY = "application/vnd.vertex-ai-triton.binary+json"
_MAX_DIGITS = 18
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
# RFC 9110 section 8.4.1.3.
_ALIASES = {"x-gzip": "gzip"}
# Limit of gzip members in a body: an empty one is 20 bytes, and takes as long as 10 kB of data.
MAX_MEMBERS = 10_000
# Size of the first piece of a member: at its end, at most one piece has to be read again.
_PIECE_BYTES = 1 << 8
_MAX_PIECE_BYTES = 1 << 20


class BodyInfo(NamedTuple):
    """What the headers of a request say about its body.

    Attributes:
      length: bytes on the wire; None with a chunked transfer coding.
      limit: maximum bytes, on the wire and decompressed.
      json_length: bytes of JSON at the beginning, which binary tensors follow; None if all of the
        body is JSON.
      content_encoding: gzip, deflate, or empty.
      raw_type: content type of a body that is no JSON but a raw input, or a form of these; empty
        for all others.
    """

    length: int | None
    limit: int
    json_length: int | None
    content_encoding: str
    raw_type: str = ""


def check_headers(header: Header, limits: BodyLimits, raw_types: Sequence[str] = ()) -> BodyInfo:
    """Return what the headers say about a body, before it is read.

    Args:
      header: returns a header by its lower-case name.
      limits: for JSON and for binary bodies.
      raw_types: content types of bodies that are no JSON, which are taken.

    Raises:
      UnsupportedMedia: the content type or encoding is not supported.
      MalformedRequest: a length is not a number.
      TooLarge: the body would exceed its limit.
    """
    encoding = header("content-encoding") or ""
    if encoding:
        encoding = encoding.strip().lower()
        encoding = _ALIASES.get(encoding, encoding)
    if encoding and encoding not in _WINDOW_BITS:
        if encoding != "identity":
            raise UnsupportedMedia(
                f"content-encoding: expected gzip or deflate, got {encoding[:100]!r}"
            )
        encoding = ""
    json_length = _json_length(header, raw_types)
    raw_type = (header("content-type") or "") if raw_types else ""
    media = raw_type.partition(";")[0].strip().lower()
    raw_type = raw_type if media in raw_types else ""
    # Files are no larger here than they are; text and JSON take many times their size.
    of_files = raw_type and media != _TEXT
    limit = limits.binary_bytes if json_length is not None or of_files else limits.json_bytes
    # A length beyond the limit of any body is refused as malformed, when the body is read.
    if json_length is not None and limits.json_bytes < json_length <= limits.binary_bytes:
        raise TooLarge(
            f"body: expected at most {limits.json_bytes} bytes of JSON, got {json_length}"
        )
    length = header("content-length")
    if header("transfer-encoding") is not None:
        if length is not None:
            raise MalformedRequest("content-length: expected none beside transfer-encoding")
        return BodyInfo(None, limit, json_length, encoding, raw_type)
    if not length:
        return BodyInfo(0, limit, json_length, encoding, raw_type)
    size = read_length(length)
    if size > limit:
        raise TooLarge(f"body: expected at most {limit} bytes, got {size}")
    return BodyInfo(size, limit, json_length, encoding, raw_type)


def read_length(text: str) -> int:
    """Return the number of bytes in a content-length header.

    Raises:
      MalformedRequest: it is not a number, or has too many digits.
    """
    return _number("content-length", text)


def _json_length(header: Header, raw_types: Sequence[str]) -> int | None:
    """Return the length of the JSON in a body with binary tensors; None for all of it, or none."""
    content_type = header("content-type")
    json_length = header("inference-header-content-length")
    if json_length is None and (content_type is None or content_type == "application/json"):
        return None
    media, *parameters = (part.strip() for part in (content_type or "").split(";"))
    media = media.lower()
    if json_length is not None:
        if media not in (_BINARY, *_JSON_TYPES):
            raise UnsupportedMedia(f"content-type: expected {_BINARY}, got {media[:100]!r}")
        return _number("inference-header-content-length", json_length)
    named = dict(_pair(parameter) for parameter in parameters)
    if media == _VERTEX_BINARY:
        return _number("json-header-size", named.get("json-header-size", ""))
    if media == _BINARY:
        raise UnsupportedMedia(
            f"content-type: expected inference-header-content-length with {_BINARY}, got none"
        )
    if media not in (*_JSON_TYPES, *raw_types):
        expected = ["application/json", *raw_types]
        listed = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
        raise UnsupportedMedia(f"content-type: expected {listed}, got {media[:100]!r}")
    charset = named.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8"):
        raise UnsupportedMedia(f"content-type: expected charset utf-8, got {charset[:100]!r}")
    return None


def _pair(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name.strip().lower(), value.strip(' "')


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise MalformedRequest(f"{name}: expected a number of bytes, got {text[:100]!r}")
    return int(text)


def check_length(body: bytes, info: BodyInfo) -> None:
    """Raise IncompleteBody or TooLarge unless a body has its stated length and fits the limit.

    Several WSGI servers pass on a truncated body as if it were complete.
    """
    if info.length is not None and len(body) < info.length:
        raise IncompleteBody(f"body: expected {info.length} bytes, got {len(body)}")
    if len(body) > info.limit:
        raise TooLarge(f"body: expected at most {info.limit} bytes, got more")


def inflate(body: bytes, info: BodyInfo) -> bytes:
    """Return a body decompressed; unchanged if it has no content encoding.

    A gzip body may have several members: RFC 1952 section 2.2.

    Raises:
      MalformedRequest: the data is not in this encoding, truncated, or followed by other data.
      TooLarge: it exceeds the limit when decompressed, or has more than MAX_MEMBERS members.
    """
    encoding = info.content_encoding
    if not encoding:
        return body
    parts: list[bytes] = []
    at = size = members = 0
    while at < len(body) or not members:
        if members == MAX_MEMBERS:
            raise TooLarge(f"body: expected at most {MAX_MEMBERS} members of gzip, got more")
        if members and encoding != "gzip":
            raise MalformedRequest(f"body: expected one whole {encoding} stream")
        stream = zlib.decompressobj(_WINDOW_BITS[encoding])
        at, size = _member(stream, body, at, info, parts, size)
        members += 1
    return b"".join(parts)


def _member(
    stream: "zlib._Decompress",
    body: bytes,
    at: int,
    info: BodyInfo,
    parts: list[bytes],
    size: int,
) -> tuple[int, int]:
    """Decompress one member, or the only stream of a deflate body.

    Args:
      stream: decompresses it.
      body: the compressed body.
      at: offset of the member in the body.
      info: with the body's limit and encoding.
      parts: the decompressed parts, which the member's are appended to.
      size: bytes in parts.

    Returns:
      The offset behind the member, and the bytes in parts.
    """
    piece = _PIECE_BYTES
    while not stream.eof:
        data = body[at : at + piece]
        if not data:
            raise MalformedRequest(f"body: expected one whole {info.content_encoding} stream")
        try:
            part = stream.decompress(data, info.limit + 1 - size)
        except zlib.error as error:
            raise MalformedRequest(f"body: expected {info.content_encoding}, got {error}") from None
        parts.append(part)
        size += len(part)
        if size > info.limit:
            raise TooLarge(f"body: expected at most {info.limit} bytes decompressed, got more")
        at += len(data) - len(stream.unused_data)
        piece = min(2 * piece, _MAX_PIECE_BYTES)
    return at, size


def read(stream: BinaryIO, info: BodyInfo) -> bytes:
    """Return a body read from a stream, as it was sent.

    A body of unknown length is read to one byte beyond the limit, so that exceeding it is noticed:
    werkzeug would truncate it silently.

    Raises:
      IncompleteBody, TooLarge: see `check_length`.
    """
    parts: list[bytes] = []
    remaining = info.limit + 1 if info.length is None else info.length
    while remaining > 0 and (part := stream.read(min(remaining, PROGRESS_BYTES))):
        parts.append(part)
        remaining -= len(part)
    body = b"".join(parts)
    check_length(body, info)
    return body
