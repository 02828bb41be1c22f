"""`check_gpu`: what is refused before a model is traced, and after it was compiled, with a compiler that is a fake."""

import jax.numpy as jnp
import numpy as np
from pytest import fixture, mark, raises

from export import card_check, export_model
from export.__main__ import main
from export.errors import ExportError, VerificationError
from runtime.card_report import CardReport, ProgramOnCard, read_report
from runtime.gpu_check import NoPlugin


@fixture
def export(tmp_path, monkeypatch):
    """Exports a small model with a fake compiler; returns the report."""

    def run(found=None, environment=lambda: ("python", {}), **options):
        def check_cards(bundle, cards, **_):
            programs = tuple(
                ProgramOnCard(card=card.name, program="b1", **(found or {})) for card in cards
            )
            return CardReport(bundle=bundle.digest, versions={"jax": "1"}, programs=programs)

        monkeypatch.setattr(card_check, "find_environment", environment)
        monkeypatch.setattr(card_check, "check_cards", check_cards)
        return export_model(
            lambda params, x: jnp.tanh(x * params["w"]),
            {"w": np.ones(2, np.float32)},
            inputs=["x:float32[_,2]"],
            buckets=(1,),
            out=tmp_path / "b",
            **options,
        )

    return run


def test_a_bundle_that_compiles_has_its_report_beside_it(export, tmp_path):
    """The report has the cards, and states that nothing ran there; a file has it for deploying."""
    report = export(check_gpu="t4,l4")

    assert report.compiles_for == ("t4", "l4")
    assert "compiles for t4, l4; nothing ran there" in str(report)
    kept = tmp_path / "b.cards.json"
    assert kept.exists()
    digest = export(check_gpu=["h100"], overwrite=True).bundle
    assert digest == str(tmp_path / "b")
    assert export(overwrite=True).compiles_for == ()


def test_a_bundle_that_a_card_refuses_is_not_there(export, tmp_path):
    """Neither the bundle nor a report is left; the error names the first program and how many more."""
    with raises(VerificationError) as error:
        export({"reason": "UNIMPLEMENTED: no"}, check_gpu=["t4", "l4"])

    assert str(error.value) == (
        "the bundle does not run on t4, l4: program b1 on t4: expected it to compile, got: UNIMPLEMENTED: "
        "no (and 1 more)"
    )
    assert list(tmp_path.iterdir()) == []
    assert read_report(tmp_path / "b", "0") is None


@mark.parametrize(
    ("options", "message"),
    [
        (
            {"check_gpu": "t4,rtx"},
            "check_gpu: expected a card among t4, l4, a100, a100-80gb, h100, h200, got 'rtx'",
        ),
        (
            {"check_gpu": ["t4"], "platforms": ("cpu",)},
            "check_gpu: expected cuda among the platforms, got cpu; add it to --platforms",
        ),
        (
            {"check_gpu": ["t4"], "dry_run": True},
            "check_gpu: expected a bundle to be written, got dry_run",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused_before_anything_is_traced(export, options, message):
    """An unknown card, a bundle that no GPU could run and one that is not written are one line."""
    with raises(ExportError) as error:
        export(**options)

    assert str(error.value) == message


def test_without_a_compiler_for_gpus_the_export_does_not_begin(export, tmp_path):
    """A missing compiler is reported first, not after minutes of exporting."""

    def missing():
        raise NoPlugin("expected XLA's CUDA plugin, got none")

    with raises(ExportError) as error:
        export(environment=missing, check_gpu=["t4"])

    assert str(error.value) == "check_gpu: expected XLA's CUDA plugin, got none"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_card_is_one_line_of_the_command(capsys):
    """The flag names the cards that are known."""
    with raises(SystemExit) as ended:
        main(["model.py:spec", "--out", "b", "--check-gpu", "t5"])

    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --check-gpu: expected a card among t4, l4, a100, a100-80gb, h100, h200, got 't5'\n"
    )
