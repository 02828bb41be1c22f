"""Whether a bundle compiles for GPUs that are not here, and fits into their memory.

Each card has a process of its own: an incomplete description ends one, and so may a program. It needs
XLA's CUDA plugin, which has no place where tests or servers run, since JAX would look for a GPU at
every start; so it may be in another environment than this one.
"""

import contextlib
import importlib.metadata
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.accelerators import CARDS, Card, size
from runtime.bundle import Bundle
from runtime.card_report import CardReport, ProgramOnCard
from runtime.child_process import python_command
from runtime.description import columns
from runtime.errors import BundleError, IncompatibleProgram, printable
from runtime.guard import signal_name
from runtime.signature import bucket_name

# Python, JAX and the plugin, before the first program.
_START_S = 300.0
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
# Of a checkout: `./build.sh gpucheck` makes it.
_ENVIRONMENT = Path(__file__).resolve().parents[1] / "build" / "gpucheck" / "bin" / "python"
_CHILD = """
import sys
from runtime.guard import mark_expendable
mark_expendable()
from runtime.gpu_target import main
main(sys.argv[1:])
"""
_VERSIONS = """
import importlib.metadata, json
found = {d.metadata["name"]: d.version for d in importlib.metadata.distributions()}
print(json.dumps({n: found[n] for n in ("jax", "jaxlib", *PLUGINS) if n in found}))
"""
# The compute capability from which NVIDIA's GPUs have it.
_BFLOAT16 = (8, 0)
# What XLA's log lines begin with, and Python's last words of a traceback.
_LOG_LINE = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ \S+\] ")

Progress = Callable[[str], None]


class NoPlugin(Exception):
    """There is no environment with XLA's CUDA plugin; the message says how to make one."""


def check_cards(
    bundle: Bundle,
    cards: Sequence[Card],
    *,
    everything: bool = False,
    limit_s: float,
    progress: Progress,
) -> CardReport:
    """Compile programs of a bundle for cards, one card after the other.

    Args:
      bundle: opened; its digests are checked as programs are read.
      cards: to compile for.
      everything: compile every program; else the smallest and the largest of each group.
      limit_s: seconds that each may take.
      progress: called with a sentence before each.

    Raises:
      NoPlugin: nothing here compiles for GPUs.
      IncompatibleProgram: the bundle was not lowered for cuda.
      BundleError: the check itself could not begin.
    """
    if "cuda" not in bundle.manifest.platforms:
        raise IncompatibleProgram(
            f"bundle {bundle.path}: expected platform cuda, got "
            f"{', '.join(bundle.manifest.platforms)}; export with --platforms cpu,cuda"
        )
    python, versions = find_environment()
    names = chosen_programs(bundle, everything=everything)
    found: list[ProgramOnCard] = []
    for card in cards:
        left = list(names)
        while left:
            done = list(_compiled(python, bundle, card, left, limit_s, progress))
            found += done
            # What ended the process is among them; the others get another one.
            left = [name for name in left if name not in {one.program for one in done}]
    return CardReport(bundle=bundle.digest, versions=versions, programs=tuple(found))


def chosen_programs(bundle: Bundle, *, everything: bool) -> list[str]:
    """Return the names of the programs to compile, in the order of the manifest.

    Args:
      bundle: opened.
      everything: all of them; else the smallest and the largest batch of each combination of axis
        sizes: what differs between batches is the sizes of arrays, and memory grows with them.
    """
    signature = bundle.manifest.signature
    groups: dict[tuple[int, ...], list[int]] = {}
    for program in bundle.manifest.programs:
        sizes = tuple(program.axes[axis.name] for axis in signature.axes)
        groups.setdefault(sizes, []).append(program.batch)
    return [
        bucket_name(signature, sizes, batch)
        for sizes, batches in groups.items()
        for batch in batches
        if everything or batch in (min(batches), max(batches))
    ]


def table(report: CardReport) -> str:
    """Write a report for people."""
    header = ("card", "program", "compiles", "temp", "in all", "of memory", "custom calls")
    rows = [
        (
            one.card,
            one.program,
            f"in {one.seconds:.1f} s" if one.compiles else "NO",
            size(one.temp_bytes) if one.compiles else "",
            size(one.needed_bytes) if one.compiles else "",
            _share(one),
            ", ".join(one.custom_calls),
        )
        for one in report.programs
    ]
    return columns([header, *rows])


def _share(one: ProgramOnCard) -> str:
    if not one.compiles:
        return ""
    share = one.needed_bytes / CARDS[one.card].usable_bytes()
    return f"{share:.0%}" if one.fits else f"{share:.0%}, TOO MUCH"


