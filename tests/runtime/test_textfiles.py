"""Text files as people's editors write them."""

import codecs
from pathlib import Path

from pytest import mark, param, raises

from runtime.textfiles import NotText, read_json, read_text

TEXT = "café\n猫\n"


@mark.parametrize(
    "data",
    [
        param(TEXT.encode(), id="utf-8"),
        param(codecs.BOM_UTF8 + TEXT.encode(), id="mark"),
        param(TEXT.replace("\n", "\r\n").encode(), id="crlf"),
        param(TEXT.replace("\n", "\r").encode(), id="cr"),
        param(codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode(), id="mark-crlf"),
        param(codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), id="utf-16-le"),
        param(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), id="utf-16-be"),
        param(codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), id="utf-32-le"),
        param(codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), id="utf-32-be"),
    ],
)
def test_text_is_the_same_however_it_is_encoded(tmp_path, data):
    """A byte order mark, UTF-16 that has one and other line ends change nothing."""
    file = tmp_path / "text"
    file.write_bytes(data)

    assert read_text(file) == TEXT


@mark.parametrize(
    ("data", "got"),
    [
        (b"a\ncaf\xe9\n", "the byte 0xe9 in line 2"),
        (b"\x7fELF\0\0", "bytes with zeros: a binary file, or UTF-16 without a byte order mark"),
        (
            "cat".encode("utf-16-le"),
            "bytes with zeros: a binary file, or UTF-16 without a byte order mark",
        ),
        (b"\xff\xfea", "a byte order mark of UTF-16, and other bytes"),
        (b"a\nb\x1b[0m\n", "the control character '\\x1b' in line 2"),
        (b"a\n\xef\xbb\xbfb\n", "a byte order mark within line 2"),
        (b"a" * (16 * 2**20 + 1), "a file of more than 16 MiB"),
    ],
    ids=["latin-1", "binary", "utf-16", "half", "escape", "joined", "large"],
)
def test_what_is_no_text_is_said(tmp_path, data, got):
    """Bytes of another kind are named with their line, and never decoded by guess."""
    file = tmp_path / "text"
    file.write_bytes(data)

    with raises(NotText) as caught:
        read_text(file)

    assert str(caught.value) == got


def test_what_is_no_file_is_said(tmp_path, monkeypatch):
    """A directory, a missing file and one that may not be read are distinguished."""
    seen = []
    (tmp_path / "file").touch()

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    for name in (".", "missing", "a\0b", "file"):
        if name == "file":  # root may read anything
            monkeypatch.setattr(Path, "open", refuse)
        with raises(NotText) as caught:
            read_text(f"{tmp_path}/{name}")
        seen.append(str(caught.value))

    assert seen == ["a directory", "nothing there", "nothing there", "Permission denied"]


@mark.parametrize(
    ("text", "got"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        ('{"a": [{"b": 1, "b": 1}]}', "the key 'b' twice"),
        ("[" * 100_000, "JSON that is nested too deep"),
        ('["\\ud800"]', "half of a character, as '\\ud800' alone is"),
        ("[1, 2", "Expecting ',' delimiter: line 1 column 6 (char 5)"),
    ],
    ids=["twice", "inside", "deep", "surrogate", "cut"],
)
def test_json_that_loses_something_is_refused(text, got):
    """Of a key that is there twice one would be lost; that and broken JSON are named."""
    with raises(NotText) as caught:
        read_json(text)

    assert str(caught.value) == got
