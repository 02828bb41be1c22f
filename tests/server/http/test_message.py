"""HTTP messages: the cache of parsed heads, and serialized responses."""

from pytest import mark

from server.http.message import HeadCache, Request, RequestHead, serialize, without_upgrade
from server.protocols.body import BodyInfo
from server.protocols.response import Response

HEAD = b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\n"


def parsed(**changes):
    """Return the head of HEAD, with changes."""
    head = RequestHead("POST", b"/predict", "1.1", {"host": "t", "content-length": "2"}, set())
    head.body_info = BodyInfo(2, 100, None, "")
    for name, value in changes.items():
        setattr(head, name, value)
    return head


def test_a_request_with_a_cached_head_is_not_parsed_again():
    """It shares the head, and has its own body."""
    cache, head = HeadCache(), parsed()
    cache.put(HEAD + b"{}", Request(head, b"{}"))

    found = cache.get(HEAD + b"[]")

    assert found.head is head
    assert (found.body, found.counted) == (b"[]", 0)


@mark.parametrize(
    "data", [b"", HEAD, HEAD + b"{", HEAD + b"{}P", HEAD[1:] + b"{}", b"\r\n" + HEAD + b"{}"]
)
def test_other_data_than_a_cached_head_and_its_body_is_parsed(data):
    """A byte more or less, anywhere, is a cache miss."""
    cache = HeadCache()
    cache.put(HEAD + b"{}", Request(parsed(), b"{}"))

    assert cache.get(data) is None


@mark.parametrize(
    ("data", "head", "body"),
    [
        (HEAD, parsed(), b""),
        (b"", parsed(), b"{}"),
        (HEAD + b"{}", parsed(keep_alive=False), b"{}"),
        (HEAD + b"{}", parsed(body_info=None), b"{}"),
        (HEAD + b"{}", parsed(body_info=BodyInfo(None, 100, None, "")), b"{}"),
        (HEAD + b"{}", parsed(headers={"expect": "100-continue"}), b"{}"),
        (b"x" * 2048 + HEAD + b"{}", parsed(), b"{}"),
    ],
)
def test_heads_that_do_not_qualify_are_not_cached(data, head, body):
    """Without a body of an accepted length, in several pieces, large, or the last of a connection."""
    cache = HeadCache()

    cache.put(data, Request(head, body))

    assert cache._heads == {}


def test_the_cache_is_bounded():
    """Clients whose heads all differ do not fill memory."""
    cache = HeadCache()

    for n in range(3000):
        data = HEAD.replace(b"/predict", b"/%d" % n) + b"{}"
        cache.put(data, Request(parsed(), b"{}"))

    assert len(cache._heads) <= 1024
    assert cache.get(data) is not None


def test_a_response_to_head_has_the_length_of_the_body_that_get_returns():
    """Status, headers and length are those of GET, and there is no body."""
    response = Response(200, (("content-type", "text/plain"),), b"text")

    get = serialize(response, head_only=False, connection="")
    head = serialize(response, head_only=True, connection="")

    assert get.startswith(b"HTTP/1.1 200 OK\r\nserver: hloserve\r\ncontent-type: text/plain\r\n")
    assert get.endswith(b"\r\ncontent-length: 4\r\n\r\ntext")
    assert get.removesuffix(b"text").endswith(head[-30:])
    assert b"connection:" not in get
    assert b"\r\nconnection: close\r\n" in serialize(response, head_only=True, connection="close")


def test_an_offer_to_upgrade_is_removed_from_a_head():
    """What else the connection header says stays."""
    fields = [("host", b"t"), ("upgrade", b"h2c"), ("connection", b"Upgrade, close"), ("x", b"1")]

    head = without_upgrade(b"GET", b"/a?b", "1.1", fields)

    assert head == b"GET /a?b HTTP/1.1\r\nhost: t\r\nconnection: close\r\nx: 1\r\n\r\n"
