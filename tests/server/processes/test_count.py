"""How many processes `--processes auto` means: by cores, memory, and what programs take on parts of the cores."""

from pytest import fixture, mark, raises

from runtime import load
from server import startup
from server.config import ServerConfig
from server.processes import count
from server.processes.count import (
    FirstProcess,
    Measured,
    choose,
    free_memory,
    possible,
    thread_counts,
)
from server.startup import OtherThreads, open_model

GB = 10**9


def measured(*batches, parse_s=20e-6, memory_bytes=GB):
    """Return the costs of a process: for each batch its rows, and milliseconds by threads."""
    runs = {
        rows: {threads: ms / 1e3 for threads, ms in by_threads.items()}
        for rows, by_threads in batches
    }
    return Measured(parse_s, runs, memory_bytes)


# Of two cores: handled longer than run; run longer, by threads that gain half or all of a core.
SMALL = measured((1, {1: 0.03, 2: 0.03}), (32, {1: 0.5, 2: 0.4}))
HALF = measured((1, {1: 16.2, 2: 11.5}), (8, {1: 110, 2: 75}))
ALL = measured((1, {1: 19.9, 2: 10}), (8, {1: 155, 2: 80}))
# Of four: threads gain nothing; two threads gain all, four no more; by rows that come alone.
FOUR = measured((1, {1: 0.03, 2: 0.03, 4: 0.03}))
TWO_OF_FOUR = measured((1, {1: 40, 2: 20, 4: 20}))


@mark.parametrize(
    ("found", "cores", "free", "processes"),
    [
        (SMALL, 2, 8 * GB, 2),
        (SMALL, 2, None, 2),
        (SMALL, 1, 8 * GB, 1),
        (SMALL, 2, GB, 1),
        (SMALL, 2, -GB, 1),
        (HALF, 2, 8 * GB, 2),
        (ALL, 2, 8 * GB, 1),
        (FOUR, 4, 8 * GB, 4),
        (FOUR, 4, 3 * GB, 3),
        (TWO_OF_FOUR, 4, 8 * GB, 2),
    ],
)
def test_as_many_processes_as_gain(found, cores, free, processes):
    """
    There are as many processes as answer the most, and fit into memory; one where threads gain what
    processes would.
    """
    assert choose(found, cores, free).processes == processes


@mark.parametrize(
    ("found", "cores", "free", "reason"),
    [
        (
            *(SMALL, 2, None),
            (
                "they answer up to 1.95 times the requests of one: a request takes 0.1 ms beside its program; a "
                "batch of 1 takes 0.03 ms on 2 cores and 0.03 ms on 1; a batch of 32 takes 0.4 ms on 2 cores and "
                "0.5 ms on 1"
            ),
        ),
        (
            *(measured((1, {1: 20, 2: 10})), 2, None),
            (
                "2 would answer up to 1.00 times the requests of one: a request takes 0.1 ms beside its program; a "
                "batch of 1 takes 10 ms on 2 cores and 20 ms on 1"
            ),
        ),
        (SMALL, 2, GB, "a second one needs 1 GB, more than 80% of what is free"),
        (SMALL, 1, None, "one core may be used"),
    ],
)
def test_the_reason_has_what_was_measured(found, cores, free, reason):
    """The log says what decided: the gain by the times, or what there is too little of."""
    assert choose(found, cores, free).reason == reason


def test_both_kinds_of_load_have_to_gain():
    """If requests of one row would gain and large batches lose, or the reverse, there is one process."""
    gains, loses = {1: 0.03, 2: 0.03}, {1: 80, 2: 40}

    assert choose(measured((1, gains), (8, gains)), 2, None).processes == 2
    assert choose(measured((1, gains), (8, loses)), 2, None).processes == 1
    assert choose(measured((1, loses), (8, gains)), 2, None).processes == 1


def test_fewer_threads_are_never_thought_to_be_faster():
    """A program that was faster on one core than on two, on a busy machine, is no reason for more processes."""
    busy, even = measured((1, {1: 11, 2: 34})), measured((1, {1: 34, 2: 34}))

    assert (
        choose(busy, 2, None).reason.partition(":")[0]
        == choose(even, 2, None).reason.partition(":")[0]
    )


def test_the_longer_programs_take_beside_requests_the_fewer_processes():
    """Programs whose threads gain all are left to one process as they come to take most of a request."""
    times = [10e-6 * 1.5**n for n in range(30)]
    found = [
        choose(measured((1, {1: 4e3 * t, 2: 2e3 * t, 4: 1e3 * t})), 4, None).processes
        for t in times
    ]

    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (4, 1)


@mark.parametrize(
    ("cores", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_programs_are_measured_on_powers_of_two_and_on_all_cores(cores, counts):
    """What a process may compute with is 1, 2, 4 … of the cores, or all of them."""
    assert thread_counts(cores) == counts


@mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:  4 kB\n"}, 4096),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "max\n", "memory.current": "5\n"}, 4096),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "3000\n", "memory.current": "1000\n"}, 2000),
        ({"memory/memory.limit_in_bytes": "10\n", "memory/memory.usage_in_bytes": "20\n"}, 0),
    ],
)  # fmt: skip
def test_memory_is_free_for_the_machine_and_for_the_container(files, expected, tmp_path):
    """The smaller of what the machine has left and what the container may still take counts."""
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert free_memory(tmp_path / "meminfo", tmp_path) == expected


