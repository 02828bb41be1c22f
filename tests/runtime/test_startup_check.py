"""The startup check: which rows run where, and what it sees."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.startup_check import check_startup, copy_positions, plan_runs


@given(
    batches=st.sets(st.integers(1, 40), min_size=1, max_size=6),
    rows=st.integers(1, 40),
    own=st.floats(0, 1),
)
def test_every_row_is_answered_and_every_program_runs(batches, rows, own):
    """Every program answers a golden row, and every row of a group's own is answered."""
    must = round(own * rows)
    runs = plan_runs(sorted(batches), rows, must=must)

    assert {batch for batch, _ in runs} == batches
    assert all(len(placed) == batch for batch, placed in runs)
    assert set(range(must)) <= {row for _, placed in runs for row in placed}
    for batch, placed in runs[: len(batches)]:
        assert len({placed[i] for i in copy_positions(batch)}) == 1


def test_programs_that_hold_all_rows_run_once():
    """Where the programs hold all golden rows between them, each runs once."""
    assert [batch for batch, _ in plan_runs([1, 4, 8], 6, must=6)] == [1, 4, 8]


def test_all_is_well_with_a_bundle_that_is(classifier, tagger):
    """A bundle that is whole passes, in few more runs than it has programs."""
    for model in (classifier, tagger):
        report = check_startup(model)

        assert (report.mismatches, report.mixing) == ((), ())
        programs = sum(len(group.programs) for group in model.groups.values())
        assert programs < report.runs <= 3 * programs


def break_answers(monkeypatch, model, change):
    """Have a model answer otherwise."""
    run = model.run
    monkeypatch.setattr(model, "run", lambda program, inputs: change(run(program, inputs), inputs))


def test_a_wrong_answer_is_seen(classifier, monkeypatch):
    """One output that is off in one program is a mismatch that names it."""
    break_answers(
        monkeypatch, classifier, lambda got, inputs: (got[0] + (len(inputs[0]) == 4), *got[1:])
    )

    mismatches = check_startup(classifier).mismatches

    assert {check.bucket for check in mismatches} == {"b4"}


def test_an_answer_that_follows_the_place_is_seen(classifier, monkeypatch):
    """A row that gets other bits at another position is a sign of rows that mix."""

    def change(got, _):
        answer = np.array(got[0])
        answer[len(answer) // 2] = np.nextafter(answer[len(answer) // 2], np.float32(9))
        return (answer, *got[1:])

    break_answers(monkeypatch, classifier, change)

    assert {mixing.cause for mixing in check_startup(classifier).mixing} >= {"position"}


def test_a_statistic_of_the_batch_is_seen(classifier, monkeypatch):
    """What moves all copies of a row alike shows beside rows drawn at random."""

    def change(got, inputs):
        return (got[0] + np.float32(1e-6) * inputs[0].mean(), *got[1:])

    break_answers(monkeypatch, classifier, change)

    assert "random" in {mixing.cause for mixing in check_startup(classifier).mixing}
