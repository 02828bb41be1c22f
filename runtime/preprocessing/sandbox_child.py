"""The child of `sandbox`: reads a tokenizer.json, encodes texts, and may crash."""

import json
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.preprocessing.growth import expect_bounded_growth
from runtime.preprocessing.tokenizer import Text, Tokenizer, TokenizerError

# Each is repeated up to the longest text that callers can send: one word, many words, what no
# vocabulary has, what is written without spaces, what normalizers take apart, and blanks.
_PATTERNS = (
    "a",
    "a b1, ",
    "the cat sat; ",
    "\u4e2d\u6587",
    "\U0001f600",
    "e\u0301\ufdfa",
    " ",
    "0",
)
# All of ASCII, and of Latin, in which a rule for one character meets it.
_LETTERS = "".join(map(chr, range(1, 0x250)))
# Bytes of all texts that are made of a file's own patterns.
_OF_PATTERNS = 1 << 20


def main(argv: Sequence[str]) -> None:
    """Try the tokenizer that comes in; write what is wrong with it as a JSON string."""
    cpu_s, memory_bytes, max_bytes, pair = map(int, argv)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    size = int.from_bytes(sys.stdin.buffer.read(8), "little")
    texts = json.loads(sys.stdin.buffer.read(size))
    print(json.dumps(_found(sys.stdin.buffer.read(), texts, max_bytes, pair=bool(pair))))


def _found(data: bytes, texts: Sequence[str], max_bytes: int, *, pair: bool) -> str:
    """Return what is wrong with a tokenizer, or nothing."""
    try:
        expect_bounded_growth(data)
        tokenizer = Tokenizer(data)
    except TokenizerError as error:
        return f"one that is not read: {error}"
    for text in (*texts, *trial_texts(max_bytes), *texts_of_patterns(data, max_bytes)):
        given: Text = (text, text) if pair else text
        try:
            tokenizer.encode([given])
        except TokenizerError as error:
            return f"one that fails on {text[:20]!r}: {error}"
    return ""


def trial_texts(max_bytes: int) -> Iterator[str]:
    """Yield texts of several kinds, the long ones of `max_bytes` bytes at most."""
    yield ""
    yield from (_LETTERS[i : i + 64] for i in range(0, len(_LETTERS), 64))
    for pattern in _PATTERNS:
        # What ends otherwise than it begins is what patterns search through again and again.
        yield pattern * ((max_bytes - 1) // len(pattern.encode())) + "!"


def texts_of_patterns(data: bytes, max_bytes: int) -> list[str]:
    """Return texts on which the patterns of a file may search for long: made of their own letters.

    Args:
      data: tokenizer.json.
      max_bytes: that a text can have.
    """
    units: dict[str, None] = {}
    for pattern in _patterns(json.loads(data)):
        literal = re.sub(r"\\.|\W", "", pattern)
        units |= dict.fromkeys((literal, *literal)) if literal else {}
    each = min(max_bytes, _OF_PATTERNS // max(1, len(units)))
    return [unit * ((each - 1) // len(unit.encode())) + "!" for unit in units]


def _patterns(value: Any) -> Iterator[str]:
    """Yield all regular expressions within a JSON value."""
    members = value.values() if isinstance(value, dict) else value
    for member in members if isinstance(value, dict | list) else ():
        yield from _patterns(member)
    if isinstance(value, dict) and isinstance(value.get("Regex"), str):
        yield value["Regex"]
