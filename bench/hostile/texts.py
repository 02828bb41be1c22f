"""Kinds of bad texts: what stands where a text should, as JSON and as bytes, and bodies broken around them."""

import base64
import json
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

MEGABYTES_10 = 10 * 1000 * 1000
# Sent beside, answered before: what is wrong with another text must not change its answer.
GOOD = "the cat sat on a mat."
Expected = Literal["answered", "refused", "either"]


class Value(NamedTuple):
    """What stands in the place of a text.

    Attributes:
      json: as the source of a JSON value; None where JSON has nothing like it.
      raw: as bytes; None where bytes have nothing like it.
    """

    json: bytes | None
    raw: bytes | None


class Kind(NamedTuple):
    """A kind of bad text.

    Attributes:
      make: returns one, from a source of randomness.
      expected: what becomes of it.
    """

    make: Callable[[random.Random], Value]
    expected: Expected


def of_text(text: str) -> Value:
    """Return a text as it is written in both."""
    return Value(json.dumps(text, ensure_ascii=False).encode(), text.encode())


def _only_json(*sources: str) -> Callable[[random.Random], Value]:
    return lambda rng: Value(rng.choice(sources).encode(), None)


def _one_of(*characters: str, up_to: int = 12) -> Callable[[random.Random], Value]:
    return lambda rng: of_text("".join(rng.choices(characters, k=rng.randrange(1, up_to))))


def _surrogate(rng: random.Random) -> Value:
    half = rng.randrange(0xD800, 0xE000)
    text = rng.choice(("a \\u%04x b", "\\u%04x", "\\ude00\\u%04x")) % half
    return Value(f'"{text}"'.encode(), b"a \xed\xa0\x80 b")


def _invalid_utf8(rng: random.Random) -> Value:
    bad = rng.choice(
        (b"\xff\xfe", b"caf\xe9", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80")
    )
    encoded = base64.b64encode(bad).decode()
    return Value(rng.choice((b'"' + bad + b'"', f'{{"b64": "{encoded}"}}'.encode())), bad)


def _words(rng: random.Random) -> Value:
    word = rng.choice(("the cat sat ", "a ", "zx "))
    return of_text(word * (MEGABYTES_10 // len(word)))


def _one_word(rng: random.Random) -> Value:
    return of_text(rng.choice("az0_") * MEGABYTES_10)


def _combining(rng: random.Random) -> Value:
    mark = chr(rng.randrange(0x300, 0x36F))
    return of_text("e" + mark * rng.choice((1, 8, 100, 2000)))


def _b64(rng: random.Random) -> Value:
    bad = ("dGhl====", "dGhl=", "dA=", "d", "dGhlIGNhdA", "####", "dGhl\\n", "\\u00e9", "d-_l")
    return Value(f'{{"b64": "{rng.choice(bad)}"}}'.encode(), None)


def _ids(rng: random.Random) -> Value:
    ids = [rng.randrange(-5, 60_000) for _ in range(rng.randrange(1, 40))]
    return Value(json.dumps(ids).encode(), None)


def _random(rng: random.Random) -> Value:
    points = (rng.choice((0x80, 0x800, 0xD000, 0x110000)) for _ in range(rng.randrange(1, 40)))
    chosen = (chr(rng.randrange(limit)) for limit in points)
    return of_text("".join(c for c in chosen if not "\ud800" <= c <= "\udfff"))


_ZWJ = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
KINDS: dict[str, Kind] = {
    "lone surrogates": Kind(_surrogate, "refused"),
    "invalid UTF-8": Kind(_invalid_utf8, "refused"),
    "NUL": Kind(_one_of("\0", "a", " "), "answered"),
    "control characters": Kind(_one_of(*map(chr, range(1, 32)), "\x7f", "\x85"), "answered"),
    "10 MB of words": Kind(_words, "refused"),
    "10 MB in one word": Kind(_one_word, "refused"),
    "combining marks": Kind(_combining, "either"),
    "right to left": Kind(_one_of("\u202e", "\u05d0", "\u0645", "\u200f", "a"), "answered"),
    "emoji": Kind(_one_of("\U0001f600", _ZWJ, "\U0001f1e9\U0001f1ea", up_to=3), "answered"),
    "no characters": Kind(_one_of("\uffff", "\U0010ffff", "\ufdd0", "\ufeff"), "answered"),
    "tokens of its own": Kind(_one_of("[SEP]", "[PAD]", "[UNK]", "##s", " "), "either"),
    "searched for long": Kind(lambda rng: of_text("\u03b1" * rng.randrange(25, 60) + "!"), "refused"),
    "random": Kind(_random, "either"),
    "empty": Kind(lambda _: of_text(""), "answered"),
    "blank": Kind(_one_of(" ", "\t", "\n", "\u3000", "\u2028"), "answered"),
    "one token too many": Kind(lambda _: of_text("cat " * 15), "refused"),
    "numbers": Kind(_only_json("7", "-0.5", "1e400", "9" * 400), "refused"),
    "true, false, null": Kind(_only_json("true", "false", "null"), "refused"),
    "NaN": Kind(_only_json("NaN", "Infinity", "-NaN"), "refused"),
    "nested lists": Kind(_only_json('[["a"]]', "[[]]", '[["a", ["b"]]]', "[" * 500 + "]" * 500), "refused"),
    "objects": Kind(_only_json('{"txt": "a"}', "{}", '{"b64": 7}', '{"b64": "YQ==", "x": 1}'), "refused"),
    "bad base64": Kind(_b64, "refused"),
    "ids of another tokenizer": Kind(_ids, "refused"),
}  # fmt: skip


def truncated(body: bytes, rng: random.Random) -> bytes:
    """Cut a body off."""
    return body[: rng.randrange(len(body))]


def nested(body: bytes, rng: random.Random) -> bytes:
    """Put a body into more arrays than a parser follows."""
    depth = rng.choice((1100, 50_000))
    return b'{"instances": ' + b"[" * depth + body + b"]" * depth + b"}"


def twice(body: bytes, _: random.Random) -> bytes:
    """Have a body say everything twice."""
    inner = body.strip()[1:-1]
    return b"{" + inner + b", " + inner + b"}"


def other_encoding(body: bytes, rng: random.Random) -> bytes:
    """Encode a body otherwise."""
    return body.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))


def flipped(body: bytes, rng: random.Random) -> bytes:
    """Make one byte of a body one that no UTF-8 has."""
    at = rng.randrange(len(body))
    return body[:at] + bytes([rng.choice((0xFF, 0xC0, 0xF8))]) + body[at + 1 :]


# Of bodies in JSON whose texts are good.
BROKEN: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated JSON": truncated,
    "nested bodies": nested,
    "keys twice": twice,
    "other encodings": other_encoding,
    "a byte of no UTF-8": flipped,
}


def lying(elements: list[bytes], rng: random.Random) -> bytes:
    """Return BYTES elements of which a length, or the end, is wrong."""
    lengths = [len(element) for element in elements]
    at = rng.randrange(len(lengths))
    lengths[at] = rng.choice((0, lengths[at] + 1, lengths[at] - 1, 2**31, 2**32 - 1))
    parts = (n.to_bytes(4, "little") + e for n, e in zip(lengths, elements, strict=True))
    return rng.choice((b"".join(parts), b"\x01", b"", b"".join(elements)))


LYING = "lengths that lie"
