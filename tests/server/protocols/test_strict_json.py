"""JSON bodies, read strictly."""

import json

from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, param, raises

from runtime.errors import MalformedRequest
from server.errors import TooLarge
from server.protocols.strict_json import expect_fitting, parse_object
from tests.server.fakes import ECHO, SUM, signature

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


def refusal(body):
    """Return the message that a body gets."""
    with raises(MalformedRequest) as caught:
        parse_object(body)
    return str(caught.value)


@mark.property
@given(OBJECTS)
def test_what_another_writer_wrote_is_read(value):
    """An object comes back as the standard library wrote it, colons in its strings or not."""
    assert parse_object(json.dumps(value, ensure_ascii=False).encode()) == value


@mark.property
@given(OBJECTS, st.text(max_size=3), VALUES)
def test_a_key_twice_is_refused_wherever_it_is(value, key, other):
    """A repeated key is refused, however deep it is and however it is escaped."""
    spelt = "".join(f"\\u{unit:04x}" for unit in memoryview(key.encode("utf-16-le")).cast("H"))
    twice = f'{{{json.dumps(key)}: {json.dumps(other)}, "{spelt}": 1}}'
    body = f'{{"rest": {json.dumps(value)}, "a": [[{twice}]]}}'

    assert "expected each key once" in refusal(body.encode())


@mark.parametrize(
    ("body", "key"),
    [
        param(b'{"a": 1, "a": 1}', "a", id="top"),
        param(b'{"x": {"a": 1, "a": 2}}', "a", id="object"),
        param(b'{"x": [{"a": 1}, {"a": 1, "a": 2}]}', "a", id="list"),
        param(b'{"x": [1, {"a": 1, "a": 2}]}', "a", id="mixed-list"),
        param(b'{"x": [[[{"a": 1, "a": 2}]]]}', "a", id="lists"),
        param(b'{"a": 1, "\\u0061": 2}', "a", id="escaped"),
        param(b'{"": 1, "": 2}', "", id="empty"),
        param(b'{"a": ":::", "b": {"c": 1, "c": 2}}', "c", id="beside-colons"),
    ],
)
def test_a_duplicate_is_named(body, key):
    """The message says which key came twice."""
    assert refusal(body) == f"body: expected each key once, got {key!r} twice"


def test_a_long_key_is_cut_in_the_message():
    """A message repeats at most 100 characters of what came."""
    body = b'{"%b": 1, "%b": 2}' % (b"k" * 5000, b"k" * 5000)

    assert len(refusal(body)) < 200


