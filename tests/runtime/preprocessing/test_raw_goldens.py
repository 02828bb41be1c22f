"""Goldens that begin at texts: a changed tokenizer is distinguished from a changed model."""

import json

from pytest import fixture, mark, raises

from runtime import GoldenMismatch, IntegrityError, assert_bundle_matches_goldens, load, open_bundle
from runtime.__main__ import main
from runtime.preprocessing.raw_goldens import check_raw_goldens, read_raw
from runtime.startup import start
from runtime.startup_check import check_startup
from runtime.verify import verify
from tests.altered_bundles import altered, with_other_golden
from tests.tokenizer_files import VOCABULARY, words

TOKENIZER = "preprocess/0/tokenizer.json"
RAW = "golden/0.jsonl"


def exchange(value):
    """Change a tokenizer to return the ids of cats for dogs."""
    cat, dog = VOCABULARY["cat"], VOCABULARY["dog"]
    value["model"]["vocab"] |= {"cat": dog, "dog": cat}


@fixture
def other_tokenizer(sentence_bundle, tmp_path):
    """The bundle with a tokenizer that returns other ids for two words, and a golden that contains them."""
    changes = {
        TOKENIZER: lambda _: words(exchange),
        RAW: lambda data: data,
    }
    return altered(sentence_bundle, tmp_path / "other", changes)


def test_goldens_begin_at_texts(sentence_bundle):
    """The rows of a golden are JSON lines beside the tensors that were made of them."""
    bundle = open_bundle(sentence_bundle)
    raw = [golden for golden in bundle.manifest.goldens if golden.raw]

    assert [sorted(row) for golden in raw for row in read_raw(bundle, golden)] == [["text"]] * 8
    assert {golden.axes["seq"] for golden in raw} == {4, 8}


def test_all_is_well_with_the_tokenizer_of_the_export(sentence_bundle):
    """The tokenizer that the goldens were made by makes the same of them again."""
    model = load(sentence_bundle, "cpu")

    assert check_raw_goldens(model.bundle, model.preparer) == []
    assert verify(model).preparation == check_startup(model).preparation == ()
    assert_bundle_matches_goldens(sentence_bundle, "cpu")


@mark.e2e
def test_another_tokenizer_is_named(other_tokenizer, capsys):
    """The error names the tokenizer and its version, and the ids that differ; the model's answers are right."""
    model = load(other_tokenizer, "cpu")
    report = verify(model)
    version = model.manifest.exporter["tokenizers"]
    ending = f"; the tokenizer gives other ids than at export (tokenizers {version} then, {version} here)"

    assert report.mismatches == ()
    assert report.preparation
    for line in report.preparation:
        assert line.startswith("golden/")
        assert ", row " in line
        assert ": expected input_ids [2, " in line
        assert line.endswith(ending)
    assert check_startup(model).preparation == report.preparation
    started = start(open_bundle(other_tokenizer), "cpu", isolated=False)
    assert started.failed == report.preparation
    with raises(GoldenMismatch, match=r"^\d golden checks failed on cpu:\ngolden/0.jsonl, row "):
        assert_bundle_matches_goldens(other_tokenizer, "cpu")
    capsys.readouterr()
    assert main(["verify", str(other_tokenizer), "--device", "cpu"]) == 4
    assert f"FAILED {report.preparation[0]}\n" in capsys.readouterr().out


@mark.e2e
def test_another_model_is_not_the_tokenizer(sentence_bundle, tmp_path):
    """Where the answers are others, the error is of the program, and none of the tokenizer."""
    report = verify(load(with_other_golden(sentence_bundle, tmp_path / "other"), "cpu"))

    assert report.mismatches
    assert report.preparation == ()


@mark.parametrize(
    ("data", "message"),
    [
        (b"", ": expected 5 lines, a row each, got 0"),
        (b"{}\n", ", row 0: expected an object with the text 'text', got something else"),
        (
            b'{"text": 1}\n',
            ", row 0: expected an object with the text 'text', got something else",
        ),
        (
            b'{"text": "a"}\n"b"\n',
            ", row 1: expected an object with the text 'text', got something else",
        ),
        (
            b"[" * 100_000,
            ", row 0: expected an object with the text 'text', got something else",
        ),
    ],
    ids=["none", "no-text", "number", "bare", "nested"],
)
def test_rows_of_another_form_are_refused(sentence_bundle, tmp_path, data, message):
    """What is no row of texts is an IntegrityError that names the line."""
    bundle = open_bundle(altered(sentence_bundle, tmp_path / "forged", {RAW: lambda _: data}))
    golden = next(golden for golden in bundle.manifest.goldens if golden.raw)

    with raises(IntegrityError) as caught:
        read_raw(bundle, golden)

    assert str(caught.value) == f"{RAW}{message}"


@mark.e2e
def test_inspect_shows_the_text(sentence_bundle, capsys):
    """People are shown what a bundle takes, and how long it may be."""
    main(["inspect", str(sentence_bundle)])

    shown = capsys.readouterr().out
    assert (
        "raw input         text: text, made input_ids, attention_mask; at most 8 tokens and 256 B, "
        "what is longer is refused\n"
    ) in shown


@mark.e2e
def test_a_refreshed_bundle_takes_texts(sentence_bundle, tmp_path, capsys):
    """Refreshing keeps the tokenizer and the goldens that begin at texts."""
    out = tmp_path / "refreshed"

    assert main(["refresh", str(sentence_bundle), "--out", str(out), "--device", "cpu"]) == 0

    capsys.readouterr()
    before, after = (json.loads((b / "manifest.json").read_bytes()) for b in (sentence_bundle, out))
    assert after["preprocess"] == before["preprocess"]
    assert after["goldens"] == before["goldens"]
    assert load(out, "cpu").predict({"text": ["cat"]})["mean"].shape == (1, 6)


@mark.e2e
def test_bench_times_the_text(sentence_bundle, capsys):
    """The time to prepare a text is listed beside the times of the programs."""
    command = ["bench", str(sentence_bundle), "--device", "cpu", "--seconds", "0"]

    main([*command, "--json"])
    figures = json.loads(capsys.readouterr().out)
    main(command)

    assert figures["preprocess_us"] > 0
    assert " µs to prepare a row\n" in capsys.readouterr().out
