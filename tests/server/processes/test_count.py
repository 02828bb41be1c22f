"""How many processes `--processes auto` means: by cores, memory, and what a program takes."""

import dataclasses

from pytest import mark

from server.config import AUTO, ServerConfig
from server.processes import count
from server.processes.count import Measured, choose, decide, free_memory

GB = 10**9
SMALL = Measured(run_s=20e-6, memory_bytes=GB // 4)
LARGE = Measured(run_s=0.02, memory_bytes=GB)


@mark.parametrize(
    ("measured", "cores", "free", "processes", "reason"),
    [
        (SMALL, 2.0, 8 * GB, 2, "they answer up to 1.88 times the requests of one: a program takes 20 µs and a request 150 µs beside it"),
        (SMALL, 4.0, 8 * GB, 4, "they answer up to 3.65 times the requests of one: a program takes 20 µs and a request 150 µs beside it"),
        (SMALL, 2.0, None, 2, "they answer up to 1.88 times the requests of one: a program takes 20 µs and a request 150 µs beside it"),
        (LARGE, 2.0, 8 * GB, 1, "2 processes would answer 1.01 times the requests: a program takes 20000 µs and a request 150 µs beside it"),
        (SMALL, 1.0, 8 * GB, 1, "1 cores may be used"),
        (SMALL, 1.9, 8 * GB, 1, "1.9 cores may be used"),
        (SMALL, 8.0, GB, 3, "they answer up to 2.90 times the requests of one: a program takes 20 µs and a request 150 µs beside it"),
        (SMALL, 8.0, GB // 2, 1, "two processes need 0.5 GB, more than 80% of what is free"),
        (dataclasses.replace(SMALL, cpu=False), 8.0, 8 * GB, 1, "one process has a device's memory"),
    ],
)  # fmt: skip
def test_as_many_processes_as_gain(measured, cores, free, processes, reason):
    """
    Each core has a process where requests cost more than programs, and memory is enough; elsewhere
    there is one.
    """
    found = choose(measured, cores, free)

    assert (found.processes, found.reason) == (processes, reason)


def test_a_program_of_any_time_never_makes_several_answer_less():
    """The more a program takes the fewer processes gain, and never does the number go up again."""
    found = [
        choose(Measured(run_s=10e-6 * 1.5**n, memory_bytes=1), 4.0, None).processes
        for n in range(30)
    ]

    assert found == sorted(found, reverse=True)
    assert set(found) == {4, 1}


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


def test_on_one_core_nothing_is_measured(monkeypatch):
    """Where only one process can be chosen, the bundle is not loaded for it."""
    monkeypatch.setattr(count.cpu_limits, "free_cores", lambda: 1.0)
    monkeypatch.setattr(count, "_measure", None)

    assert decide(ServerConfig(bundle="b", processes=AUTO)).processes == 1


def test_several_devices_have_one_process(monkeypatch):
    """Devices that are named are those of one process, and the bundle is not loaded to find that out."""
    monkeypatch.setattr(count, "_measure", None)

    assert decide(ServerConfig(bundle="b", processes=AUTO, devices="all")).processes == 1


def test_a_bundle_that_is_none_has_one_process(tmp_path, monkeypatch, caplog):
    """What cannot be measured is left for the server to refuse, in its own words."""
    caplog.set_level("INFO")
    monkeypatch.setattr(count.cpu_limits, "free_cores", lambda: 2.0)

    assert decide(ServerConfig(bundle=str(tmp_path), processes=AUTO)).processes == 1
    assert caplog.messages == ["processes: 1, since the bundle could not be measured"]


@mark.e2e
def test_a_small_model_has_a_process_for_each_core(classifier_bundle, tmp_path, monkeypatch):
    """The bundle is measured in a process of its own, and what that compiled is kept in the cache."""
    monkeypatch.setattr(count.cpu_limits, "free_cores", lambda: 2.0)
    monkeypatch.setattr(count, "free_memory", lambda: None)
    config = ServerConfig(
        bundle=str(classifier_bundle), cache_dir=str(tmp_path / "cache"), processes=AUTO
    )

    assert decide(config).processes == 2
    assert any((tmp_path / "cache").rglob("*"))
