"""Whether programs fit into memory: checked, and reported, before one of them runs."""

import re
from types import SimpleNamespace

import numpy as np
from jax.errors import JaxRuntimeError
from pytest import fixture, mark, raises

from runtime import DoesNotFit, ExecutionError, load, model
from runtime.__main__ import main
from runtime.program import Program, put
from runtime.room import check_memory, needs


class Compiled:
    """XLA's memory statistics of a program that needs so much beside its params."""

    def __init__(self, params, inputs, outputs, between):
        self._memory = SimpleNamespace(
            argument_size_in_bytes=params + inputs,
            output_size_in_bytes=outputs,
            temp_size_in_bytes=between,
        )

    def cost_analysis(self):
        """Return no costs."""
        return {}

    def memory_analysis(self):
        """Return the memory."""
        return self._memory


def program(batch, compiled):
    """Make a program with these statistics of XLA."""
    return Program(batch, {}, compiled, _x64=False)


# Beside 1,000,000 B of params: 1,010, 8,080 and 64,640 B.
PROGRAMS = {f"b{b}": program(b, Compiled(1_000_000, b * 8, b * 2, b * 1000)) for b in (1, 8, 64)}
SILENT = {"b1": program(1, SimpleNamespace(cost_analysis=dict, memory_analysis=lambda: None))}


@fixture
def free(monkeypatch):
    """Set the bytes that every device reports as free; None for a device that reports nothing."""
    return lambda left: monkeypatch.setattr(model, "free_memory", lambda _: left)


def test_program_needs_what_goes_in_and_comes_out_and_lies_between():
    """
    What a program needs is its params, inputs, outputs, and what XLA has in between.
    """
    assert [needs(p) for p in PROGRAMS.values()] == [1_001_010, 1_008_080, 1_064_640]
    assert needs(SILENT["b1"]) is None


@mark.parametrize(
    ("free", "at_once", "message"),
    [
        (
            64_639,
            1,
            (
                "bucket b64: expected 64,640 B of memory free beside the params, got 64,639 B; export "
                "no bucket above b8, or serve it where more is free"
            ),
        ),
        (
            8_079,
            1,
            (
                "bucket b8: expected 8,080 B of memory free beside the params, got 8,079 B; export no "
                "bucket above b1, or serve it where more is free"
            ),
        ),
        (
            0,
            1,
            (
                "bucket b1: expected 1,010 B of memory free beside the params, got 0 B; serve it "
                "where more is free"
            ),
        ),
        (
            129_279,
            2,
            (
                "bucket b64: expected 129,280 B of memory free beside the params, got 129,279 B; "
                "export no bucket above b8, or serve it where more is free"
            ),
        ),
    ],
)
def test_the_least_bucket_that_does_not_fit_is_named(free, at_once, message):
    """
    One line names the bucket, what it needs, what is free, and which buckets would fit.
    """
    with raises(DoesNotFit, match=f"^{re.escape(message)}$"):
        check_memory(PROGRAMS, 1_000_000, free, at_once)


@mark.parametrize(
    ("programs", "free", "at_once"),
    [
        (PROGRAMS, 64_640, 1),
        (PROGRAMS, 129_280, 2),
        (PROGRAMS, None, 1),
        (SILENT, 0, 1),
        ({}, 0, 1),
    ],
)
def test_programs_that_fit_to_the_byte_are_run(programs, free, at_once):
    """
    Exactly enough is enough; where the device or XLA reports nothing, nothing is refused.
    """
    check_memory(programs, 1_000_000, free, at_once)


def test_no_program_runs_where_one_does_not_fit(classifier_bundle, free, monkeypatch):
    """
    A bundle with a bucket that does not fit is not loaded, and none of its programs has run.
    """
    ran = []
    monkeypatch.setattr(Program, "call", lambda *arguments: ran.append(arguments))
    free(100)

    with raises(DoesNotFit, match=r"^bucket b\d: expected [\d,]+ B of memory free"):
        load(classifier_bundle, "cpu")

    assert ran == []


@mark.parametrize("left", [10**9, None])
def test_bundle_that_fits_is_loaded(classifier_bundle, free, left):
    """
    With enough memory, or with a device that does not report its own, a bundle loads and answers.
    """
    free(left)

    loaded = load(classifier_bundle, "cpu")

    assert len(loaded.predict({"x": np.ones((3, 4), np.float32)})["output"]) == 3


def test_commands_say_it_in_one_line(classifier_bundle, free, capsys):
    """
    `python -m runtime verify` of a bundle that does not fit ends with status 3 and one line.
    """
    free(0)

    status = main(["verify", str(classifier_bundle)])

    assert status == 3
    assert re.fullmatch(
        r"error: bucket b1: expected \d+ B of memory free beside the params, got 0 B; serve it "
        "where more is free",
        capsys.readouterr().err.splitlines()[-1],
    )


def test_params_that_do_not_fit_are_an_error_of_the_device(classifier, monkeypatch):
    """
    A device without memory for the params is reported in one line, not in a traceback.
    """

    def full(*_):
        raise JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.\nstack"
        )

    monkeypatch.setattr("jax.device_put", full)

    with raises(
        ExecutionError,
        match=r"^params: RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes\.$",
    ):
        put([], classifier.device, x64=False)


def test_two_runs_at_once_need_twice_as_much(classifier, free):
    """
    A loaded model is checked for whether several concurrent runs fit.
    """
    most = max(
        needs(p) - sum(a.nbytes for a in classifier.params)
        for group in classifier.groups.values()
        for p in group.programs.values()
    )
    free(2 * most)
    classifier.check_memory(at_once=2)
    free(2 * most - 1)
    classifier.check_memory()

    with raises(DoesNotFit):
        classifier.check_memory(at_once=2)
