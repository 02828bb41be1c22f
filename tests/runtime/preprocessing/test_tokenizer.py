"""Tokenizers of a bundle: what their files say of padding and length is switched off."""

import os
import sys

from pytest import mark, raises

from runtime.errors import MissingLibrary
from runtime.preprocessing import tokenizer as tokenizer_module
from runtime.preprocessing.tokenizer import Tokenizer, TokenizerError, caught, library_version
from tests.tokenizer_files import ids, words


def padding_and_truncating(value):
    """Have a file pad to 16 tokens and cut off at 4, on the left."""
    value["truncation"] = {
        "direction": "Left",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    value["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 7,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }


def test_padding_and_truncation_of_the_file_are_off():
    """A text has its own tokens, whatever the file would pad it to or cut it off at."""
    tokenizer = Tokenizer(words(padding_and_truncating))

    [found] = tokenizer.encode(["the cat sat on a mat"])

    assert found.ids == ids("the cat sat on a mat")
    assert not found.truncated
    assert tokenizer.stored_max_tokens == 4
    assert tokenizer.stored_padding["pad_id"] == 7


def test_texts_are_cut_off_where_asked_for():
    """What is beyond the limit is left out, on the side that the file names, and reported."""
    right, left = Tokenizer(words(), 4), Tokenizer(words(padding_and_truncating), 4)

    assert [one[0] for one in right.encode(["the cat sat"])] == [ids("the cat")]
    assert [one[0] for one in left.encode(["the cat sat"])] == [ids("cat sat")]
    assert [one.truncated for one in right.encode(["the cat sat", "the cat"])] == [True, False]


def test_pairs_have_type_ids():
    """The tokens of the second text, and the one that ends it, are of type 1."""
    [found] = Tokenizer(words()).encode([("the cat", "a dog ran")])

    assert found.ids == [*ids("the cat"), *ids("a dog ran")[1:]]
    assert found.type_ids == [0, 0, 0, 0, 1, 1, 1, 1]


@mark.parametrize(
    ("data", "got"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b"\xff", "bytes that are no UTF-8"),
        (words()[:50], "EOF while parsing a value at line 1 column 50"),
        (words(lambda v: v.update(model={"type": "Mystery"})), None),
        (words(lambda v: v.update(version="9.0")), None),
    ],
    ids=["empty", "bytes", "cut", "model", "version"],
)
def test_files_that_the_library_refuses_are_errors(data, got):
    """The library's message is the error's message, in one line."""
    with raises(TokenizerError) as caught_error:
        Tokenizer(data)

    assert str(caught_error.value) == (got or str(caught_error.value).splitlines()[0])


def test_files_beyond_the_limit_are_not_read(monkeypatch):
    """A tokenizer.json of more than 64 MiB is refused by its size alone."""
    monkeypatch.setattr(tokenizer_module, "MAX_TOKENIZER_BYTES", 10)

    with raises(TokenizerError, match=r"^11 bytes, more than 10$"):
        Tokenizer(b" " * 11)


def test_panics_are_errors():
    """A panic of the library, which is no Exception, becomes an error like all others."""

    class PanicException(BaseException):
        pass

    def panic():
        raise PanicException("no more tries")

    with raises(TokenizerError, match=r"^no more tries$"):
        caught(panic)


def test_what_the_library_does_not_raise_goes_on():
    """Ctrl-C is passed on as it is."""

    def interrupt():
        raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        caught(interrupt)


def test_backtracking_is_an_error():
    """A pattern whose backtracking exceeds the library's limit is an error, though the library panics."""

    def backtrack(value):
        split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
        value["pre_tokenizer"] = split | {"invert": False}

    with raises(TokenizerError):
        Tokenizer(words(backtrack)).encode(["a" * 100 + "!"])


def test_the_library_has_no_threads_of_its_own(monkeypatch):
    """Its pool of threads is off before its first use, whatever the environment says."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")

    Tokenizer(words())

    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_one_line_says_what_is_missing(monkeypatch):
    """Without the library the error names what to install."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    expected = (
        "text inputs: expected the package tokenizers, got none installed; "
        "pip install 'hloserve[text]'"
    )

    with raises(MissingLibrary) as from_file:
        Tokenizer(words())
    monkeypatch.setattr("importlib.metadata.version", _not_installed)
    with raises(MissingLibrary) as from_version:
        library_version()

    assert [str(from_file.value), str(from_version.value)] == [expected, expected]


def _not_installed(name):
    raise tokenizer_module.importlib.metadata.PackageNotFoundError(name)