def _compiled(
    python: str,
    bundle: Bundle,
    card: Card,
    names: Sequence[str],
    limit_s: float,
    progress: Progress,
) -> Iterator[ProgramOnCard]:
    """Compile programs in one process, until all are or it ends."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with _lines_of(_command(python, bundle, card, names), log) as next_line:
            current, wait_s = "", _START_S
            while True:
                try:
                    line = next_line(wait_s)
                except queue.Empty:
                    if not current:
                        raise BundleError(
                            f"card {card.name}: the process that compiles for it did not begin within "
                            f"{_START_S:.0f} s"
                        ) from None
                    reason = f"it was not compiled within {limit_s:g} s"
                    yield ProgramOnCard(card=card.name, program=current, reason=reason)
                    return
                if isinstance(line, int):
                    break
                said = json.loads(line)
                if "begin" in said:
                    current, wait_s = said["begin"], limit_s
                    progress(f"compiling {current} for {card.name}")
                else:
                    current, wait_s = "", limit_s
                    yield _from_child(card, said)
        if line == 0 and not current:
            return
        log.seek(0)
        ended = signal_name(-line) if line < 0 else f"exit status {line}"
        reason = f"it ended the process that compiled it: {ended}"
        if last := _last_words(log.read()):
            reason += f" ({last})"
        if not current:
            raise BundleError(f"card {card.name}: {reason}")
        yield ProgramOnCard(card=card.name, program=current, reason=reason)


def _command(python: str, bundle: Bundle, card: Card, names: Sequence[str]) -> list[str]:
    command = python_command(_CHILD, python=python)
    return [*command, os.path.abspath(bundle.path), card.name, *names]


def _from_child(card: Card, said: dict[str, Any]) -> ProgramOnCard:
    said["custom_calls"] = tuple(said.get("custom_calls", ()))
    if "reason" in said:
        said["reason"] = printable(said["reason"] + _advice(card, said["reason"]))
    return ProgramOnCard(card=card.name, **said)


def _advice(card: Card, reason: str) -> str:
    if "BF16" not in reason.upper() or card.capability >= _BFLOAT16:
        return ""
    other = next(name for name, one in CARDS.items() if one.capability >= _BFLOAT16)
    return (
        f"; {card.name} has no bfloat16 in hardware: compute in float16 or float32, or choose a card "
        f"from {other} on"
    )


@contextlib.contextmanager
def _lines_of(command: list[str], log: Any) -> Iterator[Callable[[float], str | int]]:
    """Run a process within the context.

    Yields:
      What returns its next line of JSON, or its exit status after the last; raises queue.Empty where
      that takes longer than the seconds it is called with.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    lines: queue.SimpleQueue[str | int] = queue.SimpleQueue()
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process:

        def read() -> None:
            for line in process.stdout or ():
                if line.startswith("{"):
                    lines.put(line)
            lines.put(process.wait())

        reader = threading.Thread(target=read, name="compiles", daemon=True)
        reader.start()
        try:
            yield lambda wait_s: lines.get(timeout=wait_s)
        finally:
            process.kill()
            reader.join()


def _last_words(log: str) -> str:
    lines = [_LOG_LINE.sub("", line).strip() for line in log.splitlines()]
    return printable(next((line for line in reversed(lines) if line), ""))[:300]


def find_environment() -> tuple[str, dict[str, str]]:
    """Return a Python that has the plugin of its jax, and the versions there.

    Raises:
      NoPlugin: there is none.
    """
    versions = {name: v for name in ("jax", "jaxlib", *_PLUGINS) if (v := _version(name))}
    if any(name in versions for name in _PLUGINS):
        return _matching(sys.executable, versions)
    if _ENVIRONMENT.exists():
        code = _VERSIONS.replace("PLUGINS", repr(_PLUGINS))
        done = subprocess.run(  # noqa: S603
            [str(_ENVIRONMENT), "-c", code], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return _matching(str(_ENVIRONMENT), json.loads(done.stdout))
    jax = versions.get("jax", "")
    raise NoPlugin(
        f"expected XLA's CUDA plugin, got none; in a checkout ./build.sh gpucheck makes an environment "
        f"with it; elsewhere make one of its own with hloserve, jax=={jax} and jax-cuda12-plugin=={jax}, and "
        "check the bundle there"
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _matching(python: str, versions: dict[str, str]) -> tuple[str, dict[str, str]]:
    plugin = next((name for name in _PLUGINS if name in versions), "")
    if versions.get(plugin) != versions.get("jax"):
        raise NoPlugin(
            f"{python}: expected {plugin or _PLUGINS[0]} of jax {versions.get('jax')}, got "
            f"{versions.get(plugin, 'none')}; install the same version of both"
        )
    return python, versions
