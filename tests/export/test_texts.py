"""Text inputs at export: what is not said follows the programs, and what does not fit is refused."""

import dataclasses
import json

import numpy as np
from pytest import mark, param, raises
from tokenizers import Tokenizer

from export import ExportError, TensorSpec, Text, export_model
from runtime import load, open_bundle
from runtime.preprocessing.raw_goldens import read_raw
from tests.export.texts_of import IDS, MASK, PARAMS, apply, opened, refusal, spec_of
from tests.tokenizer_files import VOCABULARY, ids, words


def apply_fixed(params, x):
    """Return the mean of all tokens, padding among them."""
    return params["table"][x].mean(axis=1)


def test_what_is_not_said_follows_the_inputs(tokenizer):
    """Inputs by their usual names are made, and the ids get the tokenizer's range."""
    kinds = "token_type_ids:int32[_,seq]"
    lengths = TensorSpec(name="n", dtype="int32", shape=("_",), minimum=1, maximum="seq")

    texts, changed = opened(tokenizer, IDS, MASK, kinds, lengths)

    [stage] = texts.stages
    assert stage.made == ("input_ids", "attention_mask", "token_type_ids", "n")
    assert (stage.max_tokens, stage.max_bytes, stage.truncate) == (8, 256, False)
    assert (changed.inputs[0].minimum, changed.inputs[0].maximum) == (0, 15)
    assert texts.notes[0] == f"'input_ids' takes 0 to 15, the ids of {tokenizer}"


def test_the_only_input_that_can_be_takes_the_ids(tokenizer):
    """One input of integers takes the ids, and one mask is the mask, whatever their names."""
    mask = dataclasses.replace(MASK, name="real", dtype="float32")

    [stage] = opened(tokenizer, "x:int32[_,seq]", mask)[0].stages
    assert stage.made == ("x", "real")


def test_a_declared_range_stays(tokenizer):
    """A range that the user declared is the program's, wider than the tokenizer's perhaps."""
    wide = TensorSpec(name="x", dtype="int32", shape=("_", "seq"), minimum=0, maximum=99)

    assert opened(tokenizer, wide)[1].inputs[0].maximum == 99


@mark.parametrize(
    ("stored", "limit"),
    [(None, 8), (6, 6), (512, 8)],
    ids=["none", "shorter", "longer"],
)
def test_the_limit_is_the_shorter_of_axis_and_file(tmp_path, stored, limit):
    """The file's own limit is the limit, unless the axis is shorter."""
    truncation = {"direction": "Right", "max_length": stored, "strategy": "LongestFirst"}
    path = tmp_path / "tokenizer.json"
    path.write_bytes(words(lambda v: v.update(truncation=stored and truncation | {"stride": 0})))

    assert opened(path)[0].stages[0].max_tokens == limit


def test_folders_of_save_pretrained_are_taken(tokenizer):
    """A folder's tokenizer.json is the tokenizer, and its configuration has a limit."""
    (tokenizer.parent / "tokenizer_config.json").write_text('{"model_max_length": 5}')

    texts, _ = opened(tokenizer.parent)

    assert texts.stages[0].max_tokens == 5
    assert [data for _, data in texts.files] == [words()]


def test_tokenizers_of_libraries_are_taken():
    """A tokenizer that a training script has is taken as it is."""

    class Fast:
        """As transformers has them: one of tokenizers inside, and a limit beside it."""

        backend_tokenizer = Tokenizer.from_str(words().decode())
        model_max_length = 6

    plain, _ = opened(Fast.backend_tokenizer)
    fast, _ = opened(Fast())

    assert [plain.stages[0].max_tokens, fast.stages[0].max_tokens] == [8, 6]
    assert json.loads(fast.files[0][1])["model"]["vocab"] == VOCABULARY


def test_long_texts_can_be_cut_off(tokenizer):
    """With truncation declared, long texts are accepted."""
    [stage] = opened(tokenizer, text={"truncate": True})[0].stages

    assert (stage.truncate, stage.max_bytes) == (True, 65_536)


def pad_with_three(value):
    """Have a file pad with another id, on the left."""
    value["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "[END]",
    }


