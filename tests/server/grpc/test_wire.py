"""gRPC's bytes: messages in pieces, times, encodings and statuses."""

import grpc
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx, mark, raises

from runtime.errors import MalformedRequest
from server.errors import TooLarge, Unsupported
from server.grpc.wire import MessageReader, frame, read_timeout, trailers


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 20), min_size=1))
@mark.property
def test_messages_are_the_same_however_they_are_cut(messages, sizes):
    """Messages that arrive in pieces of any size are read as they were sent, in order."""
    data = b"".join(map(frame, messages))
    reader, found, at = MessageReader(40), [], 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        reader.feed(data[at : at + size])
        at += size
        while (taken := reader.take()) is not None:
            found.append(taken)

    assert found == messages
    assert reader.size == 0


def test_a_length_beyond_the_limit_is_refused_before_the_message():
    """A length beyond the limit is refused at once, and no memory is reserved for it."""
    reader = MessageReader(100)
    reader.feed(b"\0\xff\xff\xff\xff")

    with raises(TooLarge, match=r"^message: expected at most 100 bytes, got 4294967295$"):
        reader.take()


def test_a_prefix_that_is_none_is_refused():
    """The compressed flag is 0 or 1; anything else is refused."""
    reader = MessageReader(100)
    reader.feed(b"\x09\0\0\0\0")

    with raises(MalformedRequest, match=r"^message: expected 0 or 1 before its length, got 9$"):
        reader.take()


def test_a_compressed_message_is_refused():
    """A message whose compressed flag is set is not supported."""
    reader = MessageReader(100)
    reader.feed(b"\1\0\0\0\0")

    with raises(Unsupported, match=r"^message: expected no compression, got a compressed one$"):
        reader.take()


@mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"40m", 0.04), (b"5u", 5e-6), (b"99999999n", 0.099999999)],
)  # fmt: skip
def test_a_timeout_is_read_in_each_unit(text, seconds):
    """A timeout is eight digits at most, and a unit."""
    assert read_timeout({b"grpc-timeout": text}) == approx(seconds)


@mark.parametrize("text", [b"", b"1", b"m", b"123456789m", b"-1m", b"1.5S", b"1 m", b"\xb2m"])
def test_what_is_no_timeout_is_refused(text):
    """A malformed timeout is an error, and never means no limit."""
    shown = repr(text.decode("ascii", "replace"))
    with raises(MalformedRequest) as error:
        read_timeout({b"grpc-timeout": text})

    assert str(error.value) == (
        f"grpc-timeout: expected digits and a unit, as in 100m, got {shown}"
    )


def test_a_status_is_written_in_ascii():
    """Characters outside of printable ASCII are percent-encoded, and so is the percent sign."""
    assert trailers("INVALID_ARGUMENT", "100 % é\nb", "a name") == (
        (b"grpc-status", b"3"),
        (b"grpc-message", b"100 %25 %C3%A9%0Ab"),
        (b"x-request-id", b"a name"),
        (b"grpc-accept-encoding", b"identity"),
    )


def test_every_status_of_grpc_has_its_number():
    """Statuses are sent with gRPC's numbers."""
    for code in grpc.StatusCode:
        assert trailers(code.name, "", "")[0] == (b"grpc-status", b"%d" % code.value[0])