@mark.parametrize(
    "body",
    [
        param(b"", id="empty"),
        param(b" ", id="blank"),
        param(b'{"a": 1', id="cut"),
        param(b'{"a": 1} x', id="junk-behind"),
        param(b'{"a": 1}{}', id="two"),
        param(b"{'a': 1}", id="single-quotes"),
        param(b'{"a": 1,}', id="comma"),
        param(b'{"a": 01}', id="leading-zero"),
        param(b'{"a": NaN}', id="nan"),
        param(b'{"a": Infinity}', id="infinity"),
        param(b'{"a": -Infinity}', id="minus-infinity"),
        param(b'{"a": 1e999}', id="beyond-double"),
        param(b'{"a": ' + b"9" * 5000 + b"}", id="5000-digits"),
        param(b'{"a": "\\ud800"}', id="lone-surrogate"),
        param(b'{"a": "\xff"}', id="bad-utf-8"),
        param(b'\xef\xbb\xbf{"a": 1}', id="bom"),
        param('{"a": 1}'.encode("utf-16"), id="utf-16"),
        param(b'{"a": "\x00"}', id="nul"),
        param(b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", id="deep-lists"),
        param(b'{"a": ' * 2000 + b"1" + b"}" * 2000, id="deep-objects"),
        param(b"[" * 100_000, id="deeper-still"),
    ],
)
def test_what_is_not_json_is_refused(body):
    """What RFC 8259 does not allow is refused, and so is what no number here can hold."""
    assert refusal(body).startswith("body: expected JSON, got ")


@mark.parametrize(
    ("body", "kind"),
    [
        (b"[]", "an array"),
        (b"1", "a number"),
        (b'"x"', "a string"),
        (b"null", "null"),
        (b"true", "a boolean"),
    ],
)
def test_only_an_object_is_an_object(body, kind):
    """Other JSON is refused by its kind."""
    assert refusal(body) == f"body: expected an object, got {kind}"


@mark.parametrize(
    ("body", "got"),
    [
        (b"", "no bytes"),
        (b"\x89PNG\r\n\x1a\n", "an image; its content-type is image/png"),
        (b"\xff\xd8\xff\xe0", "an image; its content-type is image/jpeg"),
        (b"RIFF\x0a\0\0\0WEBPVP8 ", "an image; its content-type is image/webp"),
        (b'{"a": "\xe9"}', "no UTF-8: the byte 0xe9 at 7"),
        (b"\x1f\x8b\x08", "no UTF-8: the byte 0x8b at 1"),
    ],
)
def test_what_was_sent_in_place_of_json_is_named(body, got):
    """For a file sent without its content type the message names that cause, rather than JSON's error."""
    assert refusal(body) == f"body: expected JSON, got {got}"


def test_objects_some_hundred_deep_are_refused_not_crashed_upon():
    """What orjson still reads but a recursive look cannot is refused."""
    body = b'{"a": ' * 1000 + b'{"b": 1, "b": 2}' + b"}" * 1000

    assert refusal(body) in (
        "body: expected JSON, got objects hundreds deep",
        "body: expected each key once, got 'b' twice",
    )


def test_a_view_is_read_like_bytes():
    """A part of a larger body is read in place."""
    assert parse_object(memoryview(b'{"a": 1}rest')[:8]) == {"a": 1}


def test_many_keys_are_read():
    """An object of very many keys takes no longer than it is long."""
    body = b"{%b}" % b",".join(b'"%d":1' % i for i in range(200_000))

    assert len(parse_object(body)) == 200_000


IMAGES = signature(["x:float32[_, 40, 40]"], ["y:float32[_]"])


def of_instances(row, rows):
    """Write the instances that one row makes when it is sent so many times."""
    return json.dumps({"instances": [row] * rows}).encode()


@mark.parametrize(
    ("inputs", "row", "rows"),
    [
        param(SUM, [0.0000001] * 2, 150_000, id="vectors"),
        param(SUM, {"x": [0.0000001] * 2}, 100_000, id="objects"),
        param(IMAGES, [[0.5] * 40] * 40, 300, id="nested"),
        param(ECHO, {"ids": [1234567] * 8, "mask": [1] * 8}, 30_000, id="lengths"),
    ],
)
def test_a_large_body_of_as_many_rows_as_a_request_may_have_is_parsed(inputs, row, rows):
    """As many rows as a request may have are never refused for their number of values, however they are written."""
    body = of_instances(row, rows)
    assert len(body) > 1 << 21

    expect_fitting(body, None, inputs, rows)


@mark.parametrize(
    "body",
    [
        param(b'{"instances":[' + b"[]," * (1 << 20) + b"[]]}", id="arrays"),
        param(b'{"instances":[[' + b"0," * (1 << 20) + b"0]]}", id="numbers"),
        param(b'{"instances":' + b"[" * (1 << 22), id="never-closed"),
    ],
)
def test_a_large_body_of_more_than_any_request_has_is_not_parsed(body):
    """Millions of values are refused, since building them would block the server."""
    with raises(TooLarge, match="expected at most 7168 arrays and commas, as 1024 rows of the"):
        expect_fitting(body, None, SUM, 1024)


def test_a_body_that_is_parsed_in_no_time_may_hold_anything():
    """What is wrong with it is said more precisely once it is parsed."""
    expect_fitting(b'{"instances":[' + b"[]," * 1000 + b"[]]}", None, SUM, 1)


def test_of_a_body_with_binary_tensors_only_the_json_is_looked_at():
    """Any byte may be in a binary tensor."""
    body = b'{"inputs": []}' + b",[" * (1 << 21)

    expect_fitting(body, 14, SUM, 1)
    with raises(TooLarge):
        expect_fitting(body, len(body), SUM, 1)
