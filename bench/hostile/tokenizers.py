"""Kinds of bad tokenizer.json: changes of a good one, or bytes that are none."""

import json
import random
from collections.abc import Callable
from typing import Any

from bench.fuzz.mutations import other_json

# Returns a file, made of the JSON value of a good one, which it may change.
Kind = Callable[[dict[str, Any], random.Random], bytes]
_MEBIBYTE = 1 << 20


def _changed(change: Callable[[dict[str, Any], random.Random], object]) -> Kind:
    def make(value: dict[str, Any], rng: random.Random) -> bytes:
        change(value, rng)
        return json.dumps(value).encode()

    return make


def _cut(value: dict[str, Any], rng: random.Random) -> bytes:
    data = json.dumps(value).encode()
    return data[: rng.randrange(len(data) - 1)]


def _flipped(value: dict[str, Any], rng: random.Random) -> bytes:
    data = bytearray(json.dumps(value).encode())
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.choice((0x00, 0xFF, 0xC0, ord("{"), ord('"')))
    return bytes(data)


def _nested(_: dict[str, Any], rng: random.Random) -> bytes:
    depth = rng.choice((1_000, 100_000))
    opened, closed = rng.choice((("[", "]"), ('{"normalizer": ', "}")))
    return (opened * depth + "1" + closed * depth).encode()


def _nested_normalizers(value: dict[str, Any], rng: random.Random) -> bytes:
    depth = rng.choice((200, 3_000, 50_000))
    value["normalizer"] = "@"
    inner = '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth
    return json.dumps(value).replace('"@"', inner).encode()


def _other_type(value: dict[str, Any], rng: random.Random) -> None:
    part = rng.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"))
    value[part] = {"type": rng.choice(("Lua", "", "BPEE", "sequence"))}


def _no_model(value: dict[str, Any], rng: random.Random) -> None:
    if rng.random() < 0.5:
        del value["model"]
    else:
        value["model"] = rng.choice((None, {}, [], "BPE", {"type": "WordPiece"}))


def _ids(*choices: int) -> Kind:
    def change(value: dict[str, Any], rng: random.Random) -> None:
        vocab = value["model"]["vocab"]
        vocab[rng.choice(list(vocab))] = rng.choice(choices)

    return _changed(change)


def _no_unknown(value: dict[str, Any], rng: random.Random) -> None:
    value["model"]["unk_token"] = rng.choice(("[NONE]", "", "\x00"))


def _regex(value: dict[str, Any], *patterns: str, rng: random.Random) -> None:
    split = {"type": "Split", "behavior": rng.choice(("Isolated", "Removed", "MergedWithNext"))}
    pattern = {"Regex": rng.choice(patterns)}
    value["pre_tokenizer"] = split | {"pattern": pattern, "invert": rng.random() < 0.5}


def _bad_regex(value: dict[str, Any], rng: random.Random) -> None:
    _regex(value, "(", "[z-a]", "a{2,1}", "(?<=a+)b", "\\", "(?P<x>", "*", rng=rng)


def _backtracking(value: dict[str, Any], rng: random.Random) -> None:
    letter = rng.choice("abcdez0 ")
    shape = rng.choice(("({0}+)+$", "({0}|{0})+$", "(({0}*)*)*$", "(?:{0}+){{2,}}$"))
    _regex(value, shape.format(letter), rng=rng)


def _growing(value: dict[str, Any], rng: random.Random) -> None:
    rule = {
        "type": "Replace",
        "pattern": rng.choice(({"String": "a"}, {"Regex": "."}, {"Regex": "x*"})),
        "content": "a" * rng.choice((100, 2_000)),
    }
    value["normalizer"] = {"type": "Sequence", "normalizers": [rule] * rng.choice((2, 5, 50))}


def _padding(value: dict[str, Any], rng: random.Random) -> None:
    value["padding"] = {
        "strategy": {"Fixed": rng.choice((2**31, 2**40, 2**63, 0))},
        "direction": rng.choice(("Right", "Left")),
        "pad_to_multiple_of": rng.choice((None, 2**40, 0)),
        "pad_id": rng.choice((0, 1, 2**32 - 1)),
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }


def _truncation(value: dict[str, Any], rng: random.Random) -> None:
    value["truncation"] = {
        "max_length": rng.choice((0, 1, 2, 2**63)),
        "stride": rng.choice((0, 10, 2**40)),
        "strategy": rng.choice(("LongestFirst", "OnlySecond", "Other")),
        "direction": "Right",
    }


def _added_tokens(value: dict[str, Any], rng: random.Random) -> None:
    content = rng.choice(("the", "", "\x00", "[PAD]", "a" * 10_000, "\u2581"))
    wrong = {"id": rng.choice((-1, 0, 127, 128, 10**6, 2**32 - 1, 2**64)), "content": content}
    flags = {
        f: rng.random() < 0.5 for f in ("single_word", "lstrip", "rstrip", "normalized", "special")
    }
    value["added_tokens"].append(wrong | flags)


def _template(value: dict[str, Any], rng: random.Random) -> None:
    post = value["post_processor"]
    post["special_tokens"] = rng.choice(
        ({}, {"[CLS]": {"id": "[CLS]", "ids": [10**6], "tokens": ["x"]}})
    )
    post["single"] *= rng.choice((1, 8, 1_000))


def _version(value: dict[str, Any], rng: random.Random) -> None:
    value["version"] = rng.choice(("2.0", "0.9", "", None, 1.0, "1.0.0.0"))


def _mutated(value: dict[str, Any], rng: random.Random) -> bytes:
    for _ in range(rng.randrange(1, 4)):
        value = other_json(value, rng)  # type: ignore[assignment]
        if not isinstance(value, dict) or not value:
            break
    return json.dumps(value).encode()


def _garbage(_: dict[str, Any], rng: random.Random) -> bytes:
    return rng.choice(
        (b"", b" ", b"null", b"[]", b'"tokenizer"', rng.randbytes(1000), b"\x80\x04N.")
    )


def _large(value: dict[str, Any], rng: random.Random) -> bytes:
    size = 64 * _MEBIBYTE + rng.randrange(1, 1000)
    return json.dumps(value).encode().ljust(size, b" ")


KINDS: dict[str, Kind] = {
    "no tokenizer": _garbage,
    "cut off": _cut,
    "bytes changed": _flipped,
    "values changed": _mutated,
    "nested": _nested,
    "nested normalizers": _nested_normalizers,
    "no model": _changed(_no_model),
    "unknown types": _changed(_other_type),
    "other versions": _changed(_version),
    "negative ids": _ids(-1, -(2**31)),
    "ids beyond the table": _ids(128, 1000, 2**31, 2**32 - 1),
    "ids of 64 bits": _ids(2**32, 2**64, 10**30),
    "no unknown token": _changed(_no_unknown),
    "wrong patterns": _changed(_bad_regex),
    "backtracking": _changed(_backtracking),
    "growing": _changed(_growing),
    "endless padding": _changed(_padding),
    "odd truncation": _changed(_truncation),
    "added tokens": _changed(_added_tokens),
    "odd templates": _changed(_template),
    "too large": _large,
}
