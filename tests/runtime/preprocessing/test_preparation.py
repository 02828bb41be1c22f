"""Texts to checked inputs: names decide what is raw, and a row's text decides its bucket."""

import dataclasses

import numpy as np
from pytest import fixture, mark, param, raises

from runtime import BundleError, SignatureMismatch, load
from runtime.entries import File
from runtime.inputs import Checker
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.texts import TextReader
from runtime.raw_inputs import TextStage
from runtime.signature import Axis, Signature, TensorSpec
from tests.tokenizer_files import ids, words

FILE = File(path="preprocess/0/tokenizer.json", bytes=1, sha256="0" * 64)
IDS = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), pad=9, minimum=0, maximum=15)
MASK = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)
KINDS = TensorSpec(name="kinds", dtype="int8", shape=("_", "seq"))
COUNTS = TensorSpec(name="counts", dtype="int32", shape=("_",), minimum=1, maximum="seq")
AGE = TensorSpec(name="age", dtype="float32", shape=("_", 2))
SEQ = Axis(name="seq", sizes=(4, 8))
STAGE = TextStage(
    input="text",
    tokenizer=FILE,
    input_ids="ids",
    attention_mask="mask",
    max_tokens=8,
    max_bytes=40,
)


def preparer(*inputs, axes=(SEQ,), outputs=(), stage=STAGE):
    """Return what prepares the texts of a signature."""
    signature = Signature(inputs=inputs, outputs=outputs, axes=axes)
    return Preparer([TextReader(stage, signature, words())], signature, Checker(signature))


@fixture
def plain():
    """Ids and a mask, of 4 or 8 tokens."""
    return preparer(IDS, MASK)


def test_rows_of_a_bucket_go_together(plain):
    """Each row is in the shortest bucket that holds it, in the order in which they were asked."""
    texts = ["cat sat", "the cat sat on a mat", "dog", "a dog ran"]

    found = plain.prepare({"text": texts})

    assert found.order == ((0, 2), (1, 3))
    assert [part.sizes for part in found.parts] == [(4,), (8,)]
    short, long = found.parts
    assert short.arrays[0].tolist() == [ids("cat sat"), [*ids("dog"), 9]]
    assert short.arrays[1].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert long.arrays[0].tolist() == [ids("the cat sat on a mat"), [*ids("a dog ran"), 9, 9, 9]]
    assert [array.dtype.name for array in short.arrays] == ["int32", "int32"]
    assert (found.rows, found.tokens, found.truncated) == (4, 4 + 8 + 3 + 5, 0)


def test_rows_of_outputs_that_have_the_axis_go_by_their_length():
    """Where an output is as long as the text, only rows of the same length go together."""
    scores = TensorSpec(name="scores", dtype="float32", shape=("_", "seq"))

    found = preparer(IDS, MASK, outputs=(scores,)).prepare({"text": ["cat", "cat sat", "dog"]})

    assert found.order == ((0, 2), (1,))
    assert [part.sizes for part in found.parts] == [(3,), (4,)]


def test_a_row_does_not_depend_on_others(plain):
    """The arrays of a text are the same alone and beside others."""
    [alone] = plain.prepare({"text": ["cat sat"]}).parts
    beside = plain.prepare({"text": ["the cat sat on a mat", "dog", "cat sat"]})

    assert np.array_equal(beside.parts[1].arrays[0][1:], alone.arrays[0])


def test_all_that_a_text_can_become():
    """Lengths and type ids are made where the programs take them, and pairs have both."""
    stage = dataclasses.replace(STAGE, pair="second", token_type_ids="kinds", lengths="counts")  # noqa: S106

    [part] = (
        preparer(IDS, MASK, KINDS, COUNTS, stage=stage)
        .prepare({"text": ["the cat", "dog"], "second": ["a dog ran", "mat"]})
        .parts
    )

    assert part.arrays[0].tolist()[1] == [*ids("dog"), *ids("mat")[1:], 9, 9, 9]
    assert part.arrays[2].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
    assert part.arrays[2].dtype == np.int8
    assert part.arrays[3].tolist() == [8, 5]


def test_fixed_sizes_are_padded():
    """Ids of a fixed size are filled up with the input's pad value."""
    fixed = dataclasses.replace(IDS, shape=("_", 6))
    stage = dataclasses.replace(STAGE, attention_mask=None, max_tokens=6)

    [part] = preparer(fixed, axes=(), stage=stage).prepare({"text": ["cat", ""]}).parts

    assert part.arrays[0].tolist() == [[*ids("cat"), 9, 9, 9], [2, 3, 9, 9, 9, 9]]


