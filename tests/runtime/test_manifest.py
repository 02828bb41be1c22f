"""The manifest: what is read, what is refused, and that writing and reading agree."""

import copy
import json
import math

import hypothesis.strategies as st
from hypothesis import given, settings
from pytest import fixture, mark, param, raises

from runtime.entries import (
    PLATFORMS,
    SCORES,
    Argument,
    File,
    Golden,
    Origin,
    OutputFormat,
    Param,
    Params,
    ProgramEntry,
    Tolerance,
)
from runtime.errors import ManifestError, UnsupportedFormat
from runtime.manifest import MAX_MANIFEST_BYTES, Manifest
from runtime.node import Node
from runtime.signature import DTYPE_BYTES, Axis, Signature, TensorSpec, limits

ABSENT = object()


@fixture
def value(paper):
    """manifest.json of a bundle on paper, as JSON values."""
    return json.loads((paper / "manifest.json").read_bytes())


def changed(value, place, new):
    """Return a copy in which what stands at a place is another value, or absent."""
    value = copy.deepcopy(value)
    here = value
    for key in place[:-1]:
        here = here[key]
    if new is ABSENT:
        del here[place[-1]]
    else:
        here[place[-1]] = new
    return value


def refusal(data):
    """Read bytes that must be refused; return the message."""
    with raises(ManifestError) as caught:
        Manifest.from_bytes(data)
    return str(caught.value)


def test_bundle_on_paper_is_legal(value):
    """
    The manifest that the other tests break is read without complaint.
    """
    assert Manifest.from_bytes(json.dumps(value).encode()).name == "paper"


def test_reading_gives_what_was_written(paper):
    """
    Equal manifests are written as the same bytes.
    """
    data = (paper / "manifest.json").read_bytes()

    assert Manifest.from_bytes(data).to_bytes() == data


@mark.parametrize(
    ("place", "new", "message"),
    [
        param(
            ("programs", 0, "batch"),
            True,
            "expected int, got bool at $.programs[0].batch",
            id="bool-is-not-int",
        ),
        param(("x64",), 1, "expected bool, got int at $.x64", id="int-is-not-bool"),
        param(("buckets",), [1, 2.0], "expected int, got float at $.buckets[1]", id="float-bucket"),
        param(("name",), None, "expected string, got null at $.name", id="null-name"),
        param(("signature",), [], "expected object, got array at $.signature", id="array"),
        param(("programs",), {}, "expected array, got object at $.programs", id="object"),
        param(
            ("goldens", 0), "x", "expected object, got string at $.goldens[0]", id="string-entry"
        ),
        param(("created",), ABSENT, "missing 'created' at $", id="missing-key"),
        param(
            ("programs", 1, "exported", "sha256"),
            ABSENT,
            "missing 'sha256' at $.programs[1].exported",
            id="missing-key-inside",
        ),
        param(("note",), "hi", "unknown key 'note' at $", id="unknown-key"),
        param(
            ("signature", "inputs", 0, "padding"),
            0,
            "unknown key 'padding' at $.signature.inputs[0]",
            id="unknown-key-inside",
        ),
        param(
            ("tolerances", "cpu", "scores", "ulp"),
            1,
            "unknown key 'ulp' at $.tolerances.cpu.scores",
            id="unknown-key-in-a-mapping",
        ),
        param(
            ("exporter", "jax"), 12, "expected string, got int at $.exporter.jax", id="version-int"
        ),
        param(("drift", "scores"), "0", "expected float, got string at $.drift.scores", id="drift"),
        param(
            ("drift", "scores"),
            10**20,
            "expected integers of 64 bits, got one of 21 digits at $",
            id="int-beyond-64-bits",
        ),
    ],
)
def test_wrong_kind_is_refused_at_its_place(value, place, new, message):
    """
    A value of another type, a missing key and an unknown key are named with their JSON path.
    """
    assert refusal(json.dumps(changed(value, place, new)).encode()) == f"manifest.json: {message}"


