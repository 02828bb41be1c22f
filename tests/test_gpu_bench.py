"""bench.gpu: the comparison with figures that were compiled elsewhere, and its time limit."""

import shutil
import time

from pytest import fixture

from bench.gpu import made_elsewhere
from bench.gpu.__main__ import Deadline
from runtime import load
from runtime.bundle import open_bundle
from runtime.card_report import CardReport, ProgramOnCard, keep_report
from runtime.program_forms import versions


@fixture
def model(classifier_bundle, tmp_path):
    """A model whose bundle may have a report beside it."""
    return load(shutil.copytree(classifier_bundle, tmp_path / "bundle"), "cpu")


def reported(model, card, **made_with):
    """Write a report with the smallest program on a card."""
    program = ProgramOnCard(card=card, program="b1", temp_bytes=7, argument_bytes=8, output_bytes=9)
    digest = open_bundle(model.bundle.path).digest
    keep_report(
        model.bundle.path, CardReport(bundle=digest, versions=made_with, programs=(program,))
    )


def test_what_was_compiled_elsewhere_stands_beside_what_is_compiled_here(model, monkeypatch):
    """For each program of the card both figures are there, and whether the versions agree."""
    here = {key: versions()[key] for key in ("jax", "jaxlib")}
    monkeypatch.setattr(made_elsewhere, "device_kind", lambda _: "Tesla T4")
    costs = next(iter(model.groups.values())).programs[1].costs()

    reported(model, "t4", **here)
    found = made_elsewhere.compared(model, model.bundle.path)
    reported(model, "t4", **{**here, "jaxlib": "0.0"})
    other = made_elsewhere.compared(model, model.bundle.path)

    assert (found["versions agree"], other["versions agree"]) == (True, False)
    assert found["programs"] == [
        {
            "program": "b1",
            "argument_bytes": [8, costs["argument_bytes"]],
            "temp_bytes": [7, costs["temp_bytes"]],
            "output_bytes": [9, costs["output_bytes"]],
        }
    ]


def test_where_nothing_can_be_compared_the_figures_say_why(model):
    """Without a report, or with one of other cards, there is a reason in place of figures."""
    without = made_elsewhere.compared(model, model.bundle.path)
    reported(model, "l4")
    other = made_elsewhere.compared(model, model.bundle.path)

    assert without == {
        "left out": "there is no report beside the bundle; python -m bench.gpu prepare makes one"
    }
    assert other == {"left out": "the report has no cpu"}


def test_what_there_is_no_time_for_is_noted(monkeypatch):
    """A measurement that would end after the deadline is skipped, by name."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(minutes=1)

    assert deadline.allows("b1", 59)
    assert not deadline.allows("b8", 61)
    assert deadline.left_out == ["b8"]
