"""Request targets and Host headers: validation, and the canonical spelling of a path.

Proxies deny paths by their spelling. So a path is served in its canonical spelling only; others that
would be equal after decoding, joining slashes or resolving dots are not found.
"""

import ipaddress
import re
import urllib.parse

from runtime.errors import MalformedRequest

# RFC 3986 section 3.3, without what separates segments.
_SEGMENT = "-._~!$&'()*+,;=:@"
# RFC 3986 section 3.2.2. Without the comma, which servers join several headers with.
_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?:[-A-Za-z0-9._~!$&'()*+;=]|%[0-9A-Fa-f]{2})*)"
    r"(?::0*(?P<port>[0-9]{0,5}))?"
)
_MAX_PORT = 65535
# Target of OPTIONS for the server as a whole.
WHOLE_SERVER = b"*"
METHODS = "GET, HEAD, OPTIONS, POST"


def check_host(text: str) -> None:
    """Raise unless a Host header is valid; RFC 9112 section 3.2 requires it.

    Raises:
      MalformedRequest: not a host with an optional port. An empty header is valid.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None or int(match["port"] or 0) > _MAX_PORT or not _is_address(match["address"]):
        raise MalformedRequest(f"host: expected a host, or host:port, got {text[:100]!r}")


def _is_address(text: str | None) -> bool:
    if text is not None:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
    return True


def check_target(method: str, target: bytes) -> None:
    """Raise unless a target is a path, an HTTP URL, or `*` for OPTIONS.

    Raises:
      MalformedRequest: for any other target.
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
    """Return the path of a target, not decoded, and its query.

    Requests to a proxy have scheme and host before the path, which a server has to accept as well: RFC
    9112 section 3.2.2.
    """
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") and path != WHOLE_SERVER:
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path, query


def encode_path(path: str) -> bytes:
    """Return the canonical spelling of a path, percent-encoded."""
    return urllib.parse.quote(path, "/" + _SEGMENT).encode()


def is_canonical(path: bytes) -> bool:
    """Whether a path is in its canonical spelling.

    It has no empty segment but the last, and none of `.` and `..`. Bytes that are allowed in a path
    are not encoded; others are percent-encoded in upper case.
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
