"""What flags say of inputs and labels, said by keywords of `export_model` and ExportSpec."""

import re

import numpy as np
from pytest import fixture, mark, raises

from export import ExportError, ExportSpec, export_model
from export.exporting import _as_spec
from export.input_options import with_options
from runtime import load
from runtime.signature import TensorSpec

IDS = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"))
MASK = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"))


def changed(**options):
    """Return the two inputs with options, by name."""
    return {spec.name: spec for spec in with_options((IDS, MASK), options)}


@mark.parametrize(
    "given", [{"ids": "0:9"}, {"ids": (0, 9)}, {"ids": [0, 9]}, "ids=0:9", ["ids=0:9"]]
)
def test_a_range_is_given_by_input(given):
    """`range` takes both ends as a pair, or as the flag has them."""
    assert changed(range=given)["ids"].minimum == 0
    assert changed(range=given)["ids"].maximum == 9
    assert changed(range=given)["mask"] == MASK


@mark.parametrize("given", [{"ids": "1:seq"}, {"ids": (1, "seq")}])
def test_a_range_can_end_with_an_axis(given):
    """The largest value can be the size of a bucketed axis, for lengths."""
    assert (changed(range=given)["ids"].minimum, changed(range=given)["ids"].maximum) == (1, "seq")


@mark.parametrize("given", [{"ids": 3}, {"ids": "3"}, {"ids": 3.0}, {"ids": np.int64(3)}, "ids=3"])
def test_a_pad_value_is_given_by_input(given):
    """`pad` takes a number, or what the flag takes."""
    assert changed(pad=given)["ids"].pad == 3


@mark.parametrize("given", ["mask", ["mask"], ("mask",), {"mask": True, "ids": False}])
def test_a_mask_is_named(given):
    """`mask` takes one name, several, or which inputs are masks."""
    assert changed(mask=given)["mask"].mask
    assert not changed(mask=given)["ids"].mask


@mark.parametrize(
    ("options", "message"),
    [
        (
            {"range": {"idz": "0:9"}},
            "range: expected an input of ids, mask, got 'idz'; did you mean 'ids'?",
        ),
        (
            {"range": {"ids": "9"}},
            "range: expected NAME=LOW:HIGH such as ids=0:30521, got 'ids=9'",
        ),
        (
            {"range": {"ids": 9}},
            "range: expected LOW:HIGH or a pair such as (0, 30521) for 'ids', got 9",
        ),
        ({"range": 9}, "range: expected values by input such as {'ids': '0:30521'}, got 9"),
        ({"range": "0:9"}, "range: expected NAME=0:30521, got '0:9'"),
        ({"pad": {"ids": "x"}}, "pad: expected NAME=NUMBER, got 'ids=x'"),
        ({"pad": 0}, "pad: expected values by input such as {'ids': '0'}, got 0"),
        ({"mask": {"mask": 1}}, "mask: expected True or False for 'mask', got 1"),
        ({"mask": True}, "mask: expected names of inputs such as 'attention_mask', got True"),
        ({"mask": "msk"}, "mask: expected an input of ids, mask, got 'msk'; did you mean 'mask'?"),
    ],
)
def test_what_an_option_does_not_take_is_refused(options, message):
    """Each refusal names the option, what it takes and what it got."""
    with raises(ExportError) as caught:
        changed(**options)

    assert str(caught.value) == message


@mark.parametrize(
    ("name", "hint"),
    [
        ("bukets", "; did you mean 'buckets'?"),
        ("masks", "; did you mean 'mask'?"),
        ("overwrit", "; did you mean 'overwrite'?"),
        ("Labels", "; did you mean 'labels'?"),
        ("xyz", ""),
    ],
)
def test_an_unknown_keyword_gets_the_nearest_and_the_list(tmp_path, name, hint):
    """A typo in a keyword is refused with the one that was meant, and all that there are."""
    with raises(ExportError) as caught:
        export_model(lambda _, x: x, {}, out=tmp_path / "b", **{name: 1})

    known = (
        "allow_infinite, allow_pickle, allow_row_mixing, axes, buckets, call_args, check_gpu, dry_run, dtype, "
        "golden, inputs, labels, mask, matmul_precision, model, name, out, output, overwrite, pad, "
        "page_sample, params, params_path, passthrough, pixel_tolerance, platforms, preprocess, progress, range, "
        "reference_preprocess, savedmodel, seed, tf_stablehlo, unverified, version"
    )
    assert str(caught.value) == f"{name}: no such option{hint} (options: {known})"


def test_options_win_over_those_of_a_spec():
    """Keyword options of inputs are added to those of a spec."""
    spec = ExportSpec(model=len, inputs=[IDS, "other:float32[_]"])

    made = _as_spec(spec, None, {"range": {"ids": "0:9"}, "name": "words"})

    assert (made.name, made.inputs[0].maximum, made.inputs[1].name) == ("words", 9, "other")


@fixture
def labels(tmp_path):
    """A file with three labels."""
    file = tmp_path / "labels.txt"
    file.write_text("red\ngreen\nblue\n")
    return file


@mark.parametrize("form", [lambda file: file, str, lambda _: "red,green,blue"])
def test_labels_are_taken_as_the_flag_takes_them(labels, form):
    """A file by its path, or text with commas; an ExportSpec has the labels themselves then."""
    spec = ExportSpec(model=len, inputs=[IDS], axes={"seq": (4,)}, labels=form(labels))

    assert spec.checked().labels == ("red", "green", "blue")


def test_a_file_that_is_none_of_labels_is_named_by_the_field(tmp_path):
    """An invalid file of labels is reported as `labels`, not as a flag."""
    file = tmp_path / "labels.txt"
    file.write_text("0 red\n1 green\n2 blue\n")

    with raises(
        ExportError, match=f"^labels {re.escape(str(file))}, line 1: expected a label alone"
    ):
        ExportSpec(model=len, inputs=[IDS], axes={"seq": (4,)}, labels=file).checked()


def pool(params, ids, mask):
    """Return the masked mean of the ids' embeddings, as three logits."""
    weights = mask[..., None].astype("float32")
    return (params["table"][ids] * weights).sum(axis=1) / weights.sum(axis=1)


def test_a_model_is_exported_with_all_of_them(tmp_path, labels):
    """One call has the same effect as the command line, as the bundle shows."""
    report = export_model(
        pool,
        {"table": np.arange(30, dtype=np.float32).reshape(10, 3)},
        inputs=["ids:int32[_,seq]", "mask:int32[_,seq]"],
        axes={"seq": "2,4"},
        range={"ids": (0, 9)},
        pad={"ids": 1},
        mask="mask",
        labels=labels,
        output="classification:logits",
        buckets=(1, 2),
        platforms="cpu",
        out=tmp_path / "b",
    )

    model = load(tmp_path / "b", "cpu")
    assert model.labels == ("red", "green", "blue")
    ids, mask = model.signature.inputs
    assert (ids.minimum, ids.maximum, ids.pad, mask.mask) == (0, 9, 1, True)
    assert model.classify({"ids": [[1, 2, 3]]})[0]["label"] == "blue"
    assert str(report).splitlines()[-1].startswith("bundle ")
