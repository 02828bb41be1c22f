"""Flags of texts say what an ExportSpec's `preprocess` does."""

from pytest import fixture, mark, raises

from export import ExportError, ExportSpec, Text
from export.cli import preprocess_changes
from export.parser import parser
from export.text_flags import declared_texts
from tests.tokenizer_files import words


@fixture
def folder(tmp_path, monkeypatch):
    """A folder with a tokenizer, in which the command runs."""
    (tmp_path / "tokenizer.json").write_bytes(words())
    (tmp_path / "training.py").write_text("def encode(texts):\n    return []\n")
    monkeypatch.chdir(tmp_path)


def changes(*flags, preprocess=()):
    """Return the fields that flags set of a spec."""
    arguments = parser().parse_args(["model.py:spec", "--out", "bundle", *flags])
    spec = ExportSpec(model=None, preprocess=preprocess)
    return preprocess_changes(spec, declared_texts(arguments), (), arguments)


@mark.usefixtures("folder")
def test_flags_declare_a_text():
    """A text with all of its fields."""
    found = changes(
        *("--text", "query=tokenizer.json", "--text-input", "query.input_ids=x"),
        *("--text-input", "query.lengths=n", "--text-pair", "query=passage", "--truncate", "query"),
    )

    assert found["preprocess"] == (
        Text(
            "query",
            tokenizer="tokenizer.json",
            input_ids="x",
            lengths="n",
            pair="passage",
            truncate=True,
        ),
    )


@mark.usefixtures("folder")
def test_flags_change_the_texts_of_a_spec():
    """Without --text the flags are of the spec's own texts; with it these are replaced."""
    own = [Text("text", tokenizer="tokenizer.json")]

    assert changes("--truncate", "text", preprocess=own)["preprocess"] == (
        Text("text", tokenizer="tokenizer.json", truncate=True),
    )
    assert [t.input for t in changes("--text", "a=.", preprocess=own)["preprocess"]] == ["a"]
    assert changes(preprocess=own) == {}


@mark.usefixtures("folder")
def test_the_training_code_is_named():
    """The training code's own preparation is an attribute of a module or a file."""
    assert (
        changes("--reference-preprocess", "training.py:encode")["reference_preprocess"](["a"]) == []
    )


@mark.usefixtures("folder")
@mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "text"], "--text: expected text=tokenizer.json, got 'text'"),
        (
            ["--text", "text=nothing.json"],
            "text 'text': expected tokenizer.json or a folder with it, got nothing at nothing.json",
        ),
        (["--text", "a b=tokenizer.json"], "text 'a b': expected a name such as 'text'"),
        (
            ["--text", "text=.", "--truncate", "txt"],
            "--truncate: expected a text of text, got 'txt'; did you mean 'text'?",
        ),
        (["--truncate", "txt"], "--truncate: expected a text that --text declares, got 'txt'"),
        (
            ["--text", "text=.", "--text-input", "text.input_id=x"],
            (
                "--text-input: expected NAME.ROLE=INPUT with a ROLE of input_ids, attention_mask, "
                "token_type_ids, lengths, got 'text.input_id=x'; did you mean 'input_ids'?"
            ),
        ),
        (
            ["--text", "text=.", "--text-pair", "text"],
            "--text-pair: expected text=second, got 'text'",
        ),
    ],
)
def test_flags_that_do_not_read_are_refused(flags, message):
    """What does not read is refused in one line, with what it should be."""
    with raises(ExportError) as caught:
        changes(*flags)

    assert str(caught.value) == message