@mark.parametrize(
    ("change", "inputs", "text", "message"),
    [
        param(
            lambda value: value["model"]["vocab"].update(zebra=16),
            ({"minimum": 0, "maximum": 15},),
            {},
            "text 'text': {path}: expected ids from 0 to 15, those of input 'input_ids', got 16; is it "
            "the tokenizer that the model was trained with?",
            id="ids",
        ),
        param(
            pad_with_three,
            ({},),
            {},
            "text 'text': expected input 'input_ids' to be padded with 3, as the tokenizer's file says, "
            "got 0; pass --pad input_ids=3",
            id="pad",
        ),
        param(
            pad_with_three,
            ({"shape": ("_", 8), "pad": 3},),
            {},
            "text 'text': expected a tokenizer that pads on the right, got one that pads on the left",
            id="left",
        ),
        param(
            None,
            ({},),
            {"input_ids": "ids"},
            "text 'text': expected an input of input_ids as input_ids, got 'ids'",
            id="name",
        ),
        param(
            None,
            ({"name": "a"}, {"name": "b"}),
            {},
            "text 'text': expected one input of integers [_, size] to take the ids, got 'a', 'b'; say "
            "which with input_ids",
            id="several",
        ),
        param(
            None,
            ({"name": "a"}, {"name": "b"}),
            {"input_ids": "a"},
            "preprocess: expected a stage that makes 'b' as well, whose axis 'seq' has the size that "
            "texts have, got none",
            id="left-over",
        ),
        param(
            None,
            ({"dtype": "float32"},),
            {"input_ids": "input_ids"},
            "text 'text': expected integers [_, size] to take the ids, got input_ids: float32[_, seq]",
            id="floats",
        ),
        param(
            None,
            ({"shape": ("_", 2)},),
            {},
            "text 'text': expected room for more than the 2 tokens that the tokenizer adds, got 2",
            id="room",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, inputs, text, message):
    """A tokenizer that is not the model's is refused before anything is traced."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(words(change) if change else words())
    base = TensorSpec(name="input_ids", dtype="int32", shape=("_", "seq"))
    specs = [dataclasses.replace(base, **changes) for changes in inputs]
    axes = {"seq": (4, 8)} if any("seq" in s.shape for s in specs) else {}

    assert refusal(path, *specs, text=text, axes=axes) == message.format(path=path)


@mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: folder / "tokeniser.json",
            (
                "text 'text': expected tokenizer.json or a folder with it, got nothing at {path}; did you "
                "mean 'tokenizer.json'?"
            ),
        ),
        (
            lambda folder: folder / "empty",
            "text 'text': expected tokenizer.json in {path}, got none",
        ),
        (
            lambda folder: folder / "slow",
            (
                "text 'text': expected tokenizer.json in {path}, got none, which has vocab.txt; save it "
                "by a fast tokenizer, AutoTokenizer.from_pretrained('{path}').save_pretrained(DIR)"
            ),
        ),
        (
            lambda _: "gs://bucket/tokenizer.json",
            None,
        ),
        (
            lambda _: 7,
            (
                "text 'text': expected a tokenizer.json, a folder with one, or a tokenizer of tokenizers or "
                "transformers, got int"
            ),
        ),
        (
            lambda folder: folder / "broken.json",
            (
                "text 'text': {path}: expected a tokenizer that encodes any text, got one that is not read: "
                "a file that is no JSON"
            ),
        ),
        (
            lambda folder: folder / "tokenizer_config.json",
            (
                "text 'text': {path}: expected a tokenizer, with a 'model', got JSON with 'do_lower_case', "
                "'model_max_length'"
            ),
        ),
        (
            lambda folder: folder / "list.json",
            (
                "text 'text': {path}: expected a tokenizer, with a 'model', got JSON that is no object"
            ),
        ),
    ],
    ids=["nothing", "empty", "slow", "url", "number", "broken", "configuration", "list"],
)
def test_what_is_no_tokenizer_is_refused(tokenizer, make, message):
    """An invalid tokenizer.json is refused in one line."""
    folder = tokenizer.parent
    (folder / "empty").mkdir()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 9}')
    (folder / "list.json").write_text("[]")
    (folder / "slow").mkdir()
    (folder / "slow" / "vocab.txt").write_text("cat\n")
    (folder / "broken.json").write_text("{")
    source = make(folder)

    found = refusal(source)

    assert found.startswith("text 'text': ")
    assert message is None or found == message.format(path=source)


def test_a_bundle_takes_texts(tokenizer, tmp_path, monkeypatch):
    """An export with a text is of format 4, proven from the text, and the same bytes again."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    spec = spec_of(tokenizer, golden={"text": ["cat", "the cat sat on a mat"]})

    report = export_model(spec, out=tmp_path / "a")
    export_model(spec, out=tmp_path / "b")

    bundle = open_bundle(tmp_path / "a")
    assert bundle.digest == open_bundle(tmp_path / "b").digest
    assert bundle.manifest.format_version == 4
    assert bundle.manifest.exporter["tokenizers"]
    raw = [row for golden in bundle.manifest.goldens for row in read_raw(bundle, golden)]
    assert raw == [{"text": "cat"}, {"text": "the cat sat on a mat"}]
    assert "the bundle holds 2 golden texts of golden, for all who have it: 'cat', " in str(
        report.notes
    )
    answer = load(tmp_path / "a", "cpu").predict({"text": ["cat"]})["output"]
    assert np.allclose(answer, [PARAMS["table"][ids("cat")].mean(axis=0)])


def test_fixed_ids_are_exported(tokenizer, tmp_path):
    """A model of one length is exported from texts alone, which are padded for it."""
    export_model(
        apply_fixed,
        PARAMS,
        inputs=["x:int32[_,6]"],
        buckets=(1, 2),
        platforms="cpu",
        preprocess=Text("text", tokenizer=tokenizer),
        out=tmp_path / "bundle",
    )

    answer = load(tmp_path / "bundle", "cpu").predict({"text": ["cat"]})["output"]
    assert np.allclose(answer, [PARAMS["table"][[*ids("cat"), 0, 0, 0]].mean(axis=0)])


def test_row_mixing_models_have_raw_goldens_of_each_bucket(tokenizer, tmp_path):
    """Where rows are mixed, goldens of each bucket's size begin at texts as well."""

    def centered(params, input_ids, attention_mask):
        found = apply(params, input_ids, attention_mask)
        return found - found.mean(axis=0)

    spec = dataclasses.replace(spec_of(tokenizer), model=centered, allow_row_mixing=True)
    export_model(spec, out=tmp_path / "bundle")

    bundle = open_bundle(tmp_path / "bundle")
    raw = [golden for golden in bundle.manifest.goldens if golden.raw]
    assert {golden.rows for golden in raw} == {1, 2}
    assert [len(read_raw(bundle, golden)) for golden in raw] == [golden.rows for golden in raw]


@mark.parametrize(
    ("value", "message"),
    [
        (
            "tokenizer.json",
            "preprocess: expected a list such as [Text('text', tokenizer='tokenizer.json')] or [Image('image', 224)], got str",
        ),
        (
            [1],
            "preprocess: expected a list such as [Text('text', tokenizer='tokenizer.json')] or [Image('image', 224)], got list",
        ),
        ([Text("a b", tokenizer="t")], "text 'a b': expected a name such as 'text'"),
        (
            [Text("a", tokenizer="t"), Text("b", tokenizer="t", pair="a")],
            "text 'a': expected each name once, got it twice",
        ),
        (
            [Text("a", tokenizer="t", truncate=1)],
            "text 'a': expected truncate True or False, got 1",
        ),
        (
            [Text("a", tokenizer="t", lengths=3)],
            "text 'a': expected the name of an input as lengths, got 3",
        ),
    ],
)
def test_what_declares_no_text_is_refused(tokenizer, value, message):
    """A declaration of another form is refused with what it should be."""
    spec = dataclasses.replace(spec_of(tokenizer), preprocess=value)

    with raises(ExportError) as caught:
        spec.checked()

    assert str(caught.value) == message


def test_fields_pass_through(tokenizer, tmp_path):
    """Declared fields are in the manifest; they have names that no input and no text has."""
    spec = dataclasses.replace(spec_of(tokenizer), passthrough="key")
    export_model(spec, out=tmp_path / "bundle")

    assert open_bundle(tmp_path / "bundle").manifest.passthrough == ("key",)
    for name in ("text", "input_ids"):
        with raises(ExportError) as caught:
            dataclasses.replace(spec, passthrough=[name]).checked()
        assert str(caught.value) == f"passthrough: expected a name that no input has, got {name!r}"
    with raises(ExportError) as caught:
        dataclasses.replace(spec, passthrough=7).checked()
    assert str(caught.value) == "passthrough: expected names of fields such as ['key'], got 7"
