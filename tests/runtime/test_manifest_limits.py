"""What a manifest may not be: another format, no JSON, too large, or made to cost time."""

import json

from pytest import mark, param, raises

from runtime.errors import UnsupportedFormat
from runtime.manifest import MAX_MANIFEST_BYTES, Manifest
from tests.runtime.test_manifest import changed, refusal


def test_version_is_looked_at_first():
    """
    A manifest of another version is called that, whatever else it holds or lacks.
    """
    with raises(UnsupportedFormat) as caught:
        Manifest.from_bytes(b'{"format_version": 5, "new": true}')

    assert str(caught.value) == (
        "manifest.json: expected format_version 1, 2, 3 or 4, got 5; re-export the model, or serve it with "
        "the release that wrote it"
    )


@mark.parametrize(
    ("data", "message"),
    [
        param(b"", "expected strict JSON in UTF-8: Expecting value: line 1 column 1 (char 0) at $"),
        param(b"[]", "expected object, got array at $"),
        param(b"{}", "missing 'format_version' at $"),
        param(
            b'{"format_version": true}',
            "expected int, got bool at $.format_version",
            id="version-true",
        ),
        param(
            b'{"format_version": 1.0}',
            "expected int, got float at $.format_version",
            id="version-float",
        ),
        param(b'{"a": 1, "a": 1}', "duplicate key 'a' at $"),
        param(b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b' at $"),
        param(b"[" * 100_000, "expected less nesting at $", id="arrays"),
        param(b'{"a":' * 100_000, "expected less nesting at $", id="objects"),
        param(
            b'{"format_version": 1, "name": "\\ud800"}',
            "expected strict JSON in UTF-8: 'utf-8' codec can't encode character '\\ud800' in "
            "position 31: surrogates not allowed at $",
            id="lone-surrogate",
        ),
        param(
            b'{"name": "\xff"}',
            "expected strict JSON in UTF-8: 'utf-8' codec can't decode byte 0xff in position 10: "
            "invalid start byte at $",
            id="not-utf-8",
        ),
        param(
            b"\xef\xbb\xbf{}",
            "expected strict JSON in UTF-8: Unexpected UTF-8 BOM (decode using utf-8-sig): "
            "line 1 column 1 (char 0) at $",
            id="byte-order-mark",
        ),
    ],
)
def test_what_is_not_a_json_object_is_refused(data, message):
    """
    Damaged, deeply nested, ambiguous and undecodable documents raise one readable error.
    """
    assert refusal(data) == f"manifest.json: {message}"


@mark.parametrize(("written", "shown"), [("NaN", "nan"), ("-Infinity", "-inf"), ("1e999", "inf")])
def test_numbers_are_finite(value, written, shown):
    """
    NaN, Infinity and what overflows to it are refused: no tolerance may accept everything.
    """
    text = json.dumps(changed(value, ("tolerances", "cpu", "scores", "atol"), "HERE"))

    assert refusal(text.replace('"HERE"', written).encode()) == (
        f"manifest.json: expected a finite number, got {shown} at $.tolerances.cpu.scores.atol"
    )


def test_size_is_limited():
    """
    What is larger than any real manifest is refused before it is parsed.
    """
    assert refusal(bytes(MAX_MANIFEST_BYTES + 1)) == (
        "manifest.json: expected at most 67108864 bytes, got 67108865 at $"
    )


@mark.parametrize("written", [b"0,", b"[]", b"{}"])
def test_number_of_values_is_limited(monkeypatch, written):
    """
    What has more values than any real manifest takes minutes to parse, and is not parsed.
    """
    monkeypatch.setattr("json.loads", None)

    assert refusal(b"[" + written * 2_000_000) == (
        "manifest.json: expected at most 2,000,000 values, got 2,000,001 at $"
    )


@mark.parametrize(
    ("place", "where"),
    [
        (("created",), "$.created"),
        (("exporter", "jax"), "$.exporter.jax"),
        (("signature", "inputs", 0, "name"), "$.signature.inputs[0].name"),
        (("params", "entries", 0, "name"), "$.params.entries[0].name"),
    ],
)
def test_texts_are_no_longer_than_messages_can_repeat(value, place, where):
    """
    What is reported of a bundle stays a line, whatever the bundle calls itself and its tensors.
    """
    assert refusal(json.dumps(changed(value, place, "x" * 4097)).encode()) == (
        f"manifest.json: expected at most 4,096 characters, got 4,097 at {where}"
    )


def test_path_of_a_file_is_no_longer_than_paths_are(value):
    """
    A path of millions of folders is refused before anything looks at one of them.
    """
    entry = value["programs"][0]["exported"]
    entry["path"] = "a/" * 511 + "bc"
    Manifest.from_bytes(json.dumps(value).encode())

    entry["path"] = "a/" * 512 + "b"
    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected a path of at most 1,024 characters, got 1,025 at "
        "$.programs[0].exported.path"
    )


def test_integers_that_multiply_for_ever_are_refused_at_once(value):
    """
    Sizes of thousands of digits, and thousands of sizes, would be multiplied for hours.
    """
    argument = value["params"]["arguments"][0]

    argument["shape"] = [10**4000] * 400
    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected integers of 64 bits, got one of 4001 digits at $"
    )
    argument["shape"] = [2**63] * 100_000
    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected at most 64 sizes, got 100000 at $.params.arguments[0].shape"
    )


def test_text_of_a_manifest_stays_in_its_place(value):
    """
    What a message repeats of a manifest is printable and not without end.
    """
    value["drift"] = {"\x1b[2J\nok": "x"}
    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected float, got string at $.drift.\\x1b[2J\\nok"
    )

    value["drift"] = {"n" * 10**6: 0.0}
    assert len(refusal(json.dumps(value).encode())) < 2100


def test_sizes_that_multiply_are_refused_at_once(value):
    """
    A few lines of sizes cannot make the reader enumerate more buckets than there are programs.
    """
    sizes = list(range(1, 1001))
    axes = [{"name": f"axis{i}", "sizes": sizes} for i in range(6)]
    broken = changed(value, ("signature", "axes"), [*value["signature"]["axes"], *axes])
    for program in broken["programs"]:
        program["axes"] |= {axis["name"]: 1 for axis in axes}

    assert refusal(json.dumps(broken).encode()).startswith(
        "manifest.json: expected one program for each of 4000000000000000000 buckets, got [(1, 2,"
    )
