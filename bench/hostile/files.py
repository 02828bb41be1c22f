"""Bad tokenizer.json files through an export, and by a bundle with matching digests through a start.

Each is tried in a fork of this process, which has imported JAX and not touched a device, so that it
takes a part of a second; the first of each kind goes through a server's start as well.
"""

import collections
import copy
import json
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


def run(folder: Path, each: int, seed: int, only: Sequence[str] | None = None) -> int:
    """Try so many files of each kind; print what became of them, and return the exit status."""
    bundle = small.made(folder / "small")
    outcomes: collections.Counter[tuple[str, str, str]] = collections.Counter()
    slowest: dict[str, float] = collections.defaultdict(float)
    chosen = {kind: KINDS[kind] for kind in only or KINDS}
    for kind, make in chosen.items():
        rng = random.Random(f"{seed}-{kind}")  # noqa: S311 (no secret)
        for number in range(each):
            data = make(copy.deepcopy(small.file()), rng)
            with tempfile.TemporaryDirectory(dir=folder) as out:
                begin = time.monotonic()
                outcomes[kind, "export", exported(data, Path(out))] += 1
                forged = _forged(bundle, Path(out) / "forged", data)
                outcomes[kind, "load", in_a_fork(lambda f=forged: _load(f))] += 1
                slowest[kind] = max(slowest[kind], time.monotonic() - begin)
                if number == 0:
                    outcomes[kind, "start", started(forged)] += 1
        print(_line(kind, outcomes, slowest[kind]), flush=True)
    bad = sum(n for (*_, what), n in outcomes.items() if what not in (_REFUSED, _ACCEPTED))
    total = sum(n for (_, way, _), n in outcomes.items() if way == "export")
    print(f"{total} files of {len(chosen)} kinds: {bad} did harm")
    return int(bool(bad))


def _line(kind: str, outcomes: collections.Counter[tuple[str, str, str]], slowest: float) -> str:
    ways = []
    for way in ("export", "load", "start"):
        found = [
            f"{what} {n}" for (k, w, what), n in sorted(outcomes.items()) if (k, w) == (kind, way)
        ]
        ways.append(f"{way}: {', '.join(found)}")
    return f"{kind}: {'; '.join(ways)}; slowest {slowest:.1f} s"


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
