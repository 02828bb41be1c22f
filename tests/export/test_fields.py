"""Fields of a spec, as Python callers give them: what is meant is taken, the rest is one line."""

import copy
import dataclasses
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from export import ExportError, ExportSpec, Image, TensorSpec, Text, export_model
from runtime.node import to_json
from runtime.signature import Axis

X = TensorSpec(name="x", dtype="float32", shape=("_", 3))


def checked(**fields):
    """Check a spec of a function with one input."""
    return ExportSpec(**{"model": None, "inputs": [X], **fields}).checked()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("inputs", "x:float32[_,3]", (X,)),
        ("inputs", X, (X,)),
        ("inputs", (n for n in ["x:float32[_,3]"]), (X,)),
        ("inputs", [TensorSpec(name="x", dtype="float32", shape=["_", np.int64(3)])], (X,)),
        ("buckets", np.array([1, 8]), (1, 8)),
        ("buckets", [np.int32(1), np.int64(8)], (1, 8)),
        ("buckets", range(1, 4), (1, 2, 3)),
        ("buckets", "1, 8", (1, 8)),
        ("platforms", "cpu", ("cpu",)),
        ("platforms", "cpu,cuda", ("cpu", "cuda")),
        ("platforms", {"cpu"}, ("cpu",)),
        ("labels", np.array(["a", "b"]), ("a", "b")),
        ("dtype", jnp.bfloat16, "bfloat16"),
        ("dtype", np.dtype("float16"), "float16"),
        ("seed", np.int64(3), 3),
        ("version", 3, "3"),
        ("version", np.int64(3), "3"),
        ("allow_pickle", np.True_, True),
    ],
)
def test_what_is_meant_is_taken(field, value, expected):
    """NumPy's numbers, single values and iterables become the one form the exporter sees."""
    got = getattr(checked(**{field: value}), field)

    assert got == expected
    assert type(got) is type(expected)


def test_numbers_of_numpy_in_a_tensor_spec_are_plain_ones():
    """A TensorSpec with NumPy's numbers in it is written to the manifest like any other."""
    spec = TensorSpec(
        name="ids",
        dtype="int32",
        shape=("_", "seq"),
        pad=np.int32(1),
        minimum=np.int64(0),
        maximum=np.int64(9),
    )
    axis = Axis(name="seq", sizes=np.array([4, 8]), minimum=np.int64(2))
    made = checked(inputs=[spec], axes={"seq": axis})

    assert {type(to_json(made.inputs[0])[key]) for key in ("pad", "minimum", "maximum")} == {int}
    assert to_json(made.axes["seq"]) == {"name": "seq", "sizes": [4, 8], "minimum": 2}
    assert type(made.axes["seq"].minimum) is int


