"""Text inputs at export: what is not said follows the programs, and what does not fit is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
from pytest import fixture, mark, param, raises
from tokenizers import Tokenizer

from export import ExportError, ExportSpec, TensorSpec, Text, export_model
from export.texts import open_texts
from runtime import load, open_bundle
from runtime.preprocessing.raw_goldens import read_raw
from tests.tokenizer_files import VOCABULARY, ids, words

IDS = "input_ids:int32[_,seq]"
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=("_", "seq"), mask=True)


def apply(params, input_ids, attention_mask):
    """Return the mean of the tokens that are no padding."""
    tokens = params["table"][input_ids]
    weights = attention_mask[..., None].astype(tokens.dtype)
    return (tokens * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def apply_fixed(params, x):
    """Return the mean of all tokens, padding among them."""
    return params["table"][x].mean(axis=1)


PARAMS = {"table": np.arange(32, dtype=np.float32).reshape(16, 2)}


@fixture
def tokenizer(tmp_path):
    """The file of a tokenizer of words."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(words())
    return path


def spec_of(tokenizer, *inputs, text=None, **options):
    """Return a spec with one text, checked."""
    return ExportSpec(
        model=apply,
        params=PARAMS,
        inputs=inputs or (IDS, MASK),
        axes=options.pop("axes", {"seq": (4, 8)}),
        buckets=(1, 2),
        platforms="cpu",
        preprocess=[Text("text", tokenizer=tokenizer, **(text or {}))],
        **options,
    ).checked()


def opened(*arguments, **options):
    """Return the texts of a spec, and the spec that goes on."""
    changed, texts = open_texts(spec_of(*arguments, **options), lambda _: None)
    return texts, changed


def refusal(*arguments, **options):
    """Return why the texts of a spec are refused."""
    with raises(ExportError) as caught:
        opened(*arguments, **options)
    return str(caught.value)


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
    assert texts.tokenizers == (words(),)


def test_tokenizers_of_libraries_are_taken():
    """A tokenizer that a training script has is taken as it is."""

    class Fast:
        """As transformers has them: one of tokenizers inside, and a limit beside it."""

        backend_tokenizer = Tokenizer.from_str(words().decode())
        model_max_length = 6

    plain, _ = opened(Fast.backend_tokenizer)
    fast, _ = opened(Fast())

    assert [plain.stages[0].max_tokens, fast.stages[0].max_tokens] == [8, 6]
    assert json.loads(fast.tokenizers[0])["model"]["vocab"] == VOCABULARY


def test_long_texts_can_be_cut_off(tokenizer):
    """Who lets texts be cut off may send long ones."""
    [stage] = opened(tokenizer, text={"truncate": True})[0].stages

    assert (stage.truncate, stage.max_bytes) == (True, 65_536)


def test_seeded_texts_are_of_the_vocabulary(tokenizer):
    """Without golden texts some are made of the vocabulary: in each bucket, the same for a seed."""
    texts, _ = opened(tokenizer)
    again, _ = opened(tokenizer)
    other, _ = opened(tokenizer, seed=1)
    raw = [golden for golden in texts.goldens if golden.raw]

    assert {golden.sizes["seq"] for golden in raw} == {4, 8}
    assert sum(len(golden.raw) for golden in raw) == 8
    known = {word for golden in raw for row in golden.raw for word in row["text"].split()}
    assert known <= VOCABULARY.keys()
    assert [g.raw for g in texts.goldens] == [g.raw for g in again.goldens]
    assert [g.raw for g in texts.goldens] != [g.raw for g in other.goldens]


def test_the_largest_id_is_a_golden(tokenizer):
    """The last golden has the largest id, which a model of fewer tokens does not answer."""
    last = opened(tokenizer)[0].goldens[-1]

    assert last.raw is None
    assert (last.inputs["input_ids"] == 15).all()


@mark.parametrize("form", ['"{}"', '{{"text": "{}"}}'])
def test_golden_texts_are_lines_of_json(tokenizer, form):
    """Lines of JSON are golden texts, as objects or, where there is one input, by themselves."""
    path = tokenizer.parent / "golden.jsonl"
    path.write_text(f"{form.format('the cat')}\n\n{form.format('a dog ran away')}\n")

    texts, changed = opened(tokenizer, golden=path)

    assert [golden.raw for golden in texts.goldens] == [
        [{"text": "the cat"}],
        [{"text": "a dog ran away"}],
        None,
    ]
    assert texts.goldens[0].inputs["input_ids"].tolist() == [ids("the cat")]
    assert changed.golden is None
    assert texts.notes[-1] == (
        f"the bundle holds 2 golden texts of {path}, for all who have it: 'the cat', 'a dog ran away'"
    )


def test_golden_texts_come_with_tensors(tokenizer):
    """What no text is made into comes with the golden texts."""
    age = "age:float32[_,2]"
    path = tokenizer.parent / "golden.jsonl"
    path.write_text('{"text": "cat", "age": [1, 2]}\n')

    for golden in (path, {"text": ["cat"], "age": np.float32([[1, 2]])}):
        texts, _ = opened(tokenizer, IDS, MASK, age, golden=golden)
        assert texts.goldens[0].inputs["age"].tolist() == [[1, 2]]
        assert texts.goldens[0].raw == [{"text": "cat"}]


