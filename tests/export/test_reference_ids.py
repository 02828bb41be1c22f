"""The training code's own way from texts to ids must give the tokenizer's."""

from pytest import mark

from tests.export.texts_of import opened, refusal
from tests.tokenizer_files import ids


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
    """The training code's own preparation must return the tokenizer's ids, padding apart."""
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

    assert found.startswith(
        "reference_preprocess: ValueError: no such vocabulary (test_reference_ids.py"
    )
