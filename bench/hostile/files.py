"""Bad tokenizer.json files through an export, and by a bundle with matching digests through a start.

Each is tried in a fork of this process, which has imported JAX and not touched a device, so that it
takes a part of a second; the first of each kind goes through a server's start as well. 300 files of
each of 21 kinds take about 20 minutes on two cores.
"""

import collections
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.fuzz.mutations import forge
from bench.hostile import small
from bench.hostile.tokenizers import KINDS
from bench.serving.process import free_port
from export.errors import ExportError
from export.preprocess import Text
from export.raw_inputs import open_raw_inputs
from export.spec import ExportSpec
from runtime.bundle import open_bundle
from runtime.errors import BundleError
from runtime.golden_check import check_goldens
from runtime.loading import load

_TOKENIZER = "preprocess/0/tokenizer.json"
# Twice what the process that tries a tokenizer may compute.
_LONGEST_S = 150
_LINE = 1000
_REFUSED, _ACCEPTED = "refused", "accepted"


class Tried(NamedTuple):
    """What became of the files of a kind.

    Attributes:
      kind: of them.
      outcomes: of export, load and start, and what became of a file there, to the number of files.
      slowest_s: seconds that one file took at most, its start aside.
    """

    kind: str
    outcomes: collections.Counter[tuple[str, str]]
    slowest_s: float


def run(folder: Path, each: int, seed: int, only: Sequence[str] | None = None) -> int:
    """Try so many files of each kind, a kind on each core; print what became of them.

    Returns:
      The exit status.
    """
    bundle = small.made(folder / "small")
    kinds = list(only or KINDS)
    task = functools.partial(_tried, folder=folder, bundle=bundle, each=each, seed=seed)
    bad = total = 0
    # Forks, of which each forks for its files: this process has no threads before.
    context = multiprocessing.get_context("fork")
    with context.Pool(min(len(os.sched_getaffinity(0)), len(kinds))) as pool:
        for tried in pool.imap(task, kinds):
            print(_line(tried), flush=True)
            total += each
            bad += sum(n for (_, w), n in tried.outcomes.items() if w not in (_REFUSED, _ACCEPTED))
    print(f"{total} files of {len(kinds)} kinds: {bad} did harm")
    return int(bool(bad))


def _tried(kind: str, *, folder: Path, bundle: Path, each: int, seed: int) -> Tried:
    """Try files of a kind."""
    rng = random.Random(f"{seed}-{kind}")  # noqa: S311 (no secret)
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest = 0.0
    for number in range(each):
        data = KINDS[kind](small.file(), rng)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            begin = time.monotonic()
            outcomes["export", exported(data, Path(out))] += 1
            forged = _forged(bundle, Path(out) / "forged", data)
            outcomes["load", in_a_fork(lambda f=forged: _load(f))] += 1
            slowest = max(slowest, time.monotonic() - begin)
            if number == 0:
                outcomes["start", started(forged)] += 1
    return Tried(kind, outcomes, slowest)


def _line(tried: Tried) -> str:
    ways = []
    for way in ("export", "load", "start"):
        found = [f"{what} {n}" for (w, what), n in sorted(tried.outcomes.items()) if w == way]
        ways.append(f"{way}: {', '.join(found)}")
    return f"{tried.kind}: {'; '.join(ways)}; slowest {tried.slowest_s:.1f} s"


def exported(data: bytes, folder: Path) -> str:
    """Return what an export makes of a tokenizer.json."""
    path = folder / "tokenizer.json"
    path.write_bytes(data)

    def export() -> str:
        spec = ExportSpec(**small.fields(), preprocess=[Text("text", tokenizer=path)]).checked()
        open_raw_inputs(spec, lambda _: None)
        return _ACCEPTED

    return in_a_fork(export)


def _forged(bundle: Path, out: Path, data: bytes) -> Path:
    shutil.copytree(bundle, out)
    (out / _TOKENIZER).write_bytes(data)
    forge(out, _TOKENIZER)
    return out


def _load(bundle: Path) -> str:
    model = load(open_bundle(bundle), "cpu")
    return _ACCEPTED if all(check.ok for check in check_goldens(model)[0]) else _REFUSED


def started(bundle: Path) -> str:
    """Return what a server's start makes of a bundle: it ends with one line, or becomes ready."""
    ports = ["--port", str(free_port()), "--grpc-port", "-1"]
    command = [
        sys.executable,
        "-m",
        "server",
        "--host",
        "127.0.0.1",
        *ports,
        "--bundle",
        str(bundle),
    ]
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=small.ROOT, stdout=log, stderr=errors)
        end = time.monotonic() + _LONGEST_S
        while process.poll() is None and not _contains(log, "ready: http"):
            if time.monotonic() > end:
                process.kill()
                return f"not done after {_LONGEST_S} s"
            time.sleep(0.05)
        ready = process.poll() is None
        if ready:
            process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        errors.seek(0)
        lines = errors.read().splitlines()
    if ready:
        return _ACCEPTED if status == 0 and not lines else f"ended with {status}: {lines[:1]}"
    fits = status in (3, 4) and len(lines) == 1 and len(lines[0]) <= _LINE
    return _REFUSED if fits else f"ended with {status} and {len(lines)} lines: {lines[:1]}"


def _contains(log: "tempfile._TemporaryFileWrapper[str]", text: str) -> bool:
    log.seek(0)
    return text in log.read()


def in_a_fork(task: Callable[[], str]) -> str:
    """Run a task in a fork; return its result, what is wrong with its error, or what ended it."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            signal.alarm(_LONGEST_S)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            try:
                os.write(answer.fileno(), json.dumps(_outcome(task)).encode())
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        written = answer.read()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return str(json.loads(written)) if written else "ended without an answer"


def _outcome(task: Callable[[], str]) -> str:
    try:
        return task()
    except (ExportError, BundleError) as error:
        text = str(error)
        return (
            _REFUSED if len(text) <= _LINE and text.isprintable() else f"refused by {text[:200]!r}"
        )
    except BaseException as error:  # noqa: BLE001 (whatever it is)
        return f"{type(error).__name__}: {str(error)[:200]}"