AXIS = "axis 'seq': expected sizes such as 32,64, or 3..32,64 for lengths from 3 on, got "
INPUTS = "inputs: expected a list such as ['x:float32[_,28,28,1]'], got "


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", None, f"{INPUTS}None"),
        ("inputs", {"x": "float32[_,3]"}, INPUTS + "{'x': 'float32[_,3]'}"),
        ("inputs", ["x:float32[_,3]", 3], f"{INPUTS}['x:float32[_,3]', 3]"),
        ("inputs", np.zeros((9, 9)), f"{INPUTS}ndarray"),
        (
            "inputs",
            [TensorSpec(name="x", dtype="float32", shape=(3,))],
            (
                "input 'x': expected [_, …] with sizes or axis names after the batch, got 3; the "
                "batch comes first, and is written _"
            ),
        ),
        (
            "inputs",
            [TensorSpec(name="x", dtype="float32", shape=("_", "länge"))],
            "input 'x': expected [_, …] with sizes or axis names after the batch, got 'länge'",
        ),
        (
            "inputs",
            [TensorSpec(name="x", dtype="int32", shape=("_", 3), minimum=0.5)],
            "input 'x': expected a number as minimum, got 0.5",
        ),
        (
            "inputs",
            [TensorSpec(name="x", dtype="int32", shape=("_", "seq"), pad="0.5")],
            "input 'x': expected a number as pad, got '0.5'",
        ),
        ("buckets", 4, "buckets: expected sizes such as 1,8,32, got 4"),
        ("buckets", [], "buckets: expected sizes such as 1,8,32, got []"),
        ("buckets", [1, 2.0], "buckets: expected sizes such as 1,8,32, got [1, 2.0]"),
        ("buckets", [True, 2], "buckets: expected sizes such as 1,8,32, got [True, 2]"),
        ("buckets", np.ones((2, 2), int), "buckets: expected sizes such as 1,8,32, got ndarray"),
        (
            "axes",
            [32, 64],
            "axes: expected sizes by name such as {'seq': (32, 64)}, got [32, 64]",
        ),
        ("axes", {"seq": 32}, f"{AXIS}32"),
        ("axes", {"seq": "short"}, f"{AXIS}'short'"),
        ("platforms", 3, "platforms: expected some of cpu, cuda, rocm, tpu, got 3"),
        ("platforms", [], "platforms: expected some of cpu, cuda, rocm, tpu, got []"),
        ("platforms", [None], "platforms: expected cpu, cuda, rocm, tpu, got None"),
        ("platforms", "gpu", "platforms: expected cuda or rocm for a GPU, got 'gpu'"),
        (
            "platforms",
            "cude",
            "platforms: expected cpu, cuda, rocm, tpu, got 'cude'; did you mean 'cuda'?",
        ),
        (
            "output",
            None,
            (
                "output: expected raw, softmax, classification:logits, "
                "classification:probabilities, embedding, embedding:normalized, got None"
            ),
        ),
        (
            "labels",
            "a",
            (
                "labels: expected a,b,c or a file with a name on each line, got 'a', which is no file"
            ),
        ),
        ("labels", [0, 1], "labels: expected a list of names such as ['cat', 'dog'], got [0, 1]"),
        ("dtype", "int8", "dtype: expected bfloat16, float16, float32, got 'int8'"),
        ("dtype", jnp.int8, "dtype: expected bfloat16, float16, float32, got 'int8'"),
        ("dtype", 16, "dtype: expected bfloat16, float16, float32, got 16"),
        (
            "matmul_precision",
            3,
            (
                "matmul_precision: expected default, high, highest, bfloat16, tensorfloat32, "
                "float32, got 3"
            ),
        ),
        ("golden", 3, "golden: expected a file, or rows of inputs by name, got 3"),
        ("seed", "x", "seed: expected 0 or more, got 'x'"),
        ("seed", None, "seed: expected 0 or more, got None"),
        ("name", 3, "name: expected letters, digits, '_.-', got 3"),
        ("version", None, "version: expected digits, got None"),
        ("version", 1.0, "version: expected digits, got 1.0"),
        ("version", -1, "version: expected digits, got '-1'"),
        (
            "params_path",
            3,
            "params_path: expected keys joined by '.' such as 'ema_params', got 3",
        ),
        ("allow_row_mixing", 1, "allow_row_mixing: expected True or False, got 1"),
        ("unverified", "no", "unverified: expected True or False, got 'no'"),
        ("allow_pickle", None, "allow_pickle: expected True or False, got None"),
    ],
)
def test_what_no_field_takes_is_one_line(field, value, message):
    """A value of another type is refused by its field's name, with what was expected and got."""
    with pytest.raises(ExportError) as caught:
        checked(**{field: value})
    assert str(caught.value) == message


SEQ = ("_", "seq")


