"""Kills a run at random moments until it is through, and compares every byte with a run that was not.

    python -m tests.e2e.batch_kills BUNDLE INPUT FORMAT KILLS SEED FOLDER

It prints one line: how many kills there were, and how many of them found a run that had not ended.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(bundle, source, format_, out, cache):
    """Start a run in a session of its own."""
    command = [sys.executable, "-m", "runtime", "predict", bundle, source, "--out", out]
    command += ["--format", format_, "--device", "cpu", "--cache", cache, "--json"]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def content(folder):
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killed(bundle, source, format_, kills, seed, folder):
    """Kill runs at random moments; return how many were alive.

    A moment is when so many changes of the folder were seen since the run was started, from 0 on:
    a slow machine is killed at the same places as a fast one.
    """
    chance = random.Random(seed)
    whole, out, cache = folder / "whole", folder / "out", folder / "cache"
    process = run(bundle, source, format_, whole, cache)
    _, err = process.communicate()
    assert process.returncode == 0, err
    wanted = content(whole)
    alive = 0
    for _ in range(kills):
        process = run(bundle, source, format_, out, cache)
        wait_for_changes(out, process, chance.randrange(40))
        if process.poll() is None:
            alive += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found = content(out) if out.exists() else {}
        complete = b'"complete": true' in found.get("metadata.json", b"")
        for name, data in found.items():
            if not name.startswith((".", "metadata")):
                assert data == wanted[name], f"{name} has other bytes"
        if complete:
            assert found == wanted
            for path in out.iterdir():
                path.unlink()
    process = run(bundle, source, format_, out, cache)
    process.communicate()
    assert content(out) == wanted
    return alive


def wait_for_changes(out, process, count):
    """Wait until the folder has changed so often, or the process has ended."""
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    seen = None
    changes = itertools.count()
    while not ended.is_set():
        state = listed(out)
        if state != seen:
            seen = state
            if next(changes) >= count:
                return
        os.sched_yield()


def listed(out):
    """Return names and sizes in a folder, as far as they stay while they are looked at."""
    try:
        with os.scandir(out) as entries:
            return [(entry.name, entry.stat().st_size) for entry in entries]
    except OSError:
        return None


if __name__ == "__main__":
    bundle, source, format_, kills, seed, folder = sys.argv[1:]
    found = killed(Path(bundle), Path(source), format_, int(kills), int(seed), Path(folder))
    print(f"{kills} kills, {found} of a run that had not ended: all bytes equal")
