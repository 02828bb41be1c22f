"""The manifest: what is read, what is refused, and that writing and reading agree."""

import copy
import json

from pytest import mark, param, raises

from runtime.errors import ManifestError
from runtime.manifest import Manifest
from runtime.node import Node, to_json
from runtime.signature import DTYPE_BYTES, Axis, TensorSpec

ABSENT = object()


def changed(value, place, new):
    """Return a copy in which one value is replaced, or absent."""
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
    assert Manifest.from_bytes(json.dumps(value).encode()).name == "fake_bundle"


def test_reading_gives_what_was_written(fake_bundle):
    """
    Equal manifests are written as the same bytes.
    """
    data = (fake_bundle / "manifest.json").read_bytes()

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
            "expected each name once, got 'cpu' twice at $.platforms",
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
            "expected a dtype of " + ", ".join(DTYPE_BYTES) + ", got 'string' "
            "at $.signature.inputs[0].dtype",
            id="dtype",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            [],
            "expected [_, …] with sizes or axis names after the batch, got '' "
            "at $.signature.inputs[0].shape[0]",
            id="no-batch",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            [4, 3],
            "expected [_, …] with sizes or axis names after the batch, got 4 "
            "at $.signature.inputs[0].shape[0]",
            id="batch-is-a-number",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            ["_", "_"],
            "expected [_, …] with sizes or axis names after the batch, got '_' "
            "at $.signature.inputs[0].shape[1]",
            id="batch-twice",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            ["_", -1],
            "expected [_, …] with sizes or axis names after the batch, got -1 "
            "at $.signature.inputs[0].shape[1]",
            id="negative-size",
        ),
        param(
            ("signature", "inputs", 0, "shape"),
            ["_", True],
            "expected [_, …] with sizes or axis names after the batch, got True "
            "at $.signature.inputs[0].shape[1]",
            id="bool-size",
        ),
        param(
            ("signature", "outputs", 0, "shape"),
            ["_", "length"],
            "'scores' names an unknown axis 'length' at $.signature.outputs[0].shape[1]",
            id="unknown-axis",
        ),
        param(
            ("signature", "inputs"),
            [],
            "expected at least one, got none at $.signature.inputs",
            id="no-inputs",
        ),
        param(
            ("signature", "inputs", 1, "name"),
            "ids",
            "expected each name once, got 'ids' twice at $.signature.inputs",
            id="input-twice",
        ),
        param(
            ("signature", "inputs", 0),
            {"name": "m", "dtype": "bool", "shape": ["_", "seq"], "mask": True},
            "expected an input that is not a mask, got masks only at $.signature.inputs",
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
            "expected a pad of int32, got 2147483648 at $.signature.inputs[0].pad",
            id="pad-does-not-fit",
        ),
        param(
            ("signature", "inputs", 0, "pad"),
            0.5,
            "expected a pad of int32, got 0.5 at $.signature.inputs[0].pad",
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
            "expected a maximum of at least the minimum 0, got -1 at $.signature.inputs[0].maximum",
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
            "expected a number or an axis of 'seq' as maximum, got 'sequence' "
            "at $.signature.inputs[0].maximum",
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
            "expected a minimum up to its first size 2, got 3 at $.signature.axes[0].minimum",
            id="minimum-beyond-a-bucket",
        ),
        param(
            ("signature", "axes", 0, "minimum"),
            -1,
            "expected a minimum up to its first size 2, got -1 at $.signature.axes[0].minimum",
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
            "expected one of scores, got 'logits' at $.output_format.output",
            id="formatted-output",
        ),
        param(
            ("output_format", "labels"),
            ["red"],
            "expected 3 for float32[_, 3], got 1 at $.output_format.labels",
            id="labels",
        ),
        param(
            ("output_format", "labels"),
            ["red", "green", "red"],
            "expected each name once, got 'red' twice at $.output_format.labels",
            id="labels-twice",
        ),
        param(
            ("params", "arguments", 1, "name"),
            "weights",
            "expected each name once, got 'weights' twice at $.params.arguments",
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


@mark.parametrize("minimum", [0, 1, 2])
def test_an_axis_says_its_minimum_where_it_is_not_1(minimum):
    """
    A minimum of 1 is not written, as bundles of before have none.
    """
    axis = Axis(name="seq", sizes=(2, 4), minimum=minimum)
    written = {"name": "seq", "sizes": [2, 4]} | ({} if minimum == 1 else {"minimum": minimum})

    assert to_json(axis) == written
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