@mark.parametrize(
    ("place", "new", "message"),
    [
        param(("name",), "a/b", "expected letters, digits, '_.-', got 'a/b' at $.name", id="name"),
        param(("version",), "1.0", "expected digits, got '1.0' at $.version", id="version"),
        param(("buckets",), [], "expected increasing sizes from 1 on, got [] at $.buckets", id="b"),
        param(
            ("buckets",),
            [2, 2],
            "expected increasing sizes from 1 on, got [2, 2] at $.buckets",
            id="bucket-twice",
        ),
        param(
            ("buckets",),
            [0, 1],
            "expected increasing sizes from 1 on, got [0, 1] at $.buckets",
            id="bucket-of-nothing",
        ),
        param(("platforms",), [], "expected at least one platform at $.platforms", id="nowhere"),
        param(
            ("platforms",),
            ["cpu", "cpu"],
            "duplicate name 'cpu' at $.platforms",
            id="platform-twice",
        ),
        param(
            ("platforms", 0),
            "gpu",
            "expected 'cpu' or 'cuda' or 'rocm' or 'tpu', got 'gpu' at $.platforms[0]",
            id="platform",
        ),
        param(
            ("verified",),
            ["tpu"],
            "expected some of ['cpu', 'cuda'], got 'tpu' at $.verified",
            id="verified-elsewhere",
        ),
        param(
            ("tolerances", "cuda"),
            ABSENT,
            "expected ['cpu', 'cuda'], got ['cpu'] at $.tolerances",
            id="platform-without-tolerance",
        ),
        param(
            ("tolerances", "cpu"),
            {},
            "expected ['scores'], got [] at $.tolerances.cpu",
            id="output-without-tolerance",
        ),
        param(
            ("tolerances", "cpu", "scores", "atol"),
            -1.0,
            "expected no negative tolerance at $.tolerances.cpu.scores",
            id="negative-tolerance",
        ),
        param(
            ("signature", "inputs", 0, "dtype"),
            "string",
            "expected " + " or ".join(map(repr, DTYPE_BYTES)) + ", got 'string' "
            "at $.signature.inputs[0].dtype",
            id="dtype",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            [],
            "expected a shape that begins with '_' at $.signature.inputs[0].shape",
            id="no-batch",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            [4, 3],
            "expected a shape that begins with '_' at $.signature.inputs[0].shape",
            id="batch-is-a-number",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            ["_", "_"],
            "expected '_' first, then sizes or axis names, got '_' "
            "at $.signature.inputs[0].shape[1]",
            id="batch-twice",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            ["_", -1],
            "expected '_' first, then sizes or axis names, got -1 "
            "at $.signature.inputs[0].shape[1]",
            id="negative-size",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            ["_", True],
            "expected '_' first, then sizes or axis names, got True "
            "at $.signature.inputs[0].shape[1]",
            id="bool-size",
        ),
        param(
            ("signature", "outputs", 0, "shape"),
            ["_", "length"],
            "'scores' names an unknown axis 'length' at $.signature.outputs",
            id="unknown-axis",
        ),
        param(
            ("signature", "inputs"),
            [],
            "expected at least one tensor at $.signature.inputs",
            id="no-inputs",
        ),
        param(
            ("signature", "inputs", 1, "name"),
            "ids",
            "duplicate name 'ids' at $.signature.inputs",
            id="input-twice",
        ),
        param(
            ("signature", "inputs", 0),
            {"name": "m", "dtype": "bool", "shape": ["_", "seq"], "mask": True},
            "expected an input that is not a mask at $.signature.inputs",
            id="masks-only",
        ),
        param(
            ("signature", "inputs", 1, "shape"),
            ["_", 4],
            "expected a bucketed axis for a mask, got int32[_, 4] at $.signature.inputs[1].mask",
            id="mask-without-axis",
        ),
        param(
            ("signature", "inputs", 0, "pad"),
            2**31,
            "expected a value of int32, got 2147483648 at $.signature.inputs[0].pad",
            id="pad-does-not-fit",
        ),
        param(
            ("signature", "inputs", 0, "pad"),
            0.5,
            "expected a value of int32, got 0.5 at $.signature.inputs[0].pad",
            id="pad-would-be-cut",
        ),
        param(
            ("signature", "inputs", 0, "pad"),
            False,
            "expected float, got bool at $.signature.inputs[0].pad",
            id="pad-is-no-number",
        ),
        param(
            ("signature", "inputs", 0, "maximum"),
            -1,
            "expected at least the minimum 0, got -1 at $.signature.inputs[0].maximum",
            id="empty-range",
        ),
        param(
            ("signature", "inputs", 0, "dtype"),
            "float32",
            "expected an integer dtype for a range, got float32 at $.signature.inputs[0].minimum",
            id="range-of-floats",
        ),
        param(
            ("signature", "inputs", 0, "maximum"),
            1.5,
            "expected int, got float at $.signature.inputs[0].maximum",
            id="half-a-maximum",
        ),
        param(
            ("signature", "inputs", 0, "maximum"),
            "sequence",
            "expected a number, or an axis of an input that is no mask, got 'sequence' at "
            "$.signature.inputs[0].maximum",
            id="maximum-of-no-axis",
        ),
        param(
            ("signature", "inputs", 0, "maximum"),
            "seq",
            "expected int, got string at $.signature.inputs[0].maximum",
            id="maximum-of-a-later-format",
        ),
        param(
            ("signature", "outputs", 0),
            {"name": "y", "dtype": "int32", "shape": ["_"], "maximum": "seq"},
            "expected int, got string at $.signature.outputs[0].maximum",
            id="output-that-is-a-length",
        ),
        param(
            ("signature", "axes", 0, "sizes"),
            [4, 2],
            "expected increasing sizes from 1 on, got [4, 2] at $.signature.axes[0].sizes",
            id="axis-sizes",
        ),
        param(
            ("signature", "axes", 0, "minimum"),
            3,
            "expected a size up to 2, got 3 at $.signature.axes[0].minimum",
            id="minimum-beyond-a-bucket",
        ),
        param(
            ("signature", "axes", 0, "minimum"),
            -1,
            "expected a size up to 2, got -1 at $.signature.axes[0].minimum",
            id="negative-minimum",
        ),
        param(
            ("signature", "axes", 0, "minimum"),
            "1",
            "expected int, got string at $.signature.axes[0].minimum",
            id="minimum-in-words",
        ),
        param(
            ("goldens", 0, "axes", "seq"),
            0,
            "expected a size from 1 to 4, got 0 at $.goldens[0].axes.seq",
            id="golden-too-short",
        ),
        param(
            ("programs", 0, "batch"),
            0,
            "expected at least 1, got 0 at $.programs[0].batch",
            id="empty-batch",
        ),
        param(
            ("programs", 0, "axes"),
            {"seq": 2, "width": 2},
            "expected axes ['seq'], got ['seq', 'width'] at $.programs[0].axes",
            id="program-axes",
        ),
        param(
            ("programs", 3, "batch"),
            1,
            "expected one program for each of 4 buckets, "
            "got [(1, 2), (1, 4), (1, 4), (2, 2)] at $.programs",
            id="bucket-without-program",
        ),
        param(("goldens",), [], "expected at least one golden at $.goldens", id="no-goldens"),
        param(
            ("drift",),
            {"scores": 0.0, "other": 0.0},
            "expected some of ['scores'], got 'other' at $.drift",
            id="drift-of-no-output",
        ),
        param(
            ("goldens", 0, "rows"),
            0,
            "expected at least 1, got 0 at $.goldens[0].rows",
            id="golden-without-rows",
        ),
        param(
            ("goldens", 0, "axes"),
            {},
            "expected axes ['seq'], got [] at $.goldens[0].axes",
            id="golden-without-axis",
        ),
        param(
            ("goldens", 0, "axes", "seq"),
            5,
            "expected a size from 1 to 4, got 5 at $.goldens[0].axes.seq",
            id="golden-too-long",
        ),
        param(
            ("goldens", 0, "axes", "seq"),
            3,
            "expected a golden that the shortest buckets hold at $.goldens",
            id="shortest-bucket-without-golden",
        ),
        param(
            ("row_mixing",),
            ["the last row counts"],
            "expected goldens of [1, 2] rows where rows are mixed, got [1] at $.goldens",
            id="mixed-bucket-without-golden",
        ),
        param(
            ("output_format", "kind"),
            "label",
            "expected 'raw' or 'softmax' or 'classification', got 'label' at $.output_format.kind",
            id="output-format",
        ),
        param(
            ("output_format", "output"),
            "logits",
            "expected one of ['scores'], got 'logits' at $.output_format.output",
            id="formatted-output",
        ),
        param(
            ("output_format", "labels"),
            ["red"],
            "expected 3 labels, got 1 at $.output_format.labels",
            id="labels",
        ),
        param(
            ("output_format", "labels"),
            ["red", "green", "red"],
            "duplicate name 'red' at $.output_format.labels",
            id="labels-twice",
        ),
        param(
            ("params", "arguments", 1, "name"),
            "weights",
            "duplicate name 'weights' at $.params.arguments",
            id="argument-twice",
        ),
        param(
            ("params", "arguments", 0, "file"),
            "golden/0.safetensors",
            "expected one of the params files, got 'golden/0.safetensors' "
            "at $.params.arguments[0].file",
            id="argument-elsewhere",
        ),
        param(
            ("params", "arguments", 0, "shape"),
            [-1],
            "expected sizes, got [-1] at $.params.arguments[0].shape",
            id="argument-shape",
        ),
        param(
            ("params", "entries", 0, "argument"),
            "other",
            "expected a place in one of the arguments, got 'other' from element 0 on "
            "at $.params.entries[0]",
            id="entry-nowhere",
        ),
        param(
            ("params", "entries", 1, "offset"),
            17,
            "expected a place in one of the arguments, got 'weights' from element 17 on "
            "at $.params.entries[1]",
            id="entry-beyond-its-argument",
        ),
    ],
)
def test_contradiction_is_refused_at_its_place(value, place, new, message):
    """
    Values of the right type that the format does not allow are named with their JSON path.
    """
    assert refusal(json.dumps(changed(value, place, new)).encode()) == f"manifest.json: {message}"


@mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../b", "a//b", "./a", ".hidden", "a/.b", "a\\b", "a b", "", "a\n"],
)
def test_path_cannot_leave_the_bundle(value, path):
    """
    Absolute paths, dot segments and anything but plain names are refused.
    """
    broken = changed(value, ("programs", 0, "exported", "path"), path)

    assert refusal(json.dumps(broken).encode()) == (
        f"manifest.json: expected a plain relative path, got {path!r} "
        "at $.programs[0].exported.path"
    )


def test_manifest_cannot_be_one_of_its_files(value):
    """
    The manifest does not name itself.
    """
    broken = changed(value, ("goldens", 0, "file", "path"), "manifest.json")

    assert refusal(json.dumps(broken).encode()) == (
        "manifest.json: expected a plain relative path, got 'manifest.json' "
        "at $.goldens[0].file.path"
    )


def test_file_belongs_to_one_place(value):
    """
    Two entries cannot share a file.
    """
    broken = changed(
        value, ("programs", 0, "exported", "path"), value["programs"][0]["stablehlo"]["path"]
    )

    assert refusal(json.dumps(broken).encode()) == (
        "manifest.json: duplicate name 'programs/b1-seq2.stablehlo' at $ (files)"
    )


@mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_digest_is_64_lower_case_hex_digits(value, digest):
    """
    Anything else cannot be the SHA-256 of a file.
    """
    broken = changed(value, ("params", "files", 0, "sha256"), digest)

    assert refusal(json.dumps(broken).encode()) == (
        "manifest.json: expected 64 hex digits at $.params.files[0].sha256"
    )


