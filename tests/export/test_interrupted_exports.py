"""Exports that are interrupted, or meet each other: whole bundles or none."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export import export_model
from export.__main__ import end_in_order
from runtime import BundleError, load
from tests.export.test_proof import WEIGHTS, X, affine

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_full_disk_leaves_nothing(command, tmp_path, monkeypatch):
    """A write that the disk refuses is one line, and what was written is removed."""
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text("def apply(params, x):\n    return x @ params['w']\n")
    save_file({"w": np.ones((3, 300_000), np.float32)}, "w.safetensors")
    before = sorted(p.name for p in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        ran = command(
            *("m.py:apply", "--params", "w.safetensors", "--input", X, "--buckets", "1"),
            *("--platforms", "cpu", "--out", "deep/b"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (ran.status, ran.error) == (1, "deep/b: File too large")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_of_two_exports_to_one_place_one_wins(tmp_path):
    """An export that finds another in its place when it is done is refused, and leaves it be."""
    out = tmp_path / "b"
    options = {"inputs": [X], "buckets": (1,), "platforms": ("cpu",), "out": out}

    def meanwhile(sentence):
        if sentence == "writing the bundle":
            export_model(affine, WEIGHTS, name="faster", **options)

    with pytest.raises(BundleError) as caught:
        export_model(affine, WEIGHTS, name="slower", progress=meanwhile, **options)
    assert str(caught.value) == f"bundle {out}: exists; pass --overwrite to replace it"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert load(out, "cpu").manifest.name == "faster"


def test_an_export_that_overwrites_wins_over_one_that_was_faster(tmp_path):
    """With --overwrite the later one replaces the earlier one, whole."""
    out = tmp_path / "b"
    options = {"inputs": [X], "buckets": (1,), "platforms": ("cpu",), "out": out}

    def meanwhile(sentence):
        if sentence == "writing the bundle":
            export_model(affine, WEIGHTS, name="faster", **options)

    export_model(affine, WEIGHTS, name="slower", progress=meanwhile, overwrite=True, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert load(out, "cpu").manifest.name == "slower"


STUCK = """
import os, signal

def apply(params, x):
    if os.environ.get("STUCK"):
        signal.pause()
    return x * 2
"""


@pytest.mark.e2e
def test_a_killed_export_does_not_block_the_next(tmp_path, command, monkeypatch):
    """After kill -9 in the middle the next export to the same place cleans up and succeeds."""
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(STUCK)
    words = ["m.py:apply", "--input", X, "--buckets", "1", "--platforms", "cpu", "--out", "b"]
    with subprocess.Popen(
        [sys.executable, "-m", "export", *words],
        env={**ENV, "STUCK": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr.readline().endswith("reading params\n")
        process.kill()
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".b.staging-")]

    assert process.returncode == -signal.SIGKILL
    assert len(left) == 1
    assert command(*words).status == 0
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"b", "m.py"}


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_export_leaves_nothing(tmp_path, monkeypatch, number):
    """What CI, containers, closed terminals and Ctrl-C send ends in one line, with nothing left."""
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(STUCK)
    words = ["m.py:apply", "--input", X, "--buckets", "1", "--platforms", "cpu", "--out", "b"]
    # Where these tests run in the background SIGINT is ignored, and a child would ignore it too.
    before = signal.signal(number, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "export", *words],
        env={**ENV, "STUCK": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        signal.signal(number, before)
        assert process.stderr.readline().endswith("reading params\n")
        process.send_signal(number)
        last = process.stderr.read().splitlines()[-1]

    assert last == "error: interrupted; nothing was left behind"
    assert process.returncode == 128 + number
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"m.py"}


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_hang_up_that_nohup_ignores_stays_ignored(before):
    """An export that is to outlive its terminal does; another one ends with it, in order."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, before)
    try:
        end_in_order()
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)

    assert ignored is (before is signal.SIG_IGN)


@pytest.mark.e2e
def test_two_processes_at_once_make_one_bundle(tmp_path):
    """Of exports started together exactly one puts its bundle in place; the other is refused with the reason."""
    (tmp_path / "m.py").write_text("def apply(params, x):\n    return x * 2\n")
    words = ["m.py:apply", "--input", X, "--buckets", "1", "--platforms", "cpu", "--out", "b"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "export", *words, "--name", name],
            cwd=tmp_path,
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [process.communicate() for process in running]
    statuses = [process.returncode for process in running]

    assert sorted(statuses) == [0, 1]
    winner = "one" if statuses[0] == 0 else "two"
    assert load(tmp_path / "b", "cpu").manifest.name == winner
    assert said[statuses.index(1)][1].splitlines()[-1] == (
        f"error: bundle {tmp_path / 'b'}: exists; pass --overwrite to replace it"
    )
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"b", "m.py"}


def test_an_interrupted_export_leaves_nothing(command, tmp_path, monkeypatch):
    """Ctrl-C ends with status 130, one line and a clean disk."""
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text("def apply(params, x):\n    raise KeyboardInterrupt\n")
    ran = command("m.py:apply", "--input", X, "--out", "deep/b")

    assert (ran.status, ran.error) == (130, "interrupted; nothing was left behind")
    assert not Path("deep").exists()
