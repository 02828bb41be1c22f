"""Files of tokenizers that were made to do harm: each is an error, and nothing else happens."""

import json

from pytest import fixture, mark, param, raises

from runtime import BundleError, IntegrityError, load, open_bundle
from runtime.preprocessing.growth import expect_bounded_growth
from runtime.preprocessing.sandbox import try_stages, try_tokenizer
from runtime.preprocessing.sandbox_child import texts_of_patterns, trial_texts
from runtime.preprocessing.tokenizer import TokenizerError
from tests.altered_bundles import altered
from tests.tokenizer_files import splitting, words

PATH = "preprocess/0/tokenizer.json"


def replacing(pattern, content, times=1):
    """Return a change that has a file replace texts by others, again and again."""
    rule = {"type": "Replace", "pattern": pattern, "content": content}
    return lambda value: value.update(
        normalizer={"type": "Sequence", "normalizers": [rule] * times}
    )


def padding_forever(value):
    """Have a file pad each text to two thousand million tokens."""
    value["padding"] = {
        "strategy": {"Fixed": 2**31},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }


def attempt(data, **options):
    """Try a tokenizer; return the error."""
    try:
        try_tokenizer(data, "t.json", **{"max_bytes": 1000, "pair": False, **options})
    except BundleError as error:
        return str(error).removeprefix("t.json: expected a tokenizer that encodes any text, got ")
    return ""


@mark.e2e
@mark.parametrize("pair", [False, True])
def test_ordinary_files_come_through(pair):
    """A tokenizer that encodes everything is accepted; its padding is ignored."""
    assert attempt(words(padding_forever), pair=pair, texts=["the cat"]) == ""


@mark.e2e
@mark.parametrize(
    ("data", "got"),
    [
        param(b"{}", "one that is not read: ", id="no-model"),
        param(b"[" * 100_000, "one that is not read: a file that is no JSON", id="nested"),
        param(b"[]", "one that is not read: JSON that is no object", id="no-object"),
        param(
            words(replacing({"String": "a"}, "a" * 100, 5)),
            "one that is not read: a normalizer that can make more than 1,000 characters of one",
            id="growing",
        ),
        param(
            words(lambda value: value["model"].update(unk_token="[NONE]")),  # noqa: S106
            "one that fails on",
            id="no-unknown-token",
        ),
        param(words(splitting("(a+)+$")), "one that fails on", id="backtracking"),
        param(words(splitting("(z+)+$")), "one that fails on 'zzzz", id="own-letter"),
        param(words(splitting("((?:qz)+)+$")), "one that fails on", id="own-letters"),
    ],
)
def test_bad_files_are_errors(data, got):
    """A file that the library refuses or fails on is refused in one line."""
    found = attempt(data)

    assert found.startswith(got)
    assert "\n" not in found


@mark.e2e
def test_files_that_compute_too_long_are_errors():
    """A tokenizer that does not return is stopped at its time limit."""
    slow = words(splitting("(a|a)*b"))

    found = attempt(slow, max_bytes=30_000_000, cpu_s=1)

    assert found == "one that computes for more than 1 s"


@mark.e2e
def test_files_that_take_too_much_memory_are_errors():
    """A tokenizer that takes all the memory there is ends its own process alone."""
    large = words(replacing({"String": "a"}, "a" * 999))

    found = attempt(large, max_bytes=3_000_000, memory_bytes=1 << 30)

    assert found.startswith("one that ends the process, or takes more than 1024 MiB (")


@mark.parametrize(
    "change",
    [
        replacing({"String": "a"}, "b" * 1001),
        replacing({"String": "ab"}, "b" * 3000),
        replacing({"Regex": "x*"}, "b" * 1000),
        replacing({"String": "a"}, "b" * 11, 3),
    ],
    ids=["once", "of-two", "pattern", "thrice"],
)
def test_growth_is_seen_in_the_file(change):
    """A normalizer that makes a thousand characters of one is found without a text that shows it."""
    with raises(TokenizerError):
        expect_bounded_growth(words(change))


@mark.parametrize(
    "change",
    [
        lambda value: value.update(normalizer=None),
        lambda value: value.update(normalizer={"type": "Sequence", "normalizers": "none"}),
        replacing({"Regex": " {2,}"}, "\u2581", 8),
        replacing({"String": "a"}, "b" * 900),
    ],
    ids=["none", "odd", "blanks", "bounded"],
)
def test_ordinary_normalizers_are_let_through(change):
    """What makes texts shorter, or somewhat longer, is no growth."""
    expect_bounded_growth(words(change))


def test_deep_normalizers_are_refused():
    """Normalizers in normalizers in normalizers end in an error."""
    value = {"type": "Lowercase"}
    for _ in range(300):
        value = {"type": "Sequence", "normalizers": [value]}
    deep = json.dumps({"normalizer": value}).encode()
    for _ in range(5):
        expect_bounded_growth(deep)

    value = json.dumps({"type": "Lowercase"})
    nested = '{"type": "Sequence", "normalizers": [' * 50_000 + value + "]}" * 50_000
    with raises(TokenizerError):
        expect_bounded_growth(b'{"normalizer": ' + nested.encode() + b"}")


def test_trial_texts_are_as_long_as_may_be():
    """The long ones are as long as callers can send them, in bytes, and no longer."""
    sizes = [len(text.encode()) for text in trial_texts(100)]

    assert max(sizes[-8:]) == 100
    assert min(sizes[-8:]) > 80


def test_trial_texts_are_made_of_the_patterns():
    """The letters of a pattern are repeated, each alone and all together, escapes apart."""
    data = words(splitting(r"(z+y)\s+$"))

    assert texts_of_patterns(data, 7) == ["zyzyzy!", "zzzzzz!", "yyyyyy!"]
    assert texts_of_patterns(words(), 7) == []


@fixture
def hostile(sentence_bundle, tmp_path):
    """A bundle whose tokenizer backtracks, with digests that are right."""
    bad = words(splitting("(a+)+$"))
    return altered(sentence_bundle, tmp_path / "hostile", {PATH: lambda _: bad})


@mark.e2e
def test_loading_tries_the_tokenizer_first(hostile):
    """A hostile tokenizer is found by another process before this one reads it."""
    with raises(BundleError, match=f"^{PATH}: expected a tokenizer that encodes any text, got one"):
        load(hostile, "cpu")
    with raises(BundleError, match=f"^{PATH}: expected a tokenizer that encodes any text, got one"):
        load(hostile, "cpu", isolated=True)


@mark.e2e
def test_damaged_tokenizers_are_found_by_their_digest(copy_of, sentence_bundle):
    """A flipped bit is found before the library sees the file."""
    bundle = copy_of(sentence_bundle)
    data = bytearray((bundle / PATH).read_bytes())
    data[100] ^= 1
    (bundle / PATH).write_bytes(data)

    with raises(IntegrityError, match=f"^{PATH}: expected sha256"):
        try_stages(open_bundle(bundle))
