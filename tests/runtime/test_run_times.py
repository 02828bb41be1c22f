"""How long programs run: many runs of quick ones, and no trust in a single one."""

from pytest import approx, fixture

from runtime import run_times as module
from runtime.run_times import run_times


@fixture
def programs(monkeypatch):
    """Programs on a clock of their own: batch to the seconds of its runs, the last of them repeated."""
    now = 0.0
    runs = []
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)

    def timed(seconds):
        def prepare(batch):
            def run():
                nonlocal now
                turns = seconds[batch]
                now += turns.pop(0) if len(turns) > 1 else turns[0]
                runs.append(batch)

            return run

        return run_times(seconds, prepare), runs

    return timed


def test_the_quickest_run_counts(programs):
    """A single slow run, or turn, does not change a program's time."""
    found, runs = programs({1: [0.02, 0.001], 4: [0.02, 0.002]})

    assert found == {1: approx(0.001), 4: approx(0.002)}
    assert runs[:2] == [1, 4]
    assert runs.count(1) <= 1 + 50


def test_a_slow_program_runs_once(programs):
    """One that takes longer than a tenth of a second is not waited for again."""
    _, runs = programs({1: [0.01], 4: [0.5]})

    assert runs.count(4) == 1
    assert runs.count(1) > 2


def test_times_of_slow_programs_are_smoothed(programs):
    """Where runs are few they are replaced by a line through all batches."""
    found, _ = programs({1: [0.2], 2: [0.3], 4: [0.7], 8: [0.9]})

    steps = [(found[b] - found[a]) / (b - a) for a, b in ((1, 2), (2, 4), (4, 8))]
    assert steps == [approx(steps[0])] * 3


def test_a_line_that_falls_is_no_model_of_run_times(programs):
    """Times that would decrease with more rows are used as measured."""
    found, _ = programs({1: [0.9], 2: [0.5], 4: [0.2]})

    assert found == {1: approx(0.9), 2: approx(0.5), 4: approx(0.2)}
