"""Golden texts: the user's own, line by line, or seeded ones of the vocabulary."""

import dataclasses

import numpy as np
from pytest import mark, raises

from export import ExportError
from export.raw_inputs import open_raw_inputs
from tests.export.texts_of import IDS, MASK, opened, refusal, spec_of
from tests.tokenizer_files import VOCABULARY, ids


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
    """Inputs that are not made of texts are passed with the golden texts."""
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


def test_golden_lines_need_a_raw_input(tokenizer):
    """Golden lines of a model that takes tensors only are refused, with the flag to pass."""
    path = tokenizer.parent / "golden.jsonl"
    path.write_text('"cat"\n')
    spec = dataclasses.replace(spec_of(tokenizer, golden=path), preprocess=())

    with raises(ExportError) as caught:
        open_raw_inputs(spec, lambda _: None)

    assert str(caught.value) == (
        f"golden {path}: expected .safetensors or .npz of inputs by name, got JSON lines; declare "
        "the text or image input, --text NAME=tokenizer.json or --image NAME=SIZE"
    )
