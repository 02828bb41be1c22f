"""Verification: goldens and rows, checked on this device through the production path."""

import json
import threading

import numpy as np
from pytest import fixture, mark, param, raises

from runtime import (
    GoldenMismatch,
    IncompatibleProgram,
    IntegrityError,
    assert_bundle_matches_goldens,
    load,
    open_bundle,
    proof,
)
from runtime.errors import DoesNotFit
from runtime.model import Model
from runtime.proof import prove
from runtime.tensors import read_tensors, write_tensors
from runtime.verify import verify
from tests.altered_bundles import with_other_golden

PROGRAMS = list(enumerate(("b1-seq4", "b4-seq4", "b1-seq8", "b4-seq8"), 1))


@fixture
def altered(classifier_bundle, tmp_path):
    """The classifier with other expected outputs, digests and all."""
    return with_other_golden(classifier_bundle, tmp_path / "altered")


def poisoned(value):
    """Make expected outputs of which one is no finite number."""
    expected = np.zeros((4, 3), np.float32)
    expected[1, 2] = value
    return expected


def unrecorded(bundle):
    """Take the record that rows are mixed out of a bundle's manifest."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["row_mixing"] = []
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_every_golden_runs_through_every_program_that_holds_it(tagger):
    """
    Goldens run in the longer buckets too, which proves that padding means nothing to the model.
    """
    report = verify(tagger)

    sizes = {golden.file.path: golden.axes["seq"] for golden in tagger.manifest.goldens}
    assert sorted(sizes.values()) == [1, 2, 4, 6, 8]
    assert sorted((check.bucket, check.golden, check.output) for check in report.goldens) == sorted(
        (f"b{batch}-seq{seq}", path, output)
        for path, size in sizes.items()
        for seq in (4, 8)
        if size <= seq
        for batch in (1, 4)
        for output in ("mean", "scores")
    )


def test_right_bundle_is_found_right(tagger):
    """
    A bundle on the machine that made it has no mismatch, no mixing and little drift.
    """
    report = verify(tagger)

    assert report.mismatches == ()
    assert report.mixing == ()
    assert set(report.drift) == {"mean", "scores"}
    assert max(report.drift.values()) <= 1e-5


def test_progress_is_reported(classifier):
    """
    The progress messages name what is being checked.
    """
    steps = []

    verify(classifier, progress=steps.append)

    assert steps == [
        "checking goldens",
        "checking rows of b1",
        "checking rows of b2",
        "checking rows of b4",
    ]


def test_a_long_proof_reports_how_long_it_takes(classifier, monkeypatch):
    """
    What is left is judged by the time that goldens took, row for row, and counted down.
    """
    steps, clock = [], iter((0.0, 12.0))
    monkeypatch.setattr("runtime.verify.time.perf_counter", lambda: next(clock))

    verify(classifier, progress=steps.append)

    # Goldens took 4 + 4 + 4 rows; probes take none of b1, 11 times 2 of b2 and 16 times 4 of b4.
    assert steps == [
        "checking goldens",
        "checking rows of b1, about 86 s left",
        "checking rows of b2, about 86 s left",
        "checking rows of b4, about 64 s left",
    ]


def test_a_proof_on_several_threads_is_the_same_proof(tagger, tagger_bundle):
    """
    Compiled and run side by side, and never timed, a bundle gets the report that it gets in turn.
    """
    steps = []

    model, report = prove(open_bundle(tagger_bundle), "cpu", progress=steps.append)

    assert report == verify(tagger)
    assert list(model.groups) == list(tagger.groups)
    assert "warming up" not in steps
    assert set(steps[:4]) == {f"compiling programs/{p}.exported ({i}/4)" for i, p in PROGRAMS}


def test_a_proof_that_has_no_room_for_two_runs_makes_one_at_a_time(tagger_bundle, monkeypatch):
    """
    Memory for one run is enough to prove a bundle.
    """
    asked, running, most = [], set(), set()
    run = Model.run

    def check_memory(_, at_once=1):
        asked.append(at_once)
        if at_once > 1:
            raise DoesNotFit("bucket b1: expected more")

    def watched(self, program, inputs):
        running.add(threading.get_ident())
        most.add(len(running))
        return run(self, program, inputs)

    monkeypatch.setattr(proof.os, "sched_getaffinity", lambda _: range(3))
    monkeypatch.setattr(Model, "check_memory", check_memory)
    monkeypatch.setattr(Model, "run", watched)

    _, report = prove(open_bundle(tagger_bundle), "cpu", progress=lambda _: None)

    assert (asked, most) == ([1, 3], {1})
    assert report.mismatches == ()


def test_altered_golden_is_found_in_every_program(altered):
    """
    Other expected outputs fail in each program, with place, size and tolerance in the message.
    """
    model = load(altered, "cpu")
    report = verify(model)
    tolerance = model.manifest.tolerances["cpu"]["output"]

    assert [check.bucket for check in report.mismatches] == ["b1", "b2", "b4"]
    for check in report.mismatches:
        comparison = check.comparison
        assert abs(comparison.max_error - 1) < 1e-5
        assert str(check) == (
            f"{check.bucket}, output 'output'{list(comparison.where)}: expected "
            f"{comparison.expected!r}, got {comparison.got!r}; max |Δ| 1, accepted "
            f"{tolerance.atol:.3g} + 0.0001·|expected| (golden/0.safetensors)"
        )


def test_mixed_rows_are_found_by_verification(mixing_bundle):
    """
    A model that mixes rows is seen to do so again on this device, and its goldens hold.
    """
    report = verify(load(mixing_bundle, "cpu"))

    assert {mixing.bucket for mixing in report.mixing} == {"b4"}
    assert {"random", "copies"} <= {mixing.cause for mixing in report.mixing}
    assert {check.bucket for check in report.goldens} == {"b1", "b4"}
    assert report.mismatches == ()


def test_mixed_rows_that_are_not_recorded_fail(mixing_bundle, copy_of):
    """
    The same bundle without the record is wrong here: its answers depend on the batch.
    """
    report = verify(load(unrecorded(copy_of(mixing_bundle)), "cpu"))

    assert report.mismatches != ()
    assert report.mixing != ()


@mark.parametrize(
    ("change", "message"),
    [
        param(
            lambda tensors: tensors.pop("output/output"),
            "golden/0.safetensors: output/output: expected float32[4, 3], got none",
            id="missing",
        ),
        param(
            lambda tensors: tensors.update({"input/x": np.zeros((3, 4), np.float32)}),
            "golden/0.safetensors: input/x: expected float32[4, 4], got float32[3, 4]",
            id="other-rows",
        ),
        param(
            lambda tensors: tensors.update({"output/output": poisoned(np.nan)}),
            "golden/0.safetensors: output/output: expected finite values, got nan at [1, 2]",
            id="nan",
        ),
        param(
            lambda tensors: tensors.update({"output/output": poisoned(-np.inf)}),
            "golden/0.safetensors: output/output: expected finite values, got -inf at [1, 2]",
            id="undeclared-infinity",
        ),
    ],
)
def test_golden_that_does_not_fit_is_refused(classifier_bundle, copy_of, redigest, change, message):
    """
    A golden file of other tensors than the signature's is refused, not compared.
    """
    bundle = copy_of(classifier_bundle)
    path = bundle / "golden/0.safetensors"
    tensors = read_tensors(path, path.read_bytes())
    change(tensors)
    with path.open("wb") as f:
        write_tensors(f, tensors)
    redigest(bundle)

    with raises(IntegrityError) as caught:
        verify(load(bundle, "cpu"))

    assert str(caught.value) == message


def test_assertion_passes_for_a_right_bundle(tagger_bundle):
    """
    A regression test of a user's own is one line.
    """
    assert_bundle_matches_goldens(tagger_bundle, "cpu")


def test_assertion_lists_what_fails(altered):
    """
    The message of a failing regression test names the programs that are off, and by how much.
    """
    with raises(GoldenMismatch) as caught:
        assert_bundle_matches_goldens(str(altered), "cpu")

    first, *rest = str(caught.value).splitlines()
    assert first == "3 golden checks failed on cpu:"
    assert [line.split(",")[0] for line in rest] == ["b1", "b2", "b4"]


def test_assertion_cannot_pass_where_the_bundle_does_not_run(cuda_bundle):
    """
    A bundle that this device cannot run is an error, never a quiet pass.
    """
    with raises(IncompatibleProgram):
        assert_bundle_matches_goldens(cuda_bundle, "cpu")