@mark.parametrize(
    ("text", "message"),
    [
        ("", "golden {path}: expected at least one row, got none"),
        ("{}\n", "golden {path}, line 1: expected an object with 'text', got an object"),
        ("1\n", "golden {path}, line 1: expected an object with 'text', got a number"),
        (
            '"a"\n"b\n',
            "golden {path}, line 2: expected JSON, got Unterminated string starting at: line 1 column 1 (char 0)",
        ),
        (
            '{"text": "a"}\n{"text": "b", "age": 1}\n',
            "golden {path}, line 2: expected the keys of the first line, ['text'], got ['age', 'text']",
        ),
        (
            '{"text": "a", "age": 1}\n',
            "golden {path}: 'age': expected an input of input_ids, attention_mask, got other values",
        ),
        ('{"text": 1}\n', "golden: 'text' of row 0: expected a text, got int"),
        (
            f'"{"cat " * 9}"\n',
            "golden: 'text' of row 0: expected at most 8 tokens, got 11",
        ),
    ],
)
def test_golden_texts_that_do_not_read_are_refused(tokenizer, text, message):
    """What is no golden text is refused by its line."""
    path = tokenizer.parent / "golden.jsonl"
    path.write_text(text)

    assert refusal(tokenizer, golden=path) == message.format(path=path)


def test_golden_texts_need_a_text_input(tokenizer):
    """Golden texts of a model that takes tensors only are refused, with the flag to pass."""
    path = tokenizer.parent / "golden.jsonl"
    path.write_text('"cat"\n')
    spec = dataclasses.replace(spec_of(tokenizer, golden=path), preprocess=())

    with raises(ExportError) as caught:
        open_texts(spec, lambda _: None)

    assert str(caught.value) == (
        f"golden {path}: expected .safetensors or .npz of inputs by name, got texts; declare the text "
        "input, --text NAME=tokenizer.json"
    )


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
            "text 'text': expected tokenizer.json in the folder, got none",
        ),
        (
            lambda folder: folder / "slow",
            (
                "text 'text': expected tokenizer.json in the folder, got none, which has vocab.txt; save it "
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
    ],
    ids=["nothing", "empty", "slow", "url", "number", "broken"],
)
def test_what_is_no_tokenizer_is_refused(tokenizer, make, message):
    """What is no tokenizer.json is said in one line."""
    folder = tokenizer.parent
    (folder / "empty").mkdir()
    (folder / "slow").mkdir()
    (folder / "slow" / "vocab.txt").write_text("cat\n")
    (folder / "broken.json").write_text("{")
    source = make(folder)

    found = refusal(source)

    assert found.startswith("text 'text': ")
    assert message is None or found == message.format(path=source)


@mark.parametrize(
    ("reference", "message"),
    [
        (lambda texts: [ids(text) for text in texts], None),
        (lambda texts: [[*ids(text), 0, 0, 0] for text in texts], None),
        (
            lambda texts: {
                "input_ids": [[0, 0, *ids(text)] for text in texts],
                "attention_mask": [[0, 0] + [1] * len(ids(text)) for text in texts],
            },
            None,
        ),
        (
            lambda texts: [ids(text)[1:] for text in texts],
            (
                "golden text 0: expected input_ids [5, 3], as the training code makes them, got [2, 5, 3] "
                "of the tokenizer"
            ),
        ),
        (
            lambda texts: [[*ids(text), 9] for text in texts],
            (
                "golden text 0: expected input_ids [2, 5, 3, 9], as the training code makes them, got "
                "[2, 5, 3] of the tokenizer"
            ),
        ),
        (lambda _: [], "expected input_ids for each of 2 texts, got 0"),
        (lambda _: {"ids": []}, "expected ids by row, or 'input_ids', got ['ids']"),
    ],
    ids=["ids", "padded", "masked", "others", "padded-otherwise", "none", "names"],
)
def test_the_training_code_gives_the_same_ids(tokenizer, reference, message):
    """The training code's own preparation must give the tokenizer's ids, padding apart."""
    options = {"golden": {"text": ["cat", "a dog"]}, "reference_preprocess": reference}

    if message is None:
        assert opened(tokenizer, **options)[0].stages
    else:
        assert refusal(tokenizer, **options) == f"reference_preprocess: {message}"


def test_a_training_code_that_fails_is_named(tokenizer):
    """What the training code raises is the reason of the refusal."""

    def fail(_):
        raise ValueError("no such vocabulary")

    found = refusal(tokenizer, reference_preprocess=fail)

    assert found.startswith("reference_preprocess: ValueError: no such vocabulary (test_texts.py")


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
            "preprocess: expected a list such as [Text('text', tokenizer='tokenizer.json')], got str",
        ),
        (
            [1],
            "preprocess: expected a list such as [Text('text', tokenizer='tokenizer.json')], got list",
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
