"""Which bodies are read, and how much of them."""

from typing import BinaryIO

from server.errors import MalformedRequest, TooLarge, UnsupportedMedia

_CHUNK = 1 << 16
# Without a type, and with the one that `curl -d` sends unasked, a body is taken for JSON.
_JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")


def check_headers(
    content_type: str | None, encoding: str | None, length: str | None, limit: int
) -> int | None:
    """Refuse a body by its headers, before it is read.

    Returns:
      Its announced length, None where it comes in chunks.

    Raises:
      UnsupportedMedia: not JSON in UTF-8, or compressed.
      MalformedRequest: the length is no number.
      TooLarge: more than `limit` bytes.
    """
    if content_type not in (None, "application/json"):
        _check_type(content_type)
    if encoding not in (None, "", "identity"):
        raise UnsupportedMedia("content-encoding: expected none, got a compressed body")
    if not length:
        return None
    if not (length.isascii() and length.isdecimal()):
        raise MalformedRequest("content-length: expected a number, got something else")
    if int(length) > limit:
        raise TooLarge(f"body: expected at most {limit} bytes, got {int(length)}")
    return int(length)


def _check_type(content_type: str | None) -> None:
    media, *parameters = (part.strip().lower() for part in (content_type or "").split(";"))
    if media not in _JSON_TYPES:
        raise UnsupportedMedia(f"content-type: expected application/json, got {media[:100]!r}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise UnsupportedMedia(f"content-type: expected charset utf-8, got {value[:100]!r}")


def check_length(body: bytes, announced: int | None, limit: int) -> bytes:
    """Refuse a body that is shorter than announced, or longer than the limit.

    Several servers hand a short body over as if it were whole.
    """
    if announced is not None and len(body) < announced:
        raise MalformedRequest(f"body: expected {announced} bytes, got {len(body)}")
    if len(body) > limit:
        raise TooLarge(f"body: expected at most {limit} bytes, got more")
    return body


def read(stream: BinaryIO, announced: int | None, limit: int) -> bytes:
    """Read a body whole; one of unknown length up to one byte beyond the limit, to tell.

    Werkzeug's own reading cuts a chunked body at its limit without a word.
    """
    parts: list[bytes] = []
    left = limit + 1 if announced is None else announced
    while left > 0 and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return check_length(b"".join(parts), announced, limit)
