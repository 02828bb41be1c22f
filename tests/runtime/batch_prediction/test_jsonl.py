"""Lines of JSONL, read within bounds."""

import io

from hypothesis import given, strategies
from pytest import mark

from runtime.batch_prediction.jsonl import LineReader


def reader(data, **options):
    """Return a reader of bytes."""
    return LineReader(io.BytesIO(data), "in.jsonl", len(data), **options)


def everything(lines):
    """Read up to the end."""
    found = []
    while (block := lines.read(2, 1 << 20)) is not None:
        found += zip(block.numbers, block.lines, strict=True)
    return found


def test_lines_have_their_numbers():
    """Empty lines are no rows, but count; the last line needs no newline."""
    assert everything(reader(b"1\n\n  \r\n2\r\n3")) == [(1, b"1"), (4, b"2"), (5, b"3")]


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    """A file that Windows wrote is read; only at its beginning."""
    assert everything(reader(b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n")) == [
        (1, b"1"),
        (2, b"\xef\xbb\xbf2"),
    ]


def test_a_line_that_is_too_long_is_passed_over():
    """It is None, and the next line is read as if nothing were; one of the limit itself is a row."""
    data = b"1\n" + b"x" * 5_000_000 + b"\n" + b"y" * 10 + b"\n2"

    assert everything(reader(data, limit=10)) == [(1, b"1"), (2, None), (3, b"y" * 10), (4, b"2")]


def test_a_long_line_is_never_in_memory():
    """No single read is larger than the limit or a mebibyte, whichever is larger."""
    asked = []

    class Endless(io.BytesIO):
        def readline(self, size=-1):
            asked.append(size)
            return super().readline(size)

    data = b"x" * (3 << 20) + b"\n1\n"
    lines = LineReader(Endless(data), "in.jsonl", limit=100)

    assert everything(lines) == [(1, None), (2, b"1")]
    assert max(asked) == 1 << 20


@mark.property
@given(
    strategies.lists(strategies.sampled_from([b"1", b"", b"xxxxxxxxxxxx", b" 2 "]), max_size=20),
    strategies.integers(0, 9),
)
def test_a_mark_is_where_reading_goes_on(texts, blocks):
    """Lines from a mark on are those that were not read yet, with the same numbers."""
    data = b"\n".join(texts)
    lines = reader(data, limit=10)
    for _ in range(blocks):
        lines.read(1, 1 << 20)
    again = reader(data, limit=10)
    again.skip_to(lines.mark)

    assert again.mark == lines.mark
    assert everything(again) == everything(lines)


def test_a_block_ends_behind_its_bytes():
    """The line that passes the limit of bytes is the block's last."""
    lines = reader(b"11111\n22222\n33333\n")

    assert lines.read(100, 7).lines == [b"11111", b"22222"]
    assert lines.read(100, 7).lines == [b"33333"]