def test_tensors_beside_texts_are_taken_as_they_are():
    """Inputs that no stage makes are passed with the texts, and split into the same buckets as their rows."""
    age = np.arange(6, dtype=np.float32).reshape(3, 2)
    texts = ["cat", "the cat sat on a mat", "dog"]

    found = preparer(IDS, MASK, AGE).prepare({"text": texts, "age": age})

    assert [part.arrays[2].tolist() for part in found.parts] == [
        [[0, 1], [4, 5]],
        [[2, 3]],
    ]


def test_texts_that_are_cut_off_are_counted():
    """A row with more tokens is truncated where that was declared, and the count is reported."""
    stage = dataclasses.replace(STAGE, truncate=True, max_tokens=4)

    found = preparer(IDS, MASK, stage=stage).prepare({"text": ["the cat sat", "cat"]})

    assert found.parts[0].arrays[0].tolist() == [ids("the cat"), [*ids("cat"), 9]]
    assert (found.tokens, found.truncated) == (7, 1)


def test_no_rows_have_the_shortest_bucket(plain):
    """No text is no row."""
    found = plain.prepare({"text": []})

    assert (found.rows, found.parts[0].rows, found.parts[0].sizes) == (0, 0, (4,))


@mark.parametrize(
    ("inputs", "message"),
    [
        param(
            {"text": ["cat", "cat " * 7]},
            "input 'text'[1]: expected at most 8 tokens, got 9",
            id="tokens",
        ),
        param(
            {"text": ["x" * 41]},
            "input 'text'[0]: expected at most 40 bytes, got 41",
            id="bytes",
        ),
        param(
            {"text": ["\u00e9" * 21]},
            "input 'text'[0]: expected at most 40 bytes, got 42",
            id="bytes-of-utf-8",
        ),
        param({"text": ["cat", 1]}, "input 'text'[1]: expected a text, got int", id="number"),
        param({"text": [None]}, "input 'text'[0]: expected a text, got NoneType", id="none"),
        param({"text": [b"cat"]}, "input 'text'[0]: expected a text, got bytes", id="b"),
        param({"text": [["cat"]]}, "input 'text'[0]: expected a text, got list", id="list"),
        param(
            {"text": ["\ud83d"]},
            "input 'text'[0]: expected a text, got '\\ud83d', which is half of a character",
            id="surrogate",
        ),
        param({"text": "cat"}, "input 'text': expected a list of texts, got str", id="text"),
        param(
            {"text": np.zeros((1, 2))},
            "input 'text': expected texts [_], got float64[1, 2]",
            id="array",
        ),
        param(
            {"text": ["cat"], "ids": np.zeros((1, 2), np.int32)},
            "inputs: expected 'ids', or 'text' that it is made of, got both",
            id="both",
        ),
        param(
            {"text": ["cat"], "ages": [1]},
            "inputs: expected ['text', 'age'], got 'ages' as well; did you mean 'age'?",
            id="unknown",
        ),
        param({"text": ["cat"]}, "input 'age': expected one row for each text, got none", id="no"),
        param(
            {"text": ["cat"], "age": np.zeros((2, 2), np.float32)},
            "input 'age': expected 1 rows as of 'text', got 2",
            id="rows",
        ),
        param(
            {"text": ["cat"], "age": np.zeros((1, 2))},
            "input 'age': expected float32[_, 2], got float64[1, 2]",
            id="dtype",
        ),
    ],
)
def test_what_does_not_fit_is_refused(inputs, message):
    """The first thing that does not fit is named, with its row."""
    age = np.zeros((len(inputs["text"]), 2), np.float32)
    given = inputs if "input 'age'" in message else {"age": age, **inputs}
    with raises(SignatureMismatch) as caught:
        preparer(IDS, MASK, AGE).prepare(given)

    assert str(caught.value) == message


def test_too_few_tokens_are_refused():
    """A text of fewer tokens than the model was proven for is refused by their number."""
    least = preparer(IDS, MASK, axes=(Axis(name="seq", sizes=(4, 8), minimum=3),))

    with raises(SignatureMismatch) as caught:
        least.prepare({"text": [""]})

    assert str(caught.value) == "input 'text'[0]: expected at least 3 tokens, got 2"


