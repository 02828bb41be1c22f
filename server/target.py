"""The target of a request and its Host: what they may be, and the one spelling of a path.

A proxy in front denies paths as they are spelt. So a path is served in one spelling alone: what
would mean the same to a server that decodes, joins slashes or resolves dots is not found.
"""

import ipaddress
import re
import urllib.parse

from server.errors import MalformedRequest

# RFC 3986 section 3.3, without what separates segments.
_SEGMENT = "-._~!$&'()*+,;=:@"
# RFC 3986 section 3.2.2. A comma is left out: where a server joins several headers it has one.
_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?:[-A-Za-z0-9._~!$&'()*+;=]|%[0-9A-Fa-f]{2})*)"
    r"(?::0*(?P<port>[0-9]{0,5}))?"
)
_LAST_PORT = 65535
# What OPTIONS asks of the server as a whole.
WHOLE_SERVER = b"*"
METHODS = "GET, HEAD, OPTIONS, POST"


def check_host(text: str) -> None:
    """Refuse what names no host; RFC 9112 section 3.2 asks for that.

    Raises:
      MalformedRequest: it is no host, with or without a port. An empty one is.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None or int(match["port"] or 0) > _LAST_PORT or not _is_address(match["address"]):
        raise MalformedRequest(f"host: expected a host, or host:port, got {text[:100]!r}")


def _is_address(text: str | None) -> bool:
    if text is not None:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
    return True


def check_target(method: str, target: bytes) -> None:
    """Refuse a target that is neither a path nor a URL of HTTP, with its method.

    Raises:
      MalformedRequest: says what was expected.
    """
    if target.startswith(b"/") or (target == WHOLE_SERVER and method == "OPTIONS"):
        return
    scheme, _, behind = target.partition(b"://")
    authority = re.split(rb"[/?]", behind, maxsplit=1)[0].decode("latin-1")
    if scheme.lower() not in (b"http", b"https") or not authority.partition(":")[0]:
        shown = target[:100].decode("latin-1")
        raise MalformedRequest(f"target: expected a path, or a URL of http, got {shown!r}")
    check_host(authority)


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return the path of a target, as it is spelt, and its query.

    The target of a request to a proxy has scheme and host before the path, and a server has to
    take it as well: RFC 9112 section 3.2.2.
    """
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") and path != WHOLE_SERVER:
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path, query


def spelt(path: str) -> bytes:
    """Return the one spelling of a path, as it comes over the wire."""
    return urllib.parse.quote(path, "/" + _SEGMENT).encode()


def is_canonical(path: bytes) -> bool:
    """Whether a path is spelt in the one way there is.

    It has no segment that is empty, except the last, nor `.` or `..`. Of its bytes those that may be in
    a path are themselves, and the others percent-encoded in upper case.
    """
    segments = path.split(b"/")
    if segments[0] or b"" in segments[1:-1] or b"." in segments or b".." in segments:
        return False
    return (
        all(
            segment.isalnum()
            or urllib.parse.quote(urllib.parse.unquote_to_bytes(segment), _SEGMENT).encode()
            == segment
            for segment in segments
        )
        and b"%2F" not in path
    )