@pytest.mark.parametrize(
    ("inputs", "refusal"),
    [
        ([TensorSpec(name="x", dtype="float32", shape=SEQ, pad=float("inf"))], "pad of float32"),
        ([TensorSpec(name="x", dtype="float32", shape=SEQ, pad=float("nan"))], "pad of float32"),
        ([TensorSpec(name="x", dtype="bool", shape=SEQ, maximum=2)], "maximum of bool"),
        ([TensorSpec(name="x", dtype="uint8", shape=SEQ, pad=-1)], "pad of uint8"),
        (
            [TensorSpec(name="x", dtype="int8", shape=("_", 3), mask=True)],
            "bucketed axis for a mask",
        ),
        ([TensorSpec(name="x", dtype="int8", shape=SEQ, mask=True)], "that is not a mask"),
        ([TensorSpec(name="x", dtype="int8", shape=("_", "axis"))], "its sizes"),
        ([], "at least one"),
    ],
)
def test_what_no_manifest_may_say_is_refused_before_the_export(inputs, refusal):
    """The rules of the format hold for options too, as one line that names the option."""
    axes = {"seq": (4, 8)} if any("seq" in spec.shape for spec in inputs) else {}

    with pytest.raises(ExportError, match=f"^(input 'x'|inputs|axis 'axis'): expected .*{refusal}"):
        checked(inputs=inputs, axes=axes)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("input", "input: no such option; did you mean 'inputs'?"),
        ("bucket", "bucket: no such option; did you mean 'buckets'?"),
        ("alow_pickle", "alow_pickle: no such option; did you mean 'allow_pickle'?"),
        ("zzz", "zzz: no such option"),
    ],
)
def test_an_option_that_does_not_exist_names_the_nearest(tmp_path, option, message):
    """A misspelt option of export_model is refused with the one that is likely meant."""
    for model in (None, ExportSpec(model=None)):
        with pytest.raises(ExportError) as caught:
            export_model(model, out=tmp_path / "b", **{option: 1})
        assert str(caught.value).partition(" (options: ")[0] == message


def test_a_bundle_goes_to_a_path():
    """The output has to be a path."""
    with pytest.raises(ExportError) as caught:
        export_model(None, out=None)
    assert str(caught.value) == "out: expected a path, got None"


def test_one_of_each_is_exported(export, rows):
    """A whole export of what Python callers write at first: single values, and NumPy's."""
    made = export(
        lambda _params, x: x * 2,
        inputs="x:float32[_,3]",
        buckets=np.array([1, 4]),
        platforms="cpu",
        version=7,
    )

    assert (made.manifest.buckets, made.manifest.version) == ((1, 4), "7")
    np.testing.assert_array_equal(made.answer(x=rows), rows * 2)


@pytest.mark.parametrize(("name", "hint"), [("lables", "; did you mean 'labels'?"), ("zzz", "")])
def test_a_field_that_does_not_exist_names_the_nearest(name, hint):
    """A misspelt field of an ExportSpec is a TypeError with the nearest one, and all there are."""
    with pytest.raises(TypeError) as caught:
        ExportSpec(model=None, **{name: 1})

    names = ", ".join(field.name for field in dataclasses.fields(ExportSpec))
    assert str(caught.value) == f"ExportSpec: no such field {name!r}{hint} (fields: {names})"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Image("image", 8, means=3), "Image: no such field 'means'; did you mean 'mean'?"),
        (lambda: Text("text", tokeniser="x"), "Text: no such field 'tokeniser'; did you mean 'tokenizer'?"),
    ],
)  # fmt: skip
def test_a_misspelled_field_of_a_raw_input_names_the_nearest(make, message):
    """Declarations of texts and images have the same answer as an ExportSpec."""
    with pytest.raises(TypeError) as caught:
        make()

    assert str(caught.value).split(" (fields: ")[0] == message


def test_a_spec_is_copied_and_pickled():
    """A spec supports copy, pickle and replace."""
    spec = ExportSpec(model=len, labels=["a"])

    assert copy.copy(spec) == pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 (our own)
    assert dataclasses.replace(spec, seed=3).seed == 3
