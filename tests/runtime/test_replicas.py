"""A bundle on every device of a host, here four of a CPU: compiled once, checked on each."""

import json
import subprocess
import sys
import types

from pytest import fixture, mark, raises

from runtime import device as devices
from runtime.errors import DeviceUnavailable
from runtime.scaling import counts
from tests.serving import ROOT

FOUR = ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]


@fixture
def four(tmp_path):
    """Asks a process with four devices."""

    def ask(case, bundle="none"):
        command = [sys.executable, "-m", "tests.runtime.on_four_devices", case, str(bundle)]
        done = subprocess.run(
            [*command, str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


def test_each_device_answers_the_same_bits_from_programs_that_were_compiled_once(
    four, tagger_bundle
):
    """Four devices take one compile of each program, here or in the process that opens the bundle first."""
    found = four("alike", tagger_bundle)

    for isolated, one in found.items():
        assert one["devices"] == FOUR
        assert one["runs on"] == [[name] for name in FOUR]
        assert one["alike"]
        assert one["plans"] == 1
        assert one["compiled"] == one["compiles"] == (0 if isolated == "True" else one["programs"])


def test_programs_without_bytes_are_compiled_on_each_device(four, classifier_bundle):
    """What cannot be copied is compiled where it runs, before ready as everything is."""
    found = four("no_bytes", classifier_bundle)

    assert found["devices"] == ["cpu:1", "cpu:3"]
    assert found["compiles"] > 0
    assert found["compiles"] % 2 == 0


def test_a_device_that_is_wrong_or_fails_at_start_is_named(four, classifier_bundle):
    """Its golden checks fail under its name; one that fails outright is named by the error."""
    found = four("wrong", classifier_bundle)

    assert found["failed"]
    assert all(line.startswith("device cpu:2: b") for line in found["failed"])
    reason = "program b1: INTERNAL: an illegal address was read"
    assert found["errors"] == [f"device cpu:3: {reason}", f"device cpu:0: {reason}"]


def test_each_device_needs_memory_for_the_programs(four, classifier_bundle):
    """A device of which another process uses most is named with the bytes, before anything runs on it."""
    assert four("memory", classifier_bundle)["error"] == (
        "device cpu:1: bucket b1: expected 28 B of memory free beside the params, got 16 B; serve it "
        "where more is free"
    )


def test_a_bench_shows_what_devices_reach_together(four, classifier_bundle):
    """The fastest program runs on one device, on two, and on all requested devices."""
    found = four("scaled", classifier_bundle)
    scaling = json.loads(found["--json"])["scaling"]
    table = found[""].split("\n\n")[-1].splitlines()

    assert scaling["names"] == ["cpu:0", "cpu:2", "cpu:3"]
    assert [one["devices"] for one in scaling["at_once"]] == [1, 2, 3]
    assert scaling["at_once"][0]["of_one"] == 1
    assert all(one["rows_per_s"] > 0 for one in scaling["at_once"])
    assert table[0].split() == ["devices", "with", scaling["bucket"], "rows/s", "of", "one"]
    assert [line.split()[0] for line in table[1:]] == ["1", "2", "3"]


@mark.parametrize(
    ("devices", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])]
)
def test_numbers_of_devices_double_up_to_all(devices, expected):
    """Each number of devices is measured once, the whole number last."""
    assert counts(devices) == expected


def test_devices_are_found_by_all_by_index_and_by_name(four):
    """`all` means those of the platform, or the one that is named; what is not there is an error."""
    found = four("names")["found"]

    missing = "expected one of ['cpu:0', 'cpu:1', 'cpu:2', 'cpu:3'], got none (no such index)"
    assert found == [
        FOUR,
        FOUR,
        ["cpu:2", "cpu:0"],
        ["cpu:3"],
        ["cpu:1"],
        ["cpu:1"],
        ["cpu:2"],
        f"device 'cpu:4': {missing}",
        f"device 'cpu:9': {missing}",
    ]


def test_devices_of_several_kinds_are_refused(monkeypatch):
    """Programs compiled for one kind of GPU do not run on another."""
    client = types.SimpleNamespace(platform_version="cuda 12090")
    cards = [
        types.SimpleNamespace(platform="gpu", device_kind=kind, client=client)
        for kind in ("NVIDIA L4", "NVIDIA L4", "Tesla T4")
    ]
    monkeypatch.setattr(devices.jax, "local_devices", lambda backend: cards)  # noqa: ARG005
    monkeypatch.setattr(devices.jax, "Device", types.SimpleNamespace)

    assert devices.find_devices("cuda", "0,1") == tuple(cards[:2])
    with raises(DeviceUnavailable) as error:
        devices.find_devices("cuda", "all")

    assert str(error.value) == (
        "devices all: expected devices of one kind, got cuda:0 NVIDIA L4, cuda:2 Tesla T4; name those "
        "of one kind, such as --devices 0,1"
    )