def test_refreshed_bundle_is_of_format_2(value):
    """
    What a bundle was refreshed from is read and written again, in the format that has it.
    """
    origin = {"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}
    refreshed = Manifest.from_bytes(
        json.dumps(value | {"format_version": 2, "refreshed_from": [origin]}).encode()
    )

    assert refreshed.refreshed_from == (Origin(sha256="0" * 64, exporter={"jax": "0.11.2"}),)
    assert Manifest.from_bytes(refreshed.to_bytes()) == refreshed
    assert json.loads(refreshed.to_bytes())["format_version"] == 2


@mark.parametrize(
    ("version", "origins", "message"),
    [
        (1, [], "unknown key 'refreshed_from' at $"),
        (2, ABSENT, "missing 'refreshed_from' at $"),
        (2, [], "expected at least one origin at $.refreshed_from"),
        (
            2,
            [{"sha256": "0", "exporter": {}}],
            "expected 64 hex digits at $.refreshed_from[0].sha256",
        ),
        (
            2,
            [{"sha256": "0" * 64, "exporter": {"jax": 1}}],
            "expected string, got int at $.refreshed_from[0].exporter.jax",
        ),
    ],
)
def test_format_2_is_for_refreshed_bundles(value, version, origins, message):
    """
    A bundle of format 1 has no origin, one of format 2 has at least one.
    """
    value |= {"format_version": version}
    if origins is not ABSENT:
        value |= {"refreshed_from": origins}

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"


@mark.parametrize(
    "origins", [[], [{"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}]], ids=["new", "refreshed"]
)
def test_lengths_are_of_format_3(value, origins):
    """
    A bundle with an input that is limited by an axis is written as 3, refreshed or not.
    """
    lengths = {"name": "n", "dtype": "int32", "shape": ["_"], "minimum": 1, "maximum": "seq"}
    value["signature"]["inputs"].append(lengths)
    value |= {"format_version": 3, "refreshed_from": origins}

    manifest = Manifest.from_bytes(json.dumps(value).encode())

    assert manifest.signature.inputs[-1].maximum == "seq"
    assert json.loads(manifest.to_bytes()) == value


def test_the_shortest_input_has_a_legal_length(value):
    """
    A minimum beyond the axis' own would leave the shortest inputs none.
    """
    lengths = {"name": "n", "dtype": "int32", "shape": ["_"], "minimum": 2, "maximum": "seq"}
    value["signature"]["inputs"].append(lengths)
    value |= {"format_version": 3, "refreshed_from": []}
    place = len(value["signature"]["inputs"]) - 1

    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected at most 1, the minimum of axis 'seq', got 2 "
        f"at $.signature.inputs[{place}].minimum"
    )


@mark.parametrize(
    "origins", [[], [{"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}]], ids=["new", "refreshed"]
)
def test_infinities_are_of_format_4(value, origins):
    """
    A bundle with an output that may be infinite is written as 4, refreshed or not.
    """
    value["signature"]["outputs"][0] |= {"dtype": "float32", "nonfinite": "infinities"}
    value |= {"format_version": 4, "refreshed_from": origins}

    manifest = Manifest.from_bytes(json.dumps(value).encode())

    assert manifest.signature.outputs[0].nonfinite == "infinities"
    assert json.loads(manifest.to_bytes()) == value


@mark.parametrize("written", ["infinities", None])
@mark.parametrize("version", [1, 3])
def test_older_formats_know_no_infinities(value, version, written):
    """
    The key is as unknown in an older format as it is to its readers, whatever its value.
    """
    value["signature"]["outputs"][0] |= {"dtype": "float32", "nonfinite": written}
    value |= {"format_version": version} | ({"refreshed_from": []} if version > 1 else {})

    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: unknown key 'nonfinite' at $.signature.outputs[0]"
    )


@mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "outputs",
            {"nonfinite": "nan"},
            "expected 'infinities', got 'nan' at $.signature.outputs[0].nonfinite",
        ),
        (
            "outputs",
            {"nonfinite": True},
            "expected string, got bool at $.signature.outputs[0].nonfinite",
        ),
        (
            "outputs",
            {"nonfinite": "infinities", "dtype": "int32"},
            "expected a floating dtype for infinities, got int32 at $.signature.outputs[0].nonfinite",
        ),
        (
            "inputs",
            {"nonfinite": "infinities", "dtype": "float32"},
            "expected none for an input, got 'infinities' at $.signature.inputs[0].nonfinite",
        ),
    ],
)
def test_infinities_are_of_floating_outputs(value, key, change, message):
    """
    What `nonfinite` cannot be, and where it cannot be, is refused.
    """
    entry = value["signature"][key][0]
    for bound in ("minimum", "maximum", "pad"):
        entry.pop(bound, None)
    entry |= {"dtype": "float32"} | change
    value |= {"format_version": 4, "refreshed_from": []}

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"


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
    What is told of a bundle stays a line, whatever the bundle calls itself and its tensors.
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


@mark.parametrize("minimum", [0, 1, 2])
def test_an_axis_says_its_minimum_where_it_is_not_1(minimum):
    """
    A minimum of 1 is not written, as bundles of before have none.
    """
    axis = Axis(name="seq", sizes=(2, 4), minimum=minimum)
    written = {"name": "seq", "sizes": [2, 4]} | ({} if minimum == 1 else {"minimum": minimum})

    assert axis.to_json() == written
    assert Node(written).whole(Axis.from_node) == axis


def test_absent_and_null_options_are_defaults(value):
    """
    What is optional in a tensor may be left out or null.
    """
    value["signature"]["inputs"][1] = {
        "name": "mask",
        "dtype": "int32",
        "shape": ["_", "seq"],
        "pad": None,
        "minimum": None,
    }

    assert Manifest.from_bytes(json.dumps(value).encode()).signature.inputs[1] == TensorSpec(
        name="mask", dtype="int32", shape=("_", "seq")
    )


def test_where_is_the_json_path(value):
    """
    A caller can take the place of a complaint from the error itself.
    """
    with raises(ManifestError) as caught:
        Manifest.from_bytes(json.dumps(changed(value, ("programs", 2, "batch"), "8")).encode())

    assert caught.value.where == "$.programs[2].batch"


# --- any legal manifest ---

names = st.text(min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=8)
increasing = st.sets(st.integers(1, 1000), min_size=1, max_size=3).map(
    lambda sizes: tuple(sorted(sizes))
)


@st.composite
def tensors(draw, name, axes, *, is_input):
    """Draw a legal TensorSpec."""
    dtype = draw(st.sampled_from(sorted(DTYPE_BYTES)))
    dims = st.integers(0, 8) | st.sampled_from(axes) if axes else st.integers(0, 8)
    shape = ("_", *draw(st.lists(dims, max_size=3)))
    low, high = limits(dtype)
    values = numbers if math.isinf(low) else st.integers(int(low), int(high))
    if not is_input:
        return TensorSpec(name=name, dtype=dtype, shape=shape)
    first, second = sorted(draw(st.tuples(values, values)))
    ranged = not math.isinf(low)
    return TensorSpec(
        name=name,
        dtype=dtype,
        shape=shape,
        pad=draw(values),
        minimum=draw(st.none() | st.just(first)) if ranged else None,
        maximum=draw(st.none() | st.just(second)) if ranged else None,
    )


@st.composite
def manifests(draw):
    """Draw a legal Manifest."""
    paths = iter(draw(st.lists(plain, unique=True, min_size=40, max_size=40)))

    def file():
        digest = draw(st.binary(min_size=32, max_size=32)).hex()
        return File(path=f"d/{next(paths)}", bytes=draw(st.integers(0, 2**60)), sha256=digest)

    axis_names = draw(st.lists(plain.filter(lambda n: n != "_"), unique=True, max_size=2))
    axes = tuple(Axis(name=name, sizes=draw(increasing)) for name in axis_names)
    inputs = tuple(
        draw(tensors(name, axis_names, is_input=True))
        for name in draw(st.lists(names, unique=True, min_size=1, max_size=3))
    )
    for dim in {dim for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)}:
        if draw(st.booleans()):
            inputs += (TensorSpec(name=f"\1{dim}", dtype="int32", shape=("_",), maximum=dim),)
    outputs = tuple(
        draw(tensors(name, axis_names, is_input=False))
        for name in draw(st.lists(names, unique=True, min_size=1, max_size=2))
    )
    if axis_names:
        mask = TensorSpec(name="\0", dtype="bool", shape=("_", axis_names[0]), mask=True)
        inputs = (*inputs, mask)
    buckets = draw(increasing)[:2]
    axes = tuple(
        Axis(name=a.name, sizes=a.sizes[:2], minimum=draw(st.integers(0, a.sizes[0]))) for a in axes
    )
    combinations = [{}]
    for axis in axes:
        combinations = [c | {axis.name: size} for c in combinations for size in axis.sizes]
    params = file()
    argument = Argument(name=draw(names), dtype="float32", shape=(8,), file=params.path)
    platforms = tuple(draw(st.lists(st.sampled_from(PLATFORMS), unique=True, min_size=1)))
    positive = st.floats(0, 1e300)
    return Manifest(
        name=draw(plain.filter(lambda n: n[0] != "_")),
        version=str(draw(st.integers(0, 10**17))),
        created=draw(st.text()),
        exporter=draw(st.dictionaries(names, st.text(), max_size=3)),
        platforms=platforms,
        verified=tuple(draw(st.lists(st.sampled_from(platforms), unique=True))),
        x64=draw(st.booleans()),
        matmul_precision=draw(st.none() | st.text()),
        signature=Signature(inputs=inputs, outputs=outputs, axes=axes),
        buckets=buckets,
        output_format=OutputFormat(
            kind="softmax", output=outputs[0].name, scores=draw(st.sampled_from(SCORES))
        ),
        tolerances={
            platform: {o.name: Tolerance(atol=draw(positive), rtol=draw(positive)) for o in outputs}
            for platform in platforms
        },
        drift={o.name: draw(numbers) for o in outputs},
        row_mixing=tuple(draw(st.lists(st.text(), max_size=2))),
        params=Params(
            files=(params,),
            arguments=(argument,),
            entries=(
                Param(
                    name=draw(names),
                    dtype="float32",
                    shape=(2, 3),
                    argument=argument.name,
                    offset=draw(st.integers(0, 2)),
                ),
            ),
        ),
        programs=tuple(
            ProgramEntry(
                batch=batch,
                axes=sizes,
                exported=file(),
                stablehlo=file(),
                custom_calls=tuple(draw(st.lists(names, max_size=2))),
            )
            for batch in buckets
            for sizes in combinations
        ),
        goldens=tuple(
            Golden(
                axes={axis.name: draw(st.integers(axis.minimum, axis.sizes[0])) for axis in axes},
                rows=batch,
                file=file(),
            )
            for batch in buckets
        ),
    )


@mark.property
@settings(max_examples=50)
@given(manifests())
def test_any_manifest_survives_writing_and_reading(manifest):
    """
    Reading what was written gives the same manifest, and writing it again the same bytes.
    """
    data = manifest.to_bytes()

    assert Manifest.from_bytes(data) == manifest
    assert Manifest.from_bytes(data).to_bytes() == data


@mark.property
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(data):
    """
    No document raises anything but the errors that the runtime documents.
    """
    with raises((ManifestError, UnsupportedFormat)):
        Manifest.from_bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@mark.property
@given(data=st.data())
def test_any_replaced_value_is_read_or_refused(data):
    """
    Whatever stands in a value's place, reading ends in a manifest or a documented error.
    """
    manifest = data.draw(manifests())
    value = json.loads(manifest.to_bytes())
    here, place = value, []
    while isinstance(here, dict | list) and here:
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        place.append(data.draw(st.sampled_from(keys)))
        here = here[place[-1]]
        if data.draw(st.integers(0, 4)) == 0:
            break
    broken = changed(value, tuple(place), data.draw(json_values))

    try:
        again = Manifest.from_bytes(json.dumps(broken).encode())
    except (ManifestError, UnsupportedFormat):
        return
    assert Manifest.from_bytes(again.to_bytes()) == again