def test_a_text_that_the_library_fails_on_is_named():
    """The row that a tokenizer fails on is found among the others."""

    def without_unknown(value):
        value["model"]["unk_token"] = "[NONE]"  # noqa: S105

    signature = Signature(inputs=(IDS, MASK), outputs=(), axes=(SEQ,))
    reader = TextReader(STAGE, signature, words(without_unknown))
    prepare = Preparer([reader], signature, Checker(signature)).prepare

    assert prepare({"text": ["cat"]}).tokens == 3
    with raises(SignatureMismatch) as caught:
        prepare({"text": ["cat", "zebra"]})
    assert str(caught.value) == (
        "input 'text'[1]: expected a text that its tokenizer encodes, got one that it fails on"
    )


@mark.parametrize(
    ("spec", "changes", "message"),
    [
        (
            {"maximum": 14},
            {},
            "expected ids from 0 to 14, those of input 'ids', got 15",
        ),
        (
            {"minimum": 1},
            {},
            "expected ids from 1 to 15, those of input 'ids', got 0",
        ),
        (
            {},
            {"max_tokens": 1},
            "expected less than 1 tokens beside those of the text, got 2",
        ),
    ],
)
def test_tokenizers_that_do_not_fit_the_programs_are_refused(spec, changes, message):
    """Ids that no program takes, and more added tokens than there is room for, end the loading."""
    signature = Signature(inputs=(dataclasses.replace(IDS, **spec), MASK), outputs=(), axes=(SEQ,))

    with raises(BundleError) as caught:
        TextReader(dataclasses.replace(STAGE, **changes), signature, words())

    assert str(caught.value) == f"{FILE.path}: {message}"


@fixture(scope="module")
def model(sentence_bundle):
    """The model of sentences, on the CPU."""
    return load(sentence_bundle, "cpu")


def test_texts_are_answered_as_their_ids(model):
    """A text has the answer of its ids, in its own row of the answer."""
    texts = ["the cat sat on a mat", "cat", "a dog ran", "dog"] * 2

    found = model.predict({"text": texts})["mean"]

    for text, row in zip(texts, found, strict=True):
        array = np.array([ids(text)], np.int32)
        assert np.allclose(model.predict({"input_ids": array})["mean"], row, atol=1e-6)


def test_texts_come_as_arrays_of_objects(model):
    """NumPy's arrays of texts are taken as lists are."""
    expected = model.predict({"text": ["cat", "dog"]})["mean"]

    for dtype in (object, None):
        found = model.predict({"text": np.array(["cat", "dog"], dtype)})
        assert np.array_equal(found["mean"], expected)


def test_texts_without_their_name_are_refused_with_it(model):
    """A caller of texts learns their name, and that of the tensors that they become."""
    with raises(SignatureMismatch) as caught:
        model.predict(["cat"])

    assert str(caught.value) == (
        "inputs: expected a dict {'text': texts [_]} or {'input_ids': int32[_, seq], "
        "'attention_mask': int32[_, seq]}, got list"
    )


def test_no_texts_are_no_answers(model):
    """A call without rows is answered without any."""
    assert model.predict({"text": []})["mean"].shape == (0, 6)


def test_the_error_of_a_wrong_name_gives_the_name_of_the_text(model):
    """An error for a misspelt input names the text's input."""
    with raises(SignatureMismatch) as caught:
        model.predict({"txt": ["cat"]})

    assert str(caught.value) == (
        "inputs: expected ['attention_mask', 'input_ids', 'text'], got 'txt' and no 'input_ids'; did "
        "you mean 'text'?"
    )


@fixture(scope="module")
def pictures(picture_bundle):
    """The model of images, on the CPU."""
    return load(picture_bundle, "cpu")


@mark.parametrize(
    ("inputs", "message"),
    [
        (
            [b"x"],
            "inputs: expected a dict {'image': images [_]} or {'image': uint8[_, 2, 2, 3]}, got list",
        ),
        (
            {"img": [b"x"]},
            "inputs: expected ['image'], got 'img' and no 'image'; did you mean 'image'?",
        ),
    ],
)
def test_images_without_their_name_are_refused_with_it(pictures, inputs, message):
    """The error has the input's name once, with both forms that it accepts."""
    with raises(SignatureMismatch) as caught:
        pictures.predict(inputs)

    assert str(caught.value) == message


def test_pixels_come_as_lists_of_arrays(pictures):
    """Arrays of pixels in a list are pixels, of whatever library they are."""
    pixels = np.full((2, 2, 3), 7, np.uint8)

    answers = pictures.predict({"image": [pixels, pixels]})

    alone = pictures.predict({"image": pixels[None]})
    assert np.array_equal(answers["mean"][1:], alone["mean"])