@mark.parametrize(
    ("changed", "cores", "expected"),
    [
        ({}, 2.0, 2),
        ({}, 3.5, 3),
        ({}, 1.9, 1),
        ({}, 0.5, 1),
        ({"devices": "all"}, 8.0, 1),
        ({"device": "cuda:1"}, 8.0, 1),
        ({"device": "cpu"}, 8.0, 8),
        ({"processes": 5}, 1.0, 5),
    ],
)
def test_where_one_process_is_all_there_can_be_nothing_is_chosen(
    changed, cores, expected, monkeypatch
):
    """With one core, several devices or a device other than a CPU there is one process, whatever the bundle."""
    monkeypatch.setattr(count.cpu_limits, "free_cores", lambda: cores)

    assert possible(ServerConfig(bundle="b", **changed)) == expected


def test_what_was_measured_is_kept_as_json():
    """A record is read as it was written; one for another number of threads, or a damaged one, is ignored."""
    record = SMALL.to_json()

    assert Measured.read(record, [1, 2]) == SMALL
    assert Measured.read(record, [1, 2, 4]) is None
    for damaged in ({}, record | {"runs": {}}, record | {"runs": 3}, record | {"memory_bytes": 0}):
        assert Measured.read(damaged, [1, 2]) is None
    assert Measured.read(record | {"parse_s": -1.0}, [1, 2]) is None


@fixture
def chosen():
    """Record the numbers of processes that were requested."""
    return []


@fixture
def first(chosen, monkeypatch):
    """A first process on two cores whose threads may be changed, with any amount of memory."""
    monkeypatch.setattr(count, "free_memory", lambda: None)
    monkeypatch.setattr(count, "may_change_cpu_threads", lambda: True)
    monkeypatch.setattr(count, "cpu_threads", lambda: 2)
    monkeypatch.setattr(count.cpu_limits, "cores_here", lambda: 2)
    return FirstProcess(2, chosen.append)


@fixture
def threads(monkeypatch):
    """Record the numbers of threads that the devices would be recreated with, without doing so."""
    changed = []
    monkeypatch.setattr(startup, "change_cpu_threads", changed.append)
    return changed


@fixture
def config(classifier_bundle, tmp_path):
    """A configuration of a bundle, with a cache."""
    return ServerConfig(bundle=str(classifier_bundle), cache_dir=str(tmp_path / "cache"))


@fixture(scope="module")
def classifier(classifier_bundle):
    """The model of a bundle."""
    return load(classifier_bundle)


@mark.parametrize(("found", "processes", "changes"), [(SMALL, 2, [1]), (ALL, 1, [])])
def test_the_first_process_goes_on_or_becomes_one_of_several(
    found, processes, changes, first, chosen, threads, config, monkeypatch
):
    """
    It measures before the startup check; as one of several it takes their number of threads, and only
    then are the others started and notified to load. A single process continues without loading again.
    """
    monkeypatch.setattr(count, "measure", lambda _, __: found)
    loaded = []

    _, started = open_model(config, lambda digest: loaded.append((digest, list(chosen))), first)

    assert chosen == [processes]
    assert loaded == [(started.model.bundle.digest, [processes])]
    assert threads == changes
    assert started.failed == ()


def test_the_next_start_chooses_before_it_loads(first, chosen, threads, config, monkeypatch):
    """With a cache nothing is measured twice."""
    monkeypatch.setattr(count, "measure", lambda _, __: SMALL)
    open_model(config, chooser=first)
    monkeypatch.delattr(count, "measure")

    open_model(config, chooser=first)

    assert chosen == [2, 2]
    assert threads == [1, 1]


def test_threads_that_the_user_has_set_stay(first, chosen, threads, config, monkeypatch):
    """With NPROC in the environment all processes compute with that number, and nothing is loaded again."""
    monkeypatch.setattr(count, "measure", lambda _, __: SMALL)
    monkeypatch.setattr(count, "may_change_cpu_threads", lambda: False)

    open_model(config, chooser=first)

    assert (chosen, threads) == ([2], [])


def test_other_threads_are_asked_for_before_the_others_are_started(
    first, chosen, monkeypatch, classifier
):
    """The exception that ends the first load has the number of threads for the second; no worker is started in vain."""
    monkeypatch.setattr(count, "measure", lambda _, __: SMALL)

    with raises(OtherThreads) as other:
        first.measure(classifier, None)

    assert (other.value.threads, chosen) == (1, [])


def test_programs_are_measured_with_every_number_of_threads(classifier):
    """The smallest batch and a large one have a time on all cores and on one; a row of a golden is parsed."""
    found = count.measure(classifier, 2)

    assert len(found.runs) in (1, 2)
    assert min(found.runs) == min(next(iter(classifier.groups.values())).programs)
    assert all(set(runs) == {1, 2} and min(runs.values()) > 0 for runs in found.runs.values())
    assert found.parse_s > 0
    assert found.memory_bytes > 1 << 20
